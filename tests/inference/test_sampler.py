"""The reverse diffusion against closed forms."""

import jax
import numpy as np
import pytest
from tests.inference.test_posterior import D, make_prior, problem

from blendem.inference.likelihood import complete_draws, galaxy_likelihood
from blendem.inference.posterior import posterior
from blendem.inference.sampler import (
    DEFAULT,
    SamplerSettings,
    padded_size,
    sample,
    sample_prior,
)
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.latent import LatentPrior, fine_variances
from blendem.prior.mixture import MixturePrior
from blendem.prior.network import LatentNetwork

DRAWS = 512


def draws_of(statistics, prior, key, rng, settings=DEFAULT):
    one = sample(
        prior,
        [galaxy_likelihood(statistics, prior)],
        DRAWS,
        settings,
        keys=[key],
    )[0]
    return one, complete_draws(statistics, prior, one.e, rng)


@pytest.mark.parametrize("noise", [1.0, 0.01])
@pytest.mark.parametrize("stars", [(), (1,)])
@pytest.mark.parametrize(
    "choice",
    [
        SamplerSettings(),
        SamplerSettings(steps=64, predictor="multistep"),
        SamplerSettings(corrector=0.1),
        SamplerSettings(steps=6, predictor="draw"),
    ],
)
def test_gaussian_prior_gives_the_closed_form(rng, key, noise, stars, choice):
    prior = make_prior(rng)
    statistics = problem(rng, 3, noise, prior, stars=stars)[0]
    exact = posterior(statistics, prior)
    one, w = draws_of(statistics, prior, key, rng, choice)
    white = np.linalg.solve(exact.root, (w - exact.mean).T)
    # 512 draws: the error of a mean is 0.044, of a variance 0.063; of 14 unknowns.
    assert np.abs(white.mean(axis=1)).max() < 4 * 0.044
    assert white.var(axis=1).mean() == pytest.approx(1, abs=0.06)
    assert np.abs(white.var(axis=1) - 1).max() < 0.3
    assert one.guards == 0 and one.unconverged == 0 and not one.failed.any()


def test_few_steps_are_enough_for_a_gaussian(rng, key):
    prior = make_prior(rng)
    statistics = problem(rng, 2, 0.1, prior)[0]
    exact = posterior(statistics, prior)
    _, w = draws_of(
        statistics, prior, key, rng, SamplerSettings(steps=1, predictor="draw")
    )
    white = np.linalg.solve(exact.root, (w - exact.mean).T)
    assert white.var(axis=1).mean() == pytest.approx(1, abs=0.06)


def test_draws_do_not_depend_on_the_blends_beside(rng, key):
    prior = make_prior(rng)
    lik = [
        galaxy_likelihood(problem(rng, k, 0.1, prior)[0], prior) for k in (2, 3, 2, 1)
    ]
    keys = list(jax.random.split(key, len(lik)))
    settings = SamplerSettings(steps=8)
    together = sample(prior, lik, 4, settings, keys=keys, batch=2)
    for one, k, draws in zip(lik, keys, together, strict=True):
        alone = sample(prior, [one], 4, settings, keys=[k], batch=2)[0]
        assert draws.e.shape == (4, one.n_galaxies, D)
        np.testing.assert_allclose(draws.e, alone.e, atol=1e-5)


def test_padding_to_a_size_changes_nothing(rng, key):
    assert [padded_size(n) for n in (1, 5, 7, 40)] == [1, 6, 8, 40]
    prior = make_prior(rng)
    statistics = problem(rng, 5, 0.1, prior)[0]
    exact = posterior(statistics, prior)
    _, w = draws_of(statistics, prior, key, rng)
    white = np.linalg.solve(exact.root, (w - exact.mean).T)
    assert np.abs(white.mean(axis=1)).max() < 4 * 0.044


def test_last_coordinates_have_the_variances_of_their_component(rng, key):
    """With one component all is Gaussian: its cholesky has columns of other lengths."""
    prior = make_prior(rng)
    white = MixturePrior.of([1.0], np.zeros((1, D - 2)), np.ones(1))
    fine = np.array([[0.09, 4.0]])
    statistics = problem(rng, 3, 0.1, prior, stars=(1,))[0]
    columns = np.concatenate([np.ones(D - 2), np.sqrt(fine[0])])
    exact = posterior(
        statistics, GaussianPrior(prior.basis, prior.mean, prior.cholesky * columns)
    )
    _, w = draws_of(statistics, LatentPrior(prior, white, fine=fine), key, rng)
    white = np.linalg.solve(exact.root, (w - exact.mean).T)
    assert np.abs(white.mean(axis=1)).max() < 4 * 0.044
    assert white.var(axis=1).mean() == pytest.approx(1, abs=0.06)
    assert np.abs(white.var(axis=1) - 1).max() < 0.3


