"""How many noise levels and final sweeps the sampler of the latent tier needs.

    make calibration
    .venv/bin/python benchmarks/levels.py results/calibration_latent

Truths are drawn from the prior, data from the matrices of real blends, so posterior draws follow the
prior (Geweke 2004, JASA 99, 799). What a chain that has not settled gets wrong are draws of components
that are too broad. For every choice of `levels,sweeps`: ln of the mean square of coordinates of a draw,
less that of the truth, mean over draws and galaxies and its error, in four groups of coordinates by falling
variance in the training set; 0 for an exact sampler. Writes `results/benchmarks/levels.csv`.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import pandas as pd
from calibration import observe

from blendem.inference.likelihood import galaxy_likelihood
from blendem.inference.sampler import SamplerSettings, sample, sample_prior
from blendem.io.blends import read_blends
from blendem.io.priors import read_prior
from blendem.io.statistics import read_statistics
from blendem.prior.train import whiten
from blendem.rng import stage_key, stage_rng

CHOICES = ("20,0", "32,0", "20,8", "20,16", "20,32")
GROUPS = 4
SEED = 1


def make(run: Path, n: int, least: int):
    """Prior, likelihoods and true coordinates of the first blends of `least` galaxies or more."""
    prior, _ = read_prior(run / "prior/00.eqx")
    path = sorted((run / "blends").glob("*.h5"))[0]
    found = read_statistics(run / "statistics" / path.name, read_blends(path))
    blended = (s for s in found if s and len(s.is_star) >= least)
    likelihoods, truths = [], []
    for number, s in enumerate(itertools.islice(blended, n)):
        key = stage_key(SEED, "levels/truth", number)
        z = sample_prior(prior, len(s.is_star), key=key, log_amplitude=s.log_amplitude)
        s = observe(s, z, stage_rng(SEED, f"levels/{number}"))
        likelihoods.append(galaxy_likelihood(s, prior))
        truths.append(whiten(prior.gaussian, z)[:, : prior.n_modes])
    return prior, likelihoods, truths


def main(
    run: Path, blends: int, least: int, draws: int, choices: list[str], out: Path
) -> None:
    """Print and write the table."""
    prior, likelihoods, truths = make(run, blends, least)
    keys = [stage_key(SEED, "levels", i) for i in range(len(likelihoods))]
    galaxies = sum(x.n_galaxies for x in likelihoods)
    print(f"{len(likelihoods)} blends, {galaxies} galaxies, {draws} draws")
    groups = np.array_split(np.arange(prior.n_modes), GROUPS)
    rows = []
    for choice in choices:
        levels, sweeps = map(int, choice.split(","))
        settings = SamplerSettings(steps=levels, sweeps=sweeps)
        # Once for compilation.
        short = settings._replace(steps=2, sweeps=min(sweeps, 1))
        sample(prior, likelihoods, draws, short, keys=keys)
        start = time.perf_counter()
        found = sample(prior, likelihoods, draws, settings, keys=keys)
        seconds = (time.perf_counter() - start) / len(likelihoods)
        row = {"levels": levels, "sweeps": sweeps, "seconds_per_blend": seconds}
        for i, group in enumerate(groups):
            excess = np.concatenate(
                [
                    np.log(np.mean(np.asarray(d.e)[..., group] ** 2, axis=2)).mean(0)
                    - np.log(np.mean(e[:, group] ** 2, axis=1))
                    for d, e in zip(found, truths, strict=True)
                ]
            )
            row[f"excess_{i + 1}"] = excess.mean()
            row[f"error_{i + 1}"] = excess.std() / np.sqrt(len(excess))
        rows.append(row)
        table = pd.DataFrame(rows)
        print(table.tail(1).round(3).to_string(index=False), flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(out, index=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder results/<run> of a latent run")
    parser.add_argument("--blends", type=int, default=60)
    parser.add_argument("--least", type=int, default=2, help="galaxies of a blend")
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--choices", nargs="+", default=CHOICES, help="levels,sweeps")
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks/levels.csv")
    )
    given = parser.parse_args()
    main(given.run, given.blends, given.least, given.draws, given.choices, given.out)
