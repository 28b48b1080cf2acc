"""Draws with labels of components, against exact posteriors of mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.inference.test_gibbs import likelihood_of, swapping_pair
from tests.inference.test_posterior import make_prior

from blendem.inference import labels
from blendem.inference.sampler import SamplerSettings, sample
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior, exact_posterior
from blendem.prior.network import LatentNetwork

DRAWS = 2048


def draws_of(prior, likelihood, key, **choices):
    settings = SamplerSettings(**choices)
    return sample(prior, [likelihood], DRAWS, settings, keys=[key])[0].e


def test_ambiguous_galaxies_swap_places(key):
    """Either of two galaxies may be the bright one, as the data tell only the sum."""
    prior, likelihood, exact = swapping_pair()
    weights = exact.mode_weights(draws_of(prior, likelihood, key))
    # 2048 draws: the standard error of a weight is 0.011.
    np.testing.assert_allclose(weights, exact.weights, atol=0.05)
    assert weights[0] + weights[3] < 0.01  # both the same: 0.2 % by the data
    # Moment matching takes the places between the components for galaxies.
    matched = draws_of(prior, likelihood, key, predictor="draw")
    wrong = exact.mode_weights(matched)
    assert wrong[0] + wrong[3] > 0.03


@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_three_galaxies_and_components_of_any_shape(noise, rng, key):
    d, galaxies = 3, 3
    turn = np.linalg.qr(rng.normal(size=(3, d, d)))[0]
    shapes = (turn * rng.uniform(0.05, 1.5, (3, 1, d))) @ turn.transpose(0, 2, 1)
    prior = MixturePrior.of([0.2, 0.5, 0.3], 2 * rng.normal(size=(3, d)), shapes)
    A = rng.normal(size=(5, galaxies * d)) / noise
    truth = np.asarray(prior.sample(galaxies, key=jax.random.key(3))).ravel()
    likelihood = likelihood_of(A, A @ truth + rng.normal(size=5), galaxies)
    exact = exact_posterior(prior, likelihood.factor, likelihood.target)
    e = draws_of(prior, likelihood, key)
    weights = exact.mode_weights(e)
    assert 0.5 * np.abs(weights - exact.weights).sum() < 0.05
    flat = e.reshape(DRAWS, -1)
    sd = np.sqrt(np.diag(exact.covariance))
    # The error of a mean is 0.022.
    assert np.abs((flat.mean(axis=0) - exact.mean) / sd).max() < 0.12
    np.testing.assert_allclose(flat.var(axis=0) / sd**2, 1, atol=0.2)


def test_a_sweep_keeps_exact_draws_exact(rng, key):
    """One galaxy, one level: the sweep alone draws from the posterior given e_t."""
    prior = MixturePrior.of([0.3, 0.7], [[-1.2, 0.3], [0.8, -0.2]], [0.1, 0.3])
    likelihood = likelihood_of(np.array([[1.5, 0.4]]), np.array([0.2]), 1)
    noisy, sigma = np.array([-0.4, 0.6]), 0.8
    # The noisy state is two more data.
    both = np.column_stack([likelihood.factor, np.eye(2) / sigma])
    exact = exact_posterior(
        prior, both, np.concatenate([likelihood.target, noisy / sigma])
    )
    known = labels.spectra(prior, labels.precisions(prior), likelihood.factor)
    known = jax.tree.map(lambda x: jnp.asarray(x, float), known)
    n = 20000
    chosen, e = labels.sweep(
        prior,
        known,
        jnp.asarray(likelihood.factor),
        jnp.asarray(likelihood.target),
        jnp.tile(jnp.asarray(noisy)[None, None], (n, 1, 1)),
        jnp.asarray(rng.normal(size=(n, 1, 2))),  # wherever it begins
        jnp.asarray(sigma),
        key=key,
    )
    share = np.bincount(np.asarray(chosen)[:, 0], minlength=2) / n
    np.testing.assert_allclose(share, exact.weights, atol=5 * 0.5 / n**0.5)
    sd = np.sqrt(np.diag(exact.covariance))
    flat = np.asarray(e)[:, 0]
    assert np.abs((flat.mean(axis=0) - exact.mean) / sd).max() < 5 / n**0.5
    np.testing.assert_allclose(flat.var(axis=0) / sd**2, 1, atol=0.05)


@pytest.mark.parametrize("galaxies, shift", [(2, 1), (3, 2)])
def test_an_exchange_keeps_the_posterior(galaxies, shift, rng, key):
    """Draws of the exact posterior stay such, and galaxies do change places."""
    prior = MixturePrior.of([0.3, 0.7], [[-1.2, 0.3], [0.8, -0.2]], [0.1, 0.3])
    A = np.kron(np.ones((1, galaxies)), np.eye(2)) + 0.3 * rng.normal(
        size=(2, 2 * galaxies)
    )
    likelihood = likelihood_of(A, np.array([0.5, -0.3]), galaxies)
    exact = exact_posterior(prior, likelihood.factor, likelihood.target)
    n = 20000
    before = exact.draw(n, rng)
    factor, target = jnp.asarray(likelihood.factor), jnp.asarray(likelihood.target)
    after = labels.exchange(factor, target, jnp.asarray(before), shift, key=key)
    after = np.asarray(after)
    moved = (after != before).any(axis=(1, 2)).mean()
    assert 0.3 < moved < 1 if galaxies == 2 else moved > 0.3
    np.testing.assert_allclose(
        np.sort(after[..., 0], axis=1), np.sort(before[..., 0], axis=1)
    )
    np.testing.assert_allclose(
        exact.mode_weights(after), exact.weights, atol=5 * 0.5 / n**0.5
    )
    sd = np.sqrt(np.diag(exact.covariance))
    flat = after.reshape(n, -1)
    assert np.abs((flat.mean(axis=0) - exact.mean) / sd).max() < 5 / n**0.5
    np.testing.assert_allclose(flat.var(axis=0) / sd**2, 1, atol=0.06)


def test_galaxies_that_data_tell_apart_stay(rng, key):
    likelihood = likelihood_of(30 * np.eye(4), np.array([-30.0, 9, 30, -9]), 2)
    e = jnp.linalg.solve(
        jnp.asarray(likelihood.factor).T, jnp.asarray(likelihood.target)
    ).reshape(1, 2, 2)
    after = labels.exchange(
        jnp.asarray(likelihood.factor), jnp.asarray(likelihood.target), e, 1, key=key
    )
    np.testing.assert_array_equal(after, e)


def test_three_separated_galaxies_change_places(rng, key):
    """The sum at S/N 10, all else at 0.3: two labels must change at once."""
    prior = MixturePrior.of(
        [0.2, 0.3, 0.5], [[-2.0, 0.0], [1.0, 1.7], [1.0, -1.7]], np.full(3, 0.1)
    )
    A = np.kron(0.3 * np.eye(3) + (10 - 0.3) / 3, np.eye(2))
    truth = np.asarray(prior.centers, float)[[0, 1, 2]].ravel()
    likelihood = likelihood_of(A, A @ truth + rng.normal(size=len(A)), 3)
    exact = exact_posterior(prior, likelihood.factor, likelihood.target)
    weights = exact.mode_weights(draws_of(prior, likelihood, key))
    assert 0.5 * np.abs(weights - exact.weights).sum() < 0.06


def test_a_galaxy_without_neighbours_is_drawn_exactly(rng, key):
    """However few levels there are: sweeps without the noisy state end the process."""
    prior = MixturePrior.of(
        [0.3, 0.5, 0.2], [[-4.0, 1.0], [3.0, -2.0], [0.0, 5.0]], [0.1, 0.3, 0.05]
    )
    likelihood = likelihood_of(np.array([[0.3, 0.25]]), np.array([0.2]), 1)
    exact = exact_posterior(prior, likelihood.factor, likelihood.target)
    errors = {}
    for sweeps in (0, 1):
        e = draws_of(prior, likelihood, key, steps=2, sigma_max=0.5, sweeps=sweeps)
        errors[sweeps] = np.abs(exact.mode_weights(e) - exact.weights).max()
    # The standard error of a weight is 0.011.
    assert errors[1] < 0.04 < 0.1 < errors[0]


def test_only_mixtures_have_labels(rng, key):
    mixture = MixturePrior.of([1.0], np.zeros((1, 4)), np.ones(1))
    gaussian = make_prior(rng)
    assert labels.mixture_of(mixture) is mixture
    assert labels.mixture_of(LatentPrior(gaussian, mixture)) is mixture
    corrected = LatentPrior(gaussian, mixture, LatentNetwork(4, 8, 1, key=key))
    assert labels.mixture_of(corrected) is None
    assert labels.mixture_of(gaussian) is None


def test_spectra_of_an_accelerator_are_those_of_a_cpu(rng, monkeypatch):
    """The same matrices decomposed by JAX; eigenvectors are unique up to their signs."""
    d, galaxies = 3, 2
    shapes = rng.normal(size=(4, d, d))
    shapes = shapes @ shapes.transpose(0, 2, 1) + 0.1 * np.eye(d)
    prior = MixturePrior.of(np.ones(4), rng.normal(size=(4, d)), shapes)
    inverse = labels.precisions(prior)
    factors = rng.normal(size=(5, galaxies * d, 4)).astype(np.float32)
    here = labels.spectra_of_batch(prior, inverse, factors)
    monkeypatch.setattr(labels, "on_accelerator", lambda: True)
    there = labels.spectra_of_batch(prior, inverse, factors)
    assert there.vectors.dtype == here.vectors.dtype == np.float32
    sign = np.sign(np.sum(here.vectors * there.vectors, axis=-2))
    # Rounding of float32.
    np.testing.assert_allclose(there.values, here.values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        there.vectors * sign[..., None, :], here.vectors, atol=2e-5
    )
    np.testing.assert_allclose(there.offset * sign, here.offset, rtol=1e-4, atol=1e-5)
    gains = there.gains.reshape(5, galaxies, 2 * d, 4, d) * sign[:, :, None]
    np.testing.assert_allclose(
        gains, here.gains.reshape(gains.shape), rtol=1e-4, atol=1e-5
    )
