"""EM of the mixture: draws, their fit, and what is watched."""

import equinox as eqx
import numpy as np
import pytest
import scipy.stats
from tests.inference.test_em import make_basis

from blendem.inference.em import (
    MAX_COORDINATE,
    MOST_MENDED,
    GalaxyDraws,
    converged,
    draw_galaxies,
    gaussian_galaxies,
    is_held_out,
    join,
    misfit_before,
    of_mean_flux,
    sound,
)
from blendem.inference.posterior import BlendStatistics, posterior
from blendem.inference.sampler import Draws
from blendem.measure.em import (
    Whitening,
    denoising_loss,
    nearest_ratio,
    open_directions,
    prior_variance,
    sliced_wasserstein,
)
from blendem.prior.gaussian import GaussianPrior, empty_stamp
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior
from blendem.prior.mixture_fit import mean_log_density
from blendem.prior.refit import (
    RefitSettings,
    Turns,
    broaden,
    first_prior,
    fit_rows,
    mend_weight,
    misfit,
    refit,
    step_length,
)

D, LATENT = 3, 2
SETTINGS = RefitSettings(rows=4000, iterations=6, symmetric=False, amplitude_jitter=0.0)


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
    return refit(prior, draws, SETTINGS, rng)[0]


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
    assert draws.failed == 1 and len(draws.center) == 2 and len(draws.z) == 8
    mean = draws.z[draws.galaxy == 1].mean(axis=0)
    np.testing.assert_allclose(draws.center[1], mean, atol=1e-5)


def test_a_first_prior_comes_from_the_blends_alone(rng, key):
    true = make_prior(rng)
    blends, z = make_blends(true, 200, rng, key)
    gaussian = true.gaussian
    first = gaussian_galaxies(blends[0], gaussian, 0, None, rng)
    mean = posterior(blends[0], gaussian).mean.reshape(2, D)
    np.testing.assert_allclose(first.z, mean, atol=1e-6)
    np.testing.assert_allclose(first.center, mean, atol=1e-6)
    mended, more = of_mean_flux(gaussian, mean, 0)
    first = gaussian_galaxies(blends[0], gaussian, 0, 0, rng)
    np.testing.assert_allclose(first.center, mended, atol=1e-6)
    np.testing.assert_allclose(first.log_amplitude, more)
    draws = join((gaussian_galaxies(b, gaussian, 4, None, rng) for b in blends), D)
    assert draws.z.shape == (4 * len(z), D) and draws.center.shape == z.shape
    settings = SETTINGS._replace(iterations=30, shrink=5.0)
    found = first_prior(gaussian, LATENT, 2, draws, settings, rng, brightness=False)
    assert found.n_modes == LATENT and found.brightness is None
    order = np.argsort(np.asarray(found.mixture.centers)[:, 0])
    _, centers, _ = (x[order] for x in variances(found))
    np.testing.assert_allclose(centers, [[-1.5, 0.0], [1.0, 0.5]], atol=0.3)
    draws = draws._replace(log_amplitude=rng.normal(size=len(z)))
    found = first_prior(gaussian, LATENT, 2, draws, settings, rng)
    assert found.n_latent == LATENT + 1
    np.testing.assert_allclose(found.brightness, [0, 1], atol=0.15)


def test_first_galaxies_are_relative_to_the_fluxes_that_they_have(rng):
    basis = make_basis(rng)
    scale = 0.8 / basis.mean[0].sum()
    parts = lambda b: (b.mean, b.modes)  # noqa: E731
    basis = eqx.tree_at(parts, basis, [scale * x for x in parts(basis)])
    prior = GaussianPrior(basis, np.array([0.3, 0.0, -0.2]), np.eye(D))
    z = 0.5 * rng.normal(size=(2, D))
    z[1] += 1e3
    found, log_ratio = of_mean_flux(prior, z, 0)
    flux = np.asarray(basis.decode(z))[:, 0].sum(axis=(1, 2)) / prior.mean_flux(0)
    mean = np.asarray(basis.decode(prior.mean[None]))[0, 0].sum()
    assert prior.mean_flux(0) == pytest.approx(mean, rel=1e-5)
    assert 1 / MOST_MENDED < flux[0] < MOST_MENDED < np.abs(flux[1])
    expected = np.array([flux[0], 1.0])
    np.testing.assert_allclose(np.exp(log_ratio), expected, rtol=1e-5)
    dark = empty_stamp(basis)
    scaled = dark + expected[:, None] * (found - dark)
    np.testing.assert_allclose(scaled, z, atol=1e-4 * np.abs(z).max())


