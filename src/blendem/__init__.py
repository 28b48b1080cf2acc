"""Deblending of galaxies in multi-band images with a prior learned from them."""

from importlib.metadata import version

import jax

__version__ = version("blendem")

# GPUs multiply float32 matrices with 10 bits of mantissa (TF32) unless told otherwise. Posteriors
# of bright galaxies need all 24. What the user has chosen stays.
if jax.config.jax_default_matmul_precision is None:
    jax.config.update("jax_default_matmul_precision", "float32")
