"""The latent diffusion prior: a denoiser on whitened PCA coordinates.

With `z = mean + cholesky e` the coordinates e have unit covariance, so the noise of the
diffusion is isotropic in them. Galaxies of unit flux are a mixture of scales in them: compact
ones have large coordinates, extended ones small. The denoiser is therefore that of a mixture
of Gaussians, exact at every noise, and a network that adds what the mixture lacks. The first
coordinates are the diffusion's; the last ones, fine detail that only bright galaxies show,
are Gaussian, with variances that follow the scale of the galaxy, and are integrated out and drawn
exactly (`inference.likelihood`).

Faint galaxies are smaller and bluer than bright ones, and there are more of them. So the
brightness, the logarithm of the amplitude, can be one more coordinate of the mixture, the
last one: the catalog knows it, and the likelihood fixes it there.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from blendem.prior.gaussian import Basis, GaussianPrior
from blendem.prior.mixture import MixturePrior
from blendem.prior.network import LatentNetwork

# The network's correction fades above this noise: there the mixture is right, and errors
# would be amplified by sigma.
DAMPING = 3.0
LOG_VARIANCE_RANGE = (-8.0, 5.0)  # of the learned factor of the variance
# Part of Wiener's variance below which the mixture is not believed to know an error.
VARIANCE_FLOOR = 1e-2
# Noise at which the components that a galaxy may belong to are told from its coordinates.
FINE_SIGMA = 0.3
# Brighter and fainter galaxies than the training set has count as its extremes [sd].
BRIGHTNESS_LIMIT = 3.0


class LatentPrior(eqx.Module):
    """Diffusion prior in the basis of a Gaussian one.

    Attributes:
        gaussian: Basis, and the moments that whiten z.
        mixture: Mixture of Gaussians of the first coordinates e.
        network: Corrects the mean and the variances of its denoiser; None: the mixture alone.
        fine: Variances of the last coordinates in every component; None: 1.
        brightness: Mean and standard deviation of ln(amplitude) [image unit at `MAGZERO`] in
            the training set, of which the last coordinate of the mixture is the deviation;
            None: the mixture has coordinates of shape and flux only.
    """

    gaussian: GaussianPrior
    mixture: MixturePrior
    network: LatentNetwork | None = None
    fine: Float[Array | np.ndarray, "component fine"] | None = None
    brightness: Float[Array | np.ndarray, " 2"] | None = None

    @property
    def basis(self) -> Basis:
        """The PCA basis."""
        return self.gaussian.basis

    @property
    def mean(self) -> Float[Array | np.ndarray, " mode"]:
        """Mean of z."""
        return self.gaussian.mean

    @property
    def cholesky(self) -> Float[Array | np.ndarray, "mode mode"]:
        """Factor of the covariance of z: `z = mean + cholesky e`."""
        return self.gaussian.cholesky

    @property
    def n_latent(self) -> int:
        """Number of coordinates e that a sampler moves; the rest is Gaussian."""
        return len(self.mixture.mean)

    @property
    def n_modes(self) -> int:
        """How many of them are modes of z: all but the brightness."""
        return self.n_latent - (self.brightness is not None)

    def brightness_of(
        self, log_amplitude: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, " n"]:
        """Brightness coordinate of galaxies, from ln of their amplitudes."""
        mean, deviation = np.asarray(self.brightness, float)
        value = (np.asarray(log_amplitude, float) - mean) / deviation
        return np.clip(value, -BRIGHTNESS_LIMIT, BRIGHTNESS_LIMIT)

    def fine_deviation(
        self, e: Float[Array | np.ndarray, "n latent"]
    ) -> Float[np.ndarray, "n fine"]:
        """Standard deviations of the fine coordinates, given the others."""
        if self.fine is None:
            return np.ones((len(e), len(self.mean) - self.n_modes))
        weights = self.mixture.responsibilities(jnp.asarray(e), FINE_SIGMA)
        return np.sqrt(np.asarray(weights, float) @ np.asarray(self.fine, float))

    def denoise_latent(
        self, e_t: Float[Array, "*n latent"], sigma: Float[Array, ""]
    ) -> tuple[Float[Array, "*n latent"], Float[Array, "*n latent"]]:
        """Mean and diagonal variance of the first coordinates given `e_t = e + sigma n`."""
        flat = e_t.reshape(-1, e_t.shape[-1])
        mean, variance = denoise(self.mixture, self.network, flat, sigma)
        return mean.reshape(e_t.shape), variance.reshape(e_t.shape)

    def denoise_full(
        self, e_t: Float[Array, "*n latent"], sigma: Float[Array, ""]
    ) -> tuple[Float[Array, "*n latent"], Float[Array, "*n latent latent"]]:
        """Mean and covariance of the first coordinates given `e_t = e + sigma n`.

        Variances are those of `denoise_latent`, correlations those of the mixture.
        """
        if self.network is None:
            return self.mixture.denoise_full(e_t, sigma)
        flat = e_t.reshape(-1, e_t.shape[-1])
        mean, covariance = self.mixture.denoise_full(flat, sigma)
        identity = jnp.eye(e_t.shape[-1], dtype=e_t.dtype)
        covariance = covariance + (_floor(sigma) * identity)[None]
        known = jnp.diagonal(covariance, axis1=1, axis2=2)
        mean, variance = _correct(self.network, flat, mean, known, sigma)
        factor = jnp.sqrt(variance / known)
        covariance = factor[:, :, None] * covariance * factor[:, None, :]
        return mean.reshape(e_t.shape), covariance.reshape(*e_t.shape, e_t.shape[-1])

    def draw_full(
        self, e_t: Float[Array, "*n latent"], sigma: Float[Array, ""], key: PRNGKeyArray
    ) -> tuple[Float[Array, "*n latent"], Float[Array, "*n latent latent"]]:
        """Draw of the first coordinates given `e_t`, and their covariance.

        With a network, whose corrected moments belong to no mixture, it is Gaussian.
        """
        if self.network is None:
            return self.mixture.draw_full(e_t, sigma, key)
        mean, covariance = self.denoise_full(e_t, sigma)
        xi = jax.random.normal(key, e_t.shape, e_t.dtype)
        lower = jnp.linalg.cholesky(covariance)
        return mean + jnp.einsum("...ij,...j->...i", lower, xi), covariance


def fine_variances(
    mixture: MixturePrior,
    e: Float[Array | np.ndarray, "row latent"],
    fine: Float[Array | np.ndarray, "row fine"],
) -> Float[np.ndarray, "component fine"]:
    """Mean square of the fine coordinates in each component of the mixture of the others."""
    weights = mixture.responsibilities(jnp.asarray(e), FINE_SIGMA)
    weights = np.asarray(weights, float)
    return weights.T @ np.asarray(fine, float) ** 2 / weights.sum(axis=0)[:, None]


def denoise(
    mixture: MixturePrior,
    network: LatentNetwork | None,
    e_t: Float[Array, "n latent"],
    sigma: Float[Array, "*row"],
) -> tuple[Float[Array, "n latent"], Float[Array, "n latent"]]:
    """Mean and variance, for rows at one noise level or at one each."""
    if network is None:
        return mixture.denoise_latent(e_t, sigma)
    return _correct(network, e_t, *skip(mixture, e_t, sigma), sigma)


def _correct(network, e_t, mean, variance, sigma):
    """Mean and variance of the mixture, corrected by the network."""
    levels = jnp.broadcast_to(sigma, e_t.shape[:1])
    shift, log_factor = jax.vmap(network)(e_t, mean, variance, levels)
    return combine(mean, variance, shift, log_factor, levels)


def _floor(sigma):
    """Lowest variance that the mixture is believed."""
    return VARIANCE_FLOOR * sigma**2 / (1 + sigma**2)


def skip(
    mixture: MixturePrior,
    e_t: Float[Array, "n latent"],
    sigma: Float[Array, "*row"],
) -> tuple[Float[Array, "n latent"], Float[Array, "n latent"]]:
    """What the network corrects: the mixture's answer, no variance below a part of Wiener's."""
    mean, variance = mixture.denoise_latent(e_t, sigma)
    return mean, variance + _floor(jnp.asarray(sigma).reshape(-1, 1))


def combine(
    mean: Float[Array, "n latent"],
    variance: Float[Array, "n latent"],
    shift: Float[Array, "n latent"],
    log_factor: Float[Array, "n latent"],
    sigma: Float[Array, " n"],
) -> tuple[Float[Array, "n latent"], Float[Array, "n latent"]]:
    """Correct mean and variance of the mixture by the outputs of the network."""
    fade = (1 + (sigma[:, None] / DAMPING) ** 2) ** -0.5
    mean = mean + fade * jnp.sqrt(variance) * shift
    return mean, variance * jnp.exp(jnp.clip(log_factor, *LOG_VARIANCE_RANGE))
