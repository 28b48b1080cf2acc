"""Deblending of galaxies in multi-band images with a prior learned from them."""

import os
from importlib.metadata import version

import jax

__version__ = version("blendem")

# GPUs multiply float32 matrices with 10 bits of mantissa (TF32) unless told otherwise. Posteriors
# of bright galaxies need all 24. What the user has chosen stays.
if jax.config.jax_default_matmul_precision is None:
    jax.config.update("jax_default_matmul_precision", "float32")

# XLA takes as many threads as there are cores, and jobs beside each other then wait for each
# other's: two E steps on two cores took twice as long. OMP_NUM_THREADS is what Snakemake and
# schedulers grant a job; NPROC is where XLA looks, when its first program is compiled.
if "OMP_NUM_THREADS" in os.environ:
    os.environ.setdefault("NPROC", os.environ["OMP_NUM_THREADS"])
