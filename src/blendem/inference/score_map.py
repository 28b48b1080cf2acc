"""Maximum a posteriori fits with a score prior at a fixed noise level sigma_0.

A diffusion prior has no density, but at every noise level the gradient of one: the prior
smoothed by sigma_0, `grad ln p = (D(e, sigma_0) - e) / sigma_0^2` (Tweedie's formula: Robbins
1956). The role that score priors play in scarlet2 (Sampson et al. 2024, arXiv 2401.07313). The
maximum depends on sigma_0, so that is part of the result.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blendem.inference.gibbs import as_arrays, equal_sizes, stack_likelihoods
from blendem.inference.likelihood import LatentLikelihood
from blendem.inference.sampler import LatentTier, check_modes

# A trial step of the polish is taken if the gradient stays below the largest of this many
# gradients before it; else the step is cut by this factor.
MEMORY, CUT = 8, 0.25


class ScoreMapSettings(NamedTuple):
    """Choices of the fit; hashable.

    Attributes:
        sigma_0: Noise level of the prior, in units of the whitened coordinates.
        rho_max: First noise level of the warm start; the last one is sigma_0.
        anneal: Half-quadratic steps of the warm start.
        iterations: Most gradient evaluations of the polish.
        tolerance: Gradient norm at which the polish ends (see `ScoreMap`).
    """

    sigma_0: float = 0.1
    rho_max: float = 3.0
    anneal: int = 30
    iterations: int = 1000
    tolerance: float = 1e-3


DEFAULT = ScoreMapSettings()


class ScoreMap(NamedTuple):
    """The fit of the galaxies of one blend.

    Attributes:
        e: Whitened coordinates at the maximum, `(galaxy, latent)`.
        sigma_0: Noise level of the prior it holds for.
        gradient_norm: `sqrt(g^T (H + 1)^-1 g / n)` of the n coordinates: about the rms
            distance from the maximum, in standard deviations of the Gaussian posterior.
        iterations: Gradient evaluations of the polish.
        converged: The norm is below the tolerance.
        chi2: `|h - L^T e|^2`.
    """

    e: Float[np.ndarray, "_ _"]
    sigma_0: float
    gradient_norm: float
    iterations: int
    converged: bool
    chi2: float


class _Polish(NamedTuple):
    """State of the ascent: iterate, its gradient, step length, norms before, count."""

    e: Array
    gradient: Array
    alpha: Array
    norms: Array
    count: Array


def _solve(factor, eigenvalues, ridge, v):
    """Solve `(L L^T + ridge) x = v` for orthogonal columns of L."""
    inner = (v @ factor) / (ridge + eigenvalues)
    return (v - factor @ inner) / ridge


def _polish(gradient_of, precondition, e, safe, settings):
    """Preconditioned gradient ascent with Barzilai-Borwein steps.

    There is no objective to watch, only its gradient. A step of length at most `safe` is
    below that of expectation-maximization (the half-quadratic step), which cannot go
    down, and is always taken.
    """
    n = e.size

    def norm(g):
        return jnp.sqrt(jnp.maximum(jnp.sum(g * precondition(g)), 0) / n)

    def proceed(s):
        return (s.count < settings.iterations) & (s.norms[0] > settings.tolerance)

    def iterate(s):
        direction = precondition(s.gradient)
        trial = s.e + s.alpha * direction
        gradient = gradient_of(trial)
        size = norm(gradient)
        take = (size <= jnp.max(s.norms)) | (s.alpha <= safe)
        # Barzilai & Borwein 1988 in the metric of the preconditioner.
        along = jnp.sum(direction * s.gradient)
        change = along - jnp.sum(direction * gradient)
        # Where the density is not concave there is no Newton step; go on as far as the
        # Gaussian prior would.
        guess = jnp.where(
            change > 0, s.alpha * along / jnp.where(change > 0, change, 1.0), 1.0
        )
        alpha = jnp.where(take, jnp.clip(guess, safe, 4.0), CUT * s.alpha)
        norms = jnp.where(take, jnp.roll(s.norms, 1).at[0].set(size), s.norms)
        return _Polish(
            e=jnp.where(take, trial, s.e),
            gradient=jnp.where(take, gradient, s.gradient),
            alpha=jnp.maximum(alpha, safe),
            norms=norms,
            count=s.count + 1,
        )

    gradient = gradient_of(e)
    first = norm(gradient)
    start = _Polish(
        e, gradient, jnp.asarray(safe), jnp.full(MEMORY, first), jnp.int32(0)
    )
    end = jax.lax.while_loop(proceed, iterate, start)
    return end.e, end.norms[0], end.count


@eqx.filter_jit
def _fit(prior, factor, target, sigma_0, rhos, settings):
    """Warm start and polish of a batch of blends of equal size."""
    n_latent = prior.n_latent

    def one(factor, target):
        eigenvalues = jnp.sum(factor**2, axis=0)

        def denoise(e, sigma):
            return prior.denoise_latent(e.reshape(-1, n_latent), sigma)[0].ravel()

        def gradient_of(e):
            score = (denoise(e, sigma_0) - e) / sigma_0**2
            return factor @ (target - e @ factor) + score

        # Half-quadratic splitting: u carries the data, D the prior; where it rests at
        # rho = sigma_0, u is a maximum of the posterior.
        def half_quadratic(u, rho):
            e = denoise(u, rho)
            gain = rho**2 / (1 + rho**2 * eigenvalues)
            return e + factor @ ((target - e @ factor) * gain), None

        e = _solve(factor, eigenvalues, 1.0, factor @ target)
        e, _ = jax.lax.scan(half_quadratic, e, rhos)
        safe = sigma_0**2 / (1 + sigma_0**2)
        e, norm, count = _polish(
            gradient_of,
            lambda g: _solve(factor, eigenvalues, 1.0, g),
            e,
            safe,
            settings,
        )
        chi2 = jnp.sum((target - e @ factor) ** 2)
        return e.reshape(-1, n_latent), norm, count, chi2

    return jax.vmap(one)(factor, target)


def fit_score_map(
    prior: LatentTier,
    likelihoods: Sequence[LatentLikelihood],
    settings: ScoreMapSettings = DEFAULT,
    *,
    batch: int = 1,
) -> list[ScoreMap]:
    """Maximise `ln L(e) + ln p_sigma_0(e)` over the galaxies of every blend.

    From the posterior mean of the Gaussian prior, by annealed half-quadratic splitting
    (Geman & Yang 1995; with a denoiser: Zhang et al. 2021, arXiv 2008.13751), then by gradient
    ascent with the precision of the Gaussian posterior as preconditioner. No pull-back
    through the network is needed. The maximum may be a local one.

    Args:
        prior: Any latent prior.
        likelihoods: One per blend.
        settings: Choices of the fit.
        batch: Blends of one number of galaxies computed at once.

    Returns:
        Fits, in the order of `likelihoods`. One that did not converge says so.

    Raises:
        ValueError: If a likelihood has other modes than the prior, or the noise levels are
            not positive and falling.
    """
    if settings.anneal < 1 or not 0 < settings.sigma_0 <= settings.rho_max:
        raise ValueError(
            "the fit needs anneal >= 1 and 0 < sigma_0 <= rho_max; got"
            f" anneal={settings.anneal}, sigma_0={settings.sigma_0},"
            f" rho_max={settings.rho_max}"
        )
    check_modes(prior, likelihoods)
    low = as_arrays(prior)
    dtype = jnp.result_type(float)
    rhos = np.geomspace(settings.rho_max, settings.sigma_0, settings.anneal)
    out: list[ScoreMap | None] = [None] * len(likelihoods)
    for rows, count in equal_sizes(likelihoods, batch):
        factor, target = stack_likelihoods([likelihoods[i] for i in rows])
        result = _fit(
            low,
            factor,
            target,
            jnp.asarray(settings.sigma_0, dtype),
            jnp.asarray(rhos, dtype),
            settings,
        )
        e, norm, steps, chi2 = (np.asarray(x) for x in result)
        for j, i in enumerate(rows[:count]):
            out[i] = ScoreMap(
                e=e[j],
                sigma_0=settings.sigma_0,
                gradient_norm=float(norm[j]),
                iterations=int(steps[j]),
                converged=bool(norm[j] <= settings.tolerance),
                chi2=float(chi2[j]),
            )
    return out
