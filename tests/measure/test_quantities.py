"""Quantities of draws against images that are made one by one."""

import numpy as np
import pytest

from blendem.inference.statistics import STAR_SPREAD
from blendem.measure.quantities import (
    colors,
    posterior_quantities,
    quantity_names,
    truth_quantities,
)
from blendem.measure.shapes import measure_shapes
from blendem.prior.gaussian import Basis
from blendem.prior.magnify import magnify

BANDS = ("g", "r", "i")
SIDE, SCALE = 21, 0.2
SHAPES = ("size", "e1", "e2")


def gaussian(sigma_x, sigma_y):
    """Elliptical Gaussian of sum 1 on the stamp."""
    r = np.arange(SIDE) - SIDE // 2
    image = np.exp(-0.5 * ((r[None] / sigma_x) ** 2 + (r[:, None] / sigma_y) ** 2))
    return image / image.sum()


@pytest.fixture
def basis(rng):
    """A round galaxy; modes make it wide, tall, redder, and one is noise."""
    round_, wide, tall = gaussian(2, 2), gaussian(3, 2), gaussian(2, 3)
    light = np.array([0.5, 1.0, 1.5])
    mean = light[:, None, None] * round_
    modes = [light[:, None, None] * (m - round_) for m in (wide, tall)]
    modes.append(np.array([-0.1, 0.0, 0.2])[:, None, None] * round_)
    modes.append(1e-4 * rng.normal(size=mean.shape))
    modes = np.stack(modes)
    norm = np.sum(modes**2, axis=(1, 2, 3))
    zero, psf, scale = np.array(0.0), np.array(0.7), np.array(SCALE)
    return Basis(mean, modes, norm, zero, psf, scale, BANDS)


def draws(rng, n=6, n_draws=5):
    z = np.abs(rng.normal(size=(n_draws, n, 4))) * [0.3, 0.3, 1, 1]
    return z.astype(np.float32), rng.uniform(5, 50, n)


def test_magnified_galaxies_are_measured_on_their_stamps(basis, rng):
    z, scale = draws(rng)
    zoom = np.array([0, 1, 0, 0, 1, 0])
    found = posterior_quantities(basis, scale, z, "i", zoom=zoom)
    large = magnify(basis, 1)
    alone = posterior_quantities(basis, scale, z, "i")
    for name in found:
        np.testing.assert_array_equal(
            found[name][:, zoom == 0], alone[name][:, zoom == 0]
        )
    for d in range(len(z)):
        images = scale[:, None, None, None] * (
            large.mean + np.einsum("ki,ibyx->kbyx", z[d], large.modes)
        )
        shapes = measure_shapes(images[:, 2].astype(np.float32), SCALE)
        for k in np.flatnonzero(zoom):
            for i, b in enumerate(BANDS):
                expected = images[k, i].sum()
                np.testing.assert_allclose(
                    found[f"flux_{b}"][d, k], expected, rtol=1e-5
                )
            for name in SHAPES:
                np.testing.assert_allclose(
                    found[name][d, k], shapes[name][k], rtol=1e-3
                )
    # As wide again, but for the PSF of the model, which is not magnified.
    ratio = (found["size"] / alone["size"])[:, zoom > 0]
    assert np.all((ratio > 1.7) & (ratio < 2.05))


@pytest.mark.parametrize("chunk", [4096, 11, 1])
def test_every_draw_is_measured_as_its_image(basis, rng, chunk):
    z, scale = draws(rng)
    found = posterior_quantities(basis, scale, z, "i", chunk=chunk)
    assert tuple(found) == quantity_names(BANDS)
    for d in range(len(z)):
        images = scale[:, None, None, None] * (
            basis.mean + np.einsum("ki,ibyx->kbyx", z[d], basis.modes)
        )
        flux = images.sum((2, 3))
        shapes = measure_shapes(images[:, 2].astype(np.float32), SCALE)
        for i, b in enumerate(BANDS):
            np.testing.assert_allclose(found[f"flux_{b}"][d], flux[:, i], rtol=1e-6)
        ratio = -2.5 * np.log10(flux[:, 0] / flux[:, 1])
        np.testing.assert_allclose(found["color_g_r"][d], ratio, atol=1e-5)
        # Rounding of images to float32, times what a search stops at (1e-4 of the axis).
        for name in SHAPES:
            np.testing.assert_allclose(found[name][d], shapes[name], atol=2e-4)
        # One draw of true images is the truth of the same galaxies.
        truth = truth_quantities(images, BANDS, SCALE, "i", chunk=4)
        assert tuple(truth) == tuple(found)
        for name in found:
            np.testing.assert_allclose(truth[name], found[name][d], atol=2e-4)
    assert found["e1"].std() > 0.01 and found["color_r_i"].std() > 0.01


