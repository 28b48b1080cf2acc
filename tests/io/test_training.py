"""Galaxies that are dealt to a training, and its curve."""

import numpy as np
import pandas as pd
import pytest

from blendem.io.training import read_galaxies, write_curve
from blendem.prior.gaussian import Basis
from blendem.prior.train import Evaluation


def test_galaxies_have_unit_flux_and_everyone_is_dealt_once(tmp_path, rng):
    basis = Basis(
        np.zeros((2, 5, 5)),
        np.zeros((1, 2, 5, 5)),
        np.ones(1),
        np.array(0.0),
        np.array(0.7),
        np.array(0.2),
        ("g", "i"),
    )
    stamps = rng.uniform(1, 2, (40, 2, 5, 5)).astype(np.float32)
    stamps[3, 1] = -1.0  # no reference flux
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", stamps[20 * i : 20 * (i + 1)])
    paths = [tmp_path / "0.npy", tmp_path / "1.npy"]
    found = read_galaxies(paths, basis, "i", 0.0, held_out=(0.1, 2), seed=1)
    kept = np.delete(stamps, 3, axis=0).astype(float)
    flux = kept[:, 1].sum((-2, -1))
    np.testing.assert_allclose(found.amplitude, flux, rtol=1e-6)
    other = found.relative_to(0.8)
    np.testing.assert_allclose(other.amplitude, 0.8 * flux, rtol=1e-6)
    np.testing.assert_allclose(other.images, found.images / 0.8, rtol=1e-5)
    # Float32 images.
    np.testing.assert_allclose(found.images, kept / flux[:, None, None, None], 1e-5)
    assert sorted(found.order) == list(range(39))
    assert found.held_out == 2 and found.card["stamps"] == 39
    again = read_galaxies(paths, basis, "i", 0.0, held_out=(0.1, 9), seed=1)
    np.testing.assert_array_equal(again.order, found.order)
    assert again.held_out == 3
    other = read_galaxies(paths, basis, "i", 0.0, held_out=(0.1, 2), seed=2)
    assert (other.order != found.order).any()


def test_a_curve_has_a_column_per_noise_level(tmp_path):
    history = [Evaluation(5, 1.5, 0.9, 0.75, (0.5, 1.0), (-0.1, 0.2))]
    write_curve(tmp_path / "a.csv", history, "unet", (0.1, 10.0))
    row = pd.read_csv(tmp_path / "a.csv").iloc[0].to_dict()
    assert row == {
        "kind": "unet",
        "step": 5,
        "seconds": 1.5,
        "train_loss": 0.9,
        "held_out": 0.75,
        "ratio_0.1": 0.5,
        "ratio_10": 1.0,
        "nll_0.1": -0.1,
        "nll_10": 0.2,
    }
    with pytest.raises(ValueError, match="shorter"):
        write_curve(tmp_path / "b.csv", history, "unet", (0.1, 1.0, 10.0))
