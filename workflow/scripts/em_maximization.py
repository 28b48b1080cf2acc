"""M step of one lap: the mixture is fitted to the draws of the E step, warm."""

import logging
import time
from pathlib import Path

import jax
import numpy as np

from blendem.config import EMConfig
from blendem.inference.em import GalaxyDraws, converged, join, misfit_before
from blendem.io.priors import read_prior, write_prior
from blendem.io.products import read_h5
from blendem.logs import configure_logging
from blendem.measure.em import nearest_ratio
from blendem.prior.mixture_fit import mean_log_density
from blendem.prior.refit import (
    RefitSettings,
    broaden,
    fit_rows,
    mend_weight,
    misfit,
    refit,
    step_length,
)
from blendem.rng import stage_rng

LOG = logging.getLogger(__name__)
MEMORY_ROWS = 4000  # draws of either kind that are compared
COUNTS = ("blends", "galaxies", "failed", "diverged")
SECONDS = ("expectation_seconds", "maximization_seconds")


def main(
    draws: list[Path],
    previous: Path,
    first: Path,
    output: Path,
    lap: int,
    config: EMConfig,
    seed: int,
) -> None:
    """The basis and its moments stay; the card says what the draws were."""
    start = time.perf_counter()
    prior, card = read_prior(previous)
    if converged(card, lap):
        LOG.info("lap %d: EM has converged", lap)
        last = card["laps"][-1]
        numbers = {k: v for k, v in last.items() if k not in SECONDS} | {"lap": lap}
        write_prior(
            output, prior, card | {"lap": lap, "laps": [*card["laps"], numbers]}
        )
        return
    # What the draws were made with.
    drawn_with = broaden(prior, config.broaden) if lap == 1 else prior
    parts = [read_h5(path) for path in draws]
    taught, unseen = (
        join((GalaxyDraws(**arrays[kind]) for arrays, _ in parts), len(prior.mean))
        for kind in ("taught", "unseen")
    )
    settings = RefitSettings(
        rows=config.rows,
        iterations=config.iterations,
        symmetric=config.symmetric,
        shrink=config.shrink,
        amplitude_jitter=0.0,  # the draws have it
        keep=config.keep,
        relax=config.relax,
    )
    rng = stage_rng(seed, "em_maximization", lap)
    counts = {name: sum(attrs[name] for _, attrs in parts) for name in COUNTS}
    found = misfit(drawn_with, taught, settings, stage_rng(seed, "em_misfit", lap))
    mend = {"auto": mend_weight(found), "shape": 1.0, "change": 0.0}[config.common]
    # A prior that was fitted to draws of a wrong one is fitted once more, right as it may seem.
    step = step_length(max(found, misfit_before(card, lap)), config.stop)
    settings = settings._replace(mend=mend, relax=step * config.relax)
    if step:
        first_prior, _ = read_prior(first)
        prior, score = refit(drawn_with, taught, settings, rng, first=first_prior)
        counts["log_density"] = score
    counts |= {
        "misfit": found,
        "mend": mend,
        "step": step,
        "draws": len(taught.z),
        "expectation_seconds": sum(attrs["seconds"] for _, attrs in parts),
        "maximization_seconds": time.perf_counter() - start,
    }
    if len(unseen.z):
        counts |= _memory(prior, taught, unseen, settings, rng)
    LOG.info("lap %d: %s", lap, counts)
    laps = [*card.get("laps", []), {"lap": lap} | counts]
    write_prior(output, prior, card | {"lap": lap, "laps": laps})


def _memory(prior, taught, unseen, settings, rng) -> dict[str, float]:
    """Galaxies that were taught against those that were not, under the new prior."""
    few = settings._replace(rows=MEMORY_ROWS)
    known, new = (fit_rows(prior, rows, few, rng)[0] for rows in (taught, unseen))
    key = jax.random.key(rng.integers(2**31))
    n = prior.n_modes
    draws = np.asarray(prior.mixture.sample(MEMORY_ROWS, key=key))
    return {
        "log_density_taught": mean_log_density(prior.mixture, known),
        "log_density_unseen": mean_log_density(prior.mixture, new),
        "nearest_ratio": nearest_ratio(draws[:, :n], new[:, :n], known[:, :n]),
    }


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        [Path(path) for path in snakemake.input.draws],
        Path(snakemake.input.prior),
        Path(snakemake.input.first),
        Path(snakemake.output.prior),
        snakemake.params.lap,
        EMConfig(**snakemake.params.em),
        snakemake.params.seed,
    )
