"""Sources and blends as their observations see them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import numpy as np
from astropy.wcs import WCS
from jaxtyping import Float, Int

from blendem.assemble.sources import Measured
from blendem.blend import Blend, largest_zoom
from blendem.inference.batch import render_of
from blendem.io.blends import BlendSet
from blendem.measure.residuals import corner_of
from blendem.measure.sources import point_image
from blendem.prior.gaussian import Basis
from blendem.prior.magnify import decode_modes, fit_side
from blendem.survey.truth import add_image

OBSERVED_MARGIN = 16  # observed stamps are wider than model stamps by this [pixel]
STD_DRAWS = 16  # draws rendered for the deviation of observed images


@dataclass(frozen=True)
class Observed:
    """Models in the pixels of the observations.

    Attributes:
        mean: Every source as the first observation of its blend sees it [flux unit]; None without a result.
        std: Standard deviation of the draws of it.
        middle: Pixel in the middle of these (y, x).
        sources: Of every blend, its sources in its first observation; None likewise.
        totals: Of every blend, the sum of its sources in each observation; None likewise.
    """

    mean: list[Float[np.ndarray, "band side side"] | None]
    std: list[Float[np.ndarray, "band side side"] | None]
    middle: Int[np.ndarray, "source 2"]
    sources: list[Float[np.ndarray, "source plane height width"] | None]
    totals: list[list[Float[np.ndarray, "plane _ _"]] | None]


def smallest_scale(data: BlendSet) -> float:
    """Side of a pixel of the first observation of any blend [model pixel], the smallest one."""
    return min(
        (
            float(np.sqrt(abs(np.linalg.det(stack.observations[0].jacobian))).max())
            for stack in data.stacks
        ),
        default=1.0,
    )


def observed_side(stamp: int, scale: float) -> int:
    """Side of the window that holds what an observation sees of a stamp; odd [pixel].

    Args:
        stamp: Side of the stamp [model pixel].
        scale: Side of a pixel of the observation [model pixel].
    """
    return 2 * int(np.ceil(stamp / scale / 2 - 0.5)) + 1 + OBSERVED_MARGIN


def observe(
    data: BlendSet,
    basis: Basis,
    sources: Measured,
    post: Mapping[str, Any],
    batch: int,
) -> Observed:
    """Render posterior means and draws in the pixels of the observations.

    Args:
        data: The blends.
        basis: Of the prior.
        sources: What was measured of the sources.
        post: Posteriors of the chunk.
        batch: Blends rendered at once.
    """
    n, n_bands = len(data.sources["id"]), len(basis.mean)
    n_blends = len(data.blends["field"])
    zoom, kinds = sources.zoom, sources.kinds
    # Stamps are model pixels, images are observed ones.
    scale = smallest_scale(data)
    sides = [observed_side(kind.mean.shape[-1], scale) for kind in kinds]
    out = Observed(
        [None] * n,
        [None] * n,
        np.zeros((n, 2), int),
        [None] * n_blends,
        [None] * n_blends,
    )
    draws = post["z"][: min(STD_DRAWS, len(post["z"]))]
    for number, stack in enumerate(data.stacks):
        padded = stack.present.shape[1]
        rows = np.flatnonzero(data.blends["stack"] == number)
        rows = rows[np.argsort(data.blends["index"][rows])]
        members = [data.members(row) for row in rows]
        centers = np.asarray(stack.centers).copy()
        stamp = kinds[largest_zoom(stack)].mean.shape[-1]

        used = np.concatenate(members)

        def place(values, members=members, padded=padded, stamp=stamp):
            """Images of the sources of the stack, one after the other, blend by blend."""
            images = np.zeros((len(members), padded, n_bands, stamp, stamp), np.float32)
            first = 0
            for i, m in enumerate(members):
                for j in range(len(m)):
                    if values[first + j] is not None:
                        images[i, j] = fit_side(values[first + j], stamp)
                first += len(m)
            return images

        for i, m in enumerate(members):
            centers[i, : len(m)] = np.where(
                np.isfinite(sources.center[m]),
                sources.center[m],
                centers[i, : len(m)],
            )
        sigma = float(basis.psf_sigma)
        point = point_image(stamp, sigma)
        average, images = place([sources.mean[k] for k in used]), []
        apart = _apart(stack, post["offset"][rows])
        for observation, alone in enumerate(apart):
            _shine(average, members, sources, stack, observation, point)
            images += render_of(alone, average, centers, sigma, batch)
        image, totals = images[0], [other.sum(axis=1) for other in images[1:]]
        # Two passes over the draws would need them all: running sums do not.
        total, square = np.zeros_like(image), np.zeros_like(image)
        for z in draws:
            step = np.nan_to_num(z[used] - post["mean"][used]).astype(np.float32)
            amplitude = np.nan_to_num(sources.scale[used]).astype(np.float32)
            amplitude[sources.is_star[used]] = 0.0  # follows from the flux
            delta = decode_modes(kinds, zoom[used], step, stamp)
            delta *= amplitude[:, None, None, None]
            seen = render_of(apart[0], place(delta), centers, sigma, batch)[0]
            total += seen
            square += seen**2
        deviation = np.sqrt(
            np.maximum(square - total**2 / len(draws), 0) / (len(draws) - 1)
        )
        bands = list(stack.observations[0].band_index)
        for i, (row, m) in enumerate(zip(rows, members, strict=True)):
            if not np.isfinite(sources.scale[m]).all():
                continue
            out.sources[row] = image[i, : len(m)]
            out.totals[row] = [image[i, : len(m)].sum(axis=0)]
            out.totals[row] += [total[i] for total in totals]
            first = data.blend(row).observations[0]
            for j, k in enumerate(m):
                at = np.asarray(first.to_observed(centers[i, j]))
                side = sides[zoom[k]]
                low = np.round(at).astype(int) - side // 2
                std = deviation[i, j]
                if sources.is_star[k]:
                    value, error = _star_flux(sources, k, stack, 0)
                    std = np.abs(
                        image[i, j]
                        * (error / np.where(value == 0, 1, value))[:, None, None]
                    )
                for images_of, seen in ((out.mean, image[i, j]), (out.std, std)):
                    images_of[k] = in_bands(_window(seen, low, side), bands, n_bands)
                out.middle[k] = data.corner(row) + low + side // 2
    return out


def _star_flux(
    sources: Measured, k: int | np.integer, stack: Blend, observation: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean flux of a star in the bands of an observation, and its error."""
    if k in sources.curves:
        curve, here = sources.curves[k], list(stack.planes[observation])
        return np.nan_to_num(curve.mean[here]), np.nan_to_num(curve.error[here])
    bands = list(stack.observations[observation].band_index)
    error = sources.flux[:, k].std(axis=0, ddof=1)[bands]
    return sources.mean[k].sum((-2, -1))[bands], error


