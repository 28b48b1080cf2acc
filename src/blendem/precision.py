"""Numbers of a model in the precision of the device code."""

import equinox as eqx
import jax
import jax.numpy as jnp


def single_precision(tree):
    """All inexact arrays of a pytree as float32 on the device; the rest as it is."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32) if eqx.is_inexact_array_like(x) else x,
        tree,
    )
