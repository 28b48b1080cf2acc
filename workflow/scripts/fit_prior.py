"""Train the first prior, or take a given one."""

import hashlib
import logging
from pathlib import Path

import numpy as np

from blendem.config import FrameConfig, PriorConfig
from blendem.io.priors import read_prior, write_prior
from blendem.logs import configure_logging
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.pca import fit_basis, fit_moments, normalise_stamps
from blendem.rng import stage_rng
from blendem.survey.instruments import INSTRUMENTS

LOG = logging.getLogger(__name__)


def main(
    stamps: list[Path],
    output: Path,
    config: PriorConfig,
    frame: FrameConfig,
    instrument: str,
    reference_band: str,
    rng: np.random.Generator,
) -> None:
    """Principal components of the stamps, with amplitude and colour jitter."""
    if config.start is not None:
        prior, card = read_prior(config.start)
        write_prior(output, prior, card | {"started_from": config.start})
        return
    images = np.concatenate([np.load(path) for path in stamps])
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    bands = frame.bands or INSTRUMENTS[instrument].bands
    reference = bands.index(reference_band)
    flux = images[:, reference].sum((-2, -1))
    if (bad := ~(flux > 0)).any():
        LOG.warning("%d stamps without flux in %s left out", bad.sum(), reference_band)
        images = images[~bad]
    colour = np.exp(rng.normal(0.0, config.colour_jitter, images.shape[:2]))
    colour[:, reference] = 1.0
    images = images * colour[:, :, None, None].astype(np.float32)
    images = normalise_stamps(images, reference, config.amplitude_jitter, rng)
    basis = fit_basis(
        images,
        config.modes,
        bands=bands,
        psf_sigma=frame.psf_sigma,
        pixel_scale=frame.pixel_scale or INSTRUMENTS[instrument].pixel_scale,
        rng=rng,
    )
    prior = GaussianPrior.from_moments(basis, *fit_moments(basis, images))
    total = float(basis.residual) + float(np.sum(basis.eigenvalues))
    card = {
        "stamps": len(images),
        "stamps_sha256": digest,
        "modes": len(basis.modes),
        "variance_outside_basis": float(basis.residual) / total,
        "settings": config.model_dump(),
    }
    LOG.info("prior: %s", card)
    write_prior(output, prior, card)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    params = snakemake.params
    main(
        [Path(path) for path in snakemake.input.stamps],
        Path(snakemake.output.prior),
        PriorConfig(**params.prior),
        FrameConfig(**params.frame),
        params.instrument,
        params.reference_band,
        stage_rng(params.seed, "fit_prior"),
    )
