"""First prior from the blends alone: of closed-form MAP fits, or of draws under a Gaussian."""

import logging
import time
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pandas as pd

from blendem.config import EMConfig, PriorConfig
from blendem.inference.em import (
    add,
    expectation,
    gaussian_galaxies,
    is_held_out,
    join,
    maximization,
)
from blendem.inference.posterior import BlendStatistics
from blendem.io.atomic import atomic_path
from blendem.io.blends import read_blends
from blendem.io.priors import read_prior, write_prior
from blendem.io.products import read_h5
from blendem.io.statistics import read_statistics
from blendem.logs import configure_logging
from blendem.prior.refit import RefitSettings, first_prior
from blendem.rng import stage_rng

LOG = logging.getLogger(__name__)
ITERATIONS = 30  # of a mixture that is fitted from its beginning


def main(
    blends: list[Path],
    statistics: list[Path],
    basis: Path,
    output: tuple[Path, Path],
    config: EMConfig,
    settings: PriorConfig,
    reference_band: str,
    seed: int,
) -> None:
    """Held-out blends are left out; the card says how the prior was made."""
    start = time.perf_counter()
    gaussian, card = read_prior(basis)
    reference = gaussian.basis.bands.index(reference_band)
    data = [read_blends(path) for path in blends]

    def taught() -> Iterator[tuple[str, BlendStatistics]]:
        for one, path in zip(data, statistics, strict=True):
            use = read_h5(path, only=("in_em",))[0]["in_em"]
            use = use & ~is_held_out(one.names, config.held_out, seed)
            for row, found in enumerate(read_statistics(path, one)):
                if use[row]:
                    yield one.names[row], found

    if next(taught(), None) is None:
        raise ValueError(
            "no blend to start from: raise em.max_chi2 or lower em.held_out"
        )
    prior, rows = gaussian, []
    if config.start == "gaussian":
        for iteration in range(config.start_iterations):
            total = reduce(add, (expectation([s], prior)[0] for _, s in taught()))
            rows.append({"step": iteration, "log_evidence": total.log_evidence})
            LOG.info("%s", rows[-1])
            prior = maximization(
                total, prior, symmetric=config.symmetric, floor=config.min_eigenvalue
            )
    n_draws = config.draws if config.start == "gaussian" else 0
    parts = [
        gaussian_galaxies(
            found, prior, n_draws, reference, stage_rng(seed, f"em_start/{name}")
        )
        for name, found in taught()
    ]
    draws = join(parts, len(gaussian.mean))
    latent = first_prior(
        gaussian,
        settings.latent,
        settings.components,
        draws,
        RefitSettings(
            rows=config.rows,
            iterations=ITERATIONS,
            symmetric=config.symmetric,
            shrink=config.shrink,
            amplitude_jitter=settings.amplitude_jitter,
        ),
        stage_rng(seed, "em_start"),
        settings.brightness,
    )
    made = {"start": config.start, "blends": len(parts), "galaxies": len(draws.center)}
    made |= {"seconds": time.perf_counter() - start}
    LOG.info("%s", made)
    prior_path, curve = output
    write_prior(prior_path, latent, card | made)
    with atomic_path(curve) as temporary:
        pd.DataFrame(rows, columns=["step", "log_evidence"]).to_csv(
            temporary, index=False
        )


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    given, params = snakemake.input, snakemake.params
    main(
        [Path(path) for path in given.blends],
        [Path(path) for path in given.statistics],
        Path(given.basis),
        (Path(snakemake.output.prior), Path(snakemake.output.evidence)),
        EMConfig(**params.em),
        PriorConfig(**params.prior),
        params.reference_band,
        params.seed,
    )
