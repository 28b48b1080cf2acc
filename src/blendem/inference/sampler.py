"""Joint posterior draws of all galaxies of a blend by the reverse diffusion.

The state is `e_t = e + sigma n`, the whitened coordinates of all galaxies with noise. The
predictor draws `e_0` from the posterior given `e_t` and the data `h = L^T e + n`
(`likelihood.LatentLikelihood`) at every level, and then `e_t'` of the next level from the known
Gaussian between `e_t` and `e_0`. How `e_0` is drawn depends on the prior:

- A mixture: one Gibbs sweep over the components of all galaxies and `e_0`, exact up to
  mixing (`labels`). Sweeps without the noisy state end it: they leave the posterior as it
  is, draw a galaxy that has no neighbour exactly, and let those that the data hardly tell
  apart change places.
- Any denoiser, under moment matching (Rozet et al. 2024, arXiv 2405.13712): the prior given `e_t`
  is taken as N(D, V), with the denoiser's mean and covariance, so that together with the data it
  is Gaussian again: `mean = D + V L C^-1 (h - L^T D)`, `C = 1 + L^T V L`. A draw is one given
  `e_t` moved by the data (Matheron's rule: the same solve with the draw for D and a perturbed
  right side). Exact for a Gaussian prior, and without data for a mixture, in any number of
  steps.

A third predictor, "multistep", follows the probability-flow equation with that mean, and draws at
the last level only; its draws came out too wide.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from blendem.devices import over_devices, whole_batch
from blendem.inference import labels
from blendem.inference.likelihood import (
    BRIGHTNESS_SIGMA,
    LatentLikelihood,
    brightness_likelihood,
)
from blendem.precision import on_accelerator, single_precision
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior
from blendem.prior.schedule import noise_levels

LatentTier = GaussianPrior | LatentPrior | MixturePrior
PREDICTORS = ("labels", "draw", "multistep")
COVARIANCES = ("full", "diagonal")
# Numbers of galaxies that blends are padded to: one compilation for each, and for each of
# four ranks.
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Fewer on an accelerator, where compilation is most of the time.
ACCELERATED_SIZES = (2, 4, 8, 16, 32)
PRIOR_BATCH = 256  # galaxies of given brightness drawn at once
# Blends whose statistics a script holds at once, and blends that one program draws at once, on a
# CPU and on an accelerator.
PORTION, ACCELERATED_PORTION = 64, 512
BATCH, ACCELERATED_BATCH = 1, 32


class SamplerSettings(NamedTuple):
    """Choices of the reverse process; hashable.

    Attributes:
        steps: Noise levels.
        sigma_max, sigma_min: First and last level; below the last one the prior given
            `e_t` is narrow enough to be Gaussian.
        predictor: "labels": through a draw of e_0 and of the components of all galaxies, exact
            for a mixture up to mixing (`labels`); priors that are none take "draw": through a
            draw of e_0 under moment matching, exact for a Gaussian prior; "multistep": deterministic, through the posterior mean of this level and
            the one before (DPM-Solver++ 2M, Lu et al. 2022, arXiv 2211.01095).
        corrector: Step of the Langevin corrector, in units of sigma^2; 0: no corrector. Its
            drift is that of moment matching, so "labels" are no longer exact with it.
        covariance: Of moment matching; "full": with the correlations that the prior knows; "diagonal":
            variances only, which is cheaper and takes directions that the prior has narrow
            for broad ones.
        sweeps: Gibbs sweeps of the posterior itself after the last level; "labels" only.
        iterations: Most conjugate-gradient iterations of a solve.
        tolerance: Relative residual at which a solve ends.
    """

    steps: int = 20
    sigma_max: float = 30.0
    sigma_min: float = 0.01
    predictor: str = "labels"
    corrector: float = 0.0
    covariance: str = "full"
    sweeps: int = 16
    iterations: int = 80
    tolerance: float = 1e-2


DEFAULT = SamplerSettings()


class Draws(NamedTuple):
    """Posterior draws of the galaxies of one blend, and how they were come by.

    Attributes:
        e: Whitened coordinates, `(draw, galaxy, latent)`; the brightness, if the prior has
            one, is the last.
        residual: Largest relative residual of all solves.
        unconverged: Solves (draw times level) that ended above the tolerance.
        guards: Directions of negative curvature met by conjugate gradients; 0 in exact
            arithmetic, since C is positive definite.
        iterations: Mean number of iterations of a solve.
        failed: Draws that are not finite, `(draw,)`; they are NaN in `e`.
    """

    e: Float[np.ndarray, "_ _ _"]
    residual: float
    unconverged: int
    guards: int
    iterations: float
    failed: Bool[np.ndarray, " _"]


class _Solve(NamedTuple):
    """State of conjugate gradients; one scalar per draw."""

    a: Array
    r: Array
    p: Array
    rho: Array
    guards: Array
    count: Array


def _spread(variance, x):
    """V x, with variances `(draw, galaxy, mode)` or covariances `(draw, galaxy, m, m)`."""
    if variance.ndim == 3:
        return variance.reshape(x.shape) * x
    parts = x.reshape(variance.shape[:3])
    return jnp.einsum("dkij,dkj->dki", variance, parts).reshape(x.shape)


def _solve(variance, factor, rhs, settings):
    """Solve `(1 + L^T V L) a = rhs` for every draw.

    The preconditioner is the exact inverse for the mean covariance of the draws: one
    factorisation per blend and level.

    Returns:
        Solutions, relative residuals `(draw,)`, guards, number of iterations.
    """
    n, draws = factor.shape[1], len(variance)
    # As a product of matrices: ten times faster than `mean` on a CPU.
    shared = jnp.full(draws, 1 / draws, rhs.dtype) @ variance.reshape(draws, -1)
    shared = shared.reshape(variance.shape[1:])
    blocks = factor.reshape(*shared.shape[:2], n)
    if shared.ndim == 2:
        blocks = shared[:, :, None] * blocks
    else:
        blocks = jnp.einsum("kij,kjr->kir", shared, blocks)
    matrix = jnp.eye(n, dtype=rhs.dtype) + factor.T @ blocks.reshape(factor.shape)
    # Eigenvalues span many decades: unit diagonal before float32 factorises.
    scale = 1 / jnp.sqrt(jnp.diagonal(matrix))
    lower = jnp.linalg.cholesky(scale[:, None] * matrix * scale[None])
    inverse = jax.scipy.linalg.solve_triangular(
        lower, jnp.eye(n, dtype=rhs.dtype), lower=True
    )
    inverse = inverse * scale[None]

    def apply(p):
        return p + _spread(variance, p @ factor.T) @ factor

    def precondition(r):
        return (r @ inverse.T) @ inverse

    size = jnp.sum(rhs * precondition(rhs), axis=1)
    limit = settings.tolerance**2 * size

    def proceed(s):
        return (s.count < settings.iterations) & jnp.any(s.rho > limit)

    def iterate(s):
        cp = apply(s.p)
        curvature = jnp.sum(s.p * cp, axis=1)
        moving = s.rho > limit
        bad = moving & (curvature <= 0)
        alpha = jnp.where(
            moving & ~bad, s.rho / jnp.where(bad, 1.0, jnp.maximum(curvature, 1e-30)), 0
        )
        a = s.a + alpha[:, None] * s.p
        r = s.r - alpha[:, None] * cp
        y = precondition(r)
        rho = jnp.where(moving & ~bad, jnp.sum(r * y, axis=1), s.rho)
        beta = jnp.where(moving & ~bad, rho / jnp.where(s.rho > 0, s.rho, 1.0), 0)
        p = y + beta[:, None] * s.p
        return _Solve(
            a, r, p, rho, s.guards + jnp.sum(bad, dtype=jnp.int32), s.count + 1
        )

    y = precondition(rhs)
    state = _Solve(
        jnp.zeros_like(rhs), rhs, y, size, jnp.zeros((), jnp.int32), jnp.int32(0)
    )
    state = jax.lax.while_loop(proceed, iterate, state)
    residual = jnp.sqrt(state.rho / jnp.where(size > 0, size, 1.0))
    return state.a, residual, state.guards, state.count


def _moments(prior, e_t, sigma, settings):
    """Mean and variances or covariances of e given e_t, without data."""
    if settings.covariance == "full" and hasattr(prior, "denoise_full"):
        return prior.denoise_full(e_t, sigma)
    return prior.denoise_latent(e_t, sigma)


def _draw(prior, e_t, sigma, settings, key):
    """Draw of e given e_t, without data, and its variances or covariances."""
    if settings.covariance == "full" and hasattr(prior, "draw_full"):
        return prior.draw_full(e_t, sigma, key)
    mean, variance = prior.denoise_latent(e_t, sigma)
    xi = jax.random.normal(key, e_t.shape, e_t.dtype)
    return mean + jnp.sqrt(variance) * xi, variance


def _conditional(prior, factor, target, e_t, sigma, settings, key=None):
    """Posterior mean of e given e_t and the data; with a key, a draw instead."""
    draws, white = len(e_t), 0.0
    if key is None:
        before, variance = _moments(prior, e_t, sigma, settings)
    else:
        one, two = jax.random.split(key)
        before, variance = _draw(prior, e_t, sigma, settings, one)
        white = jax.random.normal(two, (draws, len(target)), e_t.dtype)
    return _moved(before, variance, factor, target[None] + white, settings)


def _ahead(e, mean, before, first_step, sigma, lower):
    """Deterministic step to the next level, through the means of this one and the last."""
    # Levels are equally spaced in ln(sigma): the weights of two are fixed.
    ahead = jnp.where(first_step, mean, 1.5 * mean - 0.5 * before)
    return ahead + (lower / sigma) * (e - ahead)


def _bridge(e, e_0, sigma, lower, key):
    """Draw of the state at the next level between that of this one and e_0."""
    keep = (lower / sigma) ** 2
    noise = jax.random.normal(key, e.shape, e.dtype)
    return keep * e + (1 - keep) * e_0 + lower * jnp.sqrt(1 - keep) * noise


def _labelled(prior, known, given, factor, target, e_t, e, sigma, settings, key):
    """Draw of e given e_t and the data, exact for a mixture, from one of before.

    `given` holds the covariances of the components given e_t.
    """
    one, two, three = jax.random.split(key, 3)
    mixture = labels.mixture_of(prior)
    chosen, _ = labels.sweep(mixture, known, factor, target, e_t, e, sigma, key=one)
    before = labels.draw_labelled(mixture, chosen, e_t, sigma, key=two)
    white = jax.random.normal(three, (len(e), len(target)), e.dtype)
    return _moved(before, given[chosen], factor, target[None] + white, settings)


def _moved(before, variance, factor, target, settings):
    """What the data make of a mean or draw without them (Matheron's rule)."""
    flat = before.reshape(len(before), -1)
    a, *notes = _solve(variance, factor, target - flat @ factor, settings)
    return (flat + _spread(variance, a @ factor.T)).reshape(before.shape), notes


class _State(NamedTuple):
    """Between two levels: noisy state, and the draw or mean of e_0 of the last one."""

    e: Array
    before: Array


def _for_each(program, *batch):
    """Map over the leading axes; a batch of one without `vmap`, which halves its speed."""
    if len(batch[0]) > 1:
        return jax.vmap(program)(*batch)
    result = program(*jax.tree.map(lambda x: x[0], batch))
    return jax.tree.map(lambda x: x[None], result)


@eqx.filter_jit
def _begin(prior, factor, target, keys, sigma, n_draws, settings, known):
    """States at the first level of a batch of blends of equal size."""
    n_latent = prior.n_latent

    def one(factor, target, key, known):
        shape = (n_draws, len(factor) // n_latent, n_latent)
        e = sigma * jax.random.normal(key, shape, factor.dtype)
        if known is None:
            return _State(e, jnp.zeros_like(e))
        # The chain of labels begins at a draw without them.
        key = jax.random.fold_in(key, 1)
        return _State(
            e, _conditional(prior, factor, target, e, sigma, settings, key=key)[0]
        )

    return _for_each(one, factor, target, keys, known)


def _draw_clean(prior, factor, target, known, given, state, sigma, settings, key):
    """Draw of e_0 given the state and the data."""
    if known is None:
        e = state.e
        return _conditional(prior, factor, target, e, sigma, settings, key=key)
    return _labelled(
        prior, known, given, factor, target, state.e, state.before, sigma, settings, key
    )


@eqx.filter_jit
def _level(
    prior, factor, target, keys, state, sigma, lower, first, settings, known, given
):
    """From one level to the next; notes of the solves for every blend."""

    def one(factor, target, key, state, known):
        e, before = state
        draw, bridge, correct = jax.random.split(key, 3)
        if settings.predictor == "multistep":
            mean, notes = _conditional(prior, factor, target, e, sigma, settings)
            e = _ahead(e, mean, before, first, sigma, lower)
            before = mean
        else:
            before, notes = _draw_clean(
                prior, factor, target, known, given, state, sigma, settings, draw
            )
            e = _bridge(e, before, sigma, lower, bridge)
        if settings.corrector > 0:
            delta = settings.corrector
            mean, more = _conditional(prior, factor, target, e, lower, settings)
            noise = jax.random.normal(correct, e.shape, e.dtype)
            # With this noise a direction that the data fix keeps its variance exactly.
            spread = lower * jnp.sqrt(delta * (2 - delta))
            e = e - delta * (e - mean) + spread * noise
            notes = _join(notes, more)
        return _State(e, before), notes

    return _for_each(one, factor, target, keys, state, known)


@eqx.filter_jit
def _end(prior, factor, target, keys, state, sigma, settings, known, given):
    """Draws of e_0 at the last level."""

    def one(factor, target, key, state, known):
        return _draw_clean(
            prior, factor, target, known, given, state, sigma, settings, key
        )

    return _for_each(one, factor, target, keys, state, known)


@eqx.filter_jit
def _sweep(prior, factor, target, keys, e, shift, settings, known, whole):
    """Gibbs sweep of the posterior itself: labels, all galaxies together, which is which.

    The joint draw is what moves galaxies of which the data know the sum: one after the other
    they would go by the error of that sum.
    """
    far = jnp.asarray(jnp.inf, e.dtype)

    def one(factor, target, key, e, known):
        e, notes = _labelled(
            prior, known, whole, factor, target, e, e, far, settings, key
        )
        last = jax.random.split(key, 4)[3]  # `_labelled` draws with the first three
        return labels.exchange(factor, target, e, shift, key=last), notes

    return _for_each(one, factor, target, keys, e, known)


@eqx.filter_jit
def _last_sweep(prior, factor, target, keys, e, known):
    """Labels and galaxies one after the other: what rests on no solve, exact for a lone one."""
    mixture, far = labels.mixture_of(prior), jnp.asarray(jnp.inf, e.dtype)

    def one(factor, target, key, e, known):
        return labels.sweep(mixture, known, factor, target, e, e, far, key=key)[1]

    return _for_each(one, factor, target, keys, e, known)


def _sweeps(data, keys, e, settings, known):
    """All Gibbs sweeps, from draws that are near the posterior; notes of their solves."""
    prior, galaxies, notes = data[0], e.shape[2], []
    whole = labels.covariances_given(
        labels.mixture_of(prior), jnp.asarray(jnp.inf, e.dtype)
    )
    again = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    # A lone galaxy needs but the last one.
    for number in range(settings.sweeps if galaxies > 1 else 0):
        shift = jnp.asarray(1 + number % (galaxies - 1))
        e, more = _sweep(*data, again(keys, number), e, shift, settings, known, whole)
        notes.append(more)
    return _last_sweep(*data, again(keys, settings.sweeps), e, known), notes


def _reverse(prior, factor, target, keys, levels, n_draws, settings, known, given):
    """Whole reverse process of a batch of blends of equal size.

    The loop over levels is Python's: inside a loop of XLA the same work takes 1.6 times as
    long on a CPU.
    """
    first, loop, last = jnp.moveaxis(
        jax.vmap(lambda k: jax.random.split(k, 3))(keys), 1, 0
    )
    loops = jax.vmap(lambda k: jax.random.split(k, len(levels) - 1))(loop)
    data = (prior, factor, target)
    state = _begin(*data, first, levels[0], n_draws, settings, known)
    notes = []
    for i in range(len(levels) - 1):
        state, more = _level(
            *data,
            loops[:, i],
            state,
            levels[i],
            levels[i + 1],
            jnp.asarray(i == 0),
            settings,
            known,
            given[i],
        )
        notes.append(more)
    e, more = _end(*data, last, state, levels[-1], settings, known, given[-1])
    notes.append(more)
    if known is not None and settings.sweeps:
        e, more = _sweeps(data, last, e, settings, known)
        notes += more
    # Of every solve: (level, blend), residuals also by draw.
    residual, guards, count = (np.stack(x) for x in zip(*notes, strict=True))
    unconverged = np.sum(residual > settings.tolerance, axis=(0, 2))
    return (
        np.asarray(e),
        residual.max(axis=(0, 2)),
        unconverged,
        guards.sum(axis=0),
        count.mean(axis=0),
    )


def _join(notes, more):
    """Notes of two solves of one step."""
    return [
        jnp.maximum(notes[0], more[0]),
        notes[1] + more[1],
        jnp.maximum(notes[2], more[2]),
    ]


def padded_size(n_galaxies: int) -> int:
    """Number of galaxies that a blend is padded to."""
    sizes = ACCELERATED_SIZES if on_accelerator() else SIZES
    return next((s for s in sizes if s >= n_galaxies), n_galaxies)


def padded_shape(likelihood: LatentLikelihood) -> tuple[int, int]:
    """Unknowns and informed directions that a blend is padded to.

    Ranks in steps spare a CPU arithmetic; full ones spare an accelerator programs.
    """
    n = padded_size(likelihood.n_galaxies) * likelihood.n_latent
    if on_accelerator():
        return n, n
    rank = len(likelihood.target)
    return n, next(r for r in (n // 8, n // 4, n // 2, n) if r >= rank)


def portion() -> int:
    """Blends whose statistics a script should hold at once."""
    return ACCELERATED_PORTION if on_accelerator() else PORTION


def check_modes(prior: LatentTier, likelihoods: Sequence[LatentLikelihood]) -> None:
    """Refuse likelihoods with other modes than the prior.

    Raises:
        ValueError: At the first one.
    """
    for number, one in enumerate(likelihoods):
        if one.n_latent != prior.n_latent:
            raise ValueError(
                f"blend {number} has a likelihood of {one.n_latent} coordinates, the prior has"
                f" {prior.n_latent}: compute the statistics and the likelihood again with"
                " this prior"
            )


def sample(
    prior: LatentTier,
    likelihoods: Sequence[LatentLikelihood],
    n_draws: int,
    settings: SamplerSettings = DEFAULT,
    *,
    keys: Sequence[PRNGKeyArray],
    batch: int | None = None,
) -> list[Draws]:
    """Draw from the joint posterior of the galaxies of every blend.

    Blends of similar size share a program. The draws of a blend depend on its own key and
    data only, not on the others beside it.

    Args:
        prior: Any latent prior.
        likelihoods: One per blend.
        n_draws: Draws per blend.
        settings: Choices of the reverse process.
        keys: One per blend.
        batch: Blends computed at once; None: one on a CPU, where that is fastest, and
            `ACCELERATED_BATCH` on an accelerator.

    Returns:
        Draws, in the order of `likelihoods`.

    Raises:
        ValueError: If a likelihood has other modes than the prior, or keys are missing.
    """
    if settings.predictor not in PREDICTORS:
        raise ValueError(
            f"predictor must be one of {PREDICTORS}, got {settings.predictor!r}"
        )
    if settings.covariance not in COVARIANCES:
        raise ValueError(
            f"covariance must be one of {COVARIANCES}, got {settings.covariance!r}"
        )
    if len(keys) != len(likelihoods):
        raise ValueError(f"{len(likelihoods)} blends, but {len(keys)} keys")
    check_modes(prior, likelihoods)
    levels = jnp.asarray(
        noise_levels(settings.steps, settings.sigma_max, settings.sigma_min),
        jnp.float32,
    )
    low = single_precision(prior)
    mixture = labels.mixture_of(prior) if settings.predictor == "labels" else None
    inverse, given = None, [None] * len(levels)
    if mixture is not None:
        inverse = labels.precisions(mixture)
        given = [labels.covariances_given(labels.mixture_of(low), s) for s in levels]
    out: list[Draws | None] = [None] * len(likelihoods)
    if batch is None:
        batch = ACCELERATED_BATCH if on_accelerator() else BATCH
    batch = whole_batch(batch)
    shapes = [padded_shape(one) for one in likelihoods]
    for shape in sorted(set(shapes)):
        rows = np.flatnonzero([s == shape for s in shapes])
        for start in range(0, len(rows), batch):
            chosen = rows[np.minimum(np.arange(start, start + batch), len(rows) - 1)]
            factor, target = (
                jnp.asarray(x) for x in _pad([likelihoods[i] for i in chosen], shape)
            )
            known = None
            if inverse is not None:
                known = labels.spectra_of_batch(mixture, inverse, np.asarray(factor))
            own = jnp.stack([keys[i] for i in chosen])
            factor, target, own, known = over_devices((factor, target, own, known))
            result = _reverse(
                low, factor, target, own, levels, n_draws, settings, known, given
            )
            for j, i in enumerate(chosen[: min(batch, len(rows) - start)]):
                e = result[0][j, :, : likelihoods[i].n_galaxies]
                failed = ~np.isfinite(e).all(axis=(1, 2))
                e = np.where(failed[:, None, None], np.nan, e)
                residual, unconverged, guards, count = (x[j] for x in result[1:])
                out[i] = Draws(
                    e,
                    float(residual),
                    int(unconverged),
                    int(guards),
                    float(count),
                    failed,
                )
    return out


def sample_prior(
    prior: LatentTier,
    n: int,
    settings: SamplerSettings = DEFAULT,
    *,
    key: PRNGKeyArray,
    log_amplitude: Float[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, "n mode"]:
    """Draw `n` galaxies from the prior: coordinates z, for `basis.decode`.

    Of all brightnesses, or of those that a catalog with amplitudes
    ln(`log_amplitude`) [image unit at `MAGZERO`] would have.

    Exact for a mixture without network. With one, whose corrected moments belong to no
    density, draws of the default settings are narrower than the training set (by 13 % in the
    median length), those of `predictor="multistep"` are not.
    """
    levels = noise_levels(settings.steps, settings.sigma_max, settings.sigma_min)
    if log_amplitude is None:
        levels = jnp.asarray(levels, jnp.float32)
        e = _unconditional(single_precision(prior), levels, n, settings, key)
    elif (mixture := labels.mixture_of(prior)) is not None:
        measured = prior.brightness_of(log_amplitude)
        e = mixture.sample_given_last(measured, BRIGHTNESS_SIGMA, key=key)
    else:
        measured = [brightness_likelihood(prior, a) for a in log_amplitude]
        keys = list(jax.random.split(key, n))
        draws = sample(prior, measured, 1, settings, keys=keys, batch=PRIOR_BATCH)
        e = np.stack([d.e[0, 0] for d in draws])
    rest = jax.random.normal(jax.random.fold_in(key, 1), (n, len(prior.mean)))
    rest = np.asarray(rest[:, prior.n_modes :], float)
    if isinstance(prior, LatentPrior):
        rest = rest * prior.fine_deviation(e)
    e = np.concatenate([e[:, : prior.n_modes], rest], axis=1).astype(float)
    return np.asarray(prior.mean, float) + e @ np.asarray(prior.cholesky, float).T


@eqx.filter_jit
def _unconditional(prior, levels, n, settings, key):
    first, loop, last = jax.random.split(key, 3)
    shape = (n, prior.n_latent)
    e = levels[0] * jax.random.normal(first, shape, levels.dtype)

    def step(carry, inputs):
        e, before, first_step = carry
        sigma, lower, key = inputs
        if settings.predictor != "multistep":
            one, two = jax.random.split(key)
            mean, _ = _draw(prior, e, sigma, settings, one)
            e = _bridge(e, mean, sigma, lower, two)
        else:
            mean, _ = prior.denoise_latent(e, sigma)
            e = _ahead(e, mean, before, first_step, sigma, lower)
        return (e, mean, jnp.zeros_like(first_step)), None

    start = (e, jnp.zeros_like(e), jnp.ones((), bool))
    keys = jax.random.split(loop, len(levels) - 1)
    (e, _, _), _ = jax.lax.scan(step, start, (levels[:-1], levels[1:], keys))
    return _draw(prior, e, levels[-1], settings, last)[0]


def _pad(likelihoods: Sequence[LatentLikelihood], shape: tuple[int, int]):
    """Factors and targets of equal shape; what is added carries no information."""
    factor = np.zeros((len(likelihoods), *shape), np.float32)
    target = np.zeros((len(likelihoods), shape[1]), np.float32)
    for i, one in enumerate(likelihoods):
        n, rank = one.factor.shape
        factor[i, :n, :rank] = one.factor
        target[i, :rank] = one.target
    return factor, target
