"""E step of one lap: draws of the galaxies of all blends of a chunk that EM learns from."""

import itertools
import logging
import time
from pathlib import Path

import numpy as np

from blendem.config import EMConfig
from blendem.inference.em import draw_galaxies, is_held_out
from blendem.io.blends import read_blends
from blendem.io.priors import read_prior
from blendem.io.products import read_h5, write_h5
from blendem.io.statistics import read_statistics
from blendem.logs import configure_logging
from blendem.prior.refit import broaden

LOG = logging.getLogger(__name__)
# Blends whose matrices are in memory at once.
PORTION = 64


def main(
    blends: Path,
    statistics: Path,
    prior: Path,
    output: Path,
    lap: int,
    config: EMConfig,
    seed: int,
) -> None:
    """Draws that are not sound are left out and counted."""
    start = time.perf_counter()
    model, _ = read_prior(prior)
    if lap == 1:
        model = broaden(model, config.broaden)
    data = read_blends(blends)
    names = data.names
    use = read_h5(statistics, only=("in_em",))[0]["in_em"]
    use = use & ~is_held_out(names, config.held_out, seed)
    rows = (
        (s, names[row])
        for row, s in enumerate(read_statistics(statistics, data))
        if use[row]
    )
    parts, count = [], 0
    while portion := list(itertools.islice(rows, PORTION)):
        count += len(portion)
        parts.append(
            draw_galaxies(
                *zip(*portion, strict=True),
                model,
                config.draws,
                config.steps,
                f"em/{lap}",
                seed,
            )
        )
    d = len(model.mean)
    totals = {
        name: sum(getattr(part, name) for part in parts)
        for name in ("galaxies", "failed", "diverged")
    }
    attrs = totals | {"blends": count, "seconds": time.perf_counter() - start}
    LOG.info("%s", attrs)
    write_h5(
        output,
        {
            "z": np.concatenate([np.zeros((0, d), np.float32), *(p.z for p in parts)]),
            "log_amplitude": np.concatenate(
                [np.zeros(0), *(p.log_amplitude for p in parts)]
            ),
        },
        attrs,
    )


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.blends),
        Path(snakemake.input.statistics),
        Path(snakemake.input.prior),
        Path(snakemake.output.draws),
        snakemake.params.lap,
        EMConfig(**snakemake.params.em),
        snakemake.params.seed,
    )
