"""Amplitudes, centres and sufficient statistics of every blend of a chunk."""

import logging
import time
from pathlib import Path

import jax
import numpy as np

from blendem.config import BlendsConfig, InferConfig
from blendem.inference.batch import statistics_of
from blendem.inference.posterior import BlendStatistics, posterior
from blendem.inference.rescale import refine_stack
from blendem.inference.statistics import Settings
from blendem.io.blends import read_blends
from blendem.io.priors import gaussian_of, read_prior
from blendem.io.products import write_h5
from blendem.io.statistics import unstack
from blendem.logs import configure_logging
from blendem.prior.gaussian import GaussianPrior

LOG = logging.getLogger(__name__)


def main(
    blends: Path,
    prior: Path,
    output: Path,
    infer: InferConfig,
    config: BlendsConfig,
    max_chi2: float,
) -> None:
    """One program per stack of equal shape."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compiled.append(seconds)
            if event.endswith("backend_compile_duration")
            else None
        )
    )
    model, _ = read_prior(prior)
    basis = model.basis
    data = read_blends(blends)
    settings = Settings(
        reference=basis.bands.index(infer.reference_band),
        stamp=basis.mean.shape[-1],
        iterations=infer.recentre_iterations if infer.recentre else 0,
        centroid_prior=infer.centroid_prior,
        centroid_sigma=infer.centroid_sigma,
        sky_sigma=infer.sky_sigma if infer.sky == "flat" else 0.0,
        offset_sigma=infer.offset_sigma,
    )
    arrays, start = {}, time.perf_counter()
    for number, stack in enumerate(data.stacks):
        begin = time.perf_counter()
        result = statistics_of(stack, basis, settings, config.batch)
        if infer.refine_amplitudes:
            result = refine_stack(result, stack, gaussian_of(model), settings.reference)
        arrays[f"stack_{number}"] = result | {"n_modes": len(basis.modes)}
        LOG.info(
            "stack %d: %d blends of %d sources, %.1f s",
            number,
            len(stack.centers),
            stack.present.shape[1],
            time.perf_counter() - begin,
        )
    # One choice for all laps: EM must not change its data. Galaxies that are magnified are none
    # of the stamps that it learns.
    magnified = np.zeros(len(data.blends["field"]), bool)
    magnified[data.sources["blend"][data.zoom > 0]] = True
    arrays["in_em"] = np.array(
        [
            s is not None and not large and _fits(s, model, max_chi2)
            for s, large in zip(unstack(arrays, data), magnified, strict=True)
        ],
        dtype=bool,
    )
    LOG.info("%d of %d blends enter EM", arrays["in_em"].sum(), len(arrays["in_em"]))
    attrs = {
        "seconds": time.perf_counter() - start,
        "programs": len(data.stacks),
        "compile_seconds": float(sum(compiled)),
        "settings": settings._asdict(),
    }
    write_h5(output, arrays, attrs)


def _fits(statistics: BlendStatistics, prior: GaussianPrior, max_chi2: float) -> bool:
    """Whether the first prior can explain a blend at all."""
    try:
        p = posterior(statistics, prior)
    except np.linalg.LinAlgError:
        return False
    return p.chi2_of_mean < max_chi2 * (statistics.n_data - p.effective_parameters)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.blends),
        Path(snakemake.input.basis),
        Path(snakemake.output.statistics),
        InferConfig(**snakemake.params.infer),
        BlendsConfig(**snakemake.params.blends),
        snakemake.params.max_chi2,
    )
