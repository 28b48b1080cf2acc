"""Catalog, model images and draws of every field of a chunk."""

import logging
from pathlib import Path

import equinox as eqx
import numpy as np
from astropy.table import Table

from blendem.config import BlendsConfig, InferConfig
from blendem.inference.batch import render_of
from blendem.io.blends import BlendSet, read_blends
from blendem.io.fetch import sha256_of
from blendem.io.fields import read_observation
from blendem.io.priors import read_prior
from blendem.io.products import (
    Samples,
    read_h5,
    write_catalog,
    write_h5,
    write_models,
    write_samples,
)
from blendem.io.table import FieldRow
from blendem.logs import configure_logging
from blendem.measure.metrics import blendedness
from blendem.measure.sources import (
    observed_bands,
    photometry_columns,
    shape_columns,
    source_images,
)
from blendem.prior.gaussian import Basis
from blendem.survey.extract import SourceFlag

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
    sources = _measure(data, basis, stats, post, infer)
    rendered = _render(data, basis, sources, post, config.batch)
    _finish_blends(data, sources, rendered, stats, post)
    columns = sources["columns"]
    for path_catalog, path_models, path_samples in zip(
        catalogs, models, samples, strict=True
    ):
        name = path_catalog.stem
        row = next(r for r in rows if r.field == name)
        chosen = np.flatnonzero(data.sources["field"] == name)
        observed = read_observation(row)
        wcs = observed.wcs
        table = Table({key: value[chosen] for key, value in columns.items()})
        if wcs is not None:
            table["ra"], table["dec"] = wcs.celestial.all_pix2world(
                table["x"], table["y"], 0
            )
        write_catalog(path_catalog, table, meta, flux_unit=observed.unit)
        model = np.zeros_like(observed.image)
        for b in np.flatnonzero(data.blends["field"] == name):
            if rendered["total"][b] is not None:
                y, x = data.blends["corner_y"][b], data.blends["corner_x"][b]
                height, width = data.blends["height"][b], data.blends["width"][b]
                # Cut-outs overlap; each adds its own sources, cut at its own border.
                model[:, y : y + height, x : x + width] += rendered["total"][b][
                    :, :height, :width
                ]
        order = [basis.bands.index(b) for b in observed.bands]
        write_models(
            path_models,
            sources=table["id", "x", "y", "blend"],
            bands=basis.bands,
            model_mean=sources["mean"][chosen],
            model_std=sources["std"][chosen],
            observed_mean=rendered["mean"][chosen],
            observed_std=rendered["std"][chosen],
            corner=rendered["corner"][chosen],
            meta=meta,
            unit=observed.unit,
            image=_in_bands(observed.image, order, len(basis.bands)),
            model=_in_bands(model, order, len(basis.bands)),
            variance=_in_bands(observed.variance, order, len(basis.bands), np.inf),
            wcs=wcs,
        )
        write_samples(
            path_samples,
            Samples(
                ids=data.sources["id"][chosen],
                blend=data.blends["number"][data.sources["blend"][chosen]],
                is_star=data.sources["type"][chosen] == "star",
                centers=np.stack([columns["y"], columns["x"]], axis=-1)[chosen],
                scale=sources["scale"][chosen],
                mean=post["mean"][chosen],
                z=post["z"][:, chosen],
                prior_sha256=meta["PRIOR"],
                attrs=meta,
            ),
        )
    table = (
        {key: data.blends[key] for key in ("field", "number", "n_sources", "flags")}
        | {"in_em": stats["in_em"]}
        | {key: np.asarray(value) for key, value in rendered["blends"].items()}
    )
    write_h5(scores, {"blends": table}, {"bands": list(basis.bands)})


def _in_bands(planes, order, n, fill=0.0):
    """Planes of an observation among those of the model; absent bands are filled."""
    out = np.full((n, *planes.shape[1:]), fill, np.float32)
    out[order] = planes
    return out