def _shine(
    images: np.ndarray,
    members: list[np.ndarray],
    sources: Measured,
    stack: Blend,
    observation: int,
    point: np.ndarray,
) -> None:
    """Give the variable sources among `images` (blend, source, band, y, x) their flux at the time
    of an observation."""
    bands = list(stack.observations[observation].band_index)
    for i, m in enumerate(members):
        for j in np.flatnonzero(np.isin(m, list(sources.curves))):
            value, _ = _star_flux(sources, m[j], stack, observation)
            images[i, j] = 0.0
            images[i, j][bands] = value[:, None, None] * point


def _apart(stack: Blend, offsets: np.ndarray) -> list[Blend]:
    """A stack as each of its observations alone sees it.

    `offsets` (blend, observation, 2) are those of all but the first [model pixel], if any were
    fitted.
    """
    alone = []
    for number, one in enumerate(stack.observations):
        if (
            number and number <= offsets.shape[1]
        ):  # as many as any blend with a result has
            by = np.nan_to_num(offsets[:, number - 1]).astype(np.float32)
            one = eqx.tree_at(lambda o: o.offset, one, one.offset - by)
        alone.append(eqx.tree_at(lambda b: b.observations, stack, (one,)))
    return alone


def _window(image, low, side):
    """Window of an image that may stick out of it; zero outside."""
    padded = np.pad(image, [(0, 0), (side, side), (side, side)])
    y, x = low + side
    return padded[:, y : y + side, x : x + side]


def in_bands(
    planes: Float[np.ndarray, "plane height width"],
    order: Sequence[int],
    n: int,
    fill: float = 0.0,
) -> Float[np.ndarray, "band height width"]:
    """Planes of an observation among those of the model; absent bands are filled."""
    out = np.full((n, *planes.shape[1:]), fill, np.float32)
    out[order] = planes
    return out


def on_one_side(
    images: Sequence[Float[np.ndarray, "band _ _"] | None], side: int, n_bands: int
) -> Float[np.ndarray, "source band side side"]:
    """Images centred on stamps of one side; NaN where there is none."""
    out = np.full((len(images), n_bands, side, side), np.nan, np.float32)
    for i, image in enumerate(images):
        if image is not None:
            out[i] = fit_side(image, side)
    return out


def mosaic_of(
    data: BlendSet,
    field: str,
    models: Sequence[list[Float[np.ndarray, "plane _ _"]] | None],
    number: int,
    shape: tuple[int, int, int],
    wcs: WCS | None,
    first_wcs: WCS | None,
) -> Float[np.ndarray, "plane height width"]:
    """Models of the blends of a field in an observation of it that is not the first.

    Args:
        data: The blends.
        field: Name of the field.
        models: Of every blend, in each of its observations; None: left out.
        number: Of the observation.
        shape: Of its image.
        wcs, first_wcs: Of this and of the first observation; None where pixels are the same.
    """
    model = np.zeros(shape, np.float32)
    for row in np.flatnonzero(data.blends["field"] == field):
        if models[row] is not None:
            cut = data.blend(row).observations
            corner = corner_of(cut[number], cut[0], data.corner(row), wcs, first_wcs)
            add_image(model, models[row][number], corner)
    return model