def test_last_coordinates_of_prior_draws_follow_the_scale(rng, key):
    prior = GaussianPrior.standard(make_prior(rng).basis)
    n = D - 2
    mixture = MixturePrior.of([0.5, 0.5], np.zeros((2, n)), [0.01, 400.0])
    fine = np.array([[0.04, 0.04], [1.0, 9.0]])
    drawn = LatentPrior(prior, mixture, fine=fine)
    z = sample_prior(drawn, 4096, SamplerSettings(), key=key)
    long = np.sum(z[:, :n] ** 2, axis=1) > 1.5
    np.testing.assert_allclose(z[~long, n:].var(axis=0), fine[0], rtol=0.3)
    np.testing.assert_allclose(z[long, n:].var(axis=0), fine[1], rtol=0.15)
    again = fine_variances(mixture, z[:, :n], z[:, n:])
    np.testing.assert_allclose(again, fine, rtol=0.3)


@pytest.mark.parametrize("n_latent", [D, D - 2])
def test_new_network_on_one_gaussian_gives_the_closed_form(n_latent, rng, key):
    prior = make_prior(rng)
    network = LatentNetwork(n_latent, 16, 1, key=key)
    white = MixturePrior.of([1.0], np.zeros((1, n_latent)), np.ones(1))
    statistics = problem(rng, 2, 0.1, prior)[0]
    exact = posterior(statistics, prior)
    _, w = draws_of(statistics, LatentPrior(prior, white, network), key, rng)
    white = np.linalg.solve(exact.root, (w - exact.mean).T)
    assert white.var(axis=1).mean() == pytest.approx(1, abs=0.1)


def test_prior_draws_have_the_moments_of_the_prior(rng, key):
    prior = make_prior(rng)
    z = sample_prior(prior, 4096, key=key)
    np.testing.assert_allclose(z.mean(axis=0), prior.mean, atol=0.1)
    np.testing.assert_allclose(np.cov(z.T), prior.covariance, atol=0.15)


def test_prior_draws_of_a_scale_mixture_keep_its_tails_in_few_steps(rng, key):
    """Half of the galaxies are ten times longer than the others: kurtosis 5.88 of each
    coordinate. Drawing e_0 as a Gaussian of the right moments loses it."""
    standard = GaussianPrior.standard(make_prior(rng).basis)
    n = standard.n_latent
    mixture = MixturePrior.of([0.5, 0.5], np.zeros((2, n)), [0.02, 2.0])
    prior = LatentPrior(standard, mixture, None)
    settings = SamplerSettings(steps=4, predictor="draw")
    e = sample_prior(prior, 4096, settings, key=key)[:, :n]
    kurtosis = np.mean(e**4) / np.mean(e**2) ** 2
    expected = 3 * 0.5 * (0.02**2 + 2.0**2) / (0.5 * 2.02) ** 2
    assert kurtosis == pytest.approx(expected, rel=0.1)
    short = np.mean(np.sum(e**2, axis=1) < 0.2 * n)
    assert short == pytest.approx(0.5, abs=0.05)


def test_other_modes_and_missing_keys_are_refused(rng, key):
    prior = make_prior(rng)
    lik = galaxy_likelihood(problem(rng, 2, 0.1, prior)[0], prior)
    other = make_prior(rng, D + 1)
    with pytest.raises(ValueError, match=f"{D} coordinates, the prior has {D + 1}"):
        sample(other, [lik], 2, keys=[key])
    with pytest.raises(ValueError, match="predictor must be one of"):
        sample(prior, [lik], 2, SamplerSettings(predictor="euler"), keys=[key])
    with pytest.raises(ValueError, match="1 blends, but 0 keys"):
        sample(prior, [lik], 2, keys=[])


@pytest.mark.parametrize(
    ("predictor", "covariance"),
    [("labels", "full"), ("draw", "full"), ("draw", "diagonal")],
)
def test_one_tilted_gaussian_needs_its_full_covariance(predictor, covariance, rng, key):
    """Component N(m, S) far from round: the posterior is Gaussian with precision
    `S^-1 + L L^T`; with the diagonal of S the draws get another one."""
    standard = GaussianPrior.standard(make_prior(rng).basis)
    likelihood = galaxy_likelihood(problem(rng, 1, 20.0, standard)[0], standard)
    turn = np.linalg.qr(rng.normal(size=(D, D)))[0]
    S = (turn * np.geomspace(1e-2, 4, D)) @ turn.T
    m = rng.normal(size=D)
    tilted = MixturePrior.of([1.0], m[None], S[None])
    settings = SamplerSettings(predictor=predictor, covariance=covariance)
    [draws] = sample(tilted, [likelihood], 512, settings, keys=[key])
    L = likelihood.factor
    cov = np.linalg.inv(np.linalg.inv(S) + L @ L.T)
    mean = cov @ (np.linalg.solve(S, m) + L @ likelihood.target)
    white_e = np.linalg.solve(np.linalg.cholesky(cov), (draws.e[:, 0] - mean).T)
    off = max(
        np.abs(white_e.mean(axis=1)).max() / 0.044,
        np.abs(white_e.var(axis=1) - 1).max() / 0.0625,
    )
    assert off < 5 if covariance == "full" else off > 8
