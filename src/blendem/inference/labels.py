"""Exact posterior draws given a noisy state, where the prior is a mixture of Gaussians.

Moment matching stands one broad Gaussian for the mixture that the prior is given `e_t`, and then
points between its components count as possible galaxies. Here every galaxy carries the label c
of its component instead. Given the labels all is Gaussian; so a Gibbs sweep at every noise level
draws, galaxy by galaxy, c and e together given the other galaxies (e integrated out of the
probabilities of c), and then all galaxies together given their labels. It leaves
`p(e, c | e_t, y)` as it is (Gibbs sampling, Geman & Geman 1984; collapsed: Liu 1994), without
any approximation. What is left is how well the chain mixes over the noise levels.

For galaxy k with the information `H_k = L_k L_k^T` and component c with moments (m, S) the
precision is `S^-1 + H_k + sigma^-2`: eigenvectors of `S^-1 + H_k` serve all levels.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from blendem.precision import on_accelerator
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior


class Spectra(NamedTuple):
    """Eigenpairs of `S_c^-1 + H_k`; of several blends with a leading axis.

    The force on a galaxy at e, with that of the data and of the noisy state f, is in the
    eigenbasis `offset + (e, f) gains`: one product of matrices for all components.

    Attributes:
        values: `(galaxy, component, mode)`.
        vectors: `(galaxy, component, mode, mode)`, one eigenvector per column.
        gains: `(galaxy, 2 mode, component mode)`.
        offset: `(galaxy, component, mode)`.
    """

    values: Float[Array | np.ndarray, "*blend galaxy component mode"]
    vectors: Float[Array | np.ndarray, "*blend galaxy component mode mode"]
    gains: Float[Array | np.ndarray, "*blend galaxy both_modes component_modes"]
    offset: Float[Array | np.ndarray, "*blend galaxy component mode"]


def mixture_of(prior) -> MixturePrior | None:
    """The mixture that a prior is; None where it is something else."""
    if isinstance(prior, MixturePrior):
        return prior
    if isinstance(prior, LatentPrior) and prior.network is None:
        return prior.mixture
    return None


def precisions(mixture: MixturePrior) -> Float[np.ndarray, "component mode mode"]:
    """Inverse covariances of the components, in float64."""
    vectors = np.asarray(mixture.vectors, float)
    values = np.asarray(mixture.values, float)
    return (vectors / values[:, None, :]) @ vectors.transpose(0, 2, 1)


def spectra(
    mixture: MixturePrior,
    inverse: Float[np.ndarray, "component mode mode"],
    factor: Float[np.ndarray, "latent rank"],
) -> Spectra:
    """For the galaxies of one blend; float64 inside, float32 given.

    Args:
        mixture: The prior of every galaxy.
        inverse: Its `precisions`.
        factor: L of the likelihood.
    """
    centers = np.asarray(mixture.centers, float)
    return _spectra(np, centers, inverse, np.asarray(factor, float))


def spectra_of_batch(
    mixture: MixturePrior,
    inverse: Float[np.ndarray, "component mode mode"],
    factors: Float[np.ndarray, "blend latent rank"],
) -> Spectra:
    """The same for blends of equal size, with a leading axis.

    An accelerator decomposes all matrices at once, in float64 too; a CPU does it faster in
    LAPACK, blend by blend.
    """
    if on_accelerator():
        with jax.enable_x64(True):
            centers = np.asarray(mixture.centers, float)
            return _spectra_on_device(centers, inverse, np.asarray(factors, float))
    each = [spectra(mixture, inverse, np.asarray(factor)) for factor in factors]
    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *each)


@jax.jit
def _spectra_on_device(centers, inverse, factors):
    return jax.vmap(partial(_spectra, jnp, centers, inverse))(factors)


def _spectra(xp, centers, inverse, factor) -> Spectra:
    """By NumPy or JAX (`xp`), in float64."""
    d = inverse.shape[-1]
    blocks = factor.reshape(-1, d, factor.shape[-1])
    information = blocks @ blocks.transpose(0, 2, 1)
    values, vectors = xp.linalg.eigh(inverse[None] + information[:, None])
    inward = inverse[None] @ vectors
    offset = (centers[:, None, :] @ inward)[:, :, 0]
    gains = xp.concatenate([-inward, vectors], axis=2).transpose(0, 2, 1, 3)
    gains = gains.reshape(len(blocks), 2 * d, -1)
    parts = (xp.maximum(values, 0), vectors, gains, offset)
    return Spectra(*(x.astype(np.float32) for x in parts))


def sweep(
    mixture: MixturePrior,
    known: Spectra,
    factor: Float[Array, "latent rank"],
    target: Float[Array, " rank"],
    e_t: Float[Array, "draw galaxy mode"],
    e: Float[Array, "draw galaxy mode"],
    sigma: Float[Array, ""],
    *,
    key: PRNGKeyArray,
) -> tuple[Array, Float[Array, "draw galaxy mode"]]:
    """Draw label and coordinates of one galaxy after the other.

    Args:
        mixture: The prior of every galaxy.
        known: Of this blend.
        factor, target: L and h of the likelihood.
        e_t: Noisy state.
        e: Draw of before; where the sweep begins.
        sigma: Noise of the state; infinite: there is none, and the sweep is one of the
            posterior itself.
        key: Random key.

    Returns:
        Labels `(draw, galaxy)` and coordinates.
    """
    draws, galaxies, d = e.shape
    vectors, values = jnp.asarray(mixture.vectors), jnp.asarray(mixture.values)
    centers = jnp.asarray(mixture.centers)
    root = vectors / jnp.sqrt(values)[:, None, :]  # S^-1 = root root^T
    along = jnp.einsum("cd,cde->ce", centers, root)  # centres along the roots
    root = root.transpose(1, 0, 2).reshape(d, -1)
    constant = jnp.log(jnp.asarray(mixture.weights)) - 0.5 * jnp.sum(
        jnp.log(values), axis=1
    )

    def one(residual, inputs):
        block, lam, q, gain, offset, noisy, e_k, key = inputs
        # Everything is relative to the present coordinates: no large numbers cancel.
        u = along[None] - (e_k @ root).reshape(draws, *along.shape)
        force = residual @ block.T + (noisy - e_k) / sigma**2
        seen = jnp.concatenate([e_k, force], axis=1) @ gain
        seen = offset[None] + seen.reshape(draws, *offset.shape)
        total = lam + sigma**-2
        log_p = constant - 0.5 * jnp.sum(jnp.log(total), axis=1)
        log_p = log_p[None] + 0.5 * (
            jnp.sum(seen**2 / total[None], axis=2) - jnp.sum(u**2, axis=2)
        )
        pick, noise = jax.random.split(key)
        label = _categorical(pick, log_p)
        chosen = jnp.take_along_axis(seen, label[:, None, None], axis=1)[:, 0]
        white = jax.random.normal(noise, chosen.shape, chosen.dtype)
        total = total[label]
        step = chosen / total + white / jnp.sqrt(total)
        step = jnp.einsum("nde,ne->nd", q[label], step)
        return residual - step @ block, (label, e_k + step)

    residual = target[None] - e.reshape(draws, -1) @ factor
    inputs = (
        factor.reshape(galaxies, d, -1),
        *known,
        e_t.swapaxes(0, 1),
        e.swapaxes(0, 1),
        jax.random.split(key, galaxies),
    )
    _, (labels, e) = jax.lax.scan(one, residual, inputs)
    return labels.T, e.swapaxes(0, 1)


def exchange(
    factor: Float[Array, "latent rank"],
    target: Float[Array, " rank"],
    e: Float[Array, "draw galaxy mode"],
    shift: int | Int[Array, ""],
    *,
    key: PRNGKeyArray,
) -> Float[Array, "draw galaxy mode"]:
    """Let galaxies change places with one another, where the data allow it.

    Two galaxies that the data hardly tell apart have each other's labels as a second mode, and
    one galaxy after the other never gets there: what is between fits no data. Each galaxy k
    proposes to exchange its coordinates with galaxy `k + shift` (Metropolis et al. 1953). All
    have the same prior, so the likelihood alone accepts, and the posterior stays as it is.

    Args:
        factor, target: L and h of the likelihood.
        e: Draws of the posterior.
        shift: Distance of the two in the list of galaxies.
        key: Random key.

    Returns:
        Coordinates.
    """
    draws, galaxies, d = e.shape
    blocks = factor.reshape(galaxies, d, -1)
    first = jnp.arange(galaxies)
    uniform = jax.random.uniform(key, (galaxies, draws), e.dtype)

    def one(carry, inputs):
        residual, e = carry
        k, other, log_u = inputs
        step = e[:, other] - e[:, k]
        change = step @ (blocks[k] - blocks[other])
        gain = jnp.sum(change * (residual - 0.5 * change), axis=1)
        accepted = (log_u < gain)[:, None]
        step = jnp.where(accepted, step, 0)
        residual = jnp.where(accepted, residual - change, residual)
        return (residual, e.at[:, k].add(step).at[:, other].add(-step)), None

    residual = target[None] - e.reshape(draws, -1) @ factor
    inputs = (first, (first + shift) % galaxies, jnp.log(uniform))
    (_, e), _ = jax.lax.scan(one, (residual, e), inputs)
    return e


def _categorical(key, log_p):
    """Draw of one category per row: one random number each, not one per category."""
    up_to = jnp.cumsum(jax.nn.softmax(log_p, axis=1), axis=1)
    uniform = jax.random.uniform(key, (len(log_p), 1), log_p.dtype)
    label = jnp.sum(up_to < uniform * up_to[:, -1:], axis=1)
    return jnp.minimum(label, log_p.shape[1] - 1)


@jax.jit
def covariances_given(
    mixture: MixturePrior, sigma: Float[Array, ""]
) -> Float[Array, "component mode mode"]:
    """Covariances of e given `e_t = e + sigma n` and the label: the same for all galaxies."""
    vectors, values = jnp.asarray(mixture.vectors), jnp.asarray(mixture.values)
    narrow = 1 / (1 / values + sigma**-2)
    return (vectors * narrow[:, None, :]) @ vectors.transpose(0, 2, 1)


def draw_labelled(
    mixture: MixturePrior,
    labels: Array,
    e_t: Float[Array, "draw galaxy mode"],
    sigma: Float[Array, ""],
    *,
    key: PRNGKeyArray,
) -> Float[Array, "draw galaxy mode"]:
    """Draw of e given e_t and the labels, without data; e_t does not matter at infinite sigma."""
    vectors, values = jnp.asarray(mixture.vectors), jnp.asarray(mixture.values)
    narrow = 1 / (1 / values + sigma**-2)
    center, axes = jnp.asarray(mixture.centers)[labels], vectors[labels]
    step = jnp.einsum("nkd,nkde->nke", e_t - center, axes) * (narrow / sigma**2)[labels]
    white = jax.random.normal(key, e_t.shape, e_t.dtype)
    step = step + jnp.sqrt(narrow)[labels] * white
    return center + jnp.einsum("nkde,nke->nkd", axes, step)
