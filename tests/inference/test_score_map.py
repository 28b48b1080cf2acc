"""Score MAP against closed forms and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from tests.inference.test_gibbs import likelihood_of
from tests.inference.test_posterior import D, make_prior, problem

from blendem.inference.gibbs import as_arrays
from blendem.inference.likelihood import galaxy_likelihood
from blendem.inference.posterior import posterior
from blendem.inference.score_map import ScoreMapSettings, fit_score_map
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.mixture import MixturePrior


@pytest.mark.parametrize("noise", [1.0, 0.01])
@pytest.mark.parametrize("sigma_0", [0.05, 0.5])
def test_gaussian_prior_gives_the_mean_of_the_smoothed_prior(rng, noise, sigma_0):
    """The prior smoothed by sigma_0 is N(0, 1 + sigma_0^2): its MAP is a posterior mean."""
    prior = make_prior(rng)
    cases = [problem(rng, k, noise, prior, stars=(0,))[0] for k in (3, 2, 3)]
    lik = [galaxy_likelihood(s, prior) for s in cases]
    settings = ScoreMapSettings(sigma_0=sigma_0, tolerance=1e-6)
    fits = fit_score_map(prior, lik, settings, batch=2)
    wide = GaussianPrior(
        prior.basis, prior.mean, np.sqrt(1 + sigma_0**2) * prior.cholesky
    )
    for statistics, one, fit in zip(cases, lik, fits, strict=True):
        n = fit.e.size
        precision = one.factor @ one.factor.T + np.eye(n) / (1 + sigma_0**2)
        dense = np.linalg.solve(precision, one.factor @ one.target)
        np.testing.assert_allclose(fit.e.ravel(), dense, atol=1e-4)
        exact = posterior(statistics, wide)
        z = (prior.mean + fit.e @ prior.cholesky.T).ravel()
        assert fit.converged and fit.gradient_norm < 1e-6
        assert fit.iterations < 60
        assert fit.sigma_0 == sigma_0
        # `galaxy_likelihood` leaves out directions that move by up to 0.07 sd.
        sd = np.sqrt(np.diag(exact.covariance))[D : D + n]
        assert np.abs((z - exact.mean[D : D + n]) / sd).max() < 0.1


@pytest.mark.parametrize("start", [-1.2, 0.9])
def test_mixture_is_the_maximum_of_the_smoothed_posterior(start):
    """Against a direct minimisation of the explicit density, by another optimizer."""
    weights, centers, v = [0.3, 0.7], np.array([[-1.2, 0.4], [0.9, -0.2]]), 0.1
    prior = MixturePrior.of(weights, centers, [v, v])
    A = np.array([[1.0, 0.3, 0.8, 0.0], [0.2, 1.0, 0.0, 0.5]]) / 0.3
    y = A @ np.array([start, 0.1, 0.7, -0.1])
    lik, sigma_0 = likelihood_of(A, y, 2), 0.1

    def loss(e):
        step = e.reshape(2, 1, 2) - centers
        log_p = -0.5 * np.sum(step**2, axis=-1) / (v + sigma_0**2)
        prior_term = logsumexp(log_p, b=np.array(weights), axis=1).sum()
        return 0.5 * np.sum((y - A @ e) ** 2) - prior_term

    settings = ScoreMapSettings(sigma_0=sigma_0, tolerance=1e-7)
    fit = fit_score_map(prior, [lik], settings)[0]
    assert fit.converged and fit.iterations < 300
    starts = [np.concatenate([a, b]) for a in centers for b in centers]
    best = min((minimize(loss, s, tol=1e-12) for s in starts), key=lambda r: r.fun)
    np.testing.assert_allclose(fit.e.ravel(), best.x, atol=1e-4)
    assert fit.chi2 + lik.rest == pytest.approx(np.sum((y - A @ fit.e.ravel()) ** 2))


def test_a_concave_valley_does_not_stop_the_ascent():
    """Data halfway between narrow modes, where the log density curves upwards."""
    prior = MixturePrior.of([0.5, 0.5], [[-1.0], [1.0]], [0.01, 0.01])
    lik = likelihood_of(np.array([[0.5]]), np.array([0.02]), 1)
    fit = fit_score_map(prior, [lik], ScoreMapSettings(sigma_0=0.05))[0]
    assert fit.converged
    # One mode and the data: precision 1 / (v + sigma_0^2) + 1 / 4, to rounding.
    precision = 1 / (0.01 + 0.05**2)
    expected = (precision + 0.25 * 0.04) / (precision + 0.25)
    assert fit.e[0, 0] == pytest.approx(expected, abs=1e-4)


def test_a_fit_that_ran_out_of_iterations_says_so(rng):
    prior = MixturePrior.of([0.3, 0.7], rng.normal(size=(2, D)), [0.05, 0.1])
    lik = likelihood_of(rng.normal(size=(6, D)), rng.normal(size=6), 1)
    settings = ScoreMapSettings(anneal=1, iterations=2, tolerance=1e-9)
    fit = fit_score_map(prior, [lik], settings)[0]
    assert not fit.converged and fit.iterations == 2 and fit.gradient_norm > 1e-9


def test_reported_norm_is_that_of_the_gradient(rng):
    prior = MixturePrior.of([0.3, 0.7], rng.normal(size=(2, D)), [0.2, 0.4])
    lik = likelihood_of(rng.normal(size=(6, 2 * D)), rng.normal(size=6), 2)
    settings = ScoreMapSettings(sigma_0=0.2, anneal=2, iterations=1, tolerance=1e-9)
    fit = fit_score_map(prior, [lik], settings)[0]
    denoised, _ = as_arrays(prior).denoise_latent(
        jnp.asarray(fit.e), jnp.asarray(settings.sigma_0)
    )
    e = fit.e.ravel()
    gradient = (np.asarray(denoised).ravel() - e) / settings.sigma_0**2
    gradient = gradient + lik.factor @ (lik.target - lik.factor.T @ e)
    H = lik.factor @ lik.factor.T + np.eye(2 * D)
    norm = np.sqrt(gradient @ np.linalg.solve(H, gradient) / (2 * D))
    assert fit.gradient_norm == pytest.approx(norm, rel=1e-8)


def test_single_precision_converges_at_high_signal_to_noise(rng):
    """The tolerance must not be below what rounding of float32 leaves."""
    prior = make_prior(rng)
    lik = galaxy_likelihood(problem(rng, 3, 0.01, prior)[0], prior)
    jax.config.update("jax_enable_x64", False)
    try:
        fit = fit_score_map(prior, [lik])[0]
    finally:
        jax.config.update("jax_enable_x64", True)
    assert fit.e.dtype == np.float32
    assert fit.converged


def test_impossible_settings_and_inputs_are_refused(rng):
    prior = make_prior(rng)
    lik = galaxy_likelihood(problem(rng, 2, 0.1, prior)[0], prior)
    with pytest.raises(ValueError, match="0 < sigma_0 <= rho_max"):
        fit_score_map(prior, [lik], ScoreMapSettings(sigma_0=4.0))
    with pytest.raises(ValueError, match=f"{D} coordinates, the prior has {D + 1}"):
        fit_score_map(make_prior(rng, D + 1), [lik])
