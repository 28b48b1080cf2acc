"""The latent diffusion prior: a denoiser on whitened PCA coordinates.

With `z = mean + cholesky e` the coordinates e have unit covariance, so the noise of the
diffusion is isotropic in them and the Wiener denoiser is `e_t / (1 + sigma^2)`. The network
adds what is not Gaussian; without it the prior is `GaussianPrior`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blendem.prior.gaussian import Basis, GaussianPrior
from blendem.prior.network import LatentNetwork

# The network's correction fades above this noise: there the Wiener mean is right, and its
# errors would be amplified by sigma.
DAMPING = 3.0
LOG_VARIANCE_RANGE = (-8.0, 5.0)  # of the learned factor of the variance


class LatentPrior(eqx.Module):
    """Diffusion prior in the basis of a Gaussian one.

    Attributes:
        gaussian: Basis, and the moments that whiten z.
        network: Correction and variance heads.
    """

    gaussian: GaussianPrior
    network: LatentNetwork

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

    def denoise_latent(
        self, e_t: Float[Array, "*n mode"], sigma: Float[Array, ""]
    ) -> tuple[Float[Array, "*n mode"], Float[Array, "*n mode"]]:
        """Mean and diagonal variance of e given `e_t = e + sigma n`.

        Both are `sigma`-aware skips around the network (DESIGN: Wiener skip): mean
        `e_t / (1 + sigma^2) + c(sigma) F`, variance `sigma^2 / (1 + sigma^2) exp(s)`.
        """
        flat = e_t.reshape(-1, e_t.shape[-1])
        mean, variance = denoise(self.network, flat, sigma)
        return mean.reshape(e_t.shape), variance.reshape(e_t.shape)


def denoise(
    network: LatentNetwork, e_t: Float[Array, "n mode"], sigma: Float[Array, ""]
) -> tuple[Float[Array, "n mode"], Float[Array, "n mode"]]:
    """Mean and variance by a network, for a batch at one noise level."""
    shift, log_factor = jax.vmap(network, (0, None))(e_t, sigma)
    return combine(e_t, shift, log_factor, sigma)


def combine(
    e_t: Float[Array, "n mode"],
    shift: Float[Array, "n mode"],
    log_factor: Float[Array, "n mode"],
    sigma: Float[Array, "*n"],
) -> tuple[Float[Array, "n mode"], Float[Array, "n mode"]]:
    """Turn the outputs of the network into mean and variance."""
    wiener = sigma**2 / (1 + sigma**2)
    gain = jnp.sqrt(wiener / (1 + (sigma / DAMPING) ** 2))
    mean = e_t / (1 + sigma**2) + gain * shift
    return mean, wiener * jnp.exp(jnp.clip(log_factor, *LOG_VARIANCE_RANGE))
