"""Draw galaxies and maps of dust, one chunk of the training set of both priors."""

from pathlib import Path

import numpy as np

from blendem.config import FrameConfig, StampsConfig
from blendem.io.dust import write_dusty
from blendem.logs import configure_logging
from blendem.rng import stage_rng
from blendem.survey.dusty import draw_dusty_galaxies
from blendem.survey.instruments import INSTRUMENTS


def main(
    path: Path,
    chunk: int,
    instrument: str,
    stamps: StampsConfig,
    frame: FrameConfig,
    rng: np.random.Generator,
) -> None:
    """Draw every `chunks`-th galaxy of the training set."""
    galaxies = draw_dusty_galaxies(
        stamps.in_chunk(chunk),
        rng,
        INSTRUMENTS[instrument],
        stamp=frame.stamp,
        psf_sigma=frame.psf_sigma,
        mag_bright=stamps.mag_bright,
        mag_limit=stamps.mag_limit,
        population=stamps.population,
    )
    write_dusty(path, galaxies)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    params, number = snakemake.params, int(snakemake.wildcards.chunk)
    main(
        Path(snakemake.output.stamps),
        number,
        params.instrument,
        StampsConfig(**params.stamps),
        FrameConfig(**params.frame),
        stage_rng(params.seed, "simulate_dust", number),
    )
