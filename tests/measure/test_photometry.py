"""Fluxes, magnitudes, apertures and summaries against brute force and closed forms."""

import numpy as np
import pytest
from scipy import stats

from blendem.measure.photometry import (
    aperture_flux,
    circle_overlap,
    fluxes,
    magnitude_errors,
    magnitudes,
    quantiles,
    signal_to_noise,
    summarise_samples,
)


def test_fluxes_sum_the_last_two_axes_in_float64():
    # A running float32 sum of 65536 ones has steps of 0.008 and would lose the 0.001.
    images = np.ones((2, 3, 255, 257), np.float32)
    images[1, 2, 0, 0] = 1.001
    expected = np.full((2, 3), 255 * 257.0)
    expected[1, 2] += np.float64(np.float32(1.001)) - 1
    np.testing.assert_allclose(fluxes(images), expected, rtol=1e-14)


def test_magnitudes_and_errors_invert_each_other():
    flux = np.array([1.0, 100.0, 0.0, -3.0])
    mag = magnitudes(flux, 27.0)
    np.testing.assert_allclose(mag, [27.0, 22.0, np.nan, np.nan])
    # The derivative by finite differences; second order in 1e-5.
    err = magnitude_errors(flux[:2], 1e-5 * flux[:2])
    np.testing.assert_allclose(
        err, mag[:2] - magnitudes(flux[:2] * (1 + 1e-5), 27.0), rtol=1e-4
    )
    assert np.isnan(magnitude_errors(flux, np.ones(4))[2:]).all()
    np.testing.assert_allclose(
        signal_to_noise(flux, np.array([2.0, 4, 1, 0])), [0.5, 25, 0, np.nan]
    )


def test_summary_is_calibrated_for_few_samples(rng):
    """A new draw lies in [q16, q84] of 16 others with probability 0.68, not 0.68 * 15/17."""
    n_trials, n = 20000, 16
    draws = rng.normal(size=(n, n_trials))
    summary = summarise_samples(draws)
    new = rng.normal(size=n_trials)
    inside = ((summary["q16"] < new) & (new < summary["q84"])).mean()
    # Five binomial standard errors, 0.0165; plus 0.01 for interpolation between draws.
    assert abs(inside - 0.68) < 5 * np.sqrt(0.68 * 0.32 / n_trials) + 0.01
    np.testing.assert_allclose(summary["mean"], draws.mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(summary["std"], stats.tstd(draws, axis=0), rtol=1e-12)


def test_missing_draws_are_left_out():
    values = np.array([[1.0, np.nan], [2.0, np.nan], [np.nan, np.nan], [6.0, 5.0]])
    summary = summarise_samples(values)
    np.testing.assert_allclose(summary["mean"], [3.0, 5.0])
    np.testing.assert_allclose(summary["std"], [np.std([1, 2, 6], ddof=1), np.nan])
    np.testing.assert_allclose(quantiles(values, np.array([0.5]))[0], [2.0, 5.0])
    empty = summarise_samples(np.full((3, 1), np.nan))
    assert all(np.isnan(v).all() for v in empty.values())


@pytest.mark.parametrize(
    ("center", "radius"), [((4.0, 4.0), 2.7), ((3.3, 4.9), 0.3), ((0.2, 8.4), 3.0)]
)
def test_circle_overlap_matches_a_fine_grid(center, radius):
    n = 200
    fine = (np.arange(9 * n) + 0.5) / n - 0.5
    inside = np.hypot(fine[:, None] - center[0], fine - center[1]) < radius
    expected = inside.reshape(9, n, 9, n).mean(axis=(1, 3))
    # Wrong cells lie along the edge of the circle: at most ~ 1/n of a pixel per crossing.
    np.testing.assert_allclose(
        circle_overlap((9, 9), center, radius), expected, atol=1 / n
    )


def test_aperture_flux_of_a_constant_is_the_area():
    image = np.full((1, 21, 21), 2.0)
    np.testing.assert_allclose(
        aperture_flux(image, 7.3), 2 * np.pi * 7.3**2, rtol=1e-12
    )
    mask = np.zeros((21, 21), bool)
    mask[:, :10] = True  # what is left of centre
    image[0, :, :10] = np.nan
    strip = 0.5 * np.sqrt(7.3**2 - 0.25) + 7.3**2 * np.arcsin(0.5 / 7.3)  # -0.5 < x < 0
    expected = 2 * (np.pi * 7.3**2 / 2 + strip)
    np.testing.assert_allclose(
        aperture_flux(image, 7.3, mask=mask), expected, rtol=1e-12
    )
    with pytest.raises(ValueError, match="radius"):
        aperture_flux(image, 0.0)
