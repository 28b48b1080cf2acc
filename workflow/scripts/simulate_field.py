"""Simulate one field: what a user would give, and its truth."""

from pathlib import Path

import numpy as np
from astropy.table import Table

from blendem.config import DustConfig, FrameConfig, SimulateConfig
from blendem.io.fields import write_field
from blendem.io.products import write_h5
from blendem.logs import configure_logging
from blendem.rng import stage_rng
from blendem.survey.dusty import dim_field
from blendem.survey.instruments import INSTRUMENTS, Instrument
from blendem.survey.sed import BANDS
from blendem.survey.simulate import SimulatedField, observe_again, simulate_field
from blendem.survey.transients import TransientSettings


def main(
    path: Path,
    others: list[Path],
    truth: Path,
    simulate: SimulateConfig,
    frame: FrameConfig,
    rng: np.random.Generator,
    dust: DustConfig | None = None,
) -> None:
    """Simulate, write the field as every instrument sees it, and its truth."""
    eyes = _eyes(simulate, frame)
    field = simulate_field(
        eyes[0],
        simulate.shape,
        rng=rng,
        mode=simulate.mode,
        density=simulate.density,
        n_blends=simulate.n_blends,
        mag_limit=simulate.mag_limit,
        mag_bright=simulate.mag_bright,
        star_density=simulate.star_density,
        population=simulate.population,
        stamp=frame.stamp,
        psf_sigma=frame.psf_sigma,
        centroid_error=simulate.centroid_error,
        undetected_limit=simulate.undetected_limit,
        model_scale=frame.pixel_scale,
        model_bands=frame.bands,
        transients=_transients(simulate),
    )
    arrays = {}
    if dust is not None:
        (again,) = rng.spawn(1)
        field, arrays["dust"] = dim_field(
            field, again, psf_sigma=frame.psf_sigma, aligned=dust.aligned
        )
    if field.transients is not None:
        off = [str(i) for i, e in enumerate(simulate.epochs) if e.reference]
        variable = np.asarray(field.catalog["type"]) == "variable"
        field.catalog["off"] = np.where(variable, ";".join(off), "")
        arrays["light_curves"] = _light_curves(field, simulate)
    arrays |= {
        "table": field.truth,
        "model": field.model,
        "observed": field.observed,
        "corner": field.corner,
    }
    write_h5(
        truth,
        arrays,
        {"bands": list(frame.bands or field.bands), "magzero": field.magzero},
    )
    write_field(
        path,
        image=field.image,
        variance=field.variance,
        psf=field.psf,
        bands=field.bands,
        magzero=field.magzero,
        wcs=field.wcs,
        catalog=field.catalog,
    )
    for number, (path, eye) in enumerate(zip(others, eyes[1:], strict=True), 1):
        (noise,) = rng.spawn(
            1
        )  # after the others: the first image does not depend on it
        settings = {}
        if simulate.epochs:
            settings = simulate.epochs[number].model_dump(include={"shift", "rotation"})
            settings["epoch"] = number
        again = observe_again(field, eye, rng=noise, **settings)
        write_field(
            path,
            image=again.image,
            variance=again.variance,
            psf=again.psf,
            bands=again.instrument.bands,
            magzero=again.instrument.magzero,
            wcs=again.wcs,
        )


def _eyes(simulate: SimulateConfig, frame: FrameConfig) -> list[Instrument]:
    """What takes each observation, in the bands of the model."""
    eyes = [INSTRUMENTS[name] for name in (simulate.instrument, *simulate.also)]
    if frame.bands is not None:
        eyes = [eye.only(frame.bands) for eye in eyes]
    if simulate.epochs:
        eyes = [eyes[0].under(e.seeing, e.depth) for e in simulate.epochs]
    return eyes


def _transients(simulate: SimulateConfig) -> TransientSettings | None:
    wanted = simulate.transients
    if wanted.share == 0:
        return None
    return TransientSettings(
        wanted.share,
        (wanted.mag_bright, wanted.mag_limit),
        tuple(epoch.mjd for epoch in simulate.epochs),
        tuple(epoch.reference for epoch in simulate.epochs),
    )


def _light_curves(field: SimulatedField, simulate: SimulateConfig) -> Table:
    """True flux of every transient in every epoch and band [unit of the image]."""
    light, ids = field.transients.flux, np.asarray(field.catalog["id"])
    own, hosts = ids[len(ids) - light.shape[1] :], ids[field.transients.host]
    rows = [
        (own[k], hosts[k], str(e), epoch.mjd, band, light[e, k, BANDS.index(band)])
        for k in range(len(own))
        for e, epoch in enumerate(simulate.epochs)
        for band in field.bands
    ]
    columns = ("id", "host", "epoch", "mjd", "band", "flux")
    return Table(dict(zip(columns, zip(*rows, strict=True), strict=True)))


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    params = snakemake.params
    main(
        Path(snakemake.output.field),
        [Path(path) for path in snakemake.output.others],
        Path(snakemake.output.truth),
        SimulateConfig(**params.simulate),
        FrameConfig(**params.frame),
        stage_rng(params.seed, "simulate_field", params.index),
        params.dust and DustConfig(**params.dust),
    )
