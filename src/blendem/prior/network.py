"""The network of the latent tier: a residual perceptron on whitened coordinates."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

FREQUENCIES = 8  # of the noise embedding, octaves from 1/2
OUTPUT_GAIN = 1e-2  # a new network starts close to the Wiener denoiser


def embed_noise(sigma: Float[Array, ""]) -> Float[Array, " feature"]:
    """Sines and cosines of `ln(sigma) / 4` and the value itself."""
    t = jnp.log(sigma) / 4
    phase = t * 2.0 ** jnp.arange(-1, FREQUENCIES - 1, dtype=t.dtype)
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase), t[None]])


class LatentNetwork(eqx.Module):
    """Residual perceptron with two heads: correction to the Wiener mean, log variance.

    Attributes:
        first: Input layer.
        norms, layers: One pair per residual block.
        last: Output layer, `2 mode` wide.
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
        features = modes + 2 * FREQUENCIES + 1
        self.first = eqx.nn.Linear(features, width, key=keys[0])
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(blocks)]
        self.layers = [eqx.nn.Linear(width, width, key=k) for k in keys[2:]]
        last = eqx.nn.Linear(width, 2 * modes, key=keys[1])
        self.last = eqx.tree_at(lambda m: m.weight, last, last.weight * OUTPUT_GAIN)
        self.modes, self.width, self.blocks = modes, width, blocks

    def __call__(
        self, e_t: Float[Array, " mode"], sigma: Float[Array, ""]
    ) -> tuple[Float[Array, " mode"], Float[Array, " mode"]]:
        """Correction and log variance factor at noisy coordinates `e_t`."""
        # arcsinh tames the tails of bright, large galaxies; only the network sees it.
        x = jnp.arcsinh(e_t / jnp.sqrt(1 + sigma**2))
        h = self.first(jnp.concatenate([x, embed_noise(sigma)]))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = h + jax.nn.silu(layer(norm(h)))
        out = self.last(h)
        return out[: self.modes], out[self.modes :]
