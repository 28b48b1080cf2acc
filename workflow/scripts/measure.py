"""Catalog, model images and draws of every field of a chunk."""

from pathlib import Path

import numpy as np
from astropy.table import Table

from blendem.assemble.blends import blend_table, finish_catalog
from blendem.assemble.observed import (
    Observed,
    in_bands,
    mosaic_of,
    observe,
    observed_side,
    on_one_side,
    smallest_scale,
)
from blendem.assemble.sources import Measured, measure_sources
from blendem.config import BlendsConfig, InferConfig
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
from blendem.measure.light_curves import stacked
from blendem.prior.gaussian import Basis
from blendem.prior.magnify import magnified_side


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
    sources = measure_sources(data, basis, stats, post, infer, planes)
    observed = observe(data, basis, sources, post, config.batch)
    finish_catalog(data, sources, observed, post)
    scale = smallest_scale(data)
    for catalog, model, sample in zip(catalogs, models, samples, strict=True):
        name = catalog.stem
        images = [read_observation(r) for r in rows if r.field == name]
        chosen = np.flatnonzero(data.sources["field"] == name)
        varying = [k for k in chosen if k in sources.curves]
        table = Table({key: value[chosen] for key, value in sources.columns.items()})
        if (wcs := images[0].wcs) is not None:
            table["ra"], table["dec"] = wcs.celestial.all_pix2world(
                table["x"], table["y"], 0
            )
        ids = data.sources["id"]
        light = stacked(
            [sources.curves[k].table(ids[k], planes[name]) for k in varying]
        )
        write_catalog(
            catalog, table, meta, flux_unit=images[0].unit, light_curves=light
        )
        _write_models(
            model, data, basis, sources, observed, images, table, chosen, scale, meta
        )
        _write_samples(sample, data, sources, post, chosen, varying, meta)
    instruments = {n: [r.instrument for r in rows if r.field == n] for n in data.fields}
    table, observations = blend_table(data, observed, stats, post, instruments)
    write_h5(
        scores,
        {"blends": table, "observations": observations},
        {"bands": list(basis.bands)},
    )


def _write_models(
    path: Path,
    data: BlendSet,
    basis: Basis,
    sources: Measured,
    observed: Observed,
    images: list[ObservedField],
    table: Table,
    chosen: np.ndarray,
    scale: float,
    meta: dict,
) -> None:
    """Images of the sources of a field, and of the field itself in every observation."""
    first, *others = images
    name, n_bands = path.stem, len(basis.bands)
    only = [total and total[0] for total in observed.totals]
    model = data.mosaic(name, only, first.image.shape)
    order = [basis.bands.index(b) for b in first.bands]
    most = int(sources.zoom[chosen].max(initial=0))
    side = magnified_side(basis.mean.shape[-1], most)
    wide = observed_side(side, scale)
    known = np.array([observed.mean[k] is not None for k in chosen], bool)
    stamps = {
        key: on_one_side([values[k] for k in chosen], to, n_bands)
        for key, values, to in (
            ("model_mean", sources.mean, side),
            ("model_std", sources.std, side),
            ("observed_mean", observed.mean, wide),
            ("observed_std", observed.std, wide),
        )
    }
    write_models(
        path,
        sources=table["id", "x", "y", "blend", "magnification"],
        bands=basis.bands,
        **stamps,
        corner=np.where(known[:, None], observed.middle[chosen] - wide // 2, 0),
        meta=meta,
        unit=first.unit,
        image=in_bands(first.image, order, n_bands),
        model=in_bands(model, order, n_bands),
        variance=in_bands(first.variance, order, n_bands, np.inf),
        wcs=first.wcs,
        views=[
            _view(data, name, observed, number, other, first)
            for number, other in enumerate(others, start=1)
        ],
    )


def _view(
    data: BlendSet,
    name: str,
    observed: Observed,
    number: int,
    field: ObservedField,
    first: ObservedField,
) -> View:
    """An observation of a field but the first, and its model, in the unit of the first."""
    gain = np.float32(10 ** (0.4 * (first.magzero - field.magzero)))
    return View(
        field.instrument,
        field.bands,
        gain * field.image,
        mosaic_of(
            data, name, observed.totals, number, field.image.shape, field.wcs, first.wcs
        ),
        gain**2 * field.variance,
        field.wcs,
    )


def _write_samples(
    path: Path,
    data: BlendSet,
    sources: Measured,
    post: dict,
    chosen: np.ndarray,
    varying: list[int],
    meta: dict,
) -> None:
    """Draws of the sources of a field."""
    columns, curves = sources.columns, sources.curves
    write_samples(
        path,
        Samples(
            ids=data.sources["id"][chosen],
            blend=data.blends["number"][data.sources["blend"][chosen]],
            is_star=sources.is_star[chosen],
            centers=np.stack([columns["y"], columns["x"]], axis=-1)[chosen],
            scale=sources.scale[chosen],
            mean=post["mean"][chosen],
            z=post["z"][:, chosen],
            prior_sha256=meta["PRIOR"],
            attrs=meta,
            light_curves=np.concatenate([curves[k].draws for k in varying], axis=1)
            if varying
            else None,
            zoom=sources.zoom[chosen],
        ),
    )


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
