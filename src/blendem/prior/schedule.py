"""Noise levels of the diffusion, in units of the whitened coordinates (their sd is 1)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

# Highest and lowest noise of the reverse process: at the first the signal is 3 % of the
# noise, at the last the noise is 0.3 % of a typical galaxy-to-galaxy difference.
SIGMA_MAX, SIGMA_MIN = 30.0, 3e-3
# ln(sigma) in training is normal: most weight where a denoiser differs from Wiener's.
LN_SIGMA_MEAN, LN_SIGMA_SD = -0.8, 1.6


def noise_levels(
    steps: int, sigma_max: float = SIGMA_MAX, sigma_min: float = SIGMA_MIN
) -> Float[np.ndarray, " level"]:
    """Return `steps` + 1 falling noise levels, equally spaced in the logarithm.

    Raises:
        ValueError: If there is no step, or the limits are not positive and falling.
    """
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(
            "the reverse process needs steps >= 1 and 0 < sigma_min < sigma_max; got"
            f" {steps} steps from {sigma_max} to {sigma_min}"
        )
    return np.geomspace(sigma_max, sigma_min, steps + 1)


def training_levels(n: int, *, key: PRNGKeyArray) -> Float[Array, " n"]:
    """Draw noise levels for training: log-normal (Karras et al. 2022, eq. 5 of app. B)."""
    return jnp.exp(LN_SIGMA_MEAN + LN_SIGMA_SD * jax.random.normal(key, (n,)))
