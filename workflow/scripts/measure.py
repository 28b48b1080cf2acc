"""Catalog, model images and draws of every field of a chunk."""

import logging
from pathlib import Path

import equinox as eqx
import numpy as np
from astropy.table import Table

from blendem.blend import Blend, largest_zoom
from blendem.config import BlendsConfig, InferConfig
from blendem.inference.amplitude import plane_scale
from blendem.inference.batch import render_of
from blendem.io.blends import BlendSet, read_blends
from blendem.io.fetch import sha256_of
from blendem.io.fields import ObservedField, read_observation
from blendem.io.priors import read_prior
from blendem.io.products import (
    Samples,
    View,
    read_h5,
    write_catalog,
    write_h5,
    write_models,
    write_samples,
)
from blendem.io.table import FieldRow
from blendem.logs import configure_logging
from blendem.measure.light_curves import Exposure, LightCurve, as_star, stacked
from blendem.measure.metrics import blendedness
from blendem.measure.residuals import (
    BandScores,
    corner_of,
    score_residual,
)
from blendem.measure.sources import (
    observed_bands,
    photometry_columns,
    point_image,
    shape_columns,
    source_images,
)
from blendem.prior.gaussian import Basis
from blendem.prior.magnify import decode_modes, fit_side, kinds_of, magnified_side
from blendem.survey.extract import SourceFlag
from blendem.survey.truth import add_image

LOG = logging.getLogger(__name__)
OBSERVED_MARGIN = 16  # observed stamps are wider than model stamps by this [pixel]
BAD_FIT = 1.5  # chi2 over its expectation above which sources are flagged
SAMPLER_COLUMNS = (
    "negative_flux",
    "solve_residual",
    "unconverged",
    "guards",
    "solve_iterations",
    "failed_draws",
    "outside_basis",
    "outside_chi2",
)
OBSERVATION_COLUMNS = ("field", "number", "observation", "instrument", "band")
OBSERVATION_COLUMNS += BandScores._fields
SHAPES_AT_ONCE = 64  # galaxies whose draws are kept as images
STD_DRAWS = 16  # draws rendered for the deviation of observed images


