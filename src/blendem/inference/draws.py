"""What the draws of one blend say: mean, chi2, effective parameters, negative fluxes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from blendem.inference.posterior import BlendStatistics, Posterior, chi2
from blendem.prior.gaussian import Basis

# What samplers say of a blend, in the table of blends (docs/formats.md).
DIAGNOSTICS = (
    "solve_residual",
    "unconverged",
    "guards",
    "solve_iterations",
    "failed_draws",
    "outside_basis",
    "outside_chi2",
)


class BlendDraws(NamedTuple):
    """Posterior of the unknowns of one blend, by draws.

    Attributes:
        mean: Of all unknowns, `(unknown,)`.
        sd: Standard deviation of all unknowns, `(unknown,)`.
        draws: `(draw, unknown)`.
        chi2_of_mean: At `mean`.
        chi2_of_draws: Mean over the draws.
        effective: What the fit absorbs: the expectation of `chi2_of_mean` under the model
            is the number of pixels minus this.
        log_evidence: Log marginal likelihood; NaN where no closed form gives it.
    """

    mean: Float[np.ndarray, " unknown"]
    sd: Float[np.ndarray, " unknown"]
    draws: Float[np.ndarray, "draw unknown"]
    chi2_of_mean: float
    chi2_of_draws: float
    effective: float
    log_evidence: float


def exact_draws(
    statistics: BlendStatistics,
    posterior: Posterior,
    n_draws: int,
    rng: np.random.Generator,
) -> BlendDraws:
    """Draws of a closed-form posterior; mean and deviation are exact."""
    draws = posterior.draw(n_draws, rng)
    return BlendDraws(
        mean=posterior.mean,
        sd=np.sqrt(np.sum(posterior.root**2, axis=1)),
        draws=draws,
        chi2_of_mean=posterior.chi2_of_mean,
        chi2_of_draws=float(chi2(statistics, draws).mean()),
        effective=posterior.effective_parameters,
        log_evidence=posterior.log_evidence,
    )


def sampled_draws(
    statistics: BlendStatistics, draws: Float[np.ndarray, "draw unknown"]
) -> BlendDraws:
    """Draws that a sampler gave.

    The effective number of parameters is mean chi2 of the draws minus chi2 of their mean,
    `tr(H C)` with the covariance C of the draws divided by n. That the mean of n draws is
    noisy raises its chi2 by `tr(H C) / n`, so that no correction of n is wanted.
    """
    mean = draws.mean(axis=0)
    at_mean = float(chi2(statistics, mean[None])[0])
    of_draws = float(chi2(statistics, draws).mean())
    return BlendDraws(
        mean=mean,
        sd=draws.std(axis=0, ddof=1),
        draws=draws,
        chi2_of_mean=at_mean,
        chi2_of_draws=of_draws,
        effective=of_draws - at_mean,
        log_evidence=np.nan,
    )


def negative_flux_fraction(
    basis: Basis,
    z: Float[np.ndarray, "draw source mode"],
    is_star: Bool[np.ndarray, " _"],
) -> float:
    """Part of the fluxes of galaxies (draw, source, band) below zero; NaN without galaxies."""
    light = np.asarray(basis.modes, float).sum((-2, -1))
    flux = np.asarray(basis.mean, float).sum((-2, -1)) + z[:, ~is_star] @ light
    return float((flux < 0).mean()) if flux.size else np.nan
