"""One lap of EM: posterior moments of every galaxy, then a better prior."""

import logging
from functools import reduce
from pathlib import Path

import pandas as pd

from blendem.config import EMConfig
from blendem.inference.em import add, expectation, maximization
from blendem.io.atomic import atomic_path
from blendem.io.blends import read_blends
from blendem.io.priors import read_prior, write_prior
from blendem.io.products import read_h5
from blendem.io.statistics import unstack
from blendem.logs import configure_logging

LOG = logging.getLogger(__name__)


def main(
    blends: list[Path],
    statistics: list[Path],
    previous: Path,
    output: Path,
    evidence: Path,
    lap: int,
    config: EMConfig,
) -> None:
    """E and M steps over all blends that have a result; the basis stays."""
    prior, card = read_prior(previous)
    chunks = []
    for b, path in zip(blends, statistics, strict=True):
        arrays, _ = read_h5(path)
        rows = unstack(arrays, read_blends(b))
        chunks.append([s for s, use in zip(rows, arrays["in_em"], strict=True) if use])
    rows = []
    for iteration in range(config.iterations):
        total = reduce(add, (expectation(chunk, prior)[0] for chunk in chunks if chunk))
        rows.append(
            {
                "lap": lap - 1 + iteration / config.iterations,
                "log_evidence": total.log_evidence,
                "n_data": total.n_data,
                "n_blends": sum(map(len, chunks)),
                "n_galaxies": total.count,
            }
        )
        LOG.info("%s", rows[-1])
        prior = maximization(
            total, prior, symmetric=config.symmetric, floor=config.min_eigenvalue
        )
    with atomic_path(evidence) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    write_prior(output, prior, card | {"lap": lap, "galaxies": int(total.count)})


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        [Path(path) for path in snakemake.input.blends],
        [Path(path) for path in snakemake.input.statistics],
        Path(snakemake.input.prior),
        Path(snakemake.output.prior),
        Path(snakemake.output.evidence),
        snakemake.params.lap,
        EMConfig(**snakemake.params.em),
    )
