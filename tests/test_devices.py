"""Several devices: four virtual CPU devices in a process of their own give what one gives."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from tests.inference.test_posterior import make_prior, problem

from blendem.blend import Blend, stack
from blendem.devices import over_devices, whole_batch
from blendem.inference.batch import run_batches
from blendem.inference.likelihood import galaxy_likelihood
from blendem.inference.sampler import sample

ROOT = Path(__file__).parents[1]


def numbers() -> dict[str, np.ndarray]:
    """Draws of five blends, and a batched program over five others."""
    rng = np.random.default_rng(4)
    prior = make_prior(rng)
    given = [
        galaxy_likelihood(problem(rng, n, 0.3, prior)[0], prior)
        for n in (2, 2, 1, 3, 2)
    ]
    keys = list(jax.random.split(jax.random.key(3), len(given)))
    draws = sample(prior, given, 16, keys=keys)
    centers = rng.normal(size=(5, 3, 2)).astype(np.float32)
    few, many = np.zeros(3, bool), np.ones(3, bool)
    blends = stack([Blend((), c, few, many) for c in centers], 5)
    used = set()

    @jax.jit
    def double(values):
        return 2 * values

    def program(part, more):
        result = double(part.centers) + more[:, None, None]
        used.add(len(result.devices()) if isinstance(result, jax.Array) else 1)
        return result

    twice = run_batches(program, blends, 2, np.arange(5.0, dtype=np.float32))
    np.testing.assert_array_equal(
        twice, 2 * centers + np.arange(5.0, dtype=np.float32)[:, None, None]
    )
    out = {f"draws_{i}": one.e for i, one in enumerate(draws)}
    return out | {"twice": twice, "devices": np.array(sorted(used))}


def test_four_devices_give_what_one_gives(tmp_path):
    path = tmp_path / "four.npz"
    code = "import sys, numpy; from tests.test_devices import numbers, four;"
    code += " four(); numpy.savez(sys.argv[1], **numbers())"
    flags = os.environ.get("XLA_FLAGS", "")
    flags += " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = dict(np.load(path)), numbers()
    assert found.pop("devices").tolist() == [4]
    assert expected.pop("devices").tolist() == [1]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-3, atol=2e-3)


def four() -> None:
    """Of the other process: batches have a part for each device."""
    assert jax.device_count() == 4
    assert [whole_batch(n) for n in (1, 4, 5)] == [4, 4, 8]
    parts = over_devices(np.zeros((8, 3))).addressable_shards
    assert [part.data.shape for part in parts] == [(2, 3)] * 4
