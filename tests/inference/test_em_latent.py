"""EM of the mixture: draws, their fit, and what is watched."""

import numpy as np
import pytest
from tests.inference.test_em import make_basis

from blendem.inference.em import (
    MAX_COORDINATE,
    draw_galaxies,
    is_held_out,
    sound,
)
from blendem.inference.posterior import BlendStatistics
from blendem.inference.sampler import Draws
from blendem.measure.em import (
    Whitening,
    denoising_loss,
    open_directions,
    prior_variance,
    sliced_wasserstein,
)
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior
from blendem.prior.refit import RefitSettings, Turns, broaden, refit

D, LATENT = 3, 2
SETTINGS = RefitSettings(rows=4000, iterations=6, symmetric=False)


def make_prior(rng, centers=((-1.5, 0.0), (1.0, 0.5)), width=0.2):
    """Two narrow kinds of galaxies."""
    mixture = MixturePrior.of([0.4, 0.6], np.array(centers), np.full(2, width))
    gaussian = GaussianPrior.standard(make_basis(rng))
    return LatentPrior(gaussian, mixture, fine=np.full((2, D - LATENT), 0.5))


def make_blends(prior, n, rng, key):
    """Blends of two galaxies whose light overlaps, and the coordinates of these."""
    e = np.asarray(prior.mixture.sample(2 * n, key=key), float)
    fine = np.sqrt(0.5) * rng.standard_normal((2 * n, D - LATENT))
    z = np.concatenate([e, fine], axis=1).reshape(n, 2 * D)
    blends = []
    for one in z:
        A = rng.normal(size=(20, 2 * D))
        A[:, D:] = 0.7 * A[:, :D] + 0.7 * A[:, D:]
        r = A @ one + rng.normal(size=20)
        blends.append(
            BlendStatistics(
                A.T @ A,
                A.T @ r,
                r @ r,
                20 * np.log(2 * np.pi),
                20,
                np.zeros(2, bool),
                D,
                np.zeros(2),
            )
        )
    return blends, z.reshape(2 * n, D)


def lap(prior, blends, number, rng):
    names = [f"a/{i}" for i in range(len(blends))]
    draws = draw_galaxies(blends, names, prior, 8, 16, f"em/{number}", 3)
    assert draws.failed == 0 and draws.diverged == 0
    assert draws.z.shape == (16 * len(blends), D)
    return refit(prior, draws.z, draws.log_amplitude, SETTINGS, rng)[0]


def variances(prior):
    mixture = prior.mixture
    spread = np.asarray(mixture.covariances).trace(axis1=1, axis2=2)
    return np.asarray(mixture.weights), np.asarray(mixture.centers), spread


@pytest.mark.slow
def test_em_repairs_a_wrong_prior_and_keeps_the_right_one(rng, key):
    true = make_prior(rng)
    blends, _ = make_blends(true, 150, rng, key)
    # From one kind in the wrong place to both.
    prior = broaden(make_prior(rng, ((-0.3, 0.4), (0.3, -0.4)), 0.05), 0.1)
    same = true
    for number in range(6):
        prior, same = (lap(p, blends, number, rng) for p in (prior, same))
    for found, tolerance in ((prior, 0.15), (same, 0.15)):
        order = np.argsort(np.asarray(found.mixture.centers)[:, 0])
        weights, centers, spread = (x[order] for x in variances(found))
        np.testing.assert_allclose(weights, [0.4, 0.6], atol=0.1)
        np.testing.assert_allclose(centers, [[-1.5, 0.0], [1.0, 0.5]], atol=tolerance)
        np.testing.assert_allclose(spread, 0.4, atol=tolerance)
        np.testing.assert_allclose(np.asarray(found.fine), 0.5, atol=0.2)


