"""Expectation-maximization of the Gaussian prior from blended observations, exact.

Rozet et al. 2024 (arXiv 2405.13712) iterate posterior samples (E) and retraining (M); for a
Gaussian prior both steps are closed form, and the evidence cannot fall (Dempster, Laird &
Rubin 1977).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from blendem.inference.posterior import BlendStatistics, posterior
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.symmetry import latent_symmetries, symmetrise_moments


class Expectation(NamedTuple):
    """Sums of the E step over the galaxies of some blends; sums of sums add up.

    Attributes:
        count: Number of galaxies.
        first: Sum of posterior means of z, `(mode,)`.
        second: Sum of `E[z z^T]`, `(mode, mode)`.
        log_evidence: Sum of the log evidence.
        n_data: Sum of the number of unmasked pixels.
    """

    count: float
    first: Float[np.ndarray, " mode"]
    second: Float[np.ndarray, "mode mode"]
    log_evidence: float
    n_data: float


def add(a: Expectation, b: Expectation) -> Expectation:
    """Sum of two expectations."""
    return Expectation(*(x + y for x, y in zip(a, b, strict=True)))


def expectation(
    blends: Iterable[BlendStatistics], prior: GaussianPrior
) -> tuple[Expectation, Float[np.ndarray, " blend"]]:
    """E step: posterior moments of every galaxy, and the log evidence of every blend."""
    d = len(prior.mean)
    count, n_data, evidence = 0, 0.0, []
    first, second = np.zeros(d), np.zeros((d, d))
    for statistics in blends:
        p = posterior(statistics, prior)
        evidence.append(p.log_evidence)
        n_data += statistics.n_data
        for k, star in enumerate(statistics.is_star):
            if star:
                continue
            block = slice(k * d, (k + 1) * d)
            z, root = p.mean[block], p.root[block]
            count += 1
            first += z
            second += np.outer(z, z) + root @ root.T
    evidence = np.asarray(evidence)
    return Expectation(count, first, second, float(evidence.sum()), n_data), evidence


def maximization(
    total: Expectation,
    prior: GaussianPrior,
    *,
    symmetric: bool = True,
    floor: float = 1e-8,
) -> GaussianPrior:
    """M step: the Gaussian of highest expected log density, in the same basis.

    Args:
        total: Sums over all blends.
        prior: The prior of the E step (its basis is kept).
        symmetric: Restrict the prior to those that the 8 symmetries leave invariant.
        floor: Smallest variance of a direction [variance of the training set].

    Raises:
        ValueError: If there is no galaxy to learn from.
    """
    if total.count == 0:
        raise ValueError(
            "EM has no galaxy to learn from: every source is a star or flagged. Check the"
            " catalog's `type` column, or set em.laps to 0."
        )
    mean = total.first / total.count
    covariance = total.second / total.count - np.outer(mean, mean)
    if symmetric:
        basis = prior.basis
        representation = latent_symmetries(
            np.asarray(basis.modes), np.asarray(basis.dual)
        )
        mean, covariance = symmetrise_moments(mean, covariance, representation)
    return GaussianPrior.from_moments(prior.basis, mean, covariance, floor)
