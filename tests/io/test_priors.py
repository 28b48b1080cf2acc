"""Priors on disk."""

import json

import jax
import numpy as np
import pytest

from blendem.io.priors import read_prior, write_prior
from blendem.io.table import InputError
from blendem.prior.gaussian import Basis, GaussianPrior


@pytest.fixture
def saved(tmp_path, rng):
    modes = rng.normal(size=(3, 2, 5, 5)).astype(np.float32)
    basis = Basis(
        rng.normal(size=(2, 5, 5)).astype(np.float32),
        modes,
        np.sum(modes**2, axis=(1, 2, 3)),
        np.array(0.25, np.float32),
        np.array(0.7, np.float32),
        np.array(0.168, np.float32),
        ("g", "i"),
    )
    prior = GaussianPrior(basis, rng.normal(size=3), np.tril(rng.normal(size=(3, 3))))
    path = tmp_path / "00.eqx"
    write_prior(path, prior, {"lap": 0, "note": "any"})
    return path, prior


def test_prior_comes_back_as_written(saved):
    path, prior = saved
    read, card = read_prior(path)
    assert card == {"lap": 0, "note": "any"} and read.basis.bands == ("g", "i")
    pairs = zip(jax.tree.leaves(read), jax.tree.leaves(prior), strict=True)
    for a, b in pairs:
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def test_files_that_are_no_whole_prior_are_named(saved, tmp_path):
    path, _ = saved
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(InputError, match=r"00\.eqx: truncated or damaged"):
        read_prior(path)
    path.write_bytes(whole[: whole.index(b"\n") + 1])
    with pytest.raises(InputError, match=r"00\.eqx: truncated or damaged"):
        read_prior(path)
    header = json.loads(whole.splitlines()[0]) | {"format": "other-9"}
    path.write_text(json.dumps(header) + "\n")
    with pytest.raises(InputError, match=r"00\.eqx: format 'other-9'"):
        read_prior(path)
    path.write_bytes(b"\x89HDF\n")
    with pytest.raises(InputError, match=r"00\.eqx: not a prior"):
        read_prior(path)
    with pytest.raises(InputError, match="no such prior"):
        read_prior(tmp_path / "none.eqx")
