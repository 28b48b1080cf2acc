"""Calibration tests against a conjugate Gaussian, whose posterior is known exactly."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from blendem.measure.calibration import (
    coverage,
    coverage_curve,
    coverage_fraction,
    coverage_table,
    expected_chi2,
    gaussian_coverage,
    interval_table,
    pulls,
    rank_histogram,
    rank_statistic,
    sbc_table,
)

N, DRAWS = 4000, 63


def toy(rng, width=1.0, bias=0.0):
    """x ~ N(0, 2^2), y = x + N(0, 1): posterior N(0.8 y, 0.8), drawn `width` times as wide."""
    truth = 2 * rng.normal(size=N)
    y = truth + rng.normal(size=N)
    mean, std = 0.8 * y + bias, np.full(N, width * np.sqrt(0.8))
    return truth, mean, std, mean + std * rng.normal(size=(DRAWS, N))


def gaussian_level(level, width):
    """Part of N(0, 1) inside the central interval of N(0, width^2)."""
    return 1 - 2 * stats.norm.sf(width * stats.norm.isf((1 - level) / 2))


@pytest.mark.parametrize("width", [1.0, 0.6, 1.5])
def test_coverage_is_that_of_the_toy(rng, width):
    truth, mean, std, samples = toy(rng, width)
    levels = (0.68, 0.95)
    expected = np.array([gaussian_level(level, width) for level in levels])
    error = np.sqrt(expected * (1 - expected) / N)
    exact, exact_err = coverage_fraction(gaussian_coverage(truth, mean, std, levels))
    assert np.all(np.abs(exact - expected) < 4 * error)
    np.testing.assert_allclose(exact_err, error, rtol=0.1)
    drawn, _ = coverage_fraction(coverage(truth, samples, levels))
    # 63 draws blur an interval that is too narrow or wide; where it is right they do not.
    slack = 0.0 if width == 1 else 0.02
    assert np.all(np.abs(drawn - expected) < 4 * error + slack)


def test_overconfident_posteriors_fail(rng):
    """Errors 40 % too small: coverage 0.45 instead of 0.68, ranks pile up at both ends."""
    truth, _, _, samples = toy(rng, width=0.6)
    fraction, error = coverage_fraction(coverage(truth, samples))
    assert np.all(fraction + 10 * error < [0.68, 0.95])
    histogram = rank_histogram(rank_statistic(truth, samples), DRAWS, rng=rng)
    assert histogram["p_chi2"] < 1e-10 and histogram["p_ks"] < 1e-10
    assert histogram["counts"][[0, -1]].min() > 1.5 * histogram["expected"][0]


def test_bias_has_the_stated_sign(rng):
    truth, mean, std, samples = toy(rng, bias=0.5)
    pull = pulls(truth, mean, std)
    assert pull.mean() == pytest.approx(0.5 / np.sqrt(0.8), abs=5 / np.sqrt(N))
    assert pull.std() == pytest.approx(1, abs=5 / np.sqrt(2 * N))
    # Draws too high: few of them below the truth.
    assert rank_statistic(truth, samples).mean() < 0.4 * DRAWS
    assert np.isnan(pulls(truth, mean, 0 * std)).all()


def test_ranks_of_the_right_posterior_are_uniform(rng):
    truth, _, _, samples = toy(rng)
    ranks = rank_statistic(truth, samples)
    brute = [sum(draw < truth[i] for draw in samples[:, i]) for i in range(50)]
    np.testing.assert_array_equal(ranks[:50], brute)
    for bins in (16, 10):  # 10 does not divide 64
        histogram = rank_histogram(ranks, DRAWS, bins, rng=rng)
        assert histogram["counts"].sum() == N
        assert histogram["expected"].sum() == pytest.approx(N)
        # One seed in 500 would fail by chance.
        assert histogram["p_chi2"] > 1e-3 and histogram["p_ks"] > 1e-3


def test_rank_histogram_knows_unequal_bins(rng):
    """Each rank of 0..6 once, in 3 bins of 3, 2 and 2 ranks: chi2 is exactly 0."""
    histogram = rank_histogram(np.arange(7), 6, 3, rng=rng)
    np.testing.assert_array_equal(histogram["counts"], histogram["expected"])
    assert sorted(histogram["counts"]) == [2, 2, 3]
    assert histogram["chi2"] == 0
    with pytest.raises(ValueError, match="`ranks`"):
        rank_histogram(np.array([7]), 6, 3, rng=rng)
    with pytest.raises(ValueError, match="`bins`"):
        rank_histogram(np.arange(7), 6, 8, rng=rng)


def test_coverage_curve_is_the_diagonal(rng):
    truth, _, _, samples = toy(rng)
    levels = np.linspace(0.1, 0.9, 9)
    fraction, error = coverage_curve(truth, samples, levels)
    assert np.all(np.abs(fraction - levels) < 4 * error)
    narrow, _ = coverage_curve(truth, toy_like(samples, 0.5), levels)
    assert np.all(narrow < levels - 0.02)


def toy_like(samples, width):
    """The same draws, pulled towards their mean."""
    mean = samples.mean(axis=0)
    return mean + width * (samples - mean)


def test_coverage_fraction_has_an_error_when_all_are_inside():
    fraction, error = coverage_fraction(np.ones((2, 8), bool))
    np.testing.assert_array_equal(fraction, 1.0)
    np.testing.assert_allclose(error, stats.beta(9, 1).std())
    fraction, error = coverage_fraction(np.ones((2, 0), bool))
    assert np.isnan(fraction).all()


def test_coverage_without_draws_is_false():
    samples = np.full((8, 2), np.nan)
    samples[:, 1] = np.arange(8)
    np.testing.assert_array_equal(
        coverage(np.array([3.5, 3.5]), samples, (0.68,))[0], [False, True]
    )


def test_coverage_table_counts_by_bin():
    scores = pd.DataFrame(
        {"b": [0.0, 0.1, 0.5, 1.0, 2.0], "in": [1.0, 0.0, 1.0, np.nan, 0.0]}
    )
    table = coverage_table(scores, "b", [0.0, 0.5, 1.0], ["in"])
    assert list(table["in"]) == [0.5, 1.0]
    assert list(table["in_n"]) == [2, 1]
    np.testing.assert_allclose(
        table["in_err"], [stats.beta(2, 2).std(), stats.beta(2, 1).std()]
    )


def quantities(rng):
    """A calibrated quantity, one with errors 40 % too small, one with NaN at random."""
    truth, draws = {}, {}
    for name, width in (("good", 1.0), ("narrow", 0.6), ("holes", 1.0)):
        truth[name], _, _, draws[name] = toy(rng, width)
    # As for colours of faint sources: low values are missing, in truth and draws alike.
    truth["holes"] = np.where(truth["holes"] < -1, np.nan, truth["holes"])
    draws["holes"] = np.where(draws["holes"] < -1, np.nan, draws["holes"])
    return truth, draws


def test_ranks_of_many_quantities(rng):
    truth, draws = quantities(rng)
    table = sbc_table(truth, draws, rng=rng).set_index("quantity")
    assert list(table.index) == ["good", "narrow", "holes"]
    # One seed in 500 would fail by chance.
    for name in ("good", "holes"):
        assert table["p_chi2"][name] > 1e-3 and table["p_ks"][name] > 1e-3
        error = 4 / np.sqrt(12 * table["n"][name])
        assert table["mean"][name] == pytest.approx(0.5, abs=error)
        assert table["std"][name] == pytest.approx(1 / np.sqrt(12), abs=error)
    assert table["p_chi2"]["narrow"] < 1e-10 and table["p_ks"]["narrow"] < 1e-10
    assert table["std"]["narrow"] > 0.33
    left_out = np.isnan(truth["holes"]) | np.isnan(draws["holes"]).all(axis=0)
    assert left_out.sum() > 0.2 * N
    assert table["left_out"].to_list() == [0, 0, left_out.sum()]
    assert table["n"].to_list() == [N, N, N - left_out.sum()]
    nan_draws = np.isnan(draws["holes"][:, ~left_out]).mean()
    assert table["nan_draws"].to_list() == [0, 0, pytest.approx(nan_draws)]


def test_ranks_are_exact_with_few_draws(rng):
    """Two draws: ranks 0, 1, 2 have one third each."""
    truth, draws = quantities(rng)
    few = {name: values[:2] for name, values in draws.items()}
    table = sbc_table(truth, few, 15, rng=rng).set_index("quantity")
    for name in ("good", "holes"):
        assert table["p_chi2"][name] > 1e-3 and table["p_ks"][name] > 1e-3


def test_ranks_of_nothing_are_nan(rng):
    truth = {"a": np.full(4, np.nan), "b": np.zeros(4)}
    table = sbc_table(
        truth, {"a": np.zeros((8, 4)), "b": np.full((8, 4), np.nan)}, rng=rng
    )
    assert table["n"].to_list() == [0, 0] and table["left_out"].to_list() == [4, 4]
    assert table[["mean", "p_chi2", "p_ks"]].isna().all(axis=None)
    with pytest.raises(ValueError, match=r"`draws` of 'b' must be \(draw, 4\)"):
        sbc_table({"b": np.zeros(4)}, {"b": np.zeros((8, 3))}, rng=rng)
    with pytest.raises(ValueError, match="got nothing"):
        interval_table({"b": np.zeros(4)}, {})


def test_intervals_of_many_quantities(rng):
    truth, draws = quantities(rng)
    magnitude, blendedness = rng.uniform(18, 26, N), rng.uniform(0, 1, N)
    blendedness[::10] = -1e-17  # rounding of isolated sources
    by = {"mag": (magnitude, [18, 22, 26]), "blendedness_r": (blendedness, [0, 0.2, 1])}
    table = interval_table(truth, draws, by)
    assert len(table) == 3 * 2 * 5
    table["pull"] = (table["coverage"] - table["level"]) / table["error"]
    assert table.query("quantity == 'good'")["pull"].abs().max() < 4
    # Where low values are missing the interval is that of what is left, which is calibrated.
    assert table.query("quantity == 'holes'")["pull"].abs().max() < 4
    assert table.query("quantity == 'narrow'")["pull"].max() < -4
    row = table.query(
        "quantity == 'good' and bin_by == 'mag' and low == 22 and level == 0.68"
    )
    chosen = magnitude >= 22
    inside = coverage(truth["good"], draws["good"], (0.68,))[0]
    assert row["n"].item() == chosen.sum() and row["high"].item() == 26
    assert row["coverage"].item() == pytest.approx(inside[chosen].mean())
    binned = table.query("quantity == 'narrow' and level == 0.95").groupby("bin_by")[
        "n"
    ]
    assert binned.sum().to_dict() == {"all": N, "mag": N, "blendedness_r": N}


def test_intervals_need_enough_draws():
    """39 draws hold 95 %: between the first and the last lie 38/40. 38 do not."""
    draws = np.tile(np.arange(39.0)[:, None], (1, 3))
    draws[0, 1] = np.nan
    truth = np.array([19.5, 19.5, np.nan])
    table = interval_table({"a": truth}, {"a": draws}).set_index("level")
    assert table["n"].to_dict() == {0.68: 2, 0.95: 1}
    assert table["left_out"].to_dict() == {0.68: 1, 0.95: 2}
    assert table["coverage"].to_list() == [1, 1]
    # 3 of 4 values in the beta posterior of one success.
    assert table["error"][0.95] == pytest.approx(stats.beta(2, 1).std())
    assert np.isinf(table["low"]).all() and (table["bin_by"] == "all").all()


def test_posterior_predictive_chi2_is_one_for_the_true_model(rng):
    """y = A x + n, x ~ N(0, P), dense: the ratio is 1 on average, |y - A mu|^2 / N is not."""
    n_data, n_modes, repeats = 40, 15, 2000
    a = rng.normal(size=(n_data, n_modes))
    prior = np.diag(rng.uniform(0.1, 3, n_modes))
    x = np.sqrt(np.diag(prior))[:, None] * rng.normal(size=(n_modes, repeats))
    y = a @ x + rng.normal(size=(n_data, repeats))
    posterior = np.linalg.inv(np.linalg.inv(prior) + a.T @ a)
    chi2 = ((y - a @ posterior @ a.T @ y) ** 2).sum(axis=0)
    trace = np.full(repeats, np.trace(a @ posterior @ a.T))
    ratio, error = expected_chi2(chi2, trace, np.full(repeats, n_data))
    assert abs(ratio.mean() - 1) < 4 * error[0] / np.sqrt(repeats)
    assert chi2.mean() / n_data < 0.7  # the naive one
    # The stated error is an upper limit, and close where few modes are half constrained.
    assert 0.9 * error[0] < ratio.std() < 1.05 * error[0]
    assert np.isnan(expected_chi2(np.ones(1), np.ones(1), np.zeros(1, int))[0]).all()
