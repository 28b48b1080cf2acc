"""Split Gibbs against closed forms: Gaussian, and mixtures of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.inference.test_posterior import D, make_prior, problem

from blendem.inference.gibbs import (
    GibbsSettings,
    couplings,
    draw_auxiliary,
    draw_clean,
    sample_gibbs,
    systematic,
)
from blendem.inference.likelihood import (
    LatentLikelihood,
    complete_draws,
    galaxy_likelihood,
)
from blendem.inference.posterior import posterior
from blendem.prior.mixture import MixturePrior, exact_posterior

DRAWS = 512
SHORT = GibbsSettings(sweeps=100, hold=10, rho_min=0.05, steps=3)


def likelihood_of(A, y, n_galaxies):
    """The likelihood of `y = A e + n`, in the form that samplers take."""
    values, vectors = np.linalg.eigh(A.T @ A)
    seen = values > 1e-9 * values.max()
    root, vectors = np.sqrt(values[seen]), vectors[:, seen]
    target = vectors.T @ A.T @ y / root
    n = A.shape[1] // n_galaxies
    rest = float(y @ y - target @ target)
    return LatentLikelihood(vectors * root, target, n_galaxies, n, rest, float(len(y)))


@pytest.mark.parametrize("noise", [1.0, 0.01])
@pytest.mark.parametrize("stars", [(), (1,)])
def test_gaussian_prior_gives_the_closed_form(rng, key, noise, stars):
    prior = make_prior(rng)
    statistics = problem(rng, 3, noise, prior, stars=stars)[0]
    exact = posterior(statistics, prior)
    one = sample_gibbs(
        prior, [galaxy_likelihood(statistics, prior)], DRAWS, SHORT, keys=[key]
    )[0]
    w = complete_draws(statistics, prior, one.e, rng)
    white = np.linalg.solve(exact.root, (w - exact.mean).T)
    # 512 draws: the error of a mean is 0.044, of a variance 0.063, of the mean variance
    # of 14 unknowns 0.017; the smoothing by rho adds 0.0025.
    assert np.abs(white.mean(axis=1)).max() < 4 * 0.044
    assert white.var(axis=1).mean() == pytest.approx(1, abs=0.06)
    assert np.abs(white.var(axis=1) - 1).max() < 0.3
    assert not one.failed.any()
    assert one.rho[0] == 5.0 and one.rho[-1] == 0.05


def test_auxiliary_is_exact(rng, key):
    n, draws, rho = 4, 20000, 0.7
    lik = likelihood_of(2 * rng.normal(size=(6, n)), rng.normal(size=6), 1)
    e = rng.normal(size=n)
    precision = lik.factor @ lik.factor.T + np.eye(n) / rho**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ (lik.factor @ lik.target + e / rho**2)
    u = draw_auxiliary(
        jnp.asarray(lik.factor),
        jnp.asarray(lik.target),
        jnp.tile(jnp.asarray(e)[None], (draws, 1)),
        jnp.asarray(rho),
        key=key,
    )
    root = np.linalg.cholesky(covariance)
    white = np.linalg.solve(root, (np.asarray(u) - mean).T)
    # Five standard errors.
    assert np.abs(white.mean(axis=1)).max() < 5 / np.sqrt(draws)
    np.testing.assert_allclose(np.cov(white), np.eye(n), atol=5 * np.sqrt(2 / draws))


@pytest.mark.parametrize("rho", [3.0, 0.3])
def test_reverse_diffusion_draws_the_prior_given_a_noisy_galaxy(key, rho):
    prior = MixturePrior.of([0.3, 0.7], [[-1.2, 0.3], [0.8, -0.2]], [0.1, 0.3])
    draws = 8192
    u = jnp.tile(jnp.asarray([[-0.5, 0.4]]), (draws, 1))
    e = np.asarray(draw_clean(prior, u, jnp.asarray(rho), 12, key=key))
    # The same condition as data: e seen with noise rho.
    exact = exact_posterior(prior, np.eye(2) / rho, np.array([-0.5, 0.4]) / rho)
    weights = exact.mode_weights(e[:, None, :])
    # 12 steps are off by 1 % here; 4 standard errors of a fraction are 0.02.
    assert np.abs(weights - exact.weights).max() < 0.03
    sd = np.sqrt(np.diag(exact.covariance))
    assert np.abs((e.mean(axis=0) - exact.mean) / sd).max() < 4 / np.sqrt(draws) + 0.02
    np.testing.assert_allclose(e.var(axis=0) / sd**2, 1, atol=0.06)


def test_reverse_diffusion_is_exact_for_a_gaussian_in_one_step(rng, key):
    prior = make_prior(rng)
    u = jnp.full((20000, D), 0.8)
    e = np.asarray(draw_clean(prior, u, jnp.asarray(0.5), 1, key=key))
    # Five standard errors; the last level, 0.01, takes 0.0001 from the variance.
    assert np.abs(e.mean(axis=0) - 0.8 / 1.25).max() < 5 * np.sqrt(0.2 / 20000)
    np.testing.assert_allclose(e.var(axis=0), 0.25 / 1.25, rtol=0.05)


def swapping_pair():
    """Two galaxies, one measured sum: which one is which is not known."""
    prior = MixturePrior.of([0.4, 0.6], [[-1.0, 0.5], [0.8, -0.3]], [0.05, 0.05])
    A = np.array([[1.0, 0.3, 1.0, 0.2], [0.1, 0.0, 0.12, 0.0]]) / 0.3
    lik = likelihood_of(A, A @ np.array([-1.0, 0.5, 0.8, -0.3]), 2)
    return prior, lik, exact_posterior(prior, lik.factor, lik.target)


@pytest.mark.parametrize("resample", [False, True])
def test_ambiguous_galaxies_swap_places(key, resample):
    prior, lik, exact = swapping_pair()
    assert np.sort(exact.weights)[-2] > 0.4  # the case is ambiguous
    settings = GibbsSettings(sweeps=100, hold=10, steps=6, resample=resample)
    one = sample_gibbs(prior, [lik], 1024, settings, keys=[key])[0]
    weights = exact.mode_weights(one.clean)
    # Two halves of 1024 draws: 0.016 is a standard error of the distance. Without weights
    # 3-5 % of the chains stay in modes that only a large rho allows.
    limit = 0.05 if resample else 0.1
    assert 0.5 * np.abs(weights - exact.weights).sum() < limit
    assert one.ancestors < 1024 if resample else one.ancestors == 1024
    if resample:
        assert weights[0] + weights[3] < 0.01  # both the same: 0.2 % by the data
        sd = np.sqrt(np.diag(exact.covariance))
        error = (one.e.reshape(1024, -1).mean(axis=0) - exact.mean) / sd
        assert np.abs(error).max() < 0.12


def test_systematic_resampling_is_proportional(key):
    w = np.array([0.1, 0.35, 0.05, 0.5])
    log_w = jnp.asarray(np.concatenate([np.log(w), np.full(96, -np.inf)]))
    index = np.asarray(systematic(log_w + 7.0, key=key))
    counts = np.bincount(index, minlength=100)
    assert np.abs(counts[:4] - 100 * w).max() <= 1 and counts.sum() == 100


def test_other_draws_are_refined(rng, key):
    """Chains that start in the wrong mode leave it while rho is large."""
    prior, lik, exact = swapping_pair()
    start = np.tile(prior.centers[[1, 1]], (1024, 1, 1))
    settings = GibbsSettings(sweeps=30, hold=5, rho_max=2.0, steps=6)
    one = sample_gibbs(prior, [lik], 1024, settings, keys=[key], start=[start])[0]
    assert exact.mode_weights(start)[3] > 0.99 > 0.01 > exact.weights[3]
    assert exact.mode_weights(one.clean)[3] < 0.2
    with pytest.raises(ValueError, match=r"`start` has shapes \[\(1024, 2, 2\)\]"):
        sample_gibbs(prior, [lik], 8, settings, keys=[key], start=[start])


def test_draws_do_not_depend_on_the_blends_beside(rng, key):
    prior = make_prior(rng)
    lik = [galaxy_likelihood(problem(rng, k, 0.1, prior)[0], prior) for k in (2, 3, 2)]
    keys = list(jax.random.split(key, len(lik)))
    settings = GibbsSettings(sweeps=4, hold=1, steps=1)
    together = sample_gibbs(prior, lik, 3, settings, keys=keys, batch=2)
    for one, k, draws in zip(lik, keys, together, strict=True):
        alone = sample_gibbs(prior, [one], 3, settings, keys=[k], batch=2)[0]
        assert draws.e.shape == (3, one.n_galaxies, D)
        np.testing.assert_allclose(draws.e, alone.e, atol=1e-9)
    assert np.abs(together[0].e - together[2].e).max() > 0.1


def test_impossible_settings_and_inputs_are_refused(rng, key):
    prior = make_prior(rng)
    lik = galaxy_likelihood(problem(rng, 2, 0.1, prior)[0], prior)
    with pytest.raises(ValueError, match="0 < rho_min < rho_max"):
        couplings(GibbsSettings(rho_min=6.0))
    with pytest.raises(ValueError, match=f"{D} coordinates, the prior has {D + 1}"):
        sample_gibbs(make_prior(rng, D + 1), [lik], 2, keys=[key])
    with pytest.raises(ValueError, match="1 blends, but 0 keys"):
        sample_gibbs(prior, [lik], 2, keys=[])
