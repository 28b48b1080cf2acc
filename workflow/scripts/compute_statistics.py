"""Amplitudes, centres and sufficient statistics of every blend of a chunk."""

import logging
import time
from pathlib import Path

import jax

from blendem.config import BlendsConfig, InferConfig
from blendem.inference.batch import statistics_of
from blendem.inference.statistics import Settings
from blendem.io.blends import read_blends
from blendem.io.priors import read_prior
from blendem.io.products import write_h5
from blendem.logs import configure_logging

LOG = logging.getLogger(__name__)


def main(
    blends: Path, prior: Path, output: Path, infer: InferConfig, config: BlendsConfig
) -> None:
    """One program per stack of equal shape."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compiled.append(seconds) if event.endswith("backend_compile_duration") else None
        )
    )
    basis = read_prior(prior)[0].basis
    data = read_blends(blends)
    settings = Settings(
        reference=basis.bands.index(infer.reference_band),
        stamp=basis.mean.shape[-1],
        iterations=infer.recentre_iterations if infer.recentre else 0,
        centroid_prior=infer.centroid_prior,
        centroid_sigma=infer.centroid_sigma,
        sky_sigma=infer.sky_sigma if infer.sky == "flat" else 0.0,
    )
    arrays, start = {}, time.perf_counter()
    for number, stack in enumerate(data.stacks):
        begin = time.perf_counter()
        result = statistics_of(stack, basis, settings, config.batch)
        arrays[f"stack_{number}"] = result._asdict() | {
            "n_modes": len(basis.modes)
        }
        LOG.info(
            "stack %d: %d blends of %d sources, %.1f s",
            number,
            len(stack.centers),
            stack.present.shape[1],
            time.perf_counter() - begin,
        )
    attrs = {
        "seconds": time.perf_counter() - start,
        "programs": len(data.stacks),
        "compile_seconds": float(sum(compiled)),
        "settings": settings._asdict(),
    }
    write_h5(output, arrays, attrs)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.blends),
        Path(snakemake.input.prior),
        Path(snakemake.output.statistics),
        InferConfig(**snakemake.params.infer),
        BlendsConfig(**snakemake.params.blends),
    )
