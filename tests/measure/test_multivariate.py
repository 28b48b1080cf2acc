"""Tests of whole vectors: exact posteriors pass, wrong ones do not."""

import numpy as np
import pytest
from scipy import stats

from blendem.measure.multivariate import tarp_coverage, two_sample_test

N, DRAWS, DIM = 1500, 48, 3
# x = L e, y = x + n: posterior covariance (P^-1 + 1)^-1.
LOWER = np.array([[1.0, 0, 0], [0.6, 0.8, 0], [-0.5, 0.3, 2.0]])
PRIOR = LOWER @ LOWER.T
POSTERIOR = np.linalg.inv(np.linalg.inv(PRIOR) + np.eye(DIM))


def toy(rng, width=1.0, bias=0.0):
    """Truths and draws of the exact posterior, `width` times as wide, moved by `bias`."""
    truth = rng.normal(size=(N, DIM)) @ LOWER.T
    y = truth + rng.normal(size=truth.shape)
    noise = rng.normal(size=(DRAWS, N, DIM)) @ np.linalg.cholesky(POSTERIOR).T
    return truth, y @ POSTERIOR.T + bias + width * noise


def test_tarp_passes_the_exact_posterior(rng):
    found = tarp_coverage(*toy(rng), rng=rng)
    assert found.n == N and found.left_out == 0
    # 95 % of the seeds; the seed is fixed.
    assert found.deviation < found.deviation_95
    assert found.deviation_95 == pytest.approx(1.358 / np.sqrt(N), rel=0.02)
    np.testing.assert_allclose(found.levels, np.arange(1, DRAWS + 2) / (DRAWS + 1))
    binomial = np.sqrt(found.levels * (1 - found.levels) / N)
    # 200 bootstrap samples give errors to 5 %: four of those, and the smallest counts apart.
    np.testing.assert_allclose(found.error[5:-5], binomial[5:-5], rtol=0.25)
    assert np.all(np.abs(found.coverage - found.levels)[5:-5] < 4 * binomial[5:-5])
    assert found.coverage[-1] == 1 and found.error[-1] == 0


@pytest.mark.parametrize(("width", "bias"), [(0.6, 0.0), (1.6, 0.0), (1.0, 0.5)])
def test_tarp_finds_wrong_posteriors(rng, width, bias):
    found = tarp_coverage(*toy(rng, width, bias), rng=rng)
    assert found.deviation > 1.5 * found.deviation_95


def test_tarp_is_the_distance_rank_of_the_references(rng):
    """One dimension, five draws, by hand, whatever range of ranks occurs."""
    truth = rng.normal(size=(40, 1))
    samples = truth + 0.3 + 0.5 * rng.normal(size=(5, 40, 1))
    seed = np.random.default_rng(3)
    found = tarp_coverage(truth, samples, rng=seed, n_bootstrap=2)
    reference = np.random.default_rng(3).uniform(size=(40, 1))
    center = np.median(truth)
    width = 1.4826 * np.median(np.abs(truth - center))
    u, v = (stats.cauchy.cdf(x, center, width) for x in (truth, samples))
    nearer = (np.abs(v - reference) < np.abs(u - reference)).sum(axis=0)[:, 0]
    expected = [(nearer <= k).mean() for k in range(6)]
    np.testing.assert_allclose(found.coverage, expected, atol=1e-12)
    assert found.deviation == pytest.approx(
        np.abs(np.array(expected) - np.arange(1, 7) / 6).max()
    )
    # All draws at one place are all nearer than the truth, or none is.
    found = tarp_coverage(truth, np.full_like(samples, 1e9), rng=rng)
    assert np.ptp(found.coverage[:-1]) == 0 and 0 < found.coverage[0] < 1


def test_tarp_is_exact_with_few_draws_and_leaves_nan_out(rng):
    truth, samples = toy(rng)
    missing = rng.random((DRAWS, N)) < 0.01
    samples[missing, 1] = np.nan
    truth[0, 0] = np.nan
    found = tarp_coverage(truth, samples[:7], rng=rng)
    left_out = missing[:7].any(axis=0)
    left_out[0] = True
    assert found.left_out == left_out.sum() and found.n == N - found.left_out
    assert found.deviation < found.deviation_95
    with pytest.raises(ValueError, match="0 of 1500 sources have finite"):
        tarp_coverage(truth * np.nan, samples, rng=rng)
    with pytest.raises(ValueError, match="`samples` must be"):
        tarp_coverage(truth[1:], samples, rng=rng)


def test_two_samples_of_one_distribution_have_uniform_p(rng):
    p = [
        two_sample_test(
            rng.normal(size=(300, 4)), rng.normal(size=(500, 4)), 20, rng=rng
        ).p
        for _ in range(300)
    ]
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert abs(np.mean(p) - 0.5) < 4 * np.sqrt(1 / 12 / len(p))


@pytest.mark.parametrize("change", ["shift", "width", "correlation"])
def test_two_samples_that_differ_are_told_apart(rng, change):
    a, b = rng.normal(size=(1000, 4)), rng.normal(size=(1000, 4))
    if change == "shift":
        b += [0.3, 0, 0, 0]
    elif change == "width":
        b *= 1.2
    else:
        b[:, 1] = 0.6 * b[:, 0] + 0.8 * b[:, 1]  # marginals stay the same
    assert two_sample_test(a, b, 40, rng=rng).p < 1e-3


def test_chi2_is_that_of_the_contingency_table(rng):
    """Far groups of points in cells of their own: scipy's test of the same counts."""
    counts = np.array([[30, 50, 20], [40, 20, 60]])
    corner = np.array([[0.0, 0], [10, 0], [100, 30]])
    a, b = (np.repeat(corner, k, axis=0) for k in counts)
    seeds = 0
    for seed in range(60):
        # The points that span the cells are left out: which ones is found by the same draw.
        chosen = np.random.default_rng(seed).choice(220, 3, replace=False)
        group = np.concatenate([np.repeat(range(3), k) for k in counts])
        if len(set(group[chosen])) < 3:
            continue
        seeds += 1
        left = counts.copy()
        np.subtract.at(left, (np.asarray(chosen >= 100, int), group[chosen]), 1)
        expected = stats.chi2_contingency(left, correction=False)
        found = two_sample_test(a, b, 3, rng=np.random.default_rng(seed))
        assert found.chi2 == pytest.approx(expected.statistic)
        assert (found.dof, found.p) == (2, pytest.approx(expected.pvalue))
    assert seeds > 3


def test_unusable_samples_are_refused(rng):
    a, b = rng.normal(size=(50, 2)), rng.normal(size=(60, 2))
    with pytest.raises(ValueError, match="`regions` must be 2 to 10"):
        two_sample_test(a, b, 11, rng=rng)
    with pytest.raises(ValueError, match="one length"):
        two_sample_test(a, b[:, :1], 5, rng=rng)
    a[0, 0] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        two_sample_test(a, b, 5, rng=rng)
