"""Strict numerics for all tests, and the fixtures that they share."""

import gc
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from blendem.io.table import DATA_DEFAULT, DATA_VARIABLE

# Truths are computed in double precision; a silent broadcast or NaN is an error.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)

SEED = 20240611


# Every compiled program maps memory, 60 pieces a test; at `vm.max_map_count`, 65530 by default, XLA
# ends the process with a segmentation fault.
MAPS, MOST_MAPS = Path("/proc/self/maps"), 20000


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps():
    """Forget compiled programs after a module when there are many."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def key():
    """A JAX key with a fixed seed; split it, use it once."""
    return jax.random.key(SEED)


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator with a fixed seed."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data; the test is skipped where there is none."""
    named = os.environ.get(DATA_VARIABLE)
    path = Path(named or DATA_DEFAULT).resolve()
    if not path.is_dir():
        pytest.skip(
            f"no real data: {DATA_VARIABLE}"
            + (f" names {named}, which is no folder" if named else " is not set")
        )
    return path
