"""Fit of a mixture of Gaussians to coordinates of galaxies, by expectation-maximization."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blendem.prior.mixture import MixturePrior

# Added to the variances of every component (the variance over the training set is 1).
COVARIANCE_FLOOR = 1e-3
MINIMUM = 1e-3  # rows that a component stands for at least
LIMIT = (
    3.0  # factor that over-relaxation adds to a variance or weight in a step at most
)


def fit_mixture(
    e: Float[np.ndarray | Array, "row latent"],
    components: int,
    iterations: int,
    watch: Callable[[int, float, MixturePrior], None] | None = None,
    start: MixturePrior | None = None,
    shrink: float = 0.0,
    scaling: int | None = None,
    mend: float = 1.0,
) -> MixturePrior:
    """Fit full covariances by EM (Dempster, Laird & Rubin 1977).

    Without `start` it begins with shells of equal numbers of rows by length, since galaxies of
    unit flux are a mixture of scales: there is no random start.

    With `shrink` the covariances are those of highest posterior density under an inverse
    Wishart prior about `scale x shape`, the scale of the component and one shape for all
    (a scale mixture, as galaxies are to first order); or, with `mend=0`, about those
    of the start, changed as all components together change (`_common_change`). A component
    of few galaxies would else exclude all that they do not span.

    Args:
        e: Whitened coordinates.
        components: Number of Gaussians.
        iterations: Of EM.
        watch: Called after every iteration with its number, the mean log density of the rows
            before it, up to a constant, and the mixture after it.
        start: Mixture to begin with, of `components` components.
        shrink: Weight of what all components have in common [rows].
        scaling: Number of first coordinates that scale with the galaxy, None: all; of the others
            (the brightness) all components share a variance.
        mend: Weight, 0 to 1, of one shape in what they have in common; the rest is the change
            since `start`. Without one it is one shape.

    Raises:
        ValueError: If there are fewer rows than components.
        FloatingPointError: If the likelihood is not finite.
    """
    e = jnp.asarray(e, jnp.float32)
    scaling = e.shape[1] if scaling is None else scaling
    if len(e) < components:
        raise ValueError(
            f"{len(e)} galaxies cannot carry a mixture of {components} components; raise"
            " stamps.n or lower prior.components"
        )
    previous = None
    if start is None:
        length = np.asarray(jnp.sum(e**2, axis=1))
        shell = np.argsort(np.argsort(length)) * components // len(length)
        first = jax.nn.one_hot(shell, components)
        state = _maximise(e, first, shrink, scaling, None, mend)
    else:
        previous = jnp.asarray(start.covariances, jnp.float32)
        state = _state(start)
    for number in range(1, iterations + 1):
        responsibility, score = _expect(e, *state)
        if not np.isfinite(float(score)):
            raise FloatingPointError(
                "the mixture of Gaussians diverged; look for stamps that are not finite"
            )
        state = _maximise(e, responsibility, shrink, scaling, previous, mend)
        if watch is not None:
            watch(number, float(score), _mixture(state))
    return _mixture(state)


def beyond(before: MixturePrior, fitted: MixturePrior, factor: float) -> MixturePrior:
    """Go a part of a step of EM, or on in its direction: over-relaxation.

    Directions that the data hardly constrain move by a small part of their gap in every lap; a step
    that is `factor` times as long still converges where that is below 2 (Salakhutdinov & Roweis
    2003, ICML, "Adaptive overrelaxed bound optimization methods"). Covariances move along the
    geodesic from S to T, `S^1/2 (S^-1/2 T S^-1/2)^factor S^1/2`, which stays positive; weights in
    their logarithms; beyond the fit no variance and no weight by more than a factor of `LIMIT`.

    Args:
        before: Mixture that the step began with.
        fitted: Where it led, component by component.
        factor: 0: nowhere; 1: there; 2: twice as far.

    Raises:
        ValueError: If the mixtures differ in the number of components or coordinates.
    """
    old, new = (np.asarray(x.covariances, float) for x in (before, fitted))
    if old.shape != new.shape:
        raise ValueError(f"mixtures of different shapes: {old.shape}, {new.shape}")
    lower = np.linalg.cholesky(old)
    half = np.linalg.solve(lower, new)
    ratio = np.linalg.solve(lower, half.swapaxes(1, 2))
    values, vectors = np.linalg.eigh(0.5 * (ratio + ratio.swapaxes(1, 2)))
    values = longer(np.maximum(values, 1e-12), factor)
    root = lower @ (vectors * np.sqrt(values)[:, None, :])
    start = np.asarray(before.centers, float)
    centers = start + factor * (np.asarray(fitted.centers, float) - start)
    weights = np.asarray(before.weights, float)
    weights = weights * longer(np.asarray(fitted.weights, float) / weights, factor)
    return MixturePrior.of(weights / weights.sum(), centers, root @ root.swapaxes(1, 2))


def longer(
    ratio: Float[np.ndarray, "*shape"], factor: float
) -> Float[np.ndarray, "*shape"]:
    """Ratios to the power of `factor`; what this adds to a step has a limit."""
    more = (factor - 1) * np.log(ratio)
    if factor > 1:
        more = np.clip(more, -np.log(LIMIT), np.log(LIMIT))
    return ratio * np.exp(more)


def mean_log_density(
    mixture: MixturePrior, e: Float[np.ndarray | Array, "row latent"]
) -> float:
    """Mean log density of rows, up to the constant that all mixtures share."""
    return float(_expect(jnp.asarray(e, jnp.float32), *_state(mixture))[1])


def _state(mixture):
    lower = np.linalg.cholesky(np.asarray(mixture.covariances, float))
    parts = (mixture.weights, mixture.centers, lower)
    return tuple(jnp.asarray(x, jnp.float32) for x in parts)


def _mixture(state):
    weights, centers, lower = (np.asarray(x, float) for x in state)
    return MixturePrior.of(weights, centers, lower @ lower.transpose(0, 2, 1))


@jax.jit
def _expect(e, weights, centers, lower):
    """Responsibilities and mean log density up to a constant."""

    identity = jnp.eye(e.shape[1], dtype=e.dtype)

    def log_density(component):
        center, lower = component
        # A product with the inverse is ten times as fast as a solve for every row on a CPU.
        inverse = jax.scipy.linalg.solve_triangular(lower, identity, lower=True)
        white = (e - center[None]) @ inverse.T
        return -0.5 * jnp.sum(white**2, axis=1) - jnp.sum(jnp.log(jnp.diagonal(lower)))

    # One component at a time: memory does not grow with their number.
    log_p = jax.lax.map(log_density, (centers, lower)).T + jnp.log(weights)[None]
    total = jax.scipy.special.logsumexp(log_p, axis=1)
    return jnp.exp(log_p - total[:, None]), jnp.mean(total)


@partial(jax.jit, static_argnames="scaling")
def _maximise(e, responsibility, shrink, scaling, previous, mend):
    """Weights, centres and lower factors of the covariances."""
    number = jnp.sum(responsibility, axis=0) + MINIMUM
    centers = (responsibility.T @ e) / number[:, None]
    weights = number / jnp.sum(number)

    def covariance(component):
        part, center, number = component
        step = e - center[None]
        floor = COVARIANCE_FLOOR * jnp.eye(e.shape[1], dtype=e.dtype)
        return (step.T * part[None]) @ step / number + floor

    own = jax.lax.map(covariance, (responsibility.T, centers, number))
    part = (shrink / (number + shrink))[:, None, None]
    # What round components become is one shape for all.
    round_ones = jnp.broadcast_to(jnp.eye(e.shape[1], dtype=e.dtype), own.shape)
    common = _common_change(weights, own, round_ones, scaling)
    if previous is not None:
        change = _common_change(weights, own, previous, scaling)
        common = mend * common + (1 - mend) * change
    covariances = (1 - part) * own + part * common
    return weights, centers, jax.lax.map(jnp.linalg.cholesky, covariances)


def _common_change(weights, covariances, previous, scaling):
    """Previous covariances, changed as those of all components together change.

    The mean shapes of old and new components (of trace 1) give one symmetric map, the optimal
    transport between them, which takes each previous covariance along; its trace is that of
    the new one. If nothing changes, nothing is changed: one shape for all instead would take
    from fine modes, lap by lap, what compact galaxies have of them.

    A brightness does not scale with the galaxy: the spread that it has in compact components,
    times the trace of extended ones, would be several deviations of the training set. Its
    variances are multiplied by one factor.

    Traces, not likelihoods, set the scales: a compact component varies most where extended
    ones do not, and a scale fitted to that would inflate it lap by lap.
    """

    def trace(c):
        return jnp.trace(c[:, :scaling, :scaling], axis1=1, axis2=2)

    def shape(c):
        return jnp.einsum("c,cij->ij", weights / trace(c), c[:, :scaling, :scaling])

    def rest(c):
        return weights @ jnp.diagonal(c, axis1=1, axis2=2)[:, scaling:]

    size = covariances.shape[1]
    change = jnp.zeros((size, size), covariances.dtype)
    change = change.at[:scaling, :scaling].set(
        _transport(shape(previous), shape(covariances))
    )
    more = jnp.arange(scaling, size)
    change = change.at[more, more].set(jnp.sqrt(rest(covariances) / rest(previous)))
    moved = change[None] @ previous @ change[None]
    scale = jnp.ones((len(weights), size), covariances.dtype)
    own = jnp.sqrt(trace(covariances) / trace(moved))
    scale = scale.at[:, :scaling].set(own[:, None])
    return scale[:, :, None] * moved * scale[:, None, :]


def _transport(old, new):
    """The symmetric positive matrix M with `M old M = new`."""

    def power(matrix, exponent):
        values, vectors = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
        values = jnp.maximum(values, 1e-7 * values[-1])
        return (vectors * (values**exponent)[None]) @ vectors.T

    root, back = power(old, 0.5), power(old, -0.5)
    return back @ power(root @ new @ root, 0.5) @ back
