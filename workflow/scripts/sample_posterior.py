"""Exact joint posterior of every blend of a chunk, and draws from it."""

import logging
import time
from pathlib import Path

import numpy as np

from blendem.inference.posterior import chi2, posterior
from blendem.io.blends import read_blends
from blendem.io.priors import read_prior
from blendem.io.products import write_h5
from blendem.io.statistics import read_statistics
from blendem.logs import configure_logging
from blendem.rng import stage_rng

LOG = logging.getLogger(__name__)


def main(
    blends: Path, statistics: Path, prior: Path, output: Path, samples: int, seed: int
) -> None:
    """A blend whose posterior fails is marked and does not stop the others."""
    start = time.perf_counter()
    data = read_blends(blends)
    model, _ = read_prior(prior)
    d, n = len(model.mean), len(data.sources["id"])
    rows = data.blends
    n_blends = len(rows["field"])
    out = {
        "mean": np.full((n, d), np.nan),
        "z": np.full((samples, n, d), np.nan, np.float32),
        "shift": np.zeros((n, 2)),
        "shift_sd": np.zeros((n, 2)),
    }
    per_blend = {
        name: np.full(n_blends, np.nan)
        for name in ("chi2", "effective", "log_evidence", "n_data", "chi2_draws")
    }
    sky = []
    for row, s in enumerate(read_statistics(statistics, data)):
        name = f"{rows['field'][row]}/{rows['number'][row]}"
        sky.append(np.zeros(0))
        if s is None:
            if rows["stack"][row] >= 0:
                LOG.warning("%s: statistics are not finite", name)
            continue
        try:
            p = posterior(s, model)
        except (np.linalg.LinAlgError, ValueError) as error:
            LOG.warning("%s: no posterior: %s", name, error)
            continue
        draws = p.draw(samples, stage_rng(seed, f"sample_posterior/{name}"))
        members = np.flatnonzero(data.sources["blend"] == row)
        members = members[np.argsort(data.sources["slot"][members])]
        k = len(members)
        out["mean"][members] = p.mean[: k * d].reshape(k, d)
        out["z"][:, members] = draws[:, : k * d].reshape(samples, k, d)
        rest = p.mean[k * d :]
        if len(rest) >= 2 * k:  # shift modes, in units of their prior deviation
            out["shift"][members] = rest[: 2 * k].reshape(k, 2)
            sd = np.sqrt(np.sum(p.root[k * d : k * (d + 2)] ** 2, axis=1))
            out["shift_sd"][members] = sd.reshape(k, 2)
            rest = rest[2 * k :]
        sky[-1] = rest
        per_blend["chi2"][row] = p.chi2_of_mean
        per_blend["effective"][row] = p.effective_parameters
        per_blend["log_evidence"][row] = p.log_evidence
        per_blend["n_data"][row] = s.n_data
        per_blend["chi2_draws"][row] = chi2(s, draws).mean()
    width = max(map(len, sky), default=0)
    out["sky"] = np.array([np.pad(x, (0, width - len(x))) for x in sky]).reshape(
        n_blends, width
    )
    seconds = time.perf_counter() - start
    LOG.info("%d blends, %d draws each: %.1f s", n_blends, samples, seconds)
    write_h5(output, out | {"blends": per_blend}, {"seconds": seconds})


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.blends),
        Path(snakemake.input.statistics),
        Path(snakemake.input.prior),
        Path(snakemake.output.posterior),
        snakemake.params.samples,
        snakemake.params.seed,
    )
