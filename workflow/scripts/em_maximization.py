"""M step of one lap: the mixture is fitted to the draws of the E step, warm."""

import logging
import time
from pathlib import Path

import numpy as np

from blendem.config import EMConfig
from blendem.io.priors import read_prior, write_prior
from blendem.io.products import read_h5
from blendem.logs import configure_logging
from blendem.prior.refit import RefitSettings, broaden, refit
from blendem.rng import stage_rng

LOG = logging.getLogger(__name__)
COUNTS = ("blends", "galaxies", "failed", "diverged")


def main(
    draws: list[Path],
    previous: Path,
    output: Path,
    lap: int,
    config: EMConfig,
    seed: int,
) -> None:
    """The basis and its moments stay; the card says what the draws were."""
    start = time.perf_counter()
    prior, card = read_prior(previous)
    if lap == 1:  # what the draws were made with
        prior = broaden(prior, config.broaden)
    parts = [read_h5(path) for path in draws]
    z = np.concatenate([arrays["z"] for arrays, _ in parts])
    amplitude = np.concatenate([arrays["log_amplitude"] for arrays, _ in parts])
    settings = RefitSettings(config.rows, config.iterations, config.symmetric)
    rng = stage_rng(seed, "em_maximization", lap)
    prior, score = refit(prior, z, amplitude, settings, rng)
    counts = {name: sum(attrs[name] for _, attrs in parts) for name in COUNTS}
    counts |= {
        "draws": len(z),
        "log_density": score,
        "expectation_seconds": sum(attrs["seconds"] for _, attrs in parts),
        "maximization_seconds": time.perf_counter() - start,
    }
    LOG.info("lap %d: %s", lap, counts)
    laps = [*card.get("laps", []), {"lap": lap} | counts]
    write_prior(output, prior, card | {"lap": lap, "laps": laps})


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        [Path(path) for path in snakemake.input.draws],
        Path(snakemake.input.prior),
        Path(snakemake.output.prior),
        snakemake.params.lap,
        EMConfig(**snakemake.params.em),
        snakemake.params.seed,
    )
