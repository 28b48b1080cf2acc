"""The PCA-Gaussian prior: basis, moments, Wiener denoiser, samples.

A galaxy of reference flux s is `x = s (mean + sum_i z_i modes_i)`. The basis is fixed once
from a broad simulation; EM moves only the moments of z, which start at N(0, 1).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


class Basis(eqx.Module):
    """Mean and modes of galaxy stamps of unit reference flux.

    Attributes:
        mean: Mean stamp, shape `(band, stamp, stamp)`.
        modes: Principal modes, each scaled by its standard deviation, so that z has unit
            variance over the training set, shape `(mode, band, stamp, stamp)`.
        eigenvalues: Variance along each mode, `(mode,)`, in the metric of the PCA.
        residual: Variance of the training set outside the modes, in that metric.
        bands: Names of the bands. Static.
        psf_sigma: Sigma of the model PSF [model pixel] the stamps were drawn with.
        pixel_scale: Side of a model pixel [arcsec].
        analysis: What stamps are projected on to find z, of the shape of `modes`; None:
            the modes are orthogonal, with squared norms `eigenvalues`.
    """

    mean: Float[Array | np.ndarray, "band stamp stamp"]
    modes: Float[Array | np.ndarray, "mode band stamp stamp"]
    eigenvalues: Float[Array | np.ndarray, " mode"]
    residual: Float[Array | np.ndarray, ""]
    psf_sigma: Float[Array | np.ndarray, ""]
    pixel_scale: Float[Array | np.ndarray, ""]
    bands: tuple[str, ...] = eqx.field(static=True)
    analysis: Float[Array | np.ndarray, "mode band stamp stamp"] | None = None

    @property
    def dual(self) -> Float[Array | np.ndarray, "mode band stamp stamp"]:
        """Stamps whose inner products with `u - mean` are z."""
        if self.analysis is not None:
            return self.analysis
        return self.modes / self.eigenvalues[:, None, None, None]

    def encode(
        self, u: Float[Array | np.ndarray, "*n band stamp stamp"]
    ) -> Float[Array | np.ndarray, "*n mode"]:
        """Coordinates z of stamps of unit reference flux."""
        flat = self.dual.reshape(len(self.modes), -1)
        mean = self.mean.reshape((1,) * (u.ndim - 3) + self.mean.shape)
        return (u - mean).reshape(*u.shape[:-3], -1) @ flat.T

    def decode(
        self, z: Float[Array | np.ndarray, "*n mode"]
    ) -> Float[Array | np.ndarray, "*n band stamp stamp"]:
        """Stamps of unit reference flux from coordinates z."""
        flat = self.modes.reshape(len(self.modes), -1)
        mean = self.mean.reshape((1,) * (z.ndim - 1) + self.mean.shape)
        return mean + (z @ flat).reshape(*z.shape[:-1], *self.mean.shape)

    def flux(
        self, z: Float[np.ndarray, "*n mode"], band: int
    ) -> Float[np.ndarray, "*n"]:
        """Flux of stamps in a band, from coordinates z."""
        light = np.asarray(self.modes, float)[:, band].sum((-2, -1))
        return np.asarray(np.asarray(self.mean, float)[band].sum() + z @ light)


def empty_stamp(basis: Basis) -> Float[np.ndarray, " mode"]:
    """Coordinates z of an empty stamp: scaling a galaxy by a is `dark + a (z - dark)`."""
    return np.asarray(basis.encode(np.zeros_like(np.asarray(basis.mean))[None]), float)[
        0
    ]


class GaussianPrior(eqx.Module):
    """Normal distribution of the coordinates z in a fixed basis.

    Attributes:
        basis: The basis.
        mean: Mean of z, `(mode,)`.
        cholesky: Lower factor of the covariance of z, `(mode, mode)`.
    """

    basis: Basis
    mean: Float[Array | np.ndarray, " mode"]
    cholesky: Float[Array | np.ndarray, "mode mode"]

    @classmethod
    def standard(cls, basis: Basis) -> "GaussianPrior":
        """The prior of the training set itself, z ~ N(0, 1)."""
        n = len(basis.modes)
        return cls(basis, np.zeros(n), np.eye(n))

    @classmethod
    def from_moments(
        cls, basis: Basis, mean: np.ndarray, covariance: np.ndarray, floor: float = 1e-8
    ) -> "GaussianPrior":
        """The prior with given moments of z.

        Eigenvalues of the covariance below `floor` (the variance over the training set
        is 1) are raised to it, so that the factor exists.

        Raises:
            ValueError: If a moment is not finite.
        """
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError(
                "the moments of the Gaussian prior are not finite; look for blends with"
                " NaN statistics in the E step."
            )
        values, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
        root = vectors * np.sqrt(np.maximum(values, floor))
        # A lower factor from the square root, by QR: stable for tiny eigenvalues.
        lower = np.linalg.qr(root.T, mode="r").T
        lower = lower * np.where(np.diag(lower) < 0, -1.0, 1.0)
        return cls(basis, np.asarray(mean), lower)

    def mean_flux(self, band: int) -> float:
        """Flux of the mean in a band, over the amplitude: `exp(s^2 / 2)` for a jitter s."""
        return float(self.basis.flux(np.asarray(self.mean, float), band))

    @property
    def n_latent(self) -> int:
        """Number of coordinates e that a sampler moves: all."""
        return len(self.mean)

    @property
    def n_modes(self) -> int:
        """How many of them are modes of z: all."""
        return len(self.mean)

    @property
    def covariance(self) -> Float[Array | np.ndarray, "mode mode"]:
        """Covariance of z."""
        return self.cholesky @ self.cholesky.T

    def sample(
        self, n: int, *, key: PRNGKeyArray
    ) -> Float[Array | np.ndarray, "n mode"]:
        """Draw `n` coordinate vectors from the prior."""
        dtype = jnp.asarray(self.cholesky).dtype
        xi = jax.random.normal(key, (n, len(self.mean)), dtype)
        return self.mean[None] + xi @ self.cholesky.T

    def denoise_latent(
        self, e_t: Float[Array, "*n mode"], sigma: Float[Array, ""]
    ) -> tuple[Float[Array, "*n mode"], Float[Array, "*n mode"]]:
        """Mean and diagonal variance of e given `e_t = e + sigma n`, exact.

        The coordinates e are white: `z = mean + cholesky e`.
        """
        variance = sigma**2 / (1 + sigma**2)
        return e_t / (1 + sigma**2), jnp.broadcast_to(variance, e_t.shape)

    def denoise(
        self,
        u_t: Float[Array | np.ndarray, "*n band stamp stamp"],
        sigma_t: Float[Array, ""],
    ) -> Float[Array | np.ndarray, "*n band stamp stamp"]:
        """Posterior mean E[u | u_t] for `u_t = u + sigma_t n` (the Wiener denoiser).

        `W = mu + Q diag(l / (l + sigma^2)) Q^T (u_t - mu)` with the eigenpairs (l, Q) of
        the pixel covariance; directions outside the basis have no variance.
        """
        flat = self.basis.modes.reshape(len(self.basis.modes), -1)
        root = self.cholesky.T @ flat  # covariance of pixels = root^T root
        gram = root @ root.T
        mu = self.basis.decode(self.mean)
        mu = mu.reshape((1,) * (u_t.ndim - 3) + mu.shape)
        r = (u_t - mu).reshape(*u_t.shape[:-3], -1)
        inner = gram + sigma_t**2 * jnp.eye(len(gram), dtype=gram.dtype)
        y = jnp.linalg.solve(inner, (r @ root.T).reshape(-1, len(gram)).T).T
        return mu + (y @ root).reshape(u_t.shape)