def test_draws_that_are_not_sound_are_left_out(rng, key):
    e = np.zeros((4, 2, LATENT))
    e[1, 0, 0] = 2 * MAX_COORDINATE
    e[2] = np.nan
    failed = np.array([False, False, True, False])
    draws = Draws(e, 0.005, 0, 0, 1.0, failed)
    assert sound(draws).tolist() == [True, False, False, True]
    assert not sound(draws._replace(residual=0.5)).any()
    assert not sound(draws._replace(residual=np.nan)).any()
    prior = make_prior(rng)
    blends, _ = make_blends(prior, 2, rng, key)
    blends[0] = blends[0]._replace(H=np.full_like(blends[0].H, np.nan))
    draws = draw_galaxies(blends, ["a/0", "a/1"], prior, 4, 8, "x", 1)
    assert draws.failed == 1 and draws.galaxies == 2 and len(draws.z) == 8


def test_no_galaxy_is_an_error(rng):
    with pytest.raises(ValueError, match="no galaxy to learn from"):
        refit(make_prior(rng), np.zeros((0, D)), np.zeros(0), SETTINGS, rng)


def test_blends_are_held_out_by_name():
    names = [f"f/{i}" for i in range(4000)]
    out = is_held_out(names, 0.2, 7)
    assert 0.17 < out.mean() < 0.23
    np.testing.assert_array_equal(is_held_out(names[100:], 0.2, 7), out[100:])
    assert (is_held_out(names, 0.2, 8) != out).any()
    assert not is_held_out(names, 0.0, 7).any()


def test_turns_are_those_of_the_images(rng):
    gaussian = GaussianPrior.standard(make_basis(rng))
    turns, basis = Turns(gaussian), gaussian.basis
    z = rng.normal(size=(2, D))
    image = np.asarray(basis.decode(z))
    turned = np.asarray(basis.decode(turns(z, np.array([2, 3]))))
    np.testing.assert_allclose(turned[0], np.rot90(image[0], 1, (-2, -1)), atol=1e-6)
    np.testing.assert_allclose(
        turned[1], np.rot90(image[1], 1, (-2, -1))[..., ::-1], atol=1e-6
    )


def test_whitening_and_denoising_loss_of_a_gaussian(rng, key):
    n = 4000
    lower = np.array([[2.0, 0.0], [0.5, 0.3]])
    e = 1.0 + rng.normal(size=(n, 2)) @ lower.T
    whitening = Whitening(e)
    white = whitening(e)
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(2), atol=1e-8)
    exact = MixturePrior.of([1.0], np.ones((1, 2)), (lower @ lower.T)[None])
    loss = denoising_loss(whitening.mixture(exact), white, 2, key=key)
    for sigma in (0.1, 1.0, 3.0):
        expected = sigma**2 / (1 + sigma**2)
        assert loss[f"loss_{sigma:g}"] == pytest.approx(expected, rel=0.06)
    wrong = MixturePrior.of([1.0], np.zeros((1, 2)), 0.1 * np.eye(2)[None])
    worse = denoising_loss(whitening.mixture(wrong), white, 2, key=key)
    assert all(worse[k] > 1.2 * v for k, v in loss.items() if k != "loss_0.05")


def test_distance_and_open_variance(rng):
    a, b = rng.normal(size=(2, 3000, 2))
    assert sliced_wasserstein(a, b, rng) < 0.06
    assert sliced_wasserstein(a, b + np.array([1.0, 0.0]), rng) > 0.5
    information = np.diag(np.arange(1.0, 13.0))
    directions = open_directions(information)
    assert directions.shape == (12, 8)
    np.testing.assert_allclose(directions[8:], 0, atol=1e-12)
    mixture = MixturePrior.of(
        [0.5, 0.5], np.array([[-1.0] + [0] * 11, [1.0] + [0] * 11]), np.full(2, 0.5)
    )
    prior = LatentPrior(GaussianPrior.standard(make_basis(rng)), mixture)
    # One of the eight directions also has the variance between the centres.
    assert prior_variance(prior, directions) == pytest.approx(0.5 + 1 / 8)
