"""The network of the latent tier: a residual perceptron on whitened coordinates.

It corrects a denoiser that is already good, that of a mixture of Gaussians, and so sees what
that one says beside its input: its mean, its variance and the noise that it takes out.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

FREQUENCIES = 8  # of the noise embedding, octaves from 1/2
LENGTH_FLOOR = 1e-6  # of the mean square of the input
OUTPUT_GAIN = 1e-2  # a new network starts close to the denoiser that it corrects


def embed_noise(sigma: Float[Array, ""]) -> Float[Array, " feature"]:
    """Sines and cosines of `ln(sigma) / 4` and the value itself."""
    t = jnp.log(sigma) / 4
    phase = t * 2.0 ** jnp.arange(-1, FREQUENCIES - 1, dtype=t.dtype)
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase), t[None]])


class LatentNetwork(eqx.Module):
    """Residual perceptron with two heads: correction to a mean, log variance factor.

    Attributes:
        first: Input layer.
        norms, layers: One pair per residual block.
        last: Output layer, `3 mode` wide: additive, multiplicative, log variance.
        modes, width, blocks: Sizes. Static.
    """

    first: eqx.nn.Linear
    norms: list[eqx.nn.LayerNorm]
    layers: list[eqx.nn.Linear]
    last: eqx.nn.Linear
    modes: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    blocks: int = eqx.field(static=True)

    def __init__(self, modes: int, width: int, blocks: int, *, key: PRNGKeyArray):
        keys = jax.random.split(key, blocks + 2)
        features = 4 * modes + 2 * FREQUENCIES + 2
        self.first = eqx.nn.Linear(features, width, key=keys[0])
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(blocks)]
        self.layers = [eqx.nn.Linear(width, width, key=k) for k in keys[2:]]
        last = eqx.nn.Linear(width, 3 * modes, key=keys[1])
        self.last = eqx.tree_at(lambda m: m.weight, last, last.weight * OUTPUT_GAIN)
        self.modes, self.width, self.blocks = modes, width, blocks

    def __call__(
        self,
        e_t: Float[Array, " mode"],
        mean: Float[Array, " mode"],
        variance: Float[Array, " mode"],
        sigma: Float[Array, ""],
    ) -> tuple[Float[Array, " mode"], Float[Array, " mode"]]:
        """Correction, in units of the deviation, and log factor of the variance.

        Args:
            e_t: Noisy coordinates.
            mean, variance: Of e given them, by the denoiser that is corrected.
            sigma: Their noise.
        """
        x = e_t / jnp.sqrt(1 + sigma**2)
        length = jnp.sqrt(jnp.mean(x**2) + LENGTH_FLOOR)
        noise = (e_t - mean) / sigma
        gain = jnp.log(variance * (1 + sigma**2) / sigma**2)  # over that of Wiener
        # arcsinh tames the tails of compact galaxies; only the network sees it.
        seen = [jnp.arcsinh(x), noise, 0.3 * gain, jnp.arcsinh(mean)]
        seen += [jnp.log(length)[None], embed_noise(sigma)]
        h = self.first(jnp.concatenate(seen))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = h + jax.nn.silu(layer(norm(h)))
        add, multiply, log_factor = jnp.split(self.last(h), 3)
        return add + multiply * noise, log_factor
