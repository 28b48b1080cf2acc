"""Fit the priors of galaxies and of maps of dust, and what a blend of them spans."""

import logging
from pathlib import Path

import numpy as np

from blendem.config import DustConfig, FrameConfig
from blendem.inference.dust_model import spanning
from blendem.io.dust import read_dusty_stamps, write_dust_prior
from blendem.io.priors import write_prior
from blendem.io.products import write_h5
from blendem.logs import configure_logging
from blendem.prior.dust import UNIT_MAG, unit_flux
from blendem.rng import stage_rng
from blendem.survey.dusty import fit_priors
from blendem.survey.instruments import INSTRUMENTS

LOG = logging.getLogger(__name__)


def main(
    stamps: list[Path],
    galaxy: Path,
    dust: Path,
    span: Path,
    config: DustConfig,
    frame: FrameConfig,
    instrument: str,
    reference_band: str,
    rng: np.random.Generator,
) -> None:
    """Read, fit both, write."""
    taught, eye = read_dusty_stamps(stamps), INSTRUMENTS[instrument]
    priors = fit_priors(
        taught,
        eye,
        reference=eye.index(reference_band),
        modes=config.modes,
        dust_modes=config.dust_modes,
        components=config.components,
        shrink=config.shrink,
        link=config.link,
        psf_sigma=frame.psf_sigma,
        rng=rng,
    )
    card = {
        "stamps": len(taught.galaxy),
        "unit_mag": UNIT_MAG,
        "settings": config.model_dump(),
    }
    LOG.info("priors of galaxies and dust: %s", card)
    write_prior(galaxy, priors[0], card)
    write_dust_prior(dust, priors[1], card)
    few = spanning(taught.dimmed / unit_flux(eye.magzero), config.rank)
    write_h5(span, {"stamps": few.astype(np.float32)}, {"bands": list(eye.bands)})


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    params, result = snakemake.params, snakemake.output
    main(
        [Path(path) for path in snakemake.input.stamps],
        Path(result.galaxy),
        Path(result.dust),
        Path(result.span),
        DustConfig(**params.dust),
        FrameConfig(**params.frame),
        params.instrument,
        params.reference_band,
        stage_rng(params.seed, "fit_dust"),
    )
