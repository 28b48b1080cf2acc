"""Magnified stamps against larger galaxies that GalSim draws."""

import galsim
import numpy as np
import pytest
from scipy.signal import fftconvolve

from blendem.prior.gaussian import Basis
from blendem.prior.magnify import (
    decode_modes,
    fit_side,
    kinds_of,
    magnified_side,
    magnifier,
    magnify,
)

STAMP, SIGMA = 49, 0.7
PARAMS = galsim.GSParams(folding_threshold=1e-4, maximum_fft_size=16384)


def draw(galaxy, side, sigma=SIGMA):
    seen = galsim.Convolve(galaxy, galsim.Gaussian(sigma=sigma), gsparams=PARAMS)
    return seen.drawImage(
        nx=side, ny=side, scale=1.0, method="no_pixel", dtype=float
    ).array


def difference_of_gaussians(sigma):
    """Kernel from the model PSF to a Gaussian one of `sigma` [pixel]."""
    r = np.arange(-20, 21)
    one = np.exp(-0.5 * r**2 / (sigma**2 - SIGMA**2))
    return np.outer(one, one) / one.sum() ** 2


# n, half-light radius [pixel], factor; what is wrong at most: of the image as HSC sees it, over
# its peak, and of the flux.
CASES = [
    (1.0, 8.0, 2, 5e-4, 1e-3),
    (1.0, 14.0, 2, 3e-3, 2e-3),
    # The core has structure beyond pi / 4, where the data still see 0.44 of it.
    (1.0, 16.0, 4, 1.2e-2, 2e-3),
    (4.0, 8.0, 2, 8e-3, 2e-3),
    (4.0, 14.0, 2, 6e-3, 3e-3),
]


@pytest.mark.parametrize(("n", "radius", "factor", "seen", "flux"), CASES)
def test_a_galaxy_that_is_larger_than_its_stamp(n, radius, factor, seen, flux):
    galaxy = galsim.Sersic(n=n, half_light_radius=radius, gsparams=PARAMS)
    galaxy = galaxy.shear(g1=0.2, g2=0.1)
    matrix = magnifier(STAMP, factor, SIGMA)
    large = matrix @ draw(galaxy.dilate(1 / factor), STAMP) @ matrix.T
    side = factor * (STAMP - 1) + 1
    assert large.shape == (side, side)
    expected = draw(galaxy, side)
    assert abs(large.sum() / expected.sum() - 1) < flux
    kernel = difference_of_gaussians(1.6)
    found, expected = (fftconvolve(x, kernel, "same") for x in (large, expected))
    assert np.abs(found - expected).max() < seen * expected.max()


def test_without_sharpening_the_core_is_too_wide():
    """What the factor of the two Gaussians is for."""
    galaxy = galsim.Exponential(half_light_radius=8.0, gsparams=PARAMS)
    small, expected = draw(galaxy.dilate(0.5), STAMP), draw(galaxy, 97)
    right, blunt = magnifier(STAMP, 2, SIGMA), magnifier(STAMP, 2, 0.0)
    error = [np.abs(m @ small @ m.T - expected)[48, 48] for m in (right, blunt)]
    assert error[0] < 0.2 * error[1]
    wide = draw(galaxy, 97, 2 * SIGMA)
    assert np.abs(blunt @ small @ blunt.T - wide).max() < 5e-3 * wide.max()


@pytest.fixture
def basis(rng):
    y, x = np.mgrid[-7:8, -7:8]
    modes = np.stack(
        [
            [np.exp(-0.5 * (x**2 + y**2) / s**2) * rng.normal() for _ in range(2)]
            for s in (1.5, 2.0, 2.5)
        ]
    )
    return Basis(
        np.abs(modes[0]),
        modes,
        np.ones(3),
        np.array(0.0),
        np.array(SIGMA),
        np.array(0.2),
        ("g", "i"),
    )


def test_coordinates_and_fluxes_are_those_of_the_basis(basis, rng):
    large = magnify(basis, 1)
    assert magnify(basis, 0) is basis
    assert large.mean.shape == (2, 29, 29) == (2, *(magnified_side(15, 1),) * 2)
    for small, big in ((basis.mean, large.mean), (basis.modes, large.modes)):
        np.testing.assert_allclose(
            big.sum((-2, -1)), small.sum((-2, -1)), rtol=5e-3, atol=1e-3
        )
    matrix = magnifier(15, 2, SIGMA)
    z = rng.normal(size=(4, 3))
    images = np.einsum("ni,ibyx->nbyx", z, basis.modes)
    zoom = np.array([1, 0, 0, 1])
    found = decode_modes(kinds_of(basis, zoom), zoom, z, 29)
    for k in range(4):
        one = images[k]
        expected = (
            matrix @ one @ matrix.T
            if zoom[k]
            else np.pad(one, ((0, 0), (7, 7), (7, 7)))
        )
        np.testing.assert_allclose(found[k], expected, atol=1e-5)
    assert len(kinds_of(basis, np.array([], int))) == 1


def test_stamps_are_cut_and_padded_about_their_middle():
    image = np.zeros((2, 5, 5))
    image[:, 2, 2], image[:, 0, 1] = 1.0, 2.0
    wide = fit_side(image, 9)
    assert wide.shape == (2, 9, 9) and (wide[:, 4, 4] == 1).all() and wide[0, 2, 3] == 2
    np.testing.assert_array_equal(fit_side(wide, 5), image)
    assert fit_side(image, 5) is not None and fit_side(image, 3)[0, 1, 1] == 1