def test_numbers_of_a_known_galaxy(basis):
    """sigma 3 along x and 2 along y: e1 = (9 - 4)/(9 + 4); a round one has sqrt(2 ln 2) sigma."""
    z = np.zeros((1, 2, 4), np.float32)
    z[0, 1, 0] = 1
    found = posterior_quantities(basis, np.array([10.0, 20.0]), z, "i")
    np.testing.assert_allclose(found["flux_r"], [[10, 20]], rtol=1e-6)
    np.testing.assert_allclose(found["color_g_r"], 2.5 * np.log10(2), rtol=1e-5)
    # Sums over pixels instead of integrals, and the half-light radius in 0.1 pixel steps.
    np.testing.assert_allclose(found["e1"], [[0, 5 / 13]], atol=2e-3)
    assert found["size"][0, 0] == pytest.approx(1.17741 * 2 * SCALE, rel=5e-3)


def test_the_reference_band_is_the_one_named(basis):
    """A mode that is wide in band g alone changes the shape in g alone."""
    modes = np.zeros_like(basis.modes)
    modes[0, 0] = gaussian(3, 2) - gaussian(2, 2)
    changed = Basis(
        basis.mean, modes, basis.eigenvalues, basis.residual, basis.psf_sigma,
        basis.pixel_scale, BANDS,
    )  # fmt: skip
    z = np.array([[[1, 0, 0, 0]]], np.float32)
    in_g = posterior_quantities(changed, np.ones(1), z, "g")["e1"]
    in_i = posterior_quantities(changed, np.ones(1), z, "i")["e1"]
    assert in_g[0, 0] > 0.1 and abs(in_i[0, 0]) < 1e-3
    with pytest.raises(ValueError, match="`reference_band` 'z' is none of"):
        posterior_quantities(changed, np.ones(1), z, "z")


def test_stars_and_failed_sources(basis, rng):
    z, scale = draws(rng)
    star = np.array([False, True, False, False, False, True])
    scale[3] = np.nan
    found = posterior_quantities(basis, scale, z, "r", is_star=star)
    expected = scale[star] * (1 + STAR_SPREAD * z[:, star, 1])
    np.testing.assert_allclose(found["flux_r"][:, star], expected, rtol=1e-6)
    alone = posterior_quantities(basis, scale[4:5], z[:, 4:5], "r")
    for name in SHAPES:
        assert np.isnan(found[name][:, [1, 3, 5]]).all()
        np.testing.assert_array_equal(found[name][:, 4:5], alone[name])
    assert np.isfinite(found["size"][:, [0, 2, 4]]).all()
    assert all(np.isnan(values[:, 3]).all() for values in found.values())
    with pytest.raises(ValueError, match="`z` must be"):
        posterior_quantities(basis, scale, z[:, :, :3], "r")


def test_colors_need_two_positive_fluxes():
    flux = np.array([[1.0, 100.0, 1.0], [1.0, -1.0, 2.0], [0.0, 1.0, 10.0]])
    nan = np.nan
    np.testing.assert_allclose(colors(flux), [[5, -5], [nan, nan], [nan, 2.5]])


def test_true_images_need_their_bands(rng):
    with pytest.raises(ValueError, match="one plane for each band"):
        truth_quantities(rng.random((2, 2, 9, 9)), BANDS, SCALE, "g")
    star = np.array([True, False])
    images = np.tile(gaussian(2, 2), (2, 3, 1, 1))
    truth = truth_quantities(images, BANDS, SCALE, "g", is_star=star)
    assert np.isnan(truth["size"][0]) and truth["size"][1] > 0
    np.testing.assert_allclose(truth["flux_g"], 1)
