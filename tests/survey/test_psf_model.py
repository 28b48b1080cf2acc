"""PSFs that vary over a field, from files of PSFEx to what a blend is fitted with."""

from functools import partial

import equinox as eqx
import galsim
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from galsim.des import DES_PSFEx
from tests.psfex import NARROW, WIDE, psf_at_x, weight_at, write_psfex

from blendem.blend import Bucket
from blendem.inference.amplitude import Amplitudes
from blendem.inference.map import MapSettings, fit_profiles
from blendem.survey.extract import Plane, extract_blends
from blendem.survey.psf_model import PSFExModel, psf_at, psfex_size

SHAPE = (60, 200)


def model_of(path, shape=SHAPE, **options):
    with fits.open(write_psfex(path, shape, **options), memmap=False) as hdus:
        model = DES_PSFEx(hdus[1])
    return PSFExModel((model,), (path.name,), psfex_size(model))


@pytest.mark.parametrize("x", [0.0, 40.0, 199.0])
def test_a_model_at_the_pixels_of_the_image_is_drawn_exactly(tmp_path, x):
    psf = model_of(tmp_path / "a.psf").at((10.0, x))
    assert psf.shape == (1, 31, 31) and psf.dtype == np.float32
    # 1e-6: float32. One pixel aside the share of the wide Gaussian is off by 0.005.
    np.testing.assert_allclose(psf[0], psf_at_x(x, SHAPE, 31), atol=1e-6)


@pytest.mark.parametrize("x", [5.0, 195.0])
def test_an_oversampled_model_has_the_right_width_in_pixels(tmp_path, x):
    psf = model_of(tmp_path / "a.psf", side=61, step=0.5).at((30.0, x))
    assert psf.shape == (1, 31, 31)
    # Lanczos interpolation between samples is right to 1e-3 of the peak.
    expected = psf_at_x(x, SHAPE, 31)
    np.testing.assert_allclose(psf[0], expected, atol=1e-3 * expected.max())
    w, r = weight_at(x, SHAPE), np.arange(31) - 15
    second_moment = np.sum(psf[0] * r**2)
    assert second_moment == pytest.approx((1 - w) * NARROW**2 + w * WIDE**2, rel=5e-3)


def test_light_beyond_the_samples_is_renormalised_away(tmp_path):
    psf = model_of(tmp_path / "a.psf", side=15, step=0.5).at((30.0, 100.0))
    assert psf.shape == (1, 7, 7)
    assert psf.sum() == pytest.approx(1, abs=1e-6)


def test_a_larger_image_has_the_same_pixels_and_zeros(tmp_path):
    """Fields of one chunk share one size."""
    small = model_of(tmp_path / "a.psf")
    large = PSFExModel(small.models, small.names, 41).at((10.0, 20.0))
    padded = np.pad(small.at((10.0, 20.0)), [(0, 0), (5, 5), (5, 5)])
    np.testing.assert_allclose(large, padded, atol=1e-7)


def test_positions_that_the_stars_do_not_reach_are_refused(tmp_path):
    psf = model_of(tmp_path / "a.psf")
    psf.at((30.0, 240.0))  # a fifth of the image beyond its edge
    with pytest.raises(
        ValueError, match=r"a\.psf.*x = -0\.5 to 199\.5.*\(300\.0, 30\.0\)"
    ):
        psf.at((30.0, 300.0))


def test_a_constant_model_reaches_everywhere(tmp_path):
    psf = model_of(tmp_path / "a.psf", POLDEG1=0, PSFAXIS3=1).at((900.0, 900.0))
    np.testing.assert_allclose(psf[0], psf_at_x(99.5, SHAPE, 31), atol=1e-6)


def test_an_image_holds_everywhere():
    image = np.ones((2, 3, 3))
    assert psf_at(image, (1.0, 2.0)) is image


# ------------------------------------------------------------------------------- blends

# A galaxy beside a star at either end of the field: (y, x), half-light radius, flux.
SOURCES = (
    ((30.2, 14.7), 2.5, 3000.0),
    ((28.1, 22.4), 0.0, 2000.0),
    ((29.6, 184.3), 2.0, 3000.0),
    ((31.7, 176.2), 0.0, 2000.0),
)
POSITIONS = np.array([s[0] for s in SOURCES])
IS_STAR = np.array([s[1] == 0 for s in SOURCES])


