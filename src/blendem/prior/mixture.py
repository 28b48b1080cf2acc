"""A mixture of Gaussians as prior: a denoiser and posteriors that are exact, not Gaussian.

The test bed of the samplers: what a network learns has no closed form, this has. All
components live in the whitened coordinates e of a latent prior.
"""

import itertools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import ArrayLike

from blendem.prior.gaussian import Basis


class MixturePrior(eqx.Module):
    """`e ~ sum_c weight_c N(center_c, covariance_c)`; build it with `of`.

    Attributes:
        basis: Basis of z, or None where only e matters.
        mean: Mean of z at e = 0, `(mode,)`.
        cholesky: `z = mean + cholesky e`, `(mode, mode)`.
        weights: Positive, of sum 1, `(component,)`.
        centers: `(component, mode)`.
        values, vectors: Eigenpairs of the covariances, `(component, mode)` and
            `(component, mode, mode)`, one eigenvector per column.
    """

    basis: Basis | None
    mean: Float[Array | np.ndarray, " mode"]
    cholesky: Float[Array | np.ndarray, "mode mode"]
    weights: Float[Array | np.ndarray, " component"]
    centers: Float[Array | np.ndarray, "component mode"]
    values: Float[Array | np.ndarray, "component mode"]
    vectors: Float[Array | np.ndarray, "component mode mode"]

    @classmethod
    def of(
        cls,
        weights: ArrayLike,
        centers: ArrayLike,
        covariances: ArrayLike,
        basis: Basis | None = None,
        mean: ArrayLike | None = None,
        cholesky: ArrayLike | None = None,
    ) -> "MixturePrior":
        """Build a mixture.

        Args:
            weights: Of the components; normalised here.
            centers: `(component, mode)`.
            covariances: Full, `(component, mode, mode)`; or variances of isotropic
                components, `(component,)`.
            basis: Basis of z.
            mean: Of z; default 0.
            cholesky: Of z; default 1.

        Raises:
            ValueError: If a weight or an eigenvalue of a covariance is not positive.
        """
        weights, centers = np.asarray(weights, float), np.asarray(centers, float)
        covariances = np.asarray(covariances, float)
        n = centers.shape[1]
        if covariances.ndim == 1:
            covariances = covariances[:, None, None] * np.eye(n)
        values, vectors = np.linalg.eigh(covariances)
        if not (weights > 0).all() or not (values > 0).all():
            raise ValueError(
                "`weights` and the eigenvalues of `covariances` must be positive; got"
                f" weights {weights} and smallest eigenvalue {values.min()}"
            )
        return cls(
            basis=basis,
            mean=np.zeros(n) if mean is None else np.asarray(mean, float),
            cholesky=np.eye(n) if cholesky is None else np.asarray(cholesky, float),
            weights=weights / weights.sum(),
            centers=centers,
            values=values,
            vectors=vectors,
        )

    @property
    def n_latent(self) -> int:
        """Number of coordinates e that a sampler moves: all."""
        return len(self.mean)

    @property
    def n_modes(self) -> int:
        """How many of them are modes of z: all."""
        return len(self.mean)

    @property
    def covariances(self) -> Float[Array | np.ndarray, "component mode mode"]:
        """Covariances of the components."""
        transposed = self.vectors.transpose(0, 2, 1)
        return (self.vectors * self.values[:, None, :]) @ transposed

    def sample(
        self, n: int, *, key: PRNGKeyArray
    ) -> Float[Array | np.ndarray, "n mode"]:
        """Draw `n` vectors e."""
        one, two = jax.random.split(key)
        weights = jnp.asarray(self.weights)
        chosen = jax.random.categorical(one, jnp.log(weights), shape=(n,))
        xi = jax.random.normal(two, (n, len(self.mean)), weights.dtype)
        xi = xi * jnp.sqrt(jnp.asarray(self.values))[chosen]
        step = jnp.einsum("nij,nj->ni", jnp.asarray(self.vectors)[chosen], xi)
        return jnp.asarray(self.centers)[chosen] + step

    def sample_given_last(
        self,
        measured: Float[Array | np.ndarray, " n"],
        sigma: float,
        *,
        key: PRNGKeyArray,
    ) -> Float[Array | np.ndarray, "n mode"]:
        """Draw vectors e whose last coordinate was measured with error `sigma`."""
        measured = jnp.asarray(measured)[:, None]
        centers, covariances = jnp.asarray(self.centers), jnp.asarray(self.covariances)
        tie = covariances[:, :, -1]
        total = tie[:, -1] + sigma**2
        away = measured - centers[None, :, -1]
        log_p = -0.5 * (away**2 / total[None] + jnp.log(total)[None])
        log_p = log_p + jnp.log(jnp.asarray(self.weights))[None]
        narrow = covariances - tie[:, :, None] * tie[:, None, :] / total[:, None, None]
        lower = jnp.linalg.cholesky(narrow)
        one, two = jax.random.split(key)
        chosen = jax.random.categorical(one, log_p)
        shift = jnp.take_along_axis(away, chosen[:, None], axis=1) / total[chosen, None]
        xi = jax.random.normal(two, (len(measured), len(self.mean)), lower.dtype)
        step = jnp.einsum("nij,nj->ni", lower[chosen], xi)
        return centers[chosen] + shift * tie[chosen] + step

    def responsibilities(
        self, e_t: Float[Array, "n mode"], sigma: float
    ) -> Float[Array, "n component"]:
        """Probabilities of the components given `e_t = e + sigma n`."""
        return self._given(e_t, sigma)[0]

    def moments(
        self, e_t: Float[Array, "n mode"], sigma: Float[Array, ""]
    ) -> tuple[
        Float[Array, "n component"],
        Float[Array, "n component mode"],
        Float[Array, "component mode mode"],
    ]:
        """Components of e given `e_t = e + sigma n`: weights, means, covariances.

        Component c is `N(center, covariance + sigma^2)` in e_t, and conditioning it on e_t
        is the linear-Gaussian update in its own eigenbasis.
        """
        weights, means, narrow = self._given(e_t, sigma)
        return weights, means, self._covariances(narrow)

    def _given(self, e_t, sigma):
        """Weights, means, and variances along the eigenvectors `(1 or row, c, mode)`."""
        sigma2 = jnp.asarray(sigma).reshape(-1, 1, 1) ** 2
        values, vectors = jnp.asarray(self.values)[None], jnp.asarray(self.vectors)
        centers = jnp.asarray(self.centers)[None]
        step = jnp.einsum("ncd,cde->nce", e_t[:, None, :] - centers, vectors)
        total = values + sigma2
        gain = values / total
        log_p = -0.5 * jnp.sum(step**2 / total + jnp.log(total), axis=-1)
        log_p = log_p + jnp.log(jnp.asarray(self.weights))[None]
        means = centers + jnp.einsum("nce,cde->ncd", step * gain, vectors)
        return jax.nn.softmax(log_p, axis=-1), means, gain * sigma2

    def denoise_latent(
        self, e_t: Float[Array, "*n mode"], sigma: Float[Array, "*row"]
    ) -> tuple[Float[Array, "*n mode"], Float[Array, "*n mode"]]:
        """Mean and diagonal variance of e given `e_t = e + sigma n`, exact.

        `sigma` is one number, or one per row of a two-dimensional `e_t`.
        """
        flat = e_t.reshape(-1, e_t.shape[-1])
        weights, means, narrow = self._given(flat, sigma)
        mean = jnp.einsum("nc,ncd->nd", weights, means)
        # With one sigma the variances of the components are the same for all rows.
        within = jnp.einsum("sce,cde->scd", narrow, jnp.asarray(self.vectors) ** 2)
        within = (
            weights @ within[0]
            if len(within) == 1
            else jnp.einsum("nc,ncd->nd", weights, within)
        )
        between = jnp.einsum("nc,ncd->nd", weights, (means - mean[:, None, :]) ** 2)
        return mean.reshape(e_t.shape), (within + between).reshape(e_t.shape)

    def denoise_full(
        self, e_t: Float[Array, "*n mode"], sigma: Float[Array, ""]
    ) -> tuple[Float[Array, "*n mode"], Float[Array, "*n mode mode"]]:
        """Mean and full covariance of e given `e_t = e + sigma n`, exact."""
        flat = e_t.reshape(-1, e_t.shape[-1])
        mean, full = _mean_covariance(*self.moments(flat, sigma))
        return mean.reshape(e_t.shape), full.reshape(*e_t.shape, e_t.shape[-1])

    def draw_full(
        self, e_t: Float[Array, "*n mode"], sigma: Float[Array, ""], key: PRNGKeyArray
    ) -> tuple[Float[Array, "*n mode"], Float[Array, "*n mode mode"]]:
        """Draw of e given `e_t = e + sigma n`, and its full covariance, both exact.

        Not a Gaussian draw: a component is drawn first.
        """
        flat = e_t.reshape(-1, e_t.shape[-1])
        one, two = jax.random.split(key)
        weights, means, narrow = self._given(flat, sigma)
        _, full = _mean_covariance(weights, means, self._covariances(narrow))
        chosen = jax.random.categorical(one, jnp.log(weights))
        xi = jax.random.normal(two, flat.shape, flat.dtype)
        xi = xi * jnp.sqrt(narrow[0])[chosen]
        step = jnp.einsum("nij,nj->ni", jnp.asarray(self.vectors)[chosen], xi)
        draw = jnp.take_along_axis(means, chosen[:, None, None], axis=1)[:, 0] + step
        return draw.reshape(e_t.shape), full.reshape(*e_t.shape, e_t.shape[-1])

    def _covariances(self, narrow):
        """Of the components, from variances along their eigenvectors at one sigma."""
        vectors = jnp.asarray(self.vectors)
        return (vectors * narrow[0][:, None, :]) @ vectors.transpose(0, 2, 1)