def main(
    rows: list[FieldRow],
    blends: Path,
    statistics: Path,
    posterior: Path,
    prior: Path,
    catalogs: list[Path],
    models: list[Path],
    samples: list[Path],
    scores: Path,
    infer: InferConfig,
    config: BlendsConfig,
    meta: dict,
) -> None:
    """Measure all sources at once, then write field after field."""
    data = read_blends(blends)
    basis = read_prior(prior)[0].basis
    stats, _ = read_h5(statistics)
    post, _ = read_h5(posterior)
    meta = meta | {"PRIOR": sha256_of(prior)}
    planes = data.exposures(rows)
    curves = _light_curves(data, planes, stats, post)
    # What follows knows sources of one flux per band.
    constant = {
        k: curve.band_means(planes[data.sources["field"][k]], basis.bands)
        for k, curve in curves.items()
    }
    for k, fluxes in constant.items():
        stack, index, slot = data.place(k)
        scale = float(stats[f"stack_{stack}"]["scale"][index, slot])
        for name, value in zip(("mean", "z"), fluxes, strict=True):
            post[name][..., k, :] = as_star(scale, value, len(basis.modes))
    measured = {k: np.isfinite(mean) for k, (mean, _) in constant.items()}
    sources = _measure(data, basis, stats, post, infer, measured) | {"curves": curves}
    rendered = _render(data, basis, sources, post, config.batch)
    instruments = {n: [r.instrument for r in rows if r.field == n] for n in data.fields}
    _finish_blends(data, sources, rendered, stats, post, instruments)
    columns = sources["columns"]
    for path_catalog, path_models, path_samples in zip(
        catalogs, models, samples, strict=True
    ):
        name = path_catalog.stem
        observed, *others = [read_observation(r) for r in rows if r.field == name]
        chosen = np.flatnonzero(data.sources["field"] == name)
        wcs = observed.wcs
        table = Table({key: value[chosen] for key, value in columns.items()})
        if wcs is not None:
            table["ra"], table["dec"] = wcs.celestial.all_pix2world(
                table["x"], table["y"], 0
            )
        varying = [k for k in chosen if k in curves]
        light = stacked(
            [curves[k].table(data.sources["id"][k], planes[name]) for k in varying]
        )
        write_catalog(
            path_catalog, table, meta, flux_unit=observed.unit, light_curves=light
        )
        first = [total and total[0] for total in rendered["total"]]
        model = data.mosaic(name, first, observed.image.shape)
        order = [basis.bands.index(b) for b in observed.bands]
        most = int(sources["zoom"][chosen].max(initial=0))
        side = magnified_side(basis.mean.shape[-1], most)
        wide = _observed_side(data, side)
        known = np.array([rendered["mean"][k] is not None for k in chosen], bool)
        write_models(
            path_models,
            sources=table["id", "x", "y", "blend", "magnification"],
            bands=basis.bands,
            model_mean=_on_one_side(sources["mean"], chosen, side, basis),
            model_std=_on_one_side(sources["std"], chosen, side, basis),
            observed_mean=_on_one_side(rendered["mean"], chosen, wide, basis),
            observed_std=_on_one_side(rendered["std"], chosen, wide, basis),
            corner=np.where(known[:, None], rendered["middle"][chosen] - wide // 2, 0),
            meta=meta,
            unit=observed.unit,
            image=_in_bands(observed.image, order, len(basis.bands)),
            model=_in_bands(model, order, len(basis.bands)),
            variance=_in_bands(observed.variance, order, len(basis.bands), np.inf),
            wcs=wcs,
            views=[
                _view(data, name, rendered["total"], number, other, observed)
                for number, other in enumerate(others, start=1)
            ],
        )
        write_samples(
            path_samples,
            Samples(
                ids=data.sources["id"][chosen],
                blend=data.blends["number"][data.sources["blend"][chosen]],
                is_star=sources["is_star"][chosen],
                centers=np.stack([columns["y"], columns["x"]], axis=-1)[chosen],
                scale=sources["scale"][chosen],
                mean=post["mean"][chosen],
                z=post["z"][:, chosen],
                prior_sha256=meta["PRIOR"],
                attrs=meta,
                light_curves=np.concatenate([curves[k].draws for k in varying], axis=1)
                if varying
                else None,
                zoom=sources["zoom"][chosen],
            ),
        )
    table = (
        {key: data.blends[key] for key in ("field", "number", "n_sources", "flags")}
        | {"in_em": stats["in_em"]}
        | {key: np.asarray(value) for key, value in rendered["blends"].items()}
    )
    write_h5(
        scores,
        {"blends": table, "observations": rendered["observations"]},
        {"bands": list(basis.bands)},
    )


def _view(
    data: BlendSet,
    name: str,
    totals: list,
    number: int,
    observed: ObservedField,
    first: ObservedField,
) -> View:
    """An observation of a field but the first, and its model, in the unit of the first."""
    gain = np.float32(10 ** (0.4 * (first.magzero - observed.magzero)))
    model = np.zeros_like(observed.image)
    for b in np.flatnonzero(data.blends["field"] == name):
        if totals[b] is not None:
            cut = data.blend(b).observations
            corner = np.array([data.blends["corner_y"][b], data.blends["corner_x"][b]])
            corner = corner_of(cut[number], cut[0], corner, observed.wcs, first.wcs)
            add_image(model, totals[b][number], corner)
    return View(
        observed.instrument,
        observed.bands,
        gain * observed.image,
        model,
        gain**2 * observed.variance,
        observed.wcs,
    )


def _in_bands(planes, order, n, fill=0.0):
    """Planes of an observation among those of the model; absent bands are filled."""
    out = np.full((n, *planes.shape[1:]), fill, np.float32)
    out[order] = planes
    return out


def _on_one_side(
    images: list[np.ndarray | None], chosen: np.ndarray, side: int, basis: Basis
) -> np.ndarray:
    """Images of the chosen sources, centred on stamps of one side; NaN where there is none."""
    out = np.full((len(chosen), len(basis.mean), side, side), np.nan, np.float32)
    for i, k in enumerate(chosen):
        if images[k] is not None:
            out[i] = fit_side(images[k], side)
    return out


def _observed_side(data: BlendSet, stamp: int) -> int:
    """Side of the window that holds what an observation sees of a stamp; odd [pixel]."""
    scales = [
        np.sqrt(abs(np.linalg.det(stack.observations[0].jacobian))).max()
        for stack in data.stacks
    ]
    side = 2 * int(np.ceil(stamp / min(scales, default=1.0) / 2 - 0.5)) + 1
    return side + OBSERVED_MARGIN


def _light_curves(
    data: BlendSet, planes: dict[str, list[Exposure]], stats: dict, post: dict
) -> dict[int, LightCurve]:
    """Fluxes of the variable sources that have a result, by row."""
    curves = {}
    for k in np.flatnonzero(data.sources["type"] == "variable"):
        if not np.isfinite(post["mean"][k]).all():
            continue
        stack, index, slot = data.place(k)
        group = stats[f"stack_{stack}"]
        light = (group[name][index, slot] for name in ("plane_flux", "plane_error"))
        shines = np.asarray(data.stacks[stack].shines[index, slot])
        curves[int(k)] = LightCurve.of(
            plane_scale(*light), shines, post["mean"][k], post["z"][:, k]
        )
    return curves


def _measure(
    data: BlendSet,
    basis: Basis,
    stats: dict,
    post: dict,
    infer: InferConfig,
    variable: dict[int, np.ndarray],
) -> dict:
    """Images, fluxes and shapes of all sources of the chunk.

    `variable` holds the bands in which each variable source has data while it shines.
    """
    n, n_bands = len(data.sources["id"]), len(basis.mean)
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
        b, slot = data.sources["blend"][k], data.sources["slot"][k]
        stack, index = data.blends["stack"][b], data.blends["index"][b]
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
    return {
        "columns": columns,
        "mean": mean,
        "std": std,
        "scale": scale,
        "center": center,
        "flux": flux,
        "is_star": is_star,
        "zoom": zoom,
        "kinds": kinds,
    }


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


def _render(
    data: BlendSet, basis: Basis, sources: dict, post: dict, batch: int
) -> dict:
    """Posterior mean of every source as its blend's first observation sees it; of blends, as
    every observation does."""
    n, n_bands = len(data.sources["id"]), len(basis.mean)
    zoom, kinds = sources["zoom"], sources["kinds"]
    # Stamps are model pixels, images are observed ones.
    sides = [_observed_side(data, kind.mean.shape[-1]) for kind in kinds]
    out = {
        "mean": [None] * n,
        "std": [None] * n,
        "middle": np.zeros((n, 2), int),  # pixel in the middle of these
        "total": [None] * len(data.blends["field"]),
        "observed": [None] * len(data.blends["field"]),
    }
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
                np.isfinite(sources["center"][m]),
                sources["center"][m],
                centers[i, : len(m)],
            )
        sigma = float(basis.psf_sigma)
        point = point_image(stamp, sigma)
        average, images = place([sources["mean"][k] for k in used]), []
        apart = _apart(stack, post["offset"][rows])
        for observation, alone in enumerate(apart):
            _shine(average, members, sources, stack, observation, point)
            images += render_of(alone, average, centers, sigma, batch)
        image, totals = images[0], [other.sum(axis=1) for other in images[1:]]
        # Two passes over the draws would need them all: running sums do not.
        total, square = np.zeros_like(image), np.zeros_like(image)
        for z in draws:
            step = np.nan_to_num(z[used] - post["mean"][used]).astype(np.float32)
            amplitude = np.nan_to_num(sources["scale"][used]).astype(np.float32)
            amplitude[sources["is_star"][used]] = 0.0  # follows from the flux
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
            if not np.isfinite(sources["scale"][m]).all():
                continue
            out["observed"][row] = image[i, : len(m)]
            out["total"][row] = [image[i, : len(m)].sum(axis=0)]
            out["total"][row] += [total[i] for total in totals]
            corner = np.array(
                [data.blends["corner_y"][row], data.blends["corner_x"][row]]
            )
            first = data.blend(row).observations[0]
            for j, k in enumerate(m):
                at = np.asarray(first.to_observed(centers[i, j]))
                side = sides[zoom[k]]
                low = np.round(at).astype(int) - side // 2
                std = deviation[i, j]
                if sources["is_star"][k]:
                    value, error = _star_flux(sources, k, stack, 0)
                    std = np.abs(
                        image[i, j]
                        * (error / np.where(value == 0, 1, value))[:, None, None]
                    )
                for name, seen in (("mean", image[i, j]), ("std", std)):
                    out[name][k] = np.zeros((n_bands, side, side), np.float32)
                    out[name][k][bands] = _window(seen, low, side)
                out["middle"][k] = corner + low + side // 2
    return out