def draw_field(rng):
    """An image with the true PSF of every source, by GalSim, and unit noise."""
    image = rng.standard_normal(SHAPE)
    for (y, x), radius, flux in SOURCES:
        w = weight_at(x, SHAPE)
        light = (1 - w) * galsim.Gaussian(sigma=NARROW) + w * galsim.Gaussian(
            sigma=WIDE
        )
        if radius:
            disk = galsim.Exponential(half_light_radius=radius)
            light = galsim.Convolve(disk, light)
        offset = (x - (SHAPE[1] - 1) / 2, y - (SHAPE[0] - 1) / 2)
        image += (
            flux
            * light.drawImage(
                nx=SHAPE[1],
                ny=SHAPE[0],
                scale=1.0,
                offset=offset,
                method="no_pixel",
                dtype=float,
            ).array
        )
    return image


def cut(planes):
    return extract_blends(
        planes,
        POSITIONS,
        IS_STAR,
        [Bucket(2, 60)],
        group="footprint",
        threshold=3.0,
        max_sources=2,
        margin=8,
        stamp=41,
    )


def test_blends_have_the_psf_of_their_own_place(tmp_path, rng):
    psf = model_of(tmp_path / "a.psf")
    plane = Plane(draw_field(rng)[None], np.ones((1, *SHAPE)), psf, None, (0,), 0.2)
    cuts = cut([plane])
    assert [tuple(c.members) for c in cuts] == [(0, 1), (2, 3)]
    for c in cuts:
        middle = c.corner[1] + (c.shape[1] - 1) / 2
        np.testing.assert_allclose(
            c.blend.observations[0].psf[0], psf_at_x(middle, SHAPE, 31), atol=1e-6
        )


def tan(crpix):
    wcs = WCS(naxis=2)
    wcs.wcs.crpix, wcs.wcs.crval = crpix, [150.0, 2.0]
    wcs.wcs.cd = 0.2 / 3600 * np.diag([-1.0, 1.0])
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.set()
    return wcs


def test_every_observation_has_its_psf_in_its_own_pixels(tmp_path, rng):
    """The second begins 100 pixels further along x, and does not hold the first blend."""
    image, variance = draw_field(rng)[None], np.ones((1, *SHAPE))
    shape = (60, 100)
    second = model_of(tmp_path / "b.psf", shape)
    planes = [
        Plane(image, variance, np.ones((1, 5, 5)) / 25, tan((100.5, 30.0)), (0,), 0.2),
        Plane(
            image[:, :, 100:], variance[:, :, 100:], second, tan((0.5, 30.0)), (0,), 0.2
        ),
    ]
    left, right = cut(planes)
    for c in (left, right):
        assert c.blend.observations[0].psf.shape == (1, 5, 5)
    middle = right.corner[1] + (right.shape[1] - 1) / 2 - 100
    for c, x in ((left, 0.0), (right, middle)):
        np.testing.assert_allclose(
            c.blend.observations[1].psf[0], psf_at_x(x, shape, 31), atol=1e-6
        )


def test_the_psf_of_the_place_fits_better_than_that_of_the_middle(tmp_path, rng):
    """Widths differ by 20 % from end to end."""
    image, variance = draw_field(rng)[None], np.ones((1, *SHAPE))
    settings = MapSettings(1, 0.2, "exponential", steps=200, stamp=41)
    fit = eqx.filter_jit(
        partial(fit_profiles, psf_sigma=jnp.asarray(0.7), settings=settings)
    )
    varying = model_of(tmp_path / "a.psf")
    chi2, n_data = {}, {}
    for name, psf in (("varying", varying), ("middle", varying.at((29.5, 99.5)))):
        for c in cut([Plane(image, variance, psf, None, (0,), 0.2)]):
            flux = np.zeros((2, 2, 1), np.float32)
            flux[np.arange(2), IS_STAR[c.members].astype(int), 0] = 2500.0
            init = Amplitudes(
                np.full(2, 2500.0, np.float32),
                flux,
                np.full((2, 1), 10.0, np.float32),
                c.blend.centers,
                np.zeros((len(c.blend.observations), 2), np.float32),
                *np.zeros((2, 2, 0), np.float32),
            )
            result, _ = fit(c.blend, init)
            chi2[name] = chi2.get(name, 0.0) + float(result.chi2)
            n_data[name] = n_data.get(name, 0.0) + float(result.n_data)
    # Five standard deviations of chi2.
    assert abs(chi2["varying"] / n_data["varying"] - 1) < 5 * np.sqrt(
        2 / n_data["varying"]
    )
    assert chi2["middle"] > chi2["varying"] + 200
