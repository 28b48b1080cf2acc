"""Why EM moves a prior of true galaxies where data say little: sampler, data or mixture?

    python benchmarks/em_drift.py

Draws galaxies of blends of `results/em_oracle` (`make em-oracle`) with its prior, for three kinds of
data: of galaxies drawn from the prior; of the true galaxies, with an exactly linear model of the
data; and the simulated images. Prints the part of galaxies with light that a half turn changes
(mean square of the odd coordinates above 0.02), of truths and draws. If the sampler were to
blame, they would differ for the first kind; if the model of the data, second and third would.
"""

import argparse
import json
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np

from blendem.inference.em import with_errors
from blendem.inference.labels import mixture_of
from blendem.inference.likelihood import BRIGHTNESS_SIGMA, galaxy_likelihood
from blendem.inference.sampler import SamplerSettings, sample
from blendem.io.blends import read_blends
from blendem.io.priors import read_prior
from blendem.io.products import read_h5
from blendem.io.statistics import read_statistics
from blendem.io.truth import read_truth
from blendem.prior.gaussian import empty_stamp
from blendem.prior.refit import latent_rows
from blendem.rng import stage_key, stage_rng

ODD = 0.02  # mean square of odd coordinates; the floor of variances is 0.001
GALAXIES = (3, 4)
JITTER = 0.6  # of ln(amplitude), as in the prior's training
DRAWS = 8
SEED = 21


def odd_modes(prior) -> np.ndarray:
    """Which of the first coordinates belong to modes that a half turn gives another sign."""
    modes = np.asarray(prior.basis.modes, float)[: prior.n_modes]
    turned = modes[..., ::-1, ::-1]
    return np.sum(modes * turned, axis=(1, 2, 3)) < 0


truth_of = lru_cache(maxsize=1)(read_truth)  # blends of a field follow each other


def read_galaxies(run: Path, data, row: int) -> np.ndarray:
    """True images of the galaxies of a blend, in the order of its unknowns."""
    truth = truth_of(run / "truth" / f"{data.blends['field'][row]}.h5")
    return truth.images[truth.rows(data.sources["id"][data.members(row)])]


def cases(run: Path, prior, n_blends: int):
    """Likelihoods and true coordinates of blends, for the three kinds of data."""
    data = read_blends(run / "blends" / "0.h5")
    path = run / "statistics" / "0.h5"
    use = read_h5(path, only=("in_em",))[0]["in_em"]
    mixture, dark = mixture_of(prior), empty_stamp(prior.basis)
    found = {kind: ([], []) for kind in ("prior", "galaxies", "images")}
    for row, one in enumerate(read_statistics(path, data)):
        if not use[row] or len(one.is_star) not in GALAXIES:
            continue
        name, n = data.names[row], len(one.is_star)
        images = read_galaxies(run, data, row)
        scale = np.exp(one.log_amplitude)
        z = np.asarray(prior.basis.encode(images / scale[:, None, None, None]), float)
        H = np.asarray(one.H, float)
        values, vectors = np.linalg.eigh(H)
        rng = stage_rng(SEED, f"em_drift/{name}")
        w = rng.standard_normal(len(H))  # shifts
        w[: z.size] = z.ravel()
        noise = vectors @ (np.sqrt(np.maximum(values, 0)) * rng.standard_normal(len(H)))
        errors = JITTER * stage_rng(SEED, f"em_drift/errors/{name}").standard_normal(n)
        relative = dark + np.exp(errors)[:, None] * (z - dark)
        truth, _ = latent_rows(prior, relative, one.log_amplitude - errors)
        for kind, blend in (
            ("galaxies", one._replace(b=H @ w + noise)),
            ("images", one),
        ):
            again = stage_rng(SEED, f"em_drift/errors/{name}")
            known = with_errors(blend, prior.gaussian, JITTER, again)
            likelihood = galaxy_likelihood(known, prior)
            found[kind][0].append(likelihood)
            found[kind][1].append(truth)
        own = mixture.sample_given_last(
            prior.brightness_of(known.log_amplitude),
            BRIGHTNESS_SIGMA,
            key=stage_key(SEED, f"em_drift/truth/{name}"),
        )
        own = np.asarray(own, float)
        seen = np.abs(likelihood.factor).sum(axis=0) > 0
        target = likelihood.factor.T @ own.ravel() + seen * rng.standard_normal(
            len(seen)
        )
        found["prior"][0].append(likelihood._replace(target=target))
        found["prior"][1].append(own)
        if len(found["prior"][0]) == n_blends:
            break
    return found


def main(run: Path, n_blends: int, out: Path) -> None:
    """Print and write the parts, with errors from the scatter between blends."""
    prior, _ = read_prior(run / "prior" / "00.eqx")
    odd = np.flatnonzero(odd_modes(prior))

    def part(blends) -> tuple[float, float]:
        per_blend = [np.mean(np.mean(e[..., odd] ** 2, axis=-1) > ODD) for e in blends]
        return float(np.mean(per_blend)), float(np.std(per_blend) / len(blends) ** 0.5)

    rows = []
    for kind, (likelihoods, truths) in cases(run, prior, n_blends).items():
        keys = [jax.random.key(number) for number in range(len(likelihoods))]
        draws = sample(prior, likelihoods, DRAWS, SamplerSettings(), keys=keys)
        (true, error), (drawn, spread) = part(truths), part([d.e for d in draws])
        rows.append(
            {
                "data": kind,
                "blends": len(likelihoods),
                "odd_truths": true,
                "odd_truths_error": error,
                "odd_draws": drawn,
                "odd_draws_error": spread,
            }
        )
        print(
            f"{kind:9s} truths {true:.3f} +- {error:.3f}, draws {drawn:.3f} +- {spread:.3f}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("results/em_oracle"))
    parser.add_argument("--blends", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("results/em/drift.json"))
    arguments = parser.parse_args()
    main(arguments.run, arguments.blends, arguments.out)
