"""What is said about draws agrees with the closed form."""

import numpy as np
import pytest

from blendem.inference.draws import (
    exact_draws,
    negative_flux_fraction,
    sampled_draws,
)
from blendem.inference.posterior import BlendStatistics, posterior
from blendem.prior.gaussian import Basis, GaussianPrior

D = 3


@pytest.fixture
def prior(rng):
    modes = rng.normal(size=(D, 2, 5, 5))
    basis = Basis(
        rng.normal(size=(2, 5, 5)) + 1,
        modes,
        np.sum(modes**2, axis=(1, 2, 3)),
        np.array(0.1),
        np.array(0.7),
        np.array(0.2),
        ("g", "i"),
    )
    return GaussianPrior(basis, rng.normal(size=D), np.tril(rng.normal(size=(D, D))))


@pytest.fixture
def statistics(rng):
    """Two galaxies and a sky on 40 pixels of unit variance."""
    A = rng.normal(size=(40, 2 * D + 1))
    y = rng.normal(size=40)
    return BlendStatistics(
        A.T @ A, A.T @ y, float(y @ y), 0.0, 40.0, np.array([False, False]), D
    )


def test_exact_draws_carry_the_closed_form(statistics, prior, rng):
    p = posterior(statistics, prior)
    out = exact_draws(statistics, p, 5, rng)
    assert out.draws.shape == (5, 2 * D + 1)
    np.testing.assert_allclose(out.sd**2, np.diag(p.covariance), rtol=1e-12)
    assert out.log_evidence == p.log_evidence and out.chi2_of_mean == p.chi2_of_mean
    residual = [
        statistics.r2 - 2 * w @ statistics.b + w @ statistics.H @ w for w in out.draws
    ]
    np.testing.assert_allclose(out.chi2_of_draws, np.mean(residual), rtol=1e-10)


def test_many_draws_give_the_moments_of_the_closed_form(statistics, prior, rng):
    p = posterior(statistics, prior)
    n = 20000
    out = sampled_draws(statistics, p.draw(n, rng))
    sd = np.sqrt(np.diag(p.covariance))
    # Five standard errors of a mean, of a deviation, and of the mean of a chi2.
    assert (np.abs(out.mean - p.mean) < 5 * sd / np.sqrt(n)).all()
    np.testing.assert_allclose(out.sd, sd, rtol=5 / np.sqrt(2 * n))
    expected = np.trace(statistics.H @ p.covariance)
    assert abs(out.effective - expected) < 5 * np.sqrt(2 * expected / n) + 0.05
    np.testing.assert_allclose(
        out.chi2_of_mean + out.effective, out.chi2_of_draws, rtol=1e-12
    )
    assert np.isnan(out.log_evidence)


def test_effective_parameters_are_those_of_the_draws_themselves(statistics, rng):
    draws = rng.normal(size=(6, 2 * D + 1))
    out = sampled_draws(statistics, draws)
    covariance = np.cov(draws.T, bias=True)  # divided by n
    np.testing.assert_allclose(
        out.effective, np.trace(statistics.H @ covariance), rtol=1e-10
    )
    np.testing.assert_allclose(out.sd, draws.std(axis=0, ddof=1))


def test_negative_fluxes_are_counted_per_band_of_galaxies(prior):
    z = np.zeros((4, 2, D))
    basis = prior.basis
    star = np.array([False, True])
    start = negative_flux_fraction(basis, z, star)
    assert start == np.mean(basis.mean.sum((-2, -1)) < 0)
    # Push one draw of the galaxy far down in both bands, and the star, which is ignored.
    light = basis.modes.sum((-2, -1))
    down = -1e3 * np.linalg.lstsq(light.T, np.ones(2), rcond=None)[0]
    z[1, 0] = z[:, 1] = down
    expected = (3 * start + 1) / 4
    assert negative_flux_fraction(basis, z, star) == pytest.approx(expected)
    assert np.isnan(negative_flux_fraction(basis, z, np.array([True, True])))
