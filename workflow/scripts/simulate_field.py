"""Simulate one field: what a user would give, and its truth."""

from pathlib import Path

import numpy as np

from blendem.config import DustConfig, FrameConfig, SimulateConfig
from blendem.io.fields import write_field
from blendem.io.products import write_h5
from blendem.logs import configure_logging
from blendem.rng import stage_rng
from blendem.survey.dusty import dim_field
from blendem.survey.instruments import INSTRUMENTS
from blendem.survey.simulate import observe_again, simulate_field


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
    field = simulate_field(
        INSTRUMENTS[simulate.instrument],
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
    )
    maps = {}
    if dust is not None:
        (again,) = rng.spawn(1)
        field, maps["dust"] = dim_field(
            field, again, psf_sigma=frame.psf_sigma, aligned=dust.aligned
        )
    write_h5(
        truth,
        {
            "table": field.truth,
            "model": field.model,
            "observed": field.observed,
            "corner": field.corner,
        }
        | maps,
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
    for path, name in zip(others, simulate.also, strict=True):
        (noise,) = rng.spawn(
            1
        )  # after the others: the first image does not depend on it
        again = observe_again(field, INSTRUMENTS[name], rng=noise)
        write_field(
            path,
            image=again.image,
            variance=again.variance,
            psf=again.psf,
            bands=again.instrument.bands,
            magzero=again.instrument.magzero,
            wcs=again.wcs,
        )


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
