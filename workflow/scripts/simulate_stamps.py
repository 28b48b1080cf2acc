"""Draw model images of galaxies, one chunk of the training set."""

from pathlib import Path

import numpy as np

from blendem.config import FrameConfig, StampsConfig
from blendem.io.atomic import atomic_path
from blendem.logs import configure_logging
from blendem.rng import stage_rng
from blendem.survey.instruments import INSTRUMENTS
from blendem.survey.population import draw_galaxies
from blendem.survey.simulate import draw_stamps


def main(
    path: Path,
    chunk: int,
    instrument: str,
    stamps: StampsConfig,
    frame: FrameConfig,
    rng: np.random.Generator,
) -> None:
    """Draw every `chunks`-th galaxy of the training set."""
    galaxies = draw_galaxies(
        stamps.in_chunk(chunk),
        rng,
        mag_limit=stamps.mag_limit,
        mag_bright=stamps.mag_bright,
        population=stamps.population,
    )
    images = draw_stamps(
        galaxies,
        INSTRUMENTS[instrument],
        stamp=frame.stamp,
        psf_sigma=frame.psf_sigma,
        pixel_scale=frame.pixel_scale,
        bands=frame.bands,
    )
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, images)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    params, number = snakemake.params, int(snakemake.wildcards.chunk)
    main(
        Path(snakemake.output.stamps),
        number,
        params.instrument,
        StampsConfig(**params.stamps),
        FrameConfig(**params.frame),
        stage_rng(params.seed, "simulate_stamps", number),
    )
