"""Residuals of observations: placed where they belong, compared with their noise."""

import numpy as np
import pytest
from astropy.wcs import WCS

from blendem.blend import pad_observation
from blendem.frame import affine_between
from blendem.measure.residuals import corner_of, score_residual
from blendem.noise import draw_noise
from blendem.survey.layout import tangent_wcs
from blendem.survey.truth import add_image

RHO = np.array([[0.15, 0.4, 0.15], [0.4, 1.0, 0.4], [0.15, 0.4, 0.15]])
PSF = np.ones((1, 3, 3)) / 9


def observation(image, variance, *, correlation=None, jacobian=None, offset=(0, 0)):
    return pad_observation(
        image,
        variance,
        PSF,
        size=image.shape[-1],
        jacobian=np.eye(2) if jacobian is None else jacobian,
        offset=np.array(offset, float),
        band_index=(0,),
        same_grid=jacobian is None,
        correlation=correlation,
    )


def test_correlated_noise_has_the_scores_of_noise():
    side, sigma = 120, 0.3
    noise = sigma * draw_noise(RHO, (side, side), np.random.default_rng(2))[None]
    variance = np.full_like(noise, sigma**2)
    variance[:, 40:50] = np.inf
    noise[:, 40:50] = np.nan
    one = observation(noise, variance, correlation=RHO[None])
    scores = score_residual(noise, one)
    n = side * (side - 10)
    assert scores.n_data[0] == n
    pull = noise[0] / sigma
    assert scores.chi2[0] == pytest.approx(np.nansum(pull**2), rel=1e-5)
    assert scores.autocorrelation[0] == pytest.approx(
        np.nanmean(pull[:, 1:] * pull[:, :-1]), rel=1e-5
    )
    assert scores.noise_autocorrelation[0] == pytest.approx(0.4)
    # Four standard errors, of white noise; correlated ones scatter 1.5 times more.
    assert abs(scores.white_chi2[0] / n - 1) < 4 * np.sqrt(2 / n)
    assert abs(scores.autocorrelation[0] - 0.4) < 6 / np.sqrt(n)


def test_a_source_that_is_left_shows_in_the_white_residual():
    """A single bright pixel: chi2 is h^2, whitened h^2 (rho^-1)_00."""
    side, height = 31, 7.0
    rho = np.array([[0.02, 0.15, 0.02], [0.15, 1.0, 0.15], [0.02, 0.15, 0.02]])
    image, variance = np.zeros((1, side, side)), np.ones((1, side, side))
    image[0, 15, 15] = height
    scores = score_residual(image, observation(image, variance, correlation=rho[None]))
    assert scores.chi2[0] == pytest.approx(height**2)
    y, x = np.indices((side, side)).reshape(2, -1)
    dy, dx = y[:, None] - y[None], x[:, None] - x[None]
    near = (np.abs(dy) < 2) & (np.abs(dx) < 2)
    covariance = np.where(near, rho[np.clip(dy + 1, 0, 2), np.clip(dx + 1, 0, 2)], 0)
    white = image.ravel() @ np.linalg.solve(covariance, image.ravel())
    # The whitening predicts from the nearest four neighbours alone.
    assert white > 1.05 * height**2
    assert scores.white_chi2[0] == pytest.approx(white, rel=0.03)


def turned(shape, scale, angle):
    wcs = tangent_wcs(shape, scale, (150.0, 2.0))
    c, s = np.cos(angle), np.sin(angle)
    header = wcs.to_header()
    turned = WCS(header)
    turned.wcs.cd = np.diag([-scale, scale]) / 3600 @ np.array([[c, -s], [s, c]])
    return turned


def test_the_corner_of_a_cut_is_found_again():
    """The map of a cut-out is that of `extract_blends`: low corner, other pixels, rotation."""
    first_wcs = tangent_wcs((200, 200), 0.168, (150.0, 2.0))
    wcs = turned((400, 380), 0.06, 0.3)
    corner, low, zoom = np.array([30, 45]), np.array([111, 87]), 2.8
    jacobian, offset = affine_between(wcs, first_wcs, (200.0, 190.0))
    image = np.zeros((1, 20, 20))
    first = observation(image, image + 1, jacobian=zoom * np.eye(2))
    other = observation(
        image,
        image + 1,
        jacobian=zoom * jacobian,
        offset=zoom * (jacobian @ low + offset - corner),
    )
    found = corner_of(other, first, corner, wcs, first_wcs)
    np.testing.assert_array_equal(found, low)
    np.testing.assert_array_equal(corner_of(first, first, corner, None, None), corner)


def test_cuts_add_up_and_end_at_the_border():
    canvas, cut = np.zeros((1, 6, 7)), np.arange(1.0, 13).reshape(1, 3, 4)
    add_image(canvas, cut, np.array([4, -2]))
    np.testing.assert_array_equal(canvas[0, 4:, :2], [[3, 4], [7, 8]])
    assert canvas.sum() == 22
    add_image(canvas, cut, np.array([3, 3]))
    np.testing.assert_array_equal(canvas[0, 3:, 3:], cut[0])
    add_image(canvas, cut, np.array([-3, 9]))  # beside the image
    assert canvas.sum() == 22 + cut.sum()
