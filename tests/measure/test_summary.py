"""Headline numbers: counts of what went wrong, and tiers without evidence."""

import numpy as np
import pandas as pd

from blendem.measure.summary import summarise_blends, summarise_evidence


def blends():
    """Three blends, the last without a result."""
    return pd.DataFrame(
        {
            "n_sources": [2, 1, 3],
            "n_data": [100.0, 300.0, np.nan],
            "chi2": [90.0, 330.0, np.nan],
            "expected_chi2": [90.0, 300.0, np.nan],
            "predictive_chi2": [110.0, 350.0, np.nan],
            "negative_flux": [0.0, 0.1, np.nan],
            "unconverged": [0.0, 7.0, 1.0],
            "guards": [0.0, 0.0, 0.0],
            "failed_draws": [0.0, 0.0, 5.0],
            "ndata_i": [100.0, 300.0, np.nan],
            "chi2_i": [90.0, 330.0, np.nan],
            "autocorrelation_i": [0.1, 0.3, np.nan],
        }
    )


def test_what_the_sampler_says_is_counted_for_blends_without_result_too():
    out = {k: v["value"] for k, v in summarise_blends(blends(), ["i"]).items()}
    assert out["blends"] == 3 and out["blends_without_result"] == 1
    assert out["blends_unconverged"] == 2 and out["blends_guards"] == 0
    assert out["blends_failed_draws"] == 1
    np.testing.assert_allclose(out["chi2_per_pixel"], 420 / 400)
    np.testing.assert_allclose(out["chi2_of_draws_per_pixel"], 460 / 400)
    np.testing.assert_allclose(out["negative_flux_fraction"], 0.05)
    np.testing.assert_allclose(out["residual_autocorrelation_i"], 0.2)


def test_a_tier_without_evidence_has_no_numbers_of_it():
    laps = pd.DataFrame(
        {"lap": [0, 0.5, 1], "log_evidence": [-9.0, -4.0, -5.0], "n_blends": [3, 3, 3]}
    )
    out = summarise_evidence(laps)
    assert out["log_evidence_last"]["value"] == -5
    assert out["evidence_smallest_step"]["value"] == -1
    none = pd.DataFrame({"lap": [0], "log_evidence": [np.nan], "n_blends": [3]})
    assert summarise_evidence(none) == {}


def test_what_the_basis_does_not_hold_is_told_where_there_is_any():
    table = blends().assign(outside_basis=[0.01, 0.03, np.nan])
    table = table.assign(outside_chi2=[2.0, 6.0, np.nan])
    out = {k: v["value"] for k, v in summarise_blends(table, ["i"]).items()}
    np.testing.assert_allclose(out["draws_outside_basis"], 0.02)
    np.testing.assert_allclose(out["chi2_outside_basis_per_pixel"], 8 / 400)
    none = summarise_blends(table.assign(outside_basis=[0.0, 0.0, np.nan]), ["i"])
    assert "draws_outside_basis" not in none