def _measure(
    data: BlendSet, basis: Basis, stats: dict, post: dict, infer: InferConfig
) -> dict:
    """Images, fluxes and shapes of all sources of the chunk."""
    n, (n_bands, stamp) = len(data.sources["id"]), basis.mean.shape[:2]
    draws = post["z"].shape[0]
    reference = basis.bands.index(infer.reference_band)
    is_star = data.sources["type"] == "star"
    mean = np.full((n, n_bands, stamp, stamp), np.nan, np.float32)
    std, scale = mean.copy(), np.full(n, np.nan)
    flux = np.full((draws, n, n_bands), np.nan)
    shape_draws = np.full((n, draws, stamp, stamp), np.nan, np.float32)
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
        seen[k] = in_stack[stack][index]
        scale[k] = group["scale"][index, slot]
        images = source_images(
            basis,
            float(scale[k]),
            bool(is_star[k]),
            post["mean"][k],
            post["z"][:, k],
            reference,
        )
        mean[k], std[k], flux[:, k] = images.mean, images.std, images.flux
        if seen[k, reference]:
            shape_draws[k] = images.reference
        center[k] = (
            group["centers"][index, slot] + infer.centroid_sigma * post["shift"][k]
        )
        start = data.stacks[stack].centers[index, slot]
        bound = 3 * infer.centroid_prior
        moved[k] = infer.recentre and (
            np.abs(group["centers"][index, slot] - start).max() > 0.99 * bound
        )
    names = data.sources["field"]
    pixel_scale = float(basis.pixel_scale)
    magzero = np.array([data.fields[name]["magzero"] for name in names])
    columns = {
        key: data.sources[key].copy() for key in ("id", "x", "y", "ra", "dec", "type")
    }
    columns["blend"] = data.blends["number"][data.sources["blend"]]
    # Of a band without data the draws say what the prior expects, which is no measurement.
    columns |= photometry_columns(
        np.where(seen, flux, np.nan),
        np.where(seen, mean.sum((-2, -1), dtype=float), np.nan),
        basis.bands,
        magzero,
    )
    shapes = shape_columns(shape_draws, is_star, pixel_scale)
    flags = data.sources["flags"].astype(int)
    no_shape = shapes.pop("no_shape") | (~is_star & ~seen[:, reference])
    flags[no_shape & np.isfinite(scale)] |= SourceFlag.NO_SHAPE
    flags[moved] |= SourceFlag.OFF_CENTER
    flags[np.isnan(scale) & (flags & SourceFlag.TOO_LARGE == 0)] |= SourceFlag.FAILED
    columns |= shapes
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
    }


