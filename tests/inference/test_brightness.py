"""The brightness coordinate: what a catalog's amplitude says about a galaxy."""

import numpy as np
import pytest
from tests.inference.test_posterior import D, make_prior, problem

from blendem.inference.likelihood import (
    BRIGHTNESS_SIGMA,
    brightness_likelihood,
    complete_draws,
    galaxy_likelihood,
)
from blendem.inference.posterior import posterior
from blendem.inference.sampler import sample, sample_prior
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior

SCALE = np.array([2.0, 0.8])  # mean and deviation of ln(amplitude)


def correlated(rng):
    """One Gaussian of the modes and the brightness, and how they are correlated."""
    tie = rng.uniform(-0.5, 0.5, D)
    covariance = np.eye(D + 1)
    covariance[-1, :D] = covariance[:D, -1] = tie
    mixture = MixturePrior.of([1.0], np.zeros((1, D + 1)), covariance[None])
    return LatentPrior(make_prior(rng), mixture, brightness=SCALE), tie


def test_amplitudes_condition_the_prior(rng, key):
    prior, tie = correlated(rng)
    g = prior.gaussian
    statistics = problem(rng, 3, 0.3, g, stars=(1,))[0]
    known = 1.3
    statistics = statistics._replace(
        log_amplitude=np.array([SCALE[0] + SCALE[1] * known, 0.0] * 2)[:3]
    )
    # The brightness is measured with an error: the conditional of a bivariate normal.
    total = 1 + BRIGHTNESS_SIGMA**2
    narrow = np.linalg.cholesky(np.eye(D) - np.outer(tie, tie) / total)
    mean = np.asarray(g.mean) + np.asarray(g.cholesky) @ (tie * known / total)
    exact = posterior(
        statistics, GaussianPrior(g.basis, mean, np.asarray(g.cholesky) @ narrow)
    )
    likelihood = galaxy_likelihood(statistics, prior)
    assert likelihood.n_latent == D + 1 and likelihood.factor.shape[0] == 2 * (D + 1)
    (draws,) = sample(prior, [likelihood], 512, keys=[key])
    w = complete_draws(statistics, prior, draws.e, rng)
    white = np.linalg.solve(exact.root, (w - exact.mean).T)
    # 512 draws: the error of a mean is 0.044, of a variance 0.063.
    assert np.abs(white.mean(axis=1)).max() < 4 * 0.044
    assert white.var(axis=1).mean() == pytest.approx(1, abs=0.06)
    assert draws.e[..., -1].mean() == pytest.approx(known / total, abs=0.02)
    # At the maximum of the likelihood nothing is left of the measured brightness.
    plain = LatentPrior(
        g, MixturePrior.of([1.0], np.zeros((1, D)), np.ones(1)), brightness=None
    )
    assert likelihood.rest == pytest.approx(galaxy_likelihood(statistics, plain).rest)


def test_prior_draws_follow_the_amplitudes(rng, key):
    prior, tie = correlated(rng)
    n = 2000
    known = np.repeat([-1.0, 2.0], n)
    z = sample_prior(prior, 2 * n, key=key, log_amplitude=SCALE[0] + SCALE[1] * known)
    g = prior.gaussian
    e = np.linalg.solve(np.asarray(g.cholesky), (z - np.asarray(g.mean)).T).T
    for half, value in ((e[:n], -1.0), (e[n:], 2.0)):
        np.testing.assert_allclose(half.mean(axis=0), tie * value, atol=4 / n**0.5)
    free = sample_prior(prior, n, key=key)
    assert free.shape == (n, D)


def test_extreme_amplitudes_count_as_the_extremes_of_the_training_set(rng):
    prior, _ = correlated(rng)
    np.testing.assert_allclose(
        prior.brightness_of(np.array([-50.0, 2.0, 2.8, 50.0])), [-3, 0, 1, 3]
    )


def test_missing_amplitudes_are_named(rng):
    prior, _ = correlated(rng)
    statistics = problem(rng, 1, 0.3, prior.gaussian)[0]
    with pytest.raises(ValueError, match=r"prior\.brightness: false"):
        galaxy_likelihood(statistics, prior)
    with pytest.raises(ValueError, match="no brightness coordinate"):
        brightness_likelihood(prior.gaussian, 1.0)
