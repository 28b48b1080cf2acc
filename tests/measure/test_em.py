"""What is watched of posteriors of known galaxies."""

import numpy as np
import pandas as pd
import pytest

from blendem.measure.em import (
    BLENDED,
    FLAT,
    Whitening,
    posterior_scores,
    posterior_table,
)


@pytest.fixture
def draws(rng):
    """Truth and draws of three galaxies in two bands; the second one is 20 % too bright in r."""
    truth = {
        "flux_g": np.array([10.0, 20.0, 5.0]),
        "flux_r": np.array([30.0, 10.0, 8.0]),
        "size": np.array([3.0, 2.0, np.nan]),
        "e1": np.array([0.1, 0.2, 0.0]),
        "e2": np.zeros(3),
    }
    noise = rng.standard_normal((4000, 3))
    noise -= noise.mean(axis=0)
    found = {name: value + 0.01 * noise for name, value in truth.items()}
    found["flux_r"][:, 1] += 2.0
    found["e1"] += 0.05
    return truth, found


def test_a_row_says_what_is_wrong_with_one_galaxy(draws):
    table = posterior_table(*draws)
    assert table["flux_r"].tolist() == [30.0, 10.0, 8.0]
    np.testing.assert_allclose(table["flux_residual_r"], [0, 0.2, 0], atol=1e-6)
    assert table["flux_within68_r"].tolist() == [True, False, True]
    np.testing.assert_allclose(table["e1_error"], 0.05, atol=1e-6)
    assert np.isnan(table["size_residual"][2])


def test_scores_are_means_over_galaxies_and_bands(draws):
    scores = posterior_scores(posterior_table(*draws), np.array([0.1, 0.5, BLENDED]))
    assert scores["sources"] == 3
    assert scores["flux_residual_blended"] == pytest.approx(0.1, abs=1e-6)  # 0 and 0.2
    assert scores["flux_residual_other"] == pytest.approx(0.0, abs=1e-6)
    assert scores["flux_within68"] == pytest.approx(5 / 6)
    assert scores["e1_bias"] == pytest.approx(0.05, abs=1e-6)


def test_galaxies_without_a_flux_count_nowhere(draws):
    table = posterior_table(*draws)
    worse = pd.concat([table, table.iloc[:1].assign(flux_residual_g=np.nan)])
    some, all_of_them = (
        posterior_scores(t, np.full(len(t), 0.5)) for t in (table, worse)
    )
    assert all_of_them["sources"] == some["sources"] == 3
    assert all_of_them["flux_within68"] == some["flux_within68"]


def test_few_galaxies_make_no_direction_infinitely_thin(rng):
    """Fewer galaxies than coordinates: their covariance is singular."""
    e = rng.standard_normal((8, 20))
    white = Whitening(e)(rng.standard_normal((500, 20)))
    assert np.isfinite(white).all()
    assert np.sqrt((white**2).mean(axis=0)).max() < 1 / FLAT**0.5 * 3
    many = rng.standard_normal((5000, 3)) @ np.diag([1.0, 2.0, 3.0])
    np.testing.assert_allclose(np.cov(Whitening(many)(many).T), np.eye(3), atol=1e-9)
