"""Amplitudes changed by algebra against amplitudes changed in pixels."""

import equinox as eqx
import numpy as np
import pytest

from blendem.inference.posterior import BlendStatistics, posterior
from blendem.inference.rescale import refine_amplitudes, rescale
from blendem.prior.gaussian import Basis, GaussianPrior, empty_stamp

D, PIXELS = 3, 25


@pytest.fixture
def prior(rng):
    """Three modes; the mean stamp is the first, so that an empty stamp has coordinates."""
    y, x = np.mgrid[-2:3, -2:3].astype(float)
    core = np.exp(-0.5 * (x**2 + y**2))
    modes = np.stack([core, x * core, (x**2 + y**2 - 2) * core])[:, None]
    values = np.sum(modes**2, axis=(1, 2, 3))
    basis = Basis(
        core[None] / core.sum(),
        modes,
        values,
        np.array(0.0),
        np.array(0.7),
        np.array(1.0),
        ("i",),
        np.linalg.pinv(modes.reshape(3, -1)).T.reshape(modes.shape),
    )
    return GaussianPrior.standard(basis)


def statistics_of(basis, scale, data, noise, stars=()):
    """Sources on separate planes: every pixel of the model is in one of them."""
    n = len(scale)
    A = np.zeros((n * PIXELS, n * D))
    mean = np.zeros(n * PIXELS)
    flat = np.asarray(basis.modes).reshape(D, -1)
    for k in range(n):
        rows = slice(k * PIXELS, (k + 1) * PIXELS)
        A[rows, k * D : (k + 1) * D] = scale[k] * flat.T
        mean[rows] = scale[k] * np.asarray(basis.mean).ravel()
    r = (data - mean) / noise
    A = A / noise
    return BlendStatistics(
        A.T @ A, A.T @ r, r @ r, 0.0, len(r), np.isin(np.arange(n), stars), D
    )


def test_empty_stamp_decodes_to_nothing(prior):
    dark = empty_stamp(prior.basis)
    np.testing.assert_allclose(prior.basis.decode(dark), 0.0, atol=1e-12)


def test_rescaled_statistics_are_those_of_other_amplitudes(prior, rng):
    data = rng.normal(size=2 * PIXELS)
    scale, ratio = np.array([2.0, 5.0]), np.array([1.7, 0.4])
    one = statistics_of(prior.basis, scale, data, 0.1)
    two = statistics_of(prior.basis, scale * ratio, data, 0.1)
    moved = rescale(one, ratio, empty_stamp(prior.basis))
    np.testing.assert_allclose(moved.H, two.H, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moved.b, two.b, rtol=1e-9, atol=1e-9)
    assert moved.r2 == pytest.approx(two.r2, rel=1e-9)
    assert moved.log_amplitude is None


def test_known_amplitudes_move_too(prior, rng):
    one = statistics_of(prior.basis, [2.0, 5.0], rng.normal(size=50), 0.1, stars=(1,))
    one = one._replace(log_amplitude=np.log([2.0, 5.0]))
    moved = rescale(one, np.array([3.0, 3.0]), empty_stamp(prior.basis))
    np.testing.assert_allclose(np.exp(moved.log_amplitude), [6.0, 5.0])


def test_stars_keep_their_amplitude(prior, rng):
    one = statistics_of(prior.basis, [2.0, 5.0], rng.normal(size=50), 0.1, stars=(1,))
    moved = rescale(one, np.array([1.0, 3.0]), empty_stamp(prior.basis))
    np.testing.assert_allclose(moved.H, one.H)
    _, ratio = refine_amplitudes(one, prior, 0, np.zeros(2))
    assert ratio[1] == 1.0


@pytest.mark.parametrize("wrong", [0.2, 1.0, 6.0])
def test_amplitudes_go_to_the_flux_of_the_data(prior, wrong):
    light = np.asarray(prior.basis.modes)[:, 0].sum((-2, -1))
    z = np.array([[0.05, 0.3, -0.1]])
    unit = np.asarray(prior.basis.decode(z[0])).ravel()
    true = 40.0
    flux = true * (1 + z[0] @ light)
    statistics = statistics_of(prior.basis, [wrong * true], true * unit, 0.01)
    refined, ratio = refine_amplitudes(statistics, prior, 0, np.array([0.01]), 6)
    assert wrong * true * ratio[0] == pytest.approx(flux, rel=0.02)
    # The posterior flux itself does not depend on where it started.
    mean = posterior(refined, prior).mean
    assert wrong * true * ratio[0] * (1 + mean @ light) == pytest.approx(flux, rel=1e-3)


def test_without_data_amplitudes_stay(prior):
    empty = BlendStatistics(
        np.zeros((D, D)), np.zeros(D), 0.0, 0.0, 0.0, np.zeros(1, bool), D
    )
    _, ratio = refine_amplitudes(empty, prior, 0, np.zeros(1))
    assert ratio[0] == pytest.approx(1.0)


def test_every_iteration_is_a_posterior_of_rescaled_statistics(prior, rng):
    prior = eqx.tree_at(lambda p: p.mean, prior, np.array([0.1, 0.05, -0.1]))
    light = np.concatenate(
        [
            s * np.asarray(prior.basis.decode(z)).ravel()
            for s, z in zip((3.0, 5.0, 4.0), 0.1 * rng.normal(size=(3, D)), strict=True)
        ]
    )
    data = light + 0.1 * rng.normal(size=75)
    one = statistics_of(prior.basis, [2.0, 5.0, 6.0], data, 0.1, stars=(1,))
    minimum, total, current = np.array([0.1, 0.1, 0.1]), np.ones(3), one
    dark = empty_stamp(prior.basis)
    for _ in range(3):
        z = posterior(current, prior).mean[: 3 * D].reshape(-1, D)
        ratio = prior.basis.flux(z, 0) / prior.mean_flux(0)
        goal = np.maximum(total * np.clip(ratio, 1 / 3, 3), minimum)
        goal[1] = 1.0
        current, total = rescale(current, goal / total, dark), goal
    refined, found = refine_amplitudes(one, prior, 0, minimum, 3)
    # They move, and neither limit decides.
    assert np.abs(np.log(found[[0, 2]])).min() > 0.01
    assert found.min() > 0.15 and found.max() < 2.9
    np.testing.assert_allclose(found, total, rtol=1e-9)
    for name in ("H", "b", "r2"):
        value = getattr(current, name)
        np.testing.assert_allclose(getattr(refined, name), value, rtol=1e-9, atol=1e-9)
    # A lowest amplitude above them is what is found.
    _, limited = refine_amplitudes(one, prior, 0, 1.2 * found, 3)
    np.testing.assert_allclose(limited, [1.2 * found[0], 1.0, 1.2 * found[2]])
