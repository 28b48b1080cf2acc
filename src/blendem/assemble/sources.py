"""Images, fluxes and shapes of all sources of a chunk, from their posteriors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from blendem.config import InferConfig
from blendem.inference.amplitude import plane_scale
from blendem.io.blends import BlendSet
from blendem.measure.light_curves import Exposure, LightCurve, as_star
from blendem.measure.sources import (
    observed_bands,
    photometry_columns,
    shape_columns,
    source_images,
)
from blendem.prior.gaussian import Basis
from blendem.prior.magnify import LargeStamps, kinds_of
from blendem.survey.extract import SourceFlag

SHAPES_AT_ONCE = 64  # galaxies whose draws are kept as images


@dataclass(frozen=True)
class Measured:
    """What the posteriors say of every source of a chunk, by row of `BlendSet.sources`.

    Attributes:
        columns: Columns of the catalog.
        mean: Posterior mean image [flux unit], on a stamp of its own side; None without a result.
        std: Standard deviation of the draws of it, likewise.
        scale: Amplitude `s_k` [flux unit]; NaN without a result.
        center: Position in its blend (y, x) [model pixel]; NaN likewise.
        flux: Flux of every draw [flux unit].
        is_star: Point sources.
        zoom: `Blend.zoom`.
        kinds: Basis of each zoom.
        curves: `LightCurve` of the variable sources.
    """

    columns: dict[str, np.ndarray]
    mean: list[Float[np.ndarray, "band _ _"] | None]
    std: list[Float[np.ndarray, "band _ _"] | None]
    scale: Float[np.ndarray, " source"]
    center: Float[np.ndarray, "source 2"]
    flux: Float[np.ndarray, "draw source band"]
    is_star: Bool[np.ndarray, " source"]
    zoom: Int[np.ndarray, " source"]
    kinds: Sequence[Basis | LargeStamps]
    # `LightCurve`: those of unequal length do not pass for one annotation.
    curves: dict[int, tuple] = field(default_factory=dict)


def light_curves(
    data: BlendSet,
    planes: Mapping[str, list[Exposure]],
    bands: Sequence[str],
    stats: Mapping[str, Any],
    post: dict[str, Any],
) -> tuple[dict[int, tuple], dict[int, Bool[np.ndarray, " band"]]]:
    """Fluxes of the variable sources that have a result, by row.

    What follows knows sources of one flux per band: in `post` their coordinates become those of a
    star with the mean flux of each band.

    Args:
        data: The blends.
        planes: Exposures of every field.
        bands: Of the model.
        stats: Statistics of the chunk.
        post: Posteriors of the chunk; changed in place.

    Returns:
        Light curves, and the bands in which each source has data while it shines.
    """
    curves, seen = {}, {}
    for k in np.flatnonzero(data.sources["type"] == "variable"):
        if not np.isfinite(post["mean"][k]).all():
            continue
        stack, index, slot = data.place(k)
        group = stats[f"stack_{stack}"]
        light = (group[name][index, slot] for name in ("plane_flux", "plane_error"))
        shines = np.asarray(data.stacks[stack].shines[index, slot])
        curve = LightCurve.of(
            plane_scale(*light), shines, post["mean"][k], post["z"][:, k]
        )
        fluxes = curve.band_means(planes[data.sources["field"][k]], bands)
        scale, n_modes = float(group["scale"][index, slot]), post["mean"].shape[-1]
        for name, value in zip(("mean", "z"), fluxes, strict=True):
            post[name][..., k, :] = as_star(scale, value, n_modes)
        curves[int(k)], seen[int(k)] = curve, np.isfinite(fluxes[0])
    return curves, seen


def measure_sources(
    data: BlendSet,
    basis: Basis,
    stats: Mapping[str, Any],
    post: Mapping[str, Any],
    infer: InferConfig,
    planes: Mapping[str, list[Exposure]],
) -> Measured:
    """Images, fluxes and shapes of all sources of the chunk.

    Args:
        data: The blends.
        basis: Of the prior.
        stats: Statistics of the chunk.
        post: Posteriors of the chunk; those of variable sources are changed by `light_curves`.
        infer: Settings of the inference.
        planes: Exposures of every field.
    """
    n, n_bands = len(data.sources["id"]), len(basis.mean)
    curves, variable = light_curves(data, planes, basis.bands, stats, post)
    zoom = data.zoom
    kinds = kinds_of(basis, zoom)
    draws = post["z"].shape[0]
    reference = basis.bands.index(infer.reference_band)
    is_star = data.sources["type"] != "galaxy"
    # Every image has the side of its own kind.
    mean, std, scale = [None] * n, [None] * n, np.full(n, np.nan)
    total = np.full((n, n_bands), np.nan)
    flux = np.full((draws, n, n_bands), np.nan)
    pixel_scale = float(basis.pixel_scale)
    shapes = shape_columns(
        np.full((n, 1, 1, 1), np.nan, np.float32), is_star, pixel_scale
    )
    waiting = [[] for _ in kinds]
    center = np.full((n, 2), np.nan)
    moved = np.zeros(n, bool)
    seen = np.zeros((n, n_bands), bool)
    in_stack = [
        observed_bands(
            [o.variance for o in stack.observations],
            [o.band_index for o in stack.observations],
            n_bands,
        )
        for stack in data.stacks
    ]
    for k in range(n):
        stack, index, slot = data.place(k)
        if stack < 0 or not np.isfinite(post["mean"][k]).all():
            continue
        group = stats[f"stack_{stack}"]
        seen[k] = in_stack[stack][index] & variable.get(k, True)
        scale[k] = group["scale"][index, slot]
        images = source_images(
            kinds[zoom[k]],
            float(scale[k]),
            bool(is_star[k]),
            post["mean"][k],
            post["z"][:, k],
            reference,
        )
        mean[k], std[k] = images.mean.astype(np.float32), images.std.astype(np.float32)
        total[k] = mean[k].sum((-2, -1), dtype=float)
        flux[:, k] = images.flux
        if seen[k, reference]:
            waiting[zoom[k]].append((k, images.reference))
            if len(waiting[zoom[k]]) == SHAPES_AT_ONCE:
                _add_shapes(shapes, waiting[zoom[k]], is_star, pixel_scale)
                waiting[zoom[k]].clear()
        center[k] = (
            group["centers"][index, slot] + infer.centroid_sigma * post["shift"][k]
        )
        start = data.stacks[stack].centers[index, slot]
        bound = 3 * infer.centroid_prior
        moved[k] = infer.recentre and (
            np.abs(group["centers"][index, slot] - start).max() > 0.99 * bound
        )
    for group in filter(None, waiting):
        _add_shapes(shapes, group, is_star, pixel_scale)
    names = data.sources["field"]
    magzero = np.array([data.fields[name]["magzero"] for name in names])
    columns = {
        key: data.sources[key].copy() for key in ("id", "x", "y", "ra", "dec", "type")
    }
    columns["blend"] = data.blends["number"][data.sources["blend"]]
    # Of a band without data the draws say what the prior expects, which is no measurement.
    columns |= photometry_columns(
        np.where(seen, flux, np.nan),
        np.where(seen, total, np.nan),
        basis.bands,
        magzero,
    )
    flags = data.sources["flags"].astype(int)
    no_shape = shapes.pop("no_shape") | (~is_star & ~seen[:, reference])
    flags[no_shape & np.isfinite(scale)] |= SourceFlag.NO_SHAPE
    flags[moved] |= SourceFlag.OFF_CENTER
    flags[np.isnan(scale) & (flags & SourceFlag.TOO_LARGE == 0)] |= SourceFlag.FAILED
    columns |= shapes
    columns["magnification"] = 2**zoom
    columns["n_samples"] = np.where(np.isnan(scale), 0, draws)
    columns["flags"] = flags
    return Measured(
        columns, mean, std, scale, center, flux, is_star, zoom, kinds, curves
    )


def _add_shapes(
    columns: dict[str, np.ndarray],
    draws: list[tuple[int, np.ndarray]],
    is_star: np.ndarray,
    pixel_scale: float,
) -> None:
    """Fill in the shapes of a few sources: rows, and images of their draws on stamps of one side."""
    rows = np.array([k for k, _ in draws])
    images = np.stack([one for _, one in draws])
    for name, values in shape_columns(images, is_star[rows], pixel_scale).items():
        columns[name][rows] = values
