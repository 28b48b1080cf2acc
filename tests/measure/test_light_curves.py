"""Light curves: units, gaps, means, and what becomes of them in products."""

import numpy as np
import pandas as pd
import pytest

from blendem.inference.statistics import STAR_SPREAD
from blendem.io.products import read_light_curves, write_catalog
from blendem.measure.light_curves import Exposure, LightCurve, as_star, stacked
from blendem.measure.scores import score_light_curves

PLANES = [Exposure(e, 10.0 * i, b) for i, e in enumerate("xyz") for b in "gi"]
SHINES = np.array([False, False, True, True, True, True])
SCALE = np.array([0.0, 0.0, 100.0, 200.0, 0.0, 50.0])  # no data in g of epoch z


@pytest.fixture
def curve(rng):
    return LightCurve.of(
        SCALE, SHINES, np.full(9, 0.5), 0.5 + 0.1 * rng.normal(size=(400, 9))
    )


def test_fluxes_are_coordinates_in_units_of_the_scale(curve):
    np.testing.assert_array_equal(curve.mean, [0, 0, 50, 100, np.nan, 25])
    np.testing.assert_allclose(curve.error[[2, 3, 5]], [10, 20, 5], rtol=0.15)
    assert (curve.error[:2] == 0).all() and np.isnan(curve.error[4])


def test_means_are_over_images_with_data_in_which_it_shines(curve):
    mean, draws = curve.band_means(PLANES, ("g", "r", "i"))
    np.testing.assert_array_equal(mean, [50, np.nan, 62.5])
    np.testing.assert_allclose(draws[:, 2], curve.draws[:, [3, 5]].mean(axis=1))
    z = as_star(2.0, draws, 9)
    np.testing.assert_allclose(2.0 * (1 + STAR_SPREAD * z[:, 2]), draws[:, 2])
    np.testing.assert_allclose(1 + STAR_SPREAD * z[:, 1], 0, atol=1e-12)
    np.testing.assert_array_equal(z[:, 3:], 0)


def test_the_table_comes_back_from_the_catalog(curve, tmp_path):
    meta = dict.fromkeys(("METHOD", "PRIOR", "CONFIG", "VERSION"), "x")
    path = tmp_path / "a.fits"
    table = stacked([curve.table(7, PLANES), curve.table(9, PLANES)])
    write_catalog(path, {"id": [7, 9]}, meta, flux_unit="nJy", light_curves=table)
    back = read_light_curves(path)
    assert list(back["id"]) == [7] * 6 + [9] * 6
    assert list(back["epoch"][:6]) == list("xxyyzz")
    assert str(back["flux"].unit) == "nJy" and str(back["mjd"].unit) == "d"
    np.testing.assert_array_equal(back["shines"][:6], SHINES)
    np.testing.assert_array_equal(back["flux"][:6], curve.mean)
    write_catalog(path, {"id": [7]}, meta)
    assert read_light_curves(path) is None
    assert stacked([]) is None


def test_only_fluxes_that_are_measured_are_scored(curve):
    measured = curve.table(7, PLANES).to_pandas()
    truth = pd.DataFrame(
        [
            (7, 3, p.epoch, p.band, flux)
            for p, flux in zip(PLANES, [0.0, 0.0, 52.0, 150.0, 60.0, 26.0], strict=True)
        ],
        columns=["id", "host", "epoch", "band", "flux"],
    )
    scores = score_light_curves(measured, truth)
    assert list(zip(scores["epoch"], scores["band"], strict=True)) == [
        ("y", "g"),
        ("y", "i"),
        ("z", "i"),
    ]
    error = scores["flux_err"].to_numpy()
    np.testing.assert_allclose(scores["pull"] * error, [-2, -50, -1])
    assert list(scores["within68"]) == [1.0, 0.0, 1.0]