def test_an_error_of_the_amplitude_moves_no_light(rng, key):
    """Draws are relative to amplitudes with errors; what the data show is the same."""
    # The mean stamp is in the span of the modes, as in a basis that is fitted.
    basis = make_basis(rng)
    mean = np.asarray(basis.decode(np.array([[3.0, 2.0, 1.0]])))[0] - basis.mean
    basis = eqx.tree_at(lambda b: b.mean, basis, mean)
    prior = LatentPrior(
        GaussianPrior.standard(basis),
        MixturePrior.of([0.5, 0.5], np.array([[-1.0, 0.0], [1.0, 0.5]]), np.ones(2)),
        fine=np.ones((2, D - LATENT)),
    )
    blends, _ = make_blends(prior, 60, rng, key)
    precise = [s._replace(H=1e4 * s.H, b=1e4 * s.b, r2=1e4 * s.r2) for s in blends]
    names = [f"a/{i}" for i in range(len(blends))]
    found = {
        jitter: draw_galaxies(precise, names, prior, 4, 16, "em/1", 3, jitter)
        for jitter in (0.0, 0.6)
    }
    plain, other = found[0.0], found[0.6]
    np.testing.assert_array_equal(plain.log_amplitude, 0)
    assert np.std(other.log_amplitude) == pytest.approx(0.6, rel=0.2)
    dark = empty_stamp(basis)
    factor = np.exp(other.log_amplitude)[:, None]
    np.testing.assert_allclose(
        dark + factor * (other.center - dark), plain.center, atol=0.05
    )
    # A new lap has new errors.
    again = draw_galaxies(precise, names, prior, 4, 16, "em/2", 3, 0.6)
    assert not np.isclose(again.log_amplitude, other.log_amplitude).any()


def test_refit_keeps_the_errors_of_amplitudes(rng):
    prior = make_prior(rng)
    dark = empty_stamp(prior.basis)
    center = np.repeat((dark + np.array([2.0, 0.0, 0.0]))[None], 500, axis=0)
    z = np.tile(center, (8, 1)) + 0.1 * rng.normal(size=(4000, D))
    draws = GalaxyDraws(z, np.tile(np.arange(500), 8), center, np.zeros(500))
    settings = SETTINGS._replace(amplitude_jitter=0.6, rows=8000, shrink=0.0)
    rows, _ = fit_rows(prior, draws, settings, rng)
    rows = (rows - dark[:LATENT]) / np.array([2.0, 1.0])
    assert np.median(rows[:, 0]) == pytest.approx(1, rel=0.05)
    assert np.std(np.log(np.abs(rows[:, 0]))) == pytest.approx(0.6, rel=0.1)
    assert np.std(rows[:, 1]) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("n", [4, 8, 32])
def test_what_the_data_leave_open_does_not_grow(rng, n):
    """Draws of galaxies that are those of the prior: their variance is kept."""
    prior = make_prior(rng)
    dark = empty_stamp(prior.basis)
    z = dark + rng.normal(size=(n, 3000, D))
    draws = GalaxyDraws.of(z, np.zeros(3000))
    settings = SETTINGS._replace(amplitude_jitter=0.6, rows=40000)
    rows, fine = fit_rows(prior, draws, settings, rng)
    assert np.var(rows - dark[:LATENT]) == pytest.approx(1, abs=0.04)
    assert np.var(fine - dark[LATENT:]) == pytest.approx(1, abs=0.04)


