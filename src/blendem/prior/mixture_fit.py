"""Fit of a mixture of Gaussians to coordinates of galaxies, by expectation-maximization."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blendem.prior.mixture import MixturePrior

# Added to the variances of every component (the variance over the training set is 1).
COVARIANCE_FLOOR = 1e-3
MINIMUM = 1e-3  # rows that a component stands for at least


def fit_mixture(
    e: Float[np.ndarray | Array, "row latent"],
    components: int,
    iterations: int,
    watch: Callable[[int, float, MixturePrior], None] | None = None,
    start: MixturePrior | None = None,
) -> MixturePrior:
    """Fit full covariances by EM (Dempster, Laird & Rubin 1977).

    Without `start` it begins with shells of equal numbers of rows by length, since galaxies of
    unit flux are a mixture of scales: there is no random start.

    Args:
        e: Whitened coordinates.
        components: Number of Gaussians.
        iterations: Of EM.
        watch: Called after every iteration with its number, the mean log density of the rows
            before it, up to a constant, and the mixture after it.
        start: Mixture to begin with, of `components` components.

    Raises:
        ValueError: If there are fewer rows than components.
        FloatingPointError: If the likelihood is not finite.
    """
    e = jnp.asarray(e, jnp.float32)
    if len(e) < components:
        raise ValueError(
            f"{len(e)} galaxies cannot carry a mixture of {components} components; raise"
            " stamps.n or lower prior.components"
        )
    if start is None:
        length = np.asarray(jnp.sum(e**2, axis=1))
        shell = np.argsort(np.argsort(length)) * components // len(length)
        state = _maximise(e, jax.nn.one_hot(shell, components))
    else:
        lower = np.linalg.cholesky(np.asarray(start.covariances, float))
        state = tuple(
            jnp.asarray(x, jnp.float32) for x in (start.weights, start.centers, lower)
        )
    for number in range(1, iterations + 1):
        responsibility, score = _expect(e, *state)
        if not np.isfinite(float(score)):
            raise FloatingPointError(
                "the mixture of Gaussians diverged; look for stamps that are not finite"
            )
        state = _maximise(e, responsibility)
        if watch is not None:
            watch(number, float(score), _mixture(state))
    return _mixture(state)


def _mixture(state):
    weights, centers, lower = (np.asarray(x, float) for x in state)
    return MixturePrior.of(weights, centers, lower @ lower.transpose(0, 2, 1))


@jax.jit
def _expect(e, weights, centers, lower):
    """Responsibilities and mean log density up to a constant."""

    def log_density(component):
        center, lower = component
        step = (e - center[None]).T
        white = jax.scipy.linalg.solve_triangular(lower, step, lower=True)
        return -0.5 * jnp.sum(white**2, axis=0) - jnp.sum(jnp.log(jnp.diagonal(lower)))

    # One component at a time: memory does not grow with their number.
    log_p = jax.lax.map(log_density, (centers, lower)).T + jnp.log(weights)[None]
    total = jax.scipy.special.logsumexp(log_p, axis=1)
    return jnp.exp(log_p - total[:, None]), jnp.mean(total)


@jax.jit
def _maximise(e, responsibility):
    """Weights, centres and lower factors of the covariances."""
    number = jnp.sum(responsibility, axis=0) + MINIMUM
    centers = (responsibility.T @ e) / number[:, None]

    def factor(component):
        part, center, number = component
        step = e - center[None]
        covariance = (step.T * part[None]) @ step / number
        floor = COVARIANCE_FLOOR * jnp.eye(e.shape[1], dtype=e.dtype)
        return jnp.linalg.cholesky(covariance + floor)

    lower = jax.lax.map(factor, (responsibility.T, centers, number))
    return number / jnp.sum(number), centers, lower
