"""Numbers of a source by hand from the draws of its coordinates."""

import numpy as np
import pytest

from blendem.inference.statistics import STAR_SPREAD
from blendem.measure.sources import (
    photometry_columns,
    point_image,
    shape_columns,
    source_images,
)
from blendem.prior.gaussian import Basis


@pytest.fixture
def basis(rng):
    modes = rng.normal(size=(3, 2, 7, 7))
    return Basis(
        rng.uniform(size=(2, 7, 7)),
        modes,
        np.sum(modes**2, axis=(1, 2, 3)),
        np.array(0.0),
        np.array(0.7),
        np.array(0.2),
        ("g", "i"),
    )


def test_star_has_the_flux_of_its_coordinates_and_the_model_psf(basis, rng):
    draws, mean = rng.normal(size=(50, 3)), rng.normal(size=3)
    star = source_images(basis, 20.0, True, mean, draws, 1)
    flux = 20.0 * (1 + STAR_SPREAD * draws[:, :2])  # the third coordinate is padding
    np.testing.assert_allclose(star.flux, flux, rtol=1e-12)
    r = np.arange(7) - 3
    psf = np.exp(-(r[:, None] ** 2 + r**2) / (2 * 0.7**2))
    psf /= psf.sum()
    expected = 20.0 * (1 + STAR_SPREAD * mean[:2])[:, None, None] * psf
    np.testing.assert_allclose(star.mean, expected, rtol=1e-9)
    std = flux.std(axis=0, ddof=1)[:, None, None] * psf
    np.testing.assert_allclose(star.std, std, rtol=1e-9)
    np.testing.assert_allclose(star.reference, flux[:, 1, None, None] * psf, rtol=1e-9)
    assert point_image(7, 0.7).sum() == pytest.approx(1.0)


def test_galaxy_is_decoded_draw_by_draw(basis, rng):
    draws, mean = rng.normal(size=(50, 3)), rng.normal(size=3)
    galaxy = source_images(basis, 5.0, False, mean, draws, 1)
    images = 5.0 * (basis.mean[None] + np.einsum("ni,ibyx->nbyx", draws, basis.modes))
    # Coordinates are rounded to float32: 1e-6 of values of order 30.
    np.testing.assert_allclose(galaxy.flux, images.sum((2, 3)), atol=1e-3)
    np.testing.assert_allclose(galaxy.reference, images[:, 1], atol=1e-4)
    np.testing.assert_allclose(galaxy.std, images.std(axis=0, ddof=1), atol=1e-4)
    expected = 5.0 * (basis.mean + np.einsum("i,ibyx->byx", mean, basis.modes))
    np.testing.assert_allclose(galaxy.mean, expected, atol=1e-4)


def test_photometry_columns_are_formulas_of_the_draws(rng):
    flux = rng.normal(100.0, 10.0, (400, 3, 2))
    mean = np.array([[100.0, 90.0], [101.0, 91.0], [99.0, -5.0]])
    table = photometry_columns(flux, mean, ("g", "i"), np.array([27.0, 27.0, 30.0]))
    error = flux[:, :, 1].std(axis=0, ddof=1)
    np.testing.assert_array_equal(table["flux_i"], mean[:, 1])
    np.testing.assert_allclose(table["flux_err_i"], error)
    np.testing.assert_allclose(table["snr_i"], mean[:, 1] / error)
    np.testing.assert_allclose(
        table["mag_g"], [22.0, 27 - 2.5 * np.log10(101.0), 30 - 2.5 * np.log10(99.0)]
    )
    assert np.isnan(table["mag_i"][2]) and np.isnan(table["mag_err_i"][2])
    np.testing.assert_allclose(
        table["mag_err_i"][:2], 2.5 / np.log(10) * (error / mean[:, 1])[:2]
    )
    # The 16 % point of 400 normal draws, five standard errors of 0.7 each.
    np.testing.assert_allclose(table["flux_q16_g"], 90.06, atol=3.8)
    np.testing.assert_allclose(table["flux_q84_g"], 109.94, atol=3.8)


def test_shapes_of_galaxies_only():
    r = np.arange(31) - 15
    image = np.exp(-0.5 * ((r[None] / 3.0) ** 2 + (r[:, None] / 2.0) ** 2))
    images = np.stack([[image] * 4, [image] * 4, [-image] * 4])
    table = shape_columns(images, np.array([False, True, False]), 0.2)
    # (9 - 4) / (9 + 4), along +x; the adaptive moments of a Gaussian are its own.
    assert table["e1"][0] == pytest.approx(5 / 13, abs=2e-3)
    assert table["e2"][0] == pytest.approx(0.0, abs=1e-3)
    assert table["e1_err"][0] == pytest.approx(0.0, abs=1e-6)
    assert np.isnan(table["e1"][1:]).all() and np.isnan(table["size"][1:]).all()
    np.testing.assert_array_equal(table["no_shape"], [False, False, True])
