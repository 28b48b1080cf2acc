"""Random numbers that follow from one seed and from what an item is.

Adding a field, or running the stages in another order, does not change the others.
"""

import zlib

import jax
import numpy as np
from jaxtyping import Array, Key

# Keys and seed sequences are built of 32-bit words; larger numbers would wrap around.
N_WORD = 2**32


def stage_key(seed: int, stage: str, index: int = 0) -> Key[Array, ""]:
    """Return the JAX key of item `index` of a workflow `stage`, on any machine.

    `zlib.crc32` is used because `hash(str)` changes from run to run.

    Raises:
        ValueError: If `seed` or `index` is negative or needs more than 32 bits.
    """
    _check_word("seed", seed)
    _check_word("index", index)
    # An array of fixed dtype: Python integers above 2^31 overflow without x64.
    key = jax.random.key(np.uint32(seed))
    key = jax.random.fold_in(key, np.uint32(zlib.crc32(stage.encode())))
    return jax.random.fold_in(key, np.uint32(index))


def stage_rng(seed: int, stage: str, index: int = 0) -> np.random.Generator:
    """Return the NumPy generator of item `index` of a workflow `stage`.

    It is independent of `stage_key` with the same arguments.

    Raises:
        ValueError: If `seed` or `index` is negative or needs more than 32 bits.
    """
    _check_word("seed", seed)
    _check_word("index", index)
    # The spawn key keeps its place beside the entropy: (seed, stage, 0) and a seed of
    # three words cannot meet.
    spawn_key = (zlib.crc32(stage.encode()), index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=spawn_key))


def _check_word(name: str, value: int) -> None:
    if not 0 <= value < N_WORD:
        raise ValueError(
            f"`{name}` must be an integer from 0 to {N_WORD - 1}; got {value}. Choose a"
            " smaller one."
        )
