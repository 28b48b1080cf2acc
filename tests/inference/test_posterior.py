"""Closed-form posterior and evidence against dense conjugate formulae on pixels."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from blendem.inference.posterior import (
    BlendStatistics,
    chi2,
    posterior,
    prior_mean,
    unpad,
)
from blendem.prior.gaussian import Basis, GaussianPrior

D, PIXELS = 4, 150


def make_prior(rng, d=D):
    modes = rng.normal(size=(d, 1, 5, 5))
    values = np.sum(modes**2, axis=(1, 2, 3))
    basis = Basis(
        np.zeros((1, 5, 5)),
        modes,
        values,
        np.array(0.0),
        jnp.array(0.7),
        jnp.array(1.0),
        ("i",),
    )
    root = rng.normal(size=(d, d))
    return GaussianPrior.from_moments(
        basis, rng.normal(size=d), root @ root.T / d + 0.1 * np.eye(d)
    )


def problem(rng, sources, noise, prior, extra=2, stars=()):
    """Overlapping sources: smooth columns on a line of pixels; stars and a sky."""
    n = sources * D + extra
    at = np.arange(PIXELS)
    A = np.zeros((PIXELS, n))
    for j in range(n):
        middle = 75 + 12 * (j // D - sources / 2) + rng.normal()
        A[:, j] = 5 * np.exp(-0.5 * ((at - middle) / rng.uniform(5, 9)) ** 2)
    variance = noise**2 * rng.uniform(0.5, 2, PIXELS)
    is_star = np.isin(np.arange(sources), stars)
    mean, covariance = np.zeros(n), np.eye(n)
    for k in np.flatnonzero(~is_star):
        block = slice(k * D, (k + 1) * D)
        mean[block] = prior.mean
        covariance[block, block] = np.asarray(prior.covariance)
    w = rng.multivariate_normal(mean, covariance)
    y = A @ w + np.sqrt(variance) * rng.normal(size=PIXELS)
    white, r = A / np.sqrt(variance)[:, None], y / np.sqrt(variance)
    statistics = BlendStatistics(
        white.T @ white,
        white.T @ r,
        r @ r,
        np.log(2 * np.pi * variance).sum(),
        PIXELS,
        is_star,
        D,
    )
    return statistics, A, y, variance, mean, covariance


@pytest.mark.parametrize("sources", [2, 3, 5])
@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
def test_posterior_matches_pixel_space(sources, noise, rng):
    prior = make_prior(rng)
    case = problem(rng, sources, noise, prior, stars=(1,))
    statistics, A, y, variance, mean, covariance = case
    # Kalman form, in pixels: another route than the latent precision of the code.
    marginal = A @ covariance @ A.T + np.diag(variance)
    gain = np.linalg.solve(marginal, A @ covariance).T
    expected = mean + gain @ (y - A @ mean)
    expected_covariance = covariance - gain @ A @ covariance

    p = posterior(statistics, prior)

    sd = np.sqrt(np.diag(expected_covariance))
    # Rounding of a marginal covariance of condition 1e5 to 1e6.
    np.testing.assert_allclose((p.mean - expected) / sd, 0, atol=1e-6)
    np.testing.assert_allclose(
        p.covariance / np.outer(sd, sd),
        expected_covariance / np.outer(sd, sd),
        atol=1e-6,
    )
    evidence = multivariate_normal(A @ mean, marginal).logpdf(y)
    np.testing.assert_allclose(p.log_evidence, evidence, rtol=1e-9)
    left = (y - A @ expected) / np.sqrt(variance)
    np.testing.assert_allclose(p.chi2_of_mean, left @ left, rtol=1e-6)
    white = A / np.sqrt(variance)[:, None]
    trace = np.trace(white @ expected_covariance @ white.T)
    np.testing.assert_allclose(p.effective_parameters, trace, rtol=1e-6)


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_samples_have_the_moments_of_the_posterior(noise, rng):
    prior = make_prior(rng)
    statistics, A, y, variance, _, _ = problem(rng, 3, noise, prior)
    p = posterior(statistics, prior)
    n = 20_000
    w = p.draw(n, rng)

    values, vectors = np.linalg.eigh(p.covariance)
    projected = (w - p.mean) @ vectors / np.sqrt(values)
    # Root mean square over eigenmodes within twice the Monte Carlo error; variances to 5 %
    # (five standard errors of 20 000 draws).
    assert np.sqrt(np.mean(projected.mean(0) ** 2)) < 2 / np.sqrt(n)
    assert np.all(np.abs(projected.var(0) - 1) < 0.05)
    # Chi2 of draws on pixels, and the quadratic form without them.
    residual = (y - w[:50] @ A.T) / np.sqrt(variance)
    np.testing.assert_allclose(
        chi2(statistics, w[:50]), np.sum(residual**2, 1), rtol=1e-6
    )
    mean_chi2 = chi2(statistics, w).mean()
    np.testing.assert_allclose(
        mean_chi2, p.chi2_of_mean + p.effective_parameters, rtol=5e-3
    )


def test_posterior_predictive_chi2_is_the_number_of_pixels(rng):
    prior = make_prior(rng)
    total, n = 0.0, 400
    for _ in range(n):
        p = posterior(problem(rng, 3, 1.0, prior)[0], prior)
        total += p.chi2_of_mean + p.effective_parameters
    # Standard error: sqrt(2 / (400 * 150)) = 0.6 %.
    assert abs(total / (n * PIXELS) - 1) < 0.02


def test_whitened_errors_are_standard_normal(rng):
    """Truths from the prior: 68 % of them in the 68 % intervals."""
    prior = make_prior(rng)
    inside = []
    for _ in range(500):
        statistics, A, _, variance, mean, covariance = problem(
            rng, 2, 1.0, prior, extra=0
        )
        w = rng.multivariate_normal(mean, covariance)
        r = (A @ w) / np.sqrt(variance) + rng.normal(size=PIXELS)
        white = A / np.sqrt(variance)[:, None]
        again = statistics._replace(b=white.T @ r, r2=r @ r)
        p = posterior(again, prior)
        inside.append(np.abs(np.linalg.solve(p.root, w - p.mean)) < 0.9944579)
    # 4000 independent values: a standard error of 0.7 %.
    assert abs(np.mean(inside) - 0.68) < 0.02


def test_padding_is_dropped(rng):
    n, modes = 3, 2
    H, b = rng.normal(size=(14, 14)), rng.normal(size=14)
    present, star = np.array([True, True, False]), np.array([False, True, False])
    s = unpad(H, b, 1.0, 2.0, 3.0, present=present, is_star=star, n_modes=modes)
    # z of 2 sources, shifts of 2 sources, two skies.
    kept = [0, 1, 2, 3, n * modes, 7, 8, 9, 12, 13]
    np.testing.assert_array_equal(s.b, b[kept])
    np.testing.assert_array_equal(s.H, H[np.ix_(kept, kept)])
    np.testing.assert_array_equal(s.is_star, [False, True])
    prior = make_prior(rng, modes)
    mean = prior_mean(s, prior)
    np.testing.assert_array_equal(mean[:2], prior.mean)
    np.testing.assert_array_equal(mean[2:], 0)
    # Without data the posterior is the prior: N(0, 1) for star, shifts and sky.
    empty = s._replace(H=np.zeros_like(s.H), b=np.zeros_like(s.b))
    covariance = posterior(empty, prior).covariance
    np.testing.assert_allclose(covariance[:2, :2], prior.covariance, atol=1e-12)
    np.testing.assert_allclose(covariance[2:, 2:], np.eye(8), atol=1e-12)
    np.testing.assert_array_equal(covariance[:2, 2:], 0)


def test_statistics_that_are_not_finite_are_refused(rng):
    prior = make_prior(rng)
    statistics = problem(rng, 2, 1.0, prior)[0]
    with pytest.raises(ValueError, match="not finite"):
        posterior(statistics._replace(b=statistics.b * np.nan), prior)