def _render(
    data: BlendSet, basis: Basis, sources: dict, post: dict, batch: int
) -> dict:
    """Posterior mean of every source as its blend's first observation sees it."""
    n, (n_bands, stamp) = len(data.sources["id"]), basis.mean.shape[:2]
    scales = [
        np.sqrt(abs(np.linalg.det(stack.observations[0].jacobian))).max()
        for stack in data.stacks
    ]
    # Stamps are model pixels, images are observed ones; odd.
    side = 2 * int(np.ceil(stamp / min(scales, default=1.0) / 2 - 0.5)) + 1
    side += OBSERVED_MARGIN
    out = {
        "mean": np.full((n, n_bands, side, side), np.nan, np.float32),
        "std": np.full((n, n_bands, side, side), np.nan, np.float32),
        "corner": np.zeros((n, 2), int),
        "total": [None] * len(data.blends["field"]),
        "observed": [None] * len(data.blends["field"]),
    }
    modes = np.asarray(basis.modes).reshape(len(basis.modes), -1)
    draws = post["z"][: min(STD_DRAWS, len(post["z"]))]
    for number, stack in enumerate(data.stacks):
        padded = stack.present.shape[1]
        rows = np.flatnonzero(data.blends["stack"] == number)
        rows = rows[np.argsort(data.blends["index"][rows])]
        members = [data.members(row) for row in rows]
        centers = np.asarray(stack.centers).copy()

        def place(values, members=members, padded=padded):
            images = np.zeros((len(members), padded, n_bands, stamp, stamp), np.float32)
            for i, m in enumerate(members):
                images[i, : len(m)] = np.nan_to_num(values[m])
            return images

        for i, m in enumerate(members):
            centers[i, : len(m)] = np.where(
                np.isfinite(sources["center"][m]),
                sources["center"][m],
                centers[i, : len(m)],
            )
        sigma = float(basis.psf_sigma)
        # The products show the first observation only.
        stack = eqx.tree_at(lambda b: b.observations, stack, stack.observations[:1])
        image = render_of(stack, place(sources["mean"]), centers, sigma, batch)[0]
        # Two passes over the draws would need them all: running sums do not.
        total, square = np.zeros_like(image), np.zeros_like(image)
        for z in draws:
            delta = np.zeros((n, n_bands, stamp, stamp), np.float32)
            used = np.concatenate(members)
            step = (
                np.nan_to_num(z[used] - post["mean"][used]).astype(np.float32) @ modes
            )
            step *= np.nan_to_num(sources["scale"][used])[:, None].astype(np.float32)
            delta[used] = step.reshape(-1, n_bands, stamp, stamp)
            delta[sources["is_star"]] = 0.0  # their deviation follows from the flux
            seen = render_of(stack, place(delta), centers, sigma, batch)[0]
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
            out["total"][row] = image[i, : len(m)].sum(axis=0)
            corner = np.array(
                [data.blends["corner_y"][row], data.blends["corner_x"][row]]
            )
            first = data.blend(row).observations[0]
            for j, k in enumerate(m):
                at = np.asarray(first.to_observed(centers[i, j]))
                low = np.round(at).astype(int) - side // 2
                std = deviation[i, j]
                if sources["is_star"][k]:
                    error = sources["flux"][:, k].std(axis=0, ddof=1)[bands]
                    value = sources["mean"][k].sum((-2, -1))[bands]
                    std = np.abs(
                        image[i, j]
                        * (error / np.where(value == 0, 1, value))[:, None, None]
                    )
                out["mean"][k], out["std"][k] = 0.0, 0.0
                out["mean"][k][bands] = _window(image[i, j], low, side)
                out["std"][k][bands] = _window(std, low, side)
                out["corner"][k] = corner + low
    return out


def _window(image, low, side):
    """Window of an image that may stick out of it; zero outside."""
    padded = np.pad(image, [(0, 0), (side, side), (side, side)])
    y, x = low + side
    return padded[:, y : y + side, x : x + side]


def _finish_blends(data, sources, rendered, stats, post):
    """Columns that need whole blends: positions, blendedness, chi2; a table of blends."""
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
    for row, observed in enumerate(rendered["observed"]):
        if observed is None:
            continue
        m = data.members(row)
        blend = data.blend(row)
        first = blend.observations[0]
        index = list(first.band_index)
        corner = np.array([data.blends["corner_y"][row], data.blends["corner_x"][row]])
        center = np.stack(
            [np.asarray(first.to_observed(c)) for c in sources["center"][m]]
        )
        columns["y"][m], columns["x"][m] = (center + corner).T
        sky = np.zeros(len(index))
        if post["sky"].shape[1]:
            group = stats[f"stack_{data.blends['stack'][row]}"]
            scale = group["sky_scale"][data.blends["index"][row]]
            sky = (post["sky"][row] * scale)[: len(index)]
        residual = first.image - rendered["total"][row] - sky[:, None, None]
        used = np.isfinite(first.variance)
        pull = np.where(used, residual / np.sqrt(np.where(used, first.variance, 1)), 0)
        for i, band in enumerate(index):
            name = bands[band]
            columns[f"blendedness_{name}"][m] = blendedness(observed[:, i])
            blends[f"chi2_{name}"][row] = np.sum(pull[i] ** 2)
            blends[f"ndata_{name}"][row] = used[i].sum()
            pair = used[i, :, 1:] & used[i, :, :-1]
            if pair.any():
                blends[f"autocorrelation_{name}"][row] = np.mean(
                    (pull[i, :, 1:] * pull[i, :, :-1])[pair]
                )
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
