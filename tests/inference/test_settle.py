"""Amplitudes that follow the draws."""

import jax
import numpy as np
import pytest
from tests.inference.test_rescale import PIXELS, prior, statistics_of

from blendem.inference.likelihood import complete_draws, galaxy_likelihood
from blendem.inference.posterior import chi2
from blendem.inference.sampler import SamplerSettings, sample
from blendem.inference.settle import sample_settled
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior

gaussian = prior  # the fixture, under a name of its own
D, DRAWS = 3, 64
SETTINGS = SamplerSettings(steps=12)
TRUE = np.array([40.0, 30.0])


@pytest.fixture
def latent(gaussian):
    """Galaxies whose flux is within 30 % of the amplitude."""
    narrow = np.diag([0.05, 0.1, 0.1]) ** 2
    mixture = MixturePrior.of([1.0], np.zeros((1, D)), narrow[None])
    return LatentPrior(gaussian, mixture, fine=np.zeros((1, 0)))


def blend(prior, amplitudes, rng, noise=1.0, stars=()):
    """Two sources of the fluxes TRUE, seen with noise, under other amplitudes."""
    data = np.concatenate([f * np.asarray(prior.basis.mean).ravel() for f in TRUE])
    data = data + noise * rng.normal(size=2 * PIXELS)
    one = statistics_of(prior.basis, np.asarray(amplitudes), data, noise, stars)
    return one._replace(log_amplitude=np.log(amplitudes))


def draw(prior, given, tolerance, key):
    return sample_settled(
        prior,
        given,
        DRAWS,
        SETTINGS,
        keys=dict.fromkeys(given, key),
        rngs=lambda name: np.random.default_rng(name),
        reference=0,
        tolerance=tolerance,
    )


def fluxes(prior, w, amplitudes):
    z = w[:, : 2 * D].reshape(-1, 2, D)
    return np.asarray(amplitudes) * prior.basis.flux(z, 0)


def test_a_wrong_amplitude_is_left(latent, rng, key):
    amplitudes = [8.0, 30.0]  # the first is five times too faint
    given = {1: blend(latent, amplitudes, rng)}
    fixed, _ = draw(latent, given, 0.0, key)
    settled, failed = draw(latent, given, 0.3, key)
    assert not failed and not fixed[1].moved.any()
    before, after = (
        fluxes(latent, one[1].w, amplitudes)[:, 0] for one in (fixed, settled)
    )
    # Ten standard deviations of its draws too faint, then within four.
    assert before.mean() < TRUE[0] - 10 * before.std()
    assert abs(after.mean() - TRUE[0]) < 4 * after.std()
    assert TRUE[0] - after.mean() < 0.5 * (TRUE[0] - before.mean())
    assert settled[1].moved[0] > 0.5 * np.log(5.0)
    other = fluxes(latent, settled[1].w, amplitudes)[:, 1]
    assert abs(other.mean() - TRUE[1]) < 3 * other.std()
    # The data are the same: a better flux fits them better.
    assert chi2(given[1], settled[1].w).mean() < chi2(given[1], fixed[1].w).mean()


def test_right_amplitudes_stay_and_draws_are_those_of_the_sampler(latent, rng, key):
    given = {1: blend(latent, TRUE, rng), 2: blend(latent, TRUE, rng)}
    settled, _ = draw(latent, given, 0.5, key)
    for name, statistics in given.items():
        assert not settled[name].moved.any()
        likelihood = galaxy_likelihood(statistics, latent)
        (one,) = sample(latent, [likelihood], DRAWS, SETTINGS, keys=[key])
        expected = complete_draws(
            statistics, latent, one.e, np.random.default_rng(name)
        )
        np.testing.assert_array_equal(settled[name].w, expected)


def test_stars_never_move_and_one_blend_does_not_move_another(latent, rng, key):
    amplitudes = [8.0, 6.0]
    with_star = blend(latent, amplitudes, rng, stars=(1,))
    right = blend(latent, TRUE, rng)
    together, _ = draw(latent, {1: with_star, 2: right}, 0.3, key)
    alone, _ = draw(latent, {1: with_star}, 0.3, key)
    assert together[1].moved[1] == 0 and together[1].moved[0] > 1
    np.testing.assert_array_equal(together[1].w, alone[1].w)
    assert not together[2].moved.any()


def test_blends_of_unequal_size(latent, rng, key):
    two = blend(latent, TRUE, rng)
    one = two._replace(
        H=two.H[:D, :D],
        b=two.b[:D],
        is_star=two.is_star[:1],
        log_amplitude=two.log_amplitude[:1],
    )
    found, _ = draw(latent, {1: two, 2: one}, 0.3, key)
    assert [found[name].w.shape for name in (1, 2)] == [(DRAWS, 2 * D), (DRAWS, D)]


def test_a_blend_without_a_likelihood_is_named(latent, rng, key):
    good = blend(latent, TRUE, rng)
    bad = good._replace(H=np.full_like(good.H, np.nan))
    found, failed = draw(latent, {1: good, 2: bad}, 0.3, jax.random.key(0))
    assert set(found) == {1} and set(failed) == {2} and failed[2]