def test_the_first_prior_counts_for_some_galaxies(rng):
    prior = make_prior(rng)
    z = np.tile([1.0, 0.5, 0.0], (400, 1)) + 0.05 * rng.normal(size=(400, D))
    draws = GalaxyDraws(z, np.arange(400), z, np.zeros(400))
    weights = {}
    for keep in (0.0, 400.0):
        settings = SETTINGS._replace(keep=keep, shrink=0.0)
        found, _ = refit(prior, draws, settings, rng, first=prior)
        near = np.asarray(found.mixture.centers)[:, 0] < 0
        weights[keep] = np.asarray(found.mixture.weights)[near].sum()
    assert weights[0.0] < 0.01
    assert weights[400.0] == pytest.approx(0.2, abs=0.03)  # half of 0.4


def test_no_galaxy_is_an_error(rng):
    with pytest.raises(ValueError, match="no galaxy to learn from"):
        refit(make_prior(rng), GalaxyDraws.empty(D), SETTINGS, rng)
    with pytest.raises(ValueError, match="no galaxy to learn from"):
        misfit(make_prior(rng), GalaxyDraws.empty(D), SETTINGS, rng)


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


def test_a_prior_that_copies_is_found_out(rng):
    taught, unseen, draws = rng.normal(size=(3, 500, 3))
    assert nearest_ratio(draws, unseen, taught) == pytest.approx(1, abs=0.15)
    copies = taught + 0.01 * rng.normal(size=taught.shape)
    assert nearest_ratio(copies, unseen, taught) < 0.15


def test_log_density_of_a_mixture(rng):
    mixture = MixturePrior.of([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.5, 2.0])
    e = rng.normal(size=(50, 2))
    exact = np.log(
        sum(
            w * scipy.stats.multivariate_normal(c, v * np.eye(2)).pdf(e)
            for w, c, v in zip(
                mixture.weights, mixture.centers, (0.5, 2.0), strict=True
            )
        )
    ).mean()
    assert mean_log_density(mixture, e) == pytest.approx(
        exact + np.log(2 * np.pi), abs=1e-4
    )


def test_a_wrong_prior_is_told_from_a_right_one(rng, key):
    """By the galaxies that it finds: those of the right one follow it."""
    right = make_prior(rng)
    blends, _ = make_blends(right, 200, rng, key)
    names = [f"a/{i}" for i in range(len(blends))]
    wrong = make_prior(rng, ((-0.3, 0.4), (0.3, -0.4)), 0.05)
    wrong = LatentPrior(right.gaussian, wrong.mixture, fine=right.fine)
    found = {}
    for name, prior in (("right", right), ("wrong", wrong)):
        draws = draw_galaxies(blends, names, prior, 4, 16, "em/1", 3)
        found[name] = misfit(prior, draws, SETTINGS, rng)
    # A log density of 2 coordinates scatters by 1; 400 galaxies, and a prior known by as many rows.
    assert abs(found["right"]) < 0.3
    assert found["wrong"] > 2
    assert mend_weight(0.3) == mend_weight(-5) == 0 and mend_weight(50) == 1
    assert 0 < mend_weight(8.0) < 1


def test_steps_become_shorter_where_the_prior_is_right():
    assert step_length(3.9, 4.0) == step_length(-1.0, 4.0) == 0
    assert step_length(4.7, 4.0) == 0 and step_length(4.9, 4.0) > 0.1
    assert step_length(8.0, 4.0) == pytest.approx(0.5)
    assert step_length(12.0, 4.0) == step_length(70.0, 4.0) == 1
    assert step_length(-1.0, 0.0) == 1  # never stops


def test_em_has_converged_when_a_lap_made_no_step():
    assert not converged({}, 2) and not converged({"laps": []}, 2)
    assert not converged({"laps": [{"step": 0.0}, {"step": 0.2}]}, 3)
    assert not converged({"laps": [{"lap": 1}]}, 2)  # of an older version
    still = {"laps": [{"step": 1.0}, {"step": 0.0}]}
    assert converged(still, 3)
    assert not converged(still, 1)  # a prior of other blends


def test_misfit_of_the_lap_before():
    card = {"laps": [{"misfit": 75.0}, {"misfit": 13.0}]}
    assert misfit_before(card, 3) == 13
    assert misfit_before(card, 1) == misfit_before({}, 2) == -np.inf
    assert misfit_before({"laps": [{"lap": 1}]}, 2) == -np.inf  # of an older version
