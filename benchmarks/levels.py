"""How many noise levels and final sweeps the sampler of the latent tier needs.

    make calibration
    .venv/bin/python benchmarks/levels.py results/calibration_latent

Draws of the same blends and seeds with every choice of `levels,sweeps` that is given. What a chain
that has not settled gets wrong are draws of components that are too broad: variances of coordinates
over all draws and galaxies, as a ratio to those of the last choice, in four groups of coordinates by
falling variance in the training set. Writes `results/benchmarks/levels.csv`.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import pandas as pd

from blendem.inference.likelihood import galaxy_likelihood
from blendem.inference.sampler import SamplerSettings, sample
from blendem.io.blends import read_blends
from blendem.io.priors import read_prior
from blendem.io.statistics import read_statistics
from blendem.rng import stage_key

CHOICES = ("20,0", "20,2", "20,8", "12,16", "32,0", "32,8", "96,32")
GROUPS = 4


def read(run: Path, n: int):
    """Prior, likelihoods and keys of the first `n` blends with statistics."""
    prior, _ = read_prior(run / "prior/00.eqx")
    path = sorted((run / "blends").glob("*.h5"))[0]
    data = read_blends(path)
    found = read_statistics(run / "statistics" / path.name, data)
    rows = ((s, name) for s, name in zip(found, data.names, strict=True) if s)
    rows = list(itertools.islice(rows, n))
    likelihoods = [galaxy_likelihood(s, prior) for s, _ in rows]
    return prior, likelihoods, [stage_key(1, f"levels/{name}") for _, name in rows]


def main(run: Path, blends: int, draws: int, choices: list[str], out: Path) -> None:
    """Print and write the table."""
    prior, likelihoods, keys = read(run, blends)
    rows = []
    for choice in choices:
        levels, sweeps = map(int, choice.split(","))
        settings = SamplerSettings(steps=levels, sweeps=sweeps)
        # Once for compilation.
        sample(prior, likelihoods, draws, settings._replace(steps=2), keys=keys)
        start = time.perf_counter()
        found = sample(prior, likelihoods, draws, settings, keys=keys)
        seconds = (time.perf_counter() - start) / len(likelihoods)
        e = [np.asarray(d.e)[..., : prior.n_modes] for d in found]
        each = [x.reshape(-1, prior.n_modes) for x in e]
        variance = np.concatenate(each).var(axis=0)
        rows.append({"levels": levels, "sweeps": sweeps, "seconds": seconds})
        rows[-1]["variance"] = variance
        print(f"{choice}: {seconds:.3f} s per blend", flush=True)
    reference = rows[-1]["variance"]
    for row in rows:
        ratio = row.pop("variance") / reference
        for i, group in enumerate(np.array_split(ratio, GROUPS)):
            row[f"variance_{i + 1}"] = np.median(group)
    table = pd.DataFrame(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(out, index=False)
    galaxies = sum(x.n_galaxies for x in likelihoods)
    print(f"{len(likelihoods)} blends, {galaxies} galaxies, {draws} draws")
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder results/<run> of a latent run")
    parser.add_argument("--blends", type=int, default=100)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--choices", nargs="+", default=CHOICES, help="levels,sweeps")
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks/levels.csv")
    )
    given = parser.parse_args()
    main(given.run, given.blends, given.draws, given.choices, given.out)
