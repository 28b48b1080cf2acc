"""Joint posterior draws of galaxies and the dust in front of them.

The reverse diffusion is that of `sampler` under moment matching (Rozet et al. 2024,
arXiv 2405.13712), with the unknowns of galaxy, dust and slope of the law stacked and the forward
model linearised at every noise level and draw, where both priors are denoised at the same noise.
Metropolis steps with the exact likelihood end it (`DustSettings.corrections`). Given the draw, a copy
of it with noise and the components that galaxy and dust belong to are drawn; the proposal is then the
Gaussian posterior of the model linearised at the draw, about that copy: the less noise, the shorter
the step and the better the linearisation. The steps leave the exact posterior as it is.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from blendem.inference.dust_model import DustLikelihood, DustModel, linearise
from blendem.precision import single_precision
from blendem.prior.schedule import noise_levels

# Noise of the copies of e about which Metropolis steps propose, in turn.
COPIES = (1.0, 0.5, 0.25, 0.12)


class DustSettings(NamedTuple):
    """Choices of the sampler; hashable.

    Attributes:
        steps, sigma_max, sigma_min: Noise levels, as in `sampler.SamplerSettings`.
        refinements: How often the model is linearised again at the posterior mean of the one
            before (Gauss-Newton), after the denoised estimate of both priors.
        corrections: Metropolis steps with the exact likelihood after the last level.
    """

    steps: int = 12
    sigma_max: float = 10.0
    sigma_min: float = 0.02
    refinements: int = 0
    corrections: int = 16


DEFAULT = DustSettings()


class DustDraws(NamedTuple):
    """Draws, and how they were come by.

    Attributes:
        e: Whitened coordinates, `(draw, source, latent)`.
        acceptance: Part of the Metropolis steps that were accepted; NaN without any.
        chi2: Of the compressed data, `(draw,)`.
        defect: ln of exact over linearised likelihood of the draws at the last level.
    """

    e: Float[np.ndarray, "draw source latent"]
    acceptance: float
    chi2: Float[np.ndarray, " draw"]
    defect: Float[np.ndarray, " draw"]


def _given(model, e_t, sigma, key):
    """Mean, draw and covariances of e given e_t without data; per source."""
    galaxy, dust, slope = model.split(e_t)
    one, two, three = jax.random.split(key, 3)
    gain = 1 / (1 + sigma**2)
    means, draws, blocks = [], [], []
    for mixture, part, k in zip(
        model.mixtures, (galaxy, dust), (one, two), strict=True
    ):
        mean, _ = mixture.denoise_latent(part, sigma)
        draw, covariance = mixture.draw_full(part, sigma, k)
        means.append(mean)
        draws.append(draw)
        blocks.append(covariance)
    white = jax.random.normal(three, slope.shape, slope.dtype)
    means.append(gain * slope[:, None])
    draws.append(means[-1] + sigma * jnp.sqrt(gain) * white[:, None])
    blocks.append(jnp.broadcast_to(sigma**2 * gain, (len(slope), 1, 1)))
    return jnp.concatenate(means, 1), jnp.concatenate(draws, 1), _block_diagonal(blocks)


def _block_diagonal(blocks):
    """`(source, latent, latent)` from blocks of galaxy, dust and slope."""
    sizes = [b.shape[-1] for b in blocks]
    rows = []
    for i, block in enumerate(blocks):
        left, right = sum(sizes[:i]), sum(sizes[i + 1 :])
        rows.append(jnp.pad(block, ((0, 0), (0, 0), (left, right))))
    return jnp.concatenate(rows, axis=1)


def _moved(root, jacobian, residual):
    """`V J^T (1 + J V J^T)^-1 residual` with `V = root root^T`, by source."""
    parts = jacobian.reshape(*root.shape[:2], -1)
    half = jnp.einsum("kij,kir->kjr", root, parts).reshape(jacobian.shape)
    lower = jnp.linalg.cholesky(jnp.eye(len(half), dtype=half.dtype) + half @ half.T)
    step = jax.scipy.linalg.cho_solve((lower, True), half @ residual)
    return jnp.einsum("kij,kj->ki", root, step.reshape(root.shape[:2]))


def _solve(model, likelihood, e_t, sigma, refinements, key):
    """Draw of e_0 given the noisy state and the data, and the linear model that it is drawn in."""
    one, two = jax.random.split(key)
    mean, draw, covariance = _given(model, e_t, sigma, one)
    root, data = jnp.linalg.cholesky(covariance), likelihood.data.ravel()
    point = mean
    predicted, jacobian = linearise(model, likelihood, point)
    for _ in range(refinements):
        residual = data - predicted - (mean - point).ravel() @ jacobian
        point = mean + _moved(root, jacobian, residual)
        predicted, jacobian = linearise(model, likelihood, point)
    white = jax.random.normal(two, data.shape, data.dtype)
    residual = data + white - predicted - (draw - point).ravel() @ jacobian
    e = draw + _moved(root, jacobian, residual)
    return e, predicted + (e - point).ravel() @ jacobian


@eqx.filter_jit
def _level(model, likelihood, e_t, sigma, lower, refinements, key):
    """From one noise level to the next, all draws, and their chi2 in the linear model.

    With `lower` of 0 these are draws of e_0.
    """
    keys = jax.random.split(key, len(e_t))

    def one(e_t, key):
        draw, noise = jax.random.split(key)
        e, linear = _solve(model, likelihood, e_t, sigma, refinements, draw)
        keep = (lower / sigma) ** 2
        white = jax.random.normal(noise, e.shape, e.dtype)
        moved = keep * e_t + (1 - keep) * e + lower * jnp.sqrt(1 - keep) * white
        return moved, jnp.sum((likelihood.data.ravel() - linear) ** 2)

    return jax.vmap(one)(e_t, keys)


class _Local(NamedTuple):
    """The model linearised at a draw: coordinates, residual of the data, Jacobian."""

    e: Array
    residual: Array
    jacobian: Array


def _local(model, likelihood, e):
    predicted, jacobian = linearise(model, likelihood, e)
    return _Local(e, likelihood.data.ravel() - predicted, jacobian)


def _components(model, e, key):
    """Draw of the components of galaxy and dust given e: their centres and precisions."""
    centers, blocks = [], []
    keys = jax.random.split(key)
    for mixture, part, k in zip(model.mixtures, model.split(e)[:2], keys, strict=True):
        label = jax.random.categorical(k, jnp.log(mixture.responsibilities(part, 0.0)))
        vectors = mixture.vectors[label]
        inverse = (vectors / mixture.values[label][:, None, :]) @ vectors.swapaxes(1, 2)
        centers.append(mixture.centers[label])
        blocks.append(inverse)
    one = jnp.ones((len(e), 1, 1), e.dtype)
    centers.append(0 * one[..., 0])
    return jnp.concatenate(centers, axis=1), _block_diagonal([*blocks, one])


class _Gaussian(NamedTuple):
    """What e would be without data: given its components, and a noisy copy of it."""

    center: Array
    precision: Array
    copy: Array
    sigma: Array

    def force(self, e):
        """Gradient of the log density."""
        pull = jnp.einsum("kij,kj->ki", self.precision, self.center - e)
        return (pull + (self.copy - e) / self.sigma**2).ravel()

    def log_density(self, e):
        """Up to a constant."""
        away = e - self.center
        squares = jnp.einsum("ki,kij,kj->", away, self.precision, away)
        return -0.5 * (squares + jnp.sum((e - self.copy) ** 2) / self.sigma**2)

    def total(self):
        """Precision of the product of both, of all sources."""
        blocks = jax.scipy.linalg.block_diag(*self.precision)
        return blocks + self.sigma**-2 * jnp.eye(len(blocks), dtype=blocks.dtype)


# Batched LAPACK calls of one program must wait for each other: two at once, each with all
# threads of a pool to wait for, stand still for ever (jaxlib 0.10 on two cores).
def _proposal(local, prior):
    """Gaussian posterior of the linearised model: half-solved force, factor of the precision."""
    precision = prior.total() + local.jacobian @ local.jacobian.T
    lower = jnp.linalg.cholesky(precision)
    force = prior.force(local.e) + local.jacobian @ local.residual
    return jax.scipy.linalg.solve_triangular(lower, force, lower=True), lower


def _log_proposal(step, half, lower):
    """Log density of a step, up to a constant: `lower^T step ~ N(half, 1)`."""
    white = lower.T @ step.ravel() - half
    return jnp.sum(jnp.log(jnp.diagonal(lower))) - 0.5 * jnp.sum(white**2)


def _metropolis(model, likelihood, local, sigma, key):
    """Components and a noisy copy given e, then e given them (Metropolis-Hastings)."""
    pick, copy, noise, accept = jax.random.split(key, 4)
    e = local.e
    noisy = e + sigma * jax.random.normal(copy, e.shape, e.dtype)
    prior = _Gaussian(*_components(model, e, pick), noisy, sigma)
    half, lower = _proposal(local, prior)
    white = half + jax.random.normal(noise, half.shape, half.dtype)
    step = jax.scipy.linalg.solve_triangular(lower, white, lower=True, trans=1)
    step = step.reshape(e.shape)
    new = _local(model, likelihood, e + step)
    gain = prior.log_density(new.e) - prior.log_density(e)
    gain += 0.5 * (jnp.sum(local.residual**2) - jnp.sum(new.residual**2))
    gain += _log_proposal(-step, *_proposal(new, prior))
    gain -= _log_proposal(step, half, lower)
    accepted = jnp.log(jax.random.uniform(accept, (), gain.dtype)) < gain
    return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, local), accepted


@eqx.filter_jit
def _locals(model, likelihood, e):
    return jax.vmap(lambda e: _local(model, likelihood, e))(e)


@eqx.filter_jit
def _correct(model, likelihood, local, sigma, key):
    """One Metropolis step of all draws."""
    keys = jax.random.split(key, len(local.e))

    def one(local, key):
        return _metropolis(model, likelihood, local, sigma, key)

    return jax.vmap(one)(local, keys)


def correct(
    model: DustModel,
    likelihood: DustLikelihood,
    e: Float[Array | np.ndarray, "draw source latent"],
    steps: int,
    *,
    key: PRNGKeyArray,
) -> tuple[
    Float[Array, "draw source latent"],
    Float[Array, " draw"],
    Bool[np.ndarray, "step draw"],
]:
    """Metropolis steps with the exact likelihood, every draw a chain of its own.

    Returns:
        Draws, their chi2, and which steps were accepted.
    """
    local = _locals(model, likelihood, jnp.asarray(e))
    accepted = np.zeros((steps, len(e)), bool)
    for number in range(steps):
        sigma = jnp.asarray(COPIES[number % len(COPIES)], local.e.dtype)
        again = jax.random.fold_in(key, number)
        local, moved = _correct(model, likelihood, local, sigma, again)
        accepted[number] = moved
    return local.e, jnp.sum(local.residual**2, axis=1), accepted


def sample(
    model: DustModel,
    likelihood: DustLikelihood,
    n_draws: int,
    settings: DustSettings = DEFAULT,
    *,
    key: PRNGKeyArray,
) -> DustDraws:
    """Draw from the joint posterior of the sources of one blend and their dust.

    Args:
        model: Both priors.
        likelihood: Data of the blend; those of equal shapes share a program.
        n_draws: Number of draws, computed at once.
        settings: Choices of the sampler.
        key: Random key.
    """
    levels = noise_levels(settings.steps, settings.sigma_max, settings.sigma_min)
    levels = jnp.asarray(levels, jnp.float32)
    model, likelihood = single_precision(model), single_precision(likelihood)
    first, loop, more = jax.random.split(key, 3)
    shape = (n_draws, len(likelihood.scale), model.n_latent)
    e = levels[0] * jax.random.normal(first, shape, jnp.float32)
    for number in range(settings.steps + 1):
        # One program for all levels: the last one ends at no noise.
        lower = levels[number + 1] if number < settings.steps else 0 * levels[0]
        again = jax.random.fold_in(loop, number)
        e, linear = _level(
            model, likelihood, e, levels[number], lower, settings.refinements, again
        )
    local = _locals(model, likelihood, e)
    chi2 = jnp.sum(local.residual**2, axis=1)
    defect = 0.5 * (linear - chi2)
    acceptance = np.nan
    if settings.corrections:
        e, chi2, moved = correct(model, likelihood, e, settings.corrections, key=more)
        acceptance = float(moved.mean())
    return DustDraws(np.asarray(e), acceptance, np.asarray(chi2), np.asarray(defect))
