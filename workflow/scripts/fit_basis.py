"""Principal components of the training stamps and their Gaussian moments, or given ones."""

import hashlib
import logging
from pathlib import Path

import numpy as np

from blendem.config import FrameConfig, PriorConfig
from blendem.io.priors import check_prior, gaussian_of, read_prior, write_prior
from blendem.logs import configure_logging
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.pca import fit_basis, fit_moments, with_fluxes
from blendem.prior.stamps import prepare_stamps
from blendem.rng import stage_rng
from blendem.survey.instruments import FLUX_WEIGHT, INSTRUMENTS, seen_by

LOG = logging.getLogger(__name__)


def main(
    stamps: list[Path],
    output: Path,
    config: PriorConfig,
    frame: FrameConfig,
    instruments: list[str],
    reference_band: str,
    rng: np.random.Generator,
) -> None:
    """Principal components of the stamps, with amplitude and colour jitter."""
    given = config.start or config.basis
    if given is not None:
        prior, card = read_prior(given)
        check_prior(
            given,
            prior,
            where="the configuration",
            bands=(*(frame.bands or ()), reference_band),
            stamp=frame.stamp,
            pixel_scale=frame.pixel_scale,
            psf_sigma=frame.psf_sigma,
        )
        write_prior(output, gaussian_of(prior), card | {"started_from": given})
        return
    images = np.concatenate([np.load(path) for path in stamps])
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    bands = frame.bands or INSTRUMENTS[instruments[0]].bands
    scale = frame.pixel_scale or INSTRUMENTS[instruments[0]].pixel_scale
    flux = images[:, bands.index(reference_band)].sum((-2, -1))
    images, used = prepare_stamps(
        images,
        bands.index(reference_band),
        amplitude_jitter=config.amplitude_jitter,
        colour_jitter=config.colour_jitter,
        rng=rng,
    )
    if not used.all():
        LOG.warning("%d stamps without flux in %s left out", sum(~used), reference_band)
    metric = seen_by(
        instruments,
        bands,
        psf_sigma=frame.psf_sigma,
        pixel_scale=scale,
        weight=flux[used].astype(float) ** FLUX_WEIGHT,
    )
    basis = fit_basis(
        images,
        config.modes,
        bands=bands,
        psf_sigma=frame.psf_sigma,
        pixel_scale=scale,
        rng=rng,
        metric=metric,
    )
    if config.flux_modes:
        basis = with_fluxes(basis, images, metric)
    prior = GaussianPrior.from_moments(basis, *fit_moments(basis, images))
    total = float(basis.residual) + float(np.sum(basis.eigenvalues))
    card = {
        "stamps": len(images),
        "stamps_sha256": digest,
        "modes": len(basis.modes),
        "variance_outside_basis": float(basis.residual) / total,
        "settings": config.model_dump(exclude={"tier", "network", "train", "unet"}),
    }
    LOG.info("basis: %s", card)
    write_prior(output, prior, card)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    params = snakemake.params
    main(
        [Path(path) for path in snakemake.input.stamps],
        Path(snakemake.output.basis),
        PriorConfig(**params.prior),
        FrameConfig(**params.frame),
        params.instruments,
        params.reference_band,
        stage_rng(params.seed, "fit_basis"),
    )
