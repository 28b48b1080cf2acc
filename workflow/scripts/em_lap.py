"""One lap of EM: posterior moments of every galaxy, then a better prior."""

import logging
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pandas as pd

from blendem.config import EMConfig
from blendem.inference.em import add, expectation, maximization
from blendem.inference.posterior import BlendStatistics
from blendem.io.atomic import atomic_path
from blendem.io.blends import read_blends
from blendem.io.priors import read_prior, write_prior
from blendem.io.products import read_h5
from blendem.io.statistics import read_statistics
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
    data = [read_blends(path) for path in blends]

    def taught(chunk: int) -> Iterator[BlendStatistics]:
        """Read again in every iteration: `H` of all blends at once can be gigabytes."""
        path = statistics[chunk]
        use = read_h5(path, only=("in_em",))[0]["in_em"]
        rows = read_statistics(path, data[chunk])
        return (s for s, used in zip(rows, use, strict=True) if used)

    rows = []
    for iteration in range(config.iterations):
        found = [expectation(taught(chunk), prior) for chunk in range(len(data))]
        total = reduce(add, (sums for sums, _ in found))
        rows.append(
            {
                "lap": lap - 1 + iteration / config.iterations,
                "log_evidence": total.log_evidence,
                "n_data": total.n_data,
                "n_blends": sum(len(blends) for _, blends in found),
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
