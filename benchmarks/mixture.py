"""What samplers get wrong where the truth is known: mixtures of Gaussians as prior.

    make benchmark-mixture

Draws of every sampler against the exact posterior of one to three galaxies: total variation
of the weights of the modes, mean and variance errors. Writes
`results/benchmarks/mixture.json`, records with `name`, `value`, `unit`, `n`, `command`: per
case (modes, components, galaxies, separation, data) and sampler, over realisations.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from blendem.inference.gibbs import GibbsSettings, sample_gibbs
from blendem.inference.likelihood import LatentLikelihood
from blendem.inference.sampler import SamplerSettings, sample
from blendem.prior.mixture import MixturePosterior, MixturePrior, exact_posterior
from blendem.rng import stage_key

COMMAND = (
    "make benchmark-mixture" if len(sys.argv) == 1 else f"python {' '.join(sys.argv)}"
)
SEED = 20240611
DRAWS = 512
REALISATIONS = 6
# (modes, components, galaxies)
SHAPES = ((2, 2, 1), (2, 2, 2), (4, 3, 1), (4, 3, 2), (4, 3, 3), (16, 4, 2))
# Distance of two components over the standard deviation of one, before whitening.
SEPARATIONS = {"overlapping": 2.0, "separated": 6.0}
MAIN = SamplerSettings()
MATCHED = MAIN._replace(predictor="draw")


class Case(NamedTuple):
    """Blends of one kind: a prior each, since components are drawn at random too."""

    name: str
    priors: list[MixturePrior]
    likelihoods: list[LatentLikelihood]
    exact: list[MixturePosterior]


def draw_prior(
    d: int, components: int, separation: float, rng: np.random.Generator
) -> MixturePrior:
    """A mixture of unit covariance, with components of unequal weight and shape."""
    centers = rng.normal(size=(components, d))
    gaps = np.linalg.norm(centers[:, None] - centers[None], axis=-1)
    centers *= separation / gaps[np.triu_indices(components, 1)].min()
    root = rng.normal(size=(components, d, d)) / np.sqrt(d)
    covariances = 0.5 * np.eye(d) + 0.5 * root @ root.transpose(0, 2, 1)
    weights = rng.dirichlet(np.full(components, 4.0))
    mean = weights @ centers
    step = centers - mean
    total = np.einsum("c,cij->ij", weights, covariances) + np.einsum(
        "c,ci,cj->ij", weights, step, step
    )
    white = np.linalg.inv(np.linalg.cholesky(total))
    return MixturePrior.of(weights, step @ white.T, white @ covariances @ white.T)


def draw_likelihood(
    prior: MixturePrior, galaxies: int, data: str, rng: np.random.Generator
) -> LatentLikelihood:
    """Data of galaxies drawn from the prior.

    `ambiguous`: half as many noisy numbers as coordinates. `decisive`: every direction, S/N
    3 to 300. `degenerate`: the sum of the galaxies at S/N 10 and their difference at S/N 0.3.
    """
    d = len(prior.mean)
    n = galaxies * d
    if data == "ambiguous":
        A = rng.normal(size=(max(n // 2, 1), n)) / np.sqrt(n)
    elif data == "decisive":
        A = np.geomspace(3, 300, n)[:, None] * np.linalg.qr(rng.normal(size=(n, n)))[0]
    else:
        mixing = 0.3 * np.eye(galaxies) + (10 - 0.3) / galaxies
        A = np.kron(mixing, np.eye(d))
    chosen = rng.choice(len(prior.weights), galaxies, p=prior.weights)
    xi = np.sqrt(prior.values[chosen]) * rng.normal(size=(galaxies, d))
    e = prior.centers[chosen] + np.einsum("kij,kj->ki", prior.vectors[chosen], xi)
    y = A @ e.ravel() + rng.normal(size=len(A))
    values, vectors = np.linalg.eigh(A.T @ A)
    seen = values > 1e-9 * values.max()
    # Columns of zeros stay, so that data of any rank share a program.
    root = np.where(seen, np.sqrt(np.maximum(values, 0)), 0)
    target = np.where(seen, vectors.T @ A.T @ y / np.where(seen, root, 1), 0)
    rest = float(y @ y - target @ target)
    return LatentLikelihood(vectors * root, target, galaxies, d, rest, float(len(y)))


def draw_case(shape: tuple[int, int, int], separation: str, data: str) -> Case:
    """The blends of one case; they depend on its name alone."""
    name = f"d{shape[0]}_c{shape[1]}_k{shape[2]}_{separation}_{data}"
    rng = np.random.default_rng([SEED, *name.encode()])
    priors = [
        draw_prior(*shape[:2], SEPARATIONS[separation], rng)
        for _ in range(REALISATIONS)
    ]
    likelihoods = [draw_likelihood(p, shape[2], data, rng) for p in priors]
    exact = [
        exact_posterior(p, x.factor, x.target)
        for p, x in zip(priors, likelihoods, strict=True)
    ]
    return Case(name, priors, likelihoods, exact)


def samplers() -> dict:
    """Name and function `(prior, likelihood, exact, key) -> draws` of every sampler."""

    def main(settings):
        def run(prior, likelihood, exact, key):
            return sample(prior, [likelihood], DRAWS, settings, keys=[key])[0].e

        return run

    def gibbs(settings):
        def run(prior, likelihood, exact, key):
            draws = sample_gibbs(prior, [likelihood], DRAWS, settings, keys=[key])
            return draws[0].e

        return run

    def draw_exact(prior, likelihood, exact, key):
        seed = int(jax.random.bits(key))
        return exact.draw(DRAWS, np.random.default_rng(seed))

    return {
        "exact": draw_exact,
        "main": main(MAIN),
        "main_128_steps": main(MAIN._replace(steps=128)),
        "moment_matching": main(MATCHED),
        "moment_matching_128_steps": main(MATCHED._replace(steps=128)),
        "gibbs": gibbs(GibbsSettings()),
        "gibbs_resampled": gibbs(GibbsSettings(resample=True)),
    }


def errors(exact: MixturePosterior, e: np.ndarray) -> dict[str, float]:
    """Errors of draws, in standard deviations of the posterior where they have a unit."""
    flat = e.reshape(len(e), -1)
    sd = np.sqrt(np.diag(exact.covariance))
    weights = exact.mode_weights(e)
    return {
        "total_variation": 0.5 * float(np.abs(weights - exact.weights).sum()),
        "mean_error": float(
            np.sqrt(np.mean(((flat.mean(axis=0) - exact.mean) / sd) ** 2))
        ),
        "variance_ratio": float(np.mean(flat.var(axis=0) / sd**2)),
        "finite": float(np.isfinite(flat).all(axis=1).mean()),
    }


UNITS = {
    "total_variation": "",
    "mean_error": "posterior sd, rms over coordinates",
    "variance_ratio": "over the exact variance",
    "finite": "fraction of draws",
}


def run_case(
    case: Case, chosen: Sequence[str]
) -> tuple[list[dict], dict[str, dict[str, list]]]:
    """Records of one case, and all values by sampler and quantity."""
    values, records = {}, []
    for name, run in samplers().items():
        if name not in chosen:
            continue
        start = time.perf_counter()
        values[name] = {quantity: [] for quantity in UNITS}
        blends = zip(case.priors, case.likelihoods, case.exact, strict=True)
        for j, (prior, likelihood, exact) in enumerate(blends):
            key = stage_key(SEED, f"{case.name} {name}", j)
            found = errors(exact, np.asarray(run(prior, likelihood, exact, key)))
            for quantity, value in found.items():
                values[name][quantity].append(value)
        for quantity, unit in UNITS.items():
            records.append(
                record(f"{case.name}_{name}_{quantity}", values[name][quantity], unit)
            )
        tv = values[name]["total_variation"]
        seconds = time.perf_counter() - start
        print(
            f"{case.name:36s} {name:22s} TV {np.mean(tv):.3f} {seconds:.1f} s",
            flush=True,
        )
    return records, values


def record(name: str, values: list[float], unit: str, how=np.mean) -> dict:
    """One number of the result file."""
    return {
        "name": name,
        "value": float(how(values)),
        "unit": unit,
        "n": len(values),
        "command": COMMAND,
    }


def summarise(everything: list[dict]) -> list[dict]:
    """Mean and worst of every sampler and quantity over all blends, and over all cases."""
    out = []
    for name in everything[0]:
        for quantity, unit in UNITS.items():
            values = [v for one in everything for v in one[name][quantity]]
            out.append(record(f"all_{name}_{quantity}_mean", values, unit))
            if quantity == "total_variation":
                above = [float(v > 0.1) for v in values]
                out.append(record(f"all_{name}_above_0.1", above, "fraction of blends"))
                out.append(record(f"all_{name}_{quantity}_max", values, unit, np.max))
                cases = [float(np.mean(one[name][quantity])) for one in everything]
                worst = f"worst_case_{name}_{quantity}"
                out.append(record(worst, cases, f"mean of {REALISATIONS}", np.max))
    return out


def main(path: Path, shapes: Sequence, names: Sequence[str]) -> None:
    """Run all cases and write the records after each, so that a stop loses little."""
    records, everything = [], []
    path.parent.mkdir(parents=True, exist_ok=True)
    cases = [
        (shape, separation, data)
        for shape in shapes
        for separation in SEPARATIONS
        for data in ("ambiguous", "decisive", "degenerate")
        if shape[2] > 1 or data != "degenerate"
    ]
    for chosen in cases:
        found, values = run_case(draw_case(*chosen), names)
        records += found
        everything.append(values)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(summarise(everything) + records, indent=1))
        os.replace(partial, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks/mixture.json")
    )
    parser.add_argument(
        "--shapes", type=int, nargs="*", default=range(len(SHAPES)), help="which ones"
    )
    parser.add_argument("--samplers", nargs="*", default=list(samplers()))
    arguments = parser.parse_args()
    main(arguments.out, [SHAPES[k] for k in arguments.shapes], arguments.samplers)
