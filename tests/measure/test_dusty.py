"""Numbers of galaxies behind dust, by hand and from draws that are right by construction."""

import numpy as np
import pytest
from tests.inference.test_dust import priors

from blendem.inference.dust_model import DustModel
from blendem.measure.dusty import (
    dusty_columns,
    dusty_quantities,
    dusty_source,
    quantity_names,
    score_dusty,
    summarise_dusty,
)
from blendem.prior.dust import dim

BANDS = ("g", "r")


def test_attenuation_is_weighted_with_light_of_one_band():
    galaxy = np.array([[[[1.0, 3.0]], [[2.0, 2.0]]]])
    dust = np.array([[[0.5, 1.0]]])
    found = dusty_quantities(galaxy, dust, 0)
    np.testing.assert_allclose(found, [[4.0, 4.0, (0.5 + 3.0) / 4]])
    assert dusty_quantities(galaxy, dust, 1)[0, 2] == pytest.approx(0.75)
    assert quantity_names(BANDS) == ("flux_g", "flux_r", "A_V")


def test_images_of_draws(rng):
    galaxy, dust = priors(rng)
    model = DustModel.of(galaxy, dust, 0.3)
    e = rng.normal(size=(7, model.n_latent))
    law, tilt = np.array([1.2, 0.8]), np.array([-0.2, 0.1])
    found = dusty_source(model, e, law, tilt, 2.5, 1)
    z = np.asarray(galaxy.mean) + e[:, :4] @ np.asarray(galaxy.cholesky).T
    x = 2.5 * np.asarray(galaxy.basis.decode(z))
    z = np.asarray(dust.latent.mean) + e[:, 4:7] @ np.asarray(dust.latent.cholesky).T
    A = np.asarray(dust.attenuation(z))
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.std, x.std(axis=0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(found.dust_mean, A.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.dust_std, A.std(axis=0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(found.values, dusty_quantities(x, A, 1), rtol=1e-6)
    tilted = [law * np.exp(0.3 * one[-1] * tilt) for one in e]
    seen = [dim(x[i], A[i], tilted[i]) for i in range(7)]
    np.testing.assert_allclose(found.dimmed, np.mean(seen, axis=0), rtol=1e-6)


def test_columns_have_medians_and_intervals(rng):
    values = rng.normal(5.0, 1.0, (4001, 2, 3))
    values[:, 1] = np.nan
    columns = dusty_columns(values, BANDS, np.array([27.0, 27.0]))
    # Standard errors of mean, median and quantiles: 0.016, 0.020, 0.024.
    for name, expected in (
        ("flux_g", 5.0), ("flux_median_r", 5.0), ("flux_q16_g", 4.0),
        ("A_V", 5.0), ("A_V_err", 1.0), ("A_V_median", 5.0),
        ("A_V_q16", 4.0), ("A_V_q84", 6.0),
    ):  # fmt: skip
        assert columns[name][0] == pytest.approx(expected, abs=0.12), name
        assert np.isnan(columns[name][1]), name


def test_right_draws_have_the_right_scores(rng):
    """Truth and draws from one distribution, whatever its centre."""
    n = 4000
    center = rng.uniform(3, 6, (n, 3))
    truth = center + rng.normal(size=(n, 3))
    values = center + rng.normal(size=(64, n, 3))
    scores = score_dusty(truth, values, BANDS)
    scores["blendedness_r"] = np.where(np.arange(n) < 1000, 0.5, 0.0)
    numbers = summarise_dusty(scores, BANDS, "blendedness_r")
    assert numbers["A_V_within68"]["n"] == n
    assert numbers["A_V_within68_blended"]["n"] == 1000
    assert numbers["A_V_within68_isolated"]["n"] == 3000
    for name in quantity_names(BANDS):
        # Binomial errors of 0.0074 and 0.0034.
        assert numbers[f"{name}_within68"]["value"] == pytest.approx(0.68, abs=0.035)
        assert numbers[f"{name}_within95"]["value"] == pytest.approx(0.95, abs=0.02)
        assert numbers[f"{name}_pull_mean"]["value"] == pytest.approx(0, abs=0.08)
        # Errors from 64 draws scatter by 9 %, and the mean of draws by 1/8 of an error.
        assert numbers[f"{name}_pull_sd"]["value"] == pytest.approx(1.02, abs=0.06)
    assert numbers["A_V_rms"]["unit"] == "mag" and numbers["flux_g_rms"]["unit"] == ""
    assert numbers["A_V_within68"]["error"] == pytest.approx(0.0074, abs=5e-4)
    # Errors that are half as large hold less.
    narrow = center + 0.5 * rng.normal(size=(64, n, 3))
    worse = summarise_dusty(score_dusty(truth, narrow, BANDS), BANDS)
    assert worse["A_V_within68"]["value"] < 0.45
    assert worse["A_V_pull_sd"]["value"] > 1.8