def _mean_covariance(weights, means, covariances):
    """Of the mixture, one per row."""
    mean = jnp.einsum("nc,ncd->nd", weights, means)
    step = (means - mean[:, None, :]) * jnp.sqrt(weights)[:, :, None]
    full = weights @ covariances.reshape(len(covariances), -1)
    full = full.reshape(-1, *covariances.shape[1:]) + step.transpose(0, 2, 1) @ step
    return mean, full


class MixturePosterior(NamedTuple):
    """Exact posterior of the galaxies of a blend: one Gaussian per choice of components.

    Attributes:
        choices: Component of every galaxy, `(mode of the posterior, galaxy)`.
        weights: `(choice,)`.
        means: `(choice, latent)`; `latent = galaxy x mode`.
        covariances: `(choice, latent, latent)`.
        prior: The prior.
    """

    choices: np.ndarray
    weights: Float[np.ndarray, " _"]
    means: Float[np.ndarray, "_ _"]
    covariances: Float[np.ndarray, "_ _ _"]
    prior: MixturePrior

    @property
    def mean(self) -> Float[np.ndarray, " _"]:
        """Mean over all choices, `(latent,)`."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Float[np.ndarray, "_ _"]:
        """Covariance over all choices, `(latent, latent)`."""
        step = self.means - self.mean
        between = np.einsum("c,ci,cj->ij", self.weights, step, step)
        return np.einsum("c,cij->ij", self.weights, self.covariances) + between

    def draw(
        self, n: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "n galaxy mode"]:
        """Draw `n` exact joint samples."""
        chosen = rng.choice(len(self.weights), n, p=self.weights)
        values, vectors = np.linalg.eigh(self.covariances)
        roots = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
        xi = rng.standard_normal((n, self.means.shape[1]))
        e = self.means[chosen] + np.einsum("nij,nj->ni", roots[chosen], xi)
        return e.reshape(n, self.choices.shape[1], -1)

    def mode_weights(
        self, e: Float[np.ndarray, "n galaxy mode"]
    ) -> Float[np.ndarray, " _"]:
        """Weights of the choices among given draws: mean responsibility, `(choice,)`.

        The likelihood is shared by all choices, so the probability of a choice given e
        is that of the prior's components; over exact draws its mean is `weights`.
        """
        prior = self.prior
        step = np.asarray(e, float)[:, :, None, :] - np.asarray(prior.centers)
        step = np.einsum("nkcd,cde->nkce", step, np.asarray(prior.vectors))
        values = np.asarray(prior.values)
        log_p = -0.5 * np.sum(step**2 / values + np.log(values), axis=-1)
        log_p = log_p + np.log(np.asarray(prior.weights))
        each = scipy.special.softmax(log_p, axis=-1)
        picked = [each[:, k, c] for k, c in enumerate(self.choices.T)]
        return np.prod(picked, axis=0).mean(axis=0)


def exact_posterior(
    prior: MixturePrior,
    factor: Float[np.ndarray, "latent rank"],
    target: Float[np.ndarray, " rank"],
) -> MixturePosterior:
    """Posterior of the galaxies for the likelihood `-2 ln L = |target - factor^T e|^2`.

    Given the component of every galaxy, all is Gaussian: with prior moments (m, S),
    `C = 1 + L^T S L`, mean `m + S L C^-1 (h - L^T m)`, covariance `S - S L C^-1 L^T S`,
    weight `prod_k weight_k N(h; L^T m, C)`. There are `component^galaxy` of them.

    Args:
        prior: The prior of every galaxy.
        factor: L, as in `LatentLikelihood`; the number of galaxies is read from it.
        target: h.

    Raises:
        ValueError: If `factor` has no whole number of galaxies.
    """
    factor, target = np.asarray(factor, float), np.asarray(target, float)
    d = len(prior.mean)
    if len(factor) % d:
        raise ValueError(
            f"`factor` has {len(factor)} rows, which is no multiple of the {d} modes of"
            " the prior"
        )
    n_galaxies = len(factor) // d
    centers, covariances = np.asarray(prior.centers), np.asarray(prior.covariances)
    log_prior = np.log(np.asarray(prior.weights, float))
    choices = np.array(
        list(itertools.product(range(len(log_prior)), repeat=n_galaxies)), int
    )
    log_w, means, narrow = [], [], []
    for choice in choices:
        m = centers[choice].ravel()
        S = np.zeros((len(m), len(m)))
        for k, c in enumerate(choice):
            S[k * d : (k + 1) * d, k * d : (k + 1) * d] = covariances[c]
        SL = S @ factor
        C = np.eye(len(target)) + factor.T @ SL
        r = target - factor.T @ m
        solved = np.linalg.solve(C, np.column_stack([r, SL.T]))
        means.append(m + SL @ solved[:, 0])
        cov = S - SL @ solved[:, 1:]
        narrow.append(0.5 * (cov + cov.T))
        quadratic = r @ solved[:, 0] + np.linalg.slogdet(C)[1]
        log_w.append(log_prior[choice].sum() - 0.5 * quadratic)
    return MixturePosterior(
        choices=choices,
        weights=scipy.special.softmax(log_w),
        means=np.array(means),
        covariances=np.array(narrow),
        prior=prior,
    )
