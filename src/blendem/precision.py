"""Where and in what precision programs run."""

import equinox as eqx
import jax
import jax.numpy as jnp


def on_accelerator() -> bool:
    """Whether programs run on something else than a CPU, where large batches pay."""
    return jax.default_backend() != "cpu"


def single_precision(tree):
    """All inexact arrays of a pytree as float32 on the device; the rest as it is."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32) if eqx.is_inexact_array_like(x) else x,
        tree,
    )