def _star_flux(
    sources: dict, k: int, stack: Blend, observation: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean flux of a star in the bands of an observation, and its error."""
    if k in sources["curves"]:
        curve, here = sources["curves"][k], list(stack.planes[observation])
        return np.nan_to_num(curve.mean[here]), np.nan_to_num(curve.error[here])
    bands = list(stack.observations[observation].band_index)
    error = sources["flux"][:, k].std(axis=0, ddof=1)[bands]
    return sources["mean"][k].sum((-2, -1))[bands], error


def _shine(
    images: np.ndarray,
    members: list[np.ndarray],
    sources: dict,
    stack: Blend,
    observation: int,
    point: np.ndarray,
) -> None:
    """Give the variable sources among `images` (blend, source, band, y, x) their flux at the time
    of an observation."""
    bands = list(stack.observations[observation].band_index)
    for i, m in enumerate(members):
        for j in np.flatnonzero(np.isin(m, list(sources["curves"]))):
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
        if number and offsets.shape[1]:
            by = np.nan_to_num(offsets[:, number - 1]).astype(np.float32)
            one = eqx.tree_at(lambda o: o.offset, one, one.offset - by)
        alone.append(eqx.tree_at(lambda b: b.observations, stack, (one,)))
    return alone


def _window(image, low, side):
    """Window of an image that may stick out of it; zero outside."""
    padded = np.pad(image, [(0, 0), (side, side), (side, side)])
    y, x = low + side
    return padded[:, y : y + side, x : x + side]


def _finish_blends(data, sources, rendered, stats, post, instruments):
    """Columns that need whole blends: positions, blendedness, chi2; tables of blends and of their
    observations."""
    columns, n = sources["columns"], len(data.sources["id"])
    bands = data.attrs["bands"]
    for b in bands:
        columns[f"blendedness_{b}"] = np.full(n, np.nan)
    columns["chi2_blend"], columns["ndata_blend"] = np.full(n, np.nan), np.zeros(n, int)
    summary = post["blends"]
    names = ["chi2", "expected_chi2", "n_data", "log_evidence"]
    names += [
        f"{kind}_{b}" for kind in ("chi2", "ndata", "autocorrelation") for b in bands
    ]
    blends = {name: np.full(len(rendered["total"]), np.nan) for name in names}
    seen = []
    for row, observed in enumerate(rendered["observed"]):
        if observed is None:
            continue
        m = data.members(row)
        blend = data.blend(row)
        first = blend.observations[0]
        corner = np.array([data.blends["corner_y"][row], data.blends["corner_x"][row]])
        center = np.stack(
            [np.asarray(first.to_observed(c)) for c in sources["center"][m]]
        )
        columns["y"][m], columns["x"][m] = (center + corner).T
        for i, band in enumerate(first.band_index):
            columns[f"blendedness_{bands[band]}"][m] = blendedness(observed[:, i])
        scores = _score_observations(data, blend, row, rendered, stats, post)
        for i, band in enumerate(first.band_index):
            blends[f"chi2_{bands[band]}"][row] = scores[0].chi2[i]
            blends[f"ndata_{bands[band]}"][row] = scores[0].n_data[i]
            value = scores[0].autocorrelation[i]
            blends[f"autocorrelation_{bands[band]}"][row] = value
        name = str(data.blends["field"][row])
        seen += [
            {
                "field": name,
                "number": data.blends["number"][row],
                "observation": number,
                "instrument": instruments[name][number],
                "band": bands[band],
            }
            | {key: values[i] for key, values in score._asdict().items()}
            for number, score in enumerate(scores)
            for i, band in enumerate(blend.observations[number].band_index)
        ]
        blends["chi2"][row] = summary["chi2"][row]
        # E[chi2 of the posterior mean] = N - tr(H C): what the fit absorbs.
        blends["n_data"][row] = summary["n_data"][row]
        blends["expected_chi2"][row] = (
            summary["n_data"][row] - summary["effective"][row]
        )
        blends["log_evidence"][row] = summary["log_evidence"][row]
        columns["chi2_blend"][m] = summary["chi2"][row]
        columns["ndata_blend"][m] = int(summary["n_data"][row])
        if summary["chi2"][row] > BAD_FIT * blends["expected_chi2"][row]:
            columns["flags"][m] |= SourceFlag.BAD_FIT
    # What the sampler says, for blends without a result too.
    blends |= {name: summary[name] for name in SAMPLER_COLUMNS}
    for number in range(post["offset"].shape[1]):
        for axis, name in enumerate("yx"):
            column = f"offset_{name}_{number + 1}"
            blends[column] = post["offset"][:, number, axis]
            blends[f"{column}_err"] = post["offset_sd"][:, number, axis]
    rendered["blends"] = blends | {"predictive_chi2": summary["chi2_draws"]}
    rendered["observations"] = {
        key: np.asarray([one[key] for one in seen]) for key in OBSERVATION_COLUMNS
    }


def _score_observations(data, blend, row, rendered, stats, post) -> list[BandScores]:
    """Scores of the residual of every observation of a blend, its sky taken off."""
    sky = np.zeros(sum(len(o.band_index) for o in blend.observations))
    if post["sky"].shape[1]:
        group = stats[f"stack_{data.blends['stack'][row]}"]
        scale = group["sky_scale"][data.blends["index"][row]]
        sky = post["sky"][row][: len(scale)] * scale
    scores, begin = [], 0
    for observation, total in zip(
        blend.observations, rendered["total"][row], strict=True
    ):
        end = begin + len(observation.band_index)
        level = sky[begin:end, None, None]
        scores.append(score_residual(observation.image - total - level, observation))
        begin = end
    return scores


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    params, result = snakemake.params, snakemake.output
    main(
        [FieldRow.of(row) for row in params.rows],
        Path(snakemake.input.blends),
        Path(snakemake.input.statistics),
        Path(snakemake.input.posterior),
        Path(snakemake.input.prior),
        [Path(path) for path in result.catalogs],
        [Path(path) for path in result.models],
        [Path(path) for path in result.samples],
        Path(result.blends),
        InferConfig(**params.infer),
        BlendsConfig(**params.blends),
        params.meta,
    )
