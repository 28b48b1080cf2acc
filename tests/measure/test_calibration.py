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
    pulls,
    rank_histogram,
    rank_statistic,
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
