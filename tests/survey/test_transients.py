"""Simulated epochs: cameras that move, transients that come and go."""

import numpy as np
import pytest
from astropy.wcs import WCS

from blendem.survey.instruments import INSTRUMENTS, light_inside
from blendem.survey.layout import tangent_wcs
from blendem.survey.population import draw_galaxies
from blendem.survey.sed import BANDS
from blendem.survey.simulate import observe_again, simulate_field
from blendem.survey.transients import TransientSettings, draw_transients

DEEP = INSTRUMENTS["hsc_deep"].only(["i", "g"])
SETTINGS = TransientSettings(
    1.0, (20.5, 22.0), (0.0, 100.0, 130.0), (True, False, False)
)


def simulate(transients):
    return simulate_field(
        DEEP,
        (128, 128),
        rng=np.random.default_rng(8),
        mode="blends",
        n_blends=4,
        mag_bright=21.0,
        stamp=25,
        star_density=0.0,
        transients=transients,
    )


@pytest.fixture(scope="module")
def fields():
    return simulate(SETTINGS), simulate(None)


def test_transients_change_nothing_but_their_own_light(fields):
    field, plain = fields
    n = len(plain.catalog)
    assert len(field.catalog) == n + 4  # one per blend
    assert list(field.catalog["type"][n:]) == ["variable"] * 4
    np.testing.assert_array_equal(field.catalog["x"][:n], plain.catalog["x"])
    # The field itself is the reference, in which they are off.
    np.testing.assert_array_equal(field.image, plain.image)
    again = [
        observe_again(f, DEEP, rng=np.random.default_rng(1), epoch=1) for f in fields
    ]
    extra = (again[0].image - again[1].image).sum((-2, -1))
    index = [BANDS.index(b) for b in DEEP.bands]
    np.testing.assert_allclose(
        extra, field.transients.flux[1][:, index].sum(axis=0), rtol=0.02
    )


def test_hosts_are_galaxies_of_the_blend_and_close(fields):
    field, _ = fields
    n = len(field.catalog) - 4
    host = field.transients.host
    np.testing.assert_array_equal(
        field.catalog["blend"][n:], field.catalog["blend"][host]
    )
    away = np.hypot(*field.transients.offset.T)
    assert (away <= 3 * field.sources["hlr_disk"].to_numpy()[host]).all()
    for axis, column in enumerate("yx"):
        shift = field.truth[column][n:] - field.truth[column][host]
        np.testing.assert_allclose(
            shift * DEEP.pixel_scale, field.transients.offset[:, axis], atol=1e-9
        )


def test_a_moved_camera_sees_the_same_sky(fields):
    """The brightest source lies where the WCS of the turned image puts it."""
    field, _ = fields
    moved = observe_again(
        field,
        DEEP.under(seeing=0.8, depth=3.0),
        rng=np.random.default_rng(1),
        epoch=1,
        shift=(4.3, -7.8),
        rotation=20.0,
    )
    k = int(np.argmax(field.truth["flux_i"]))
    sky = field.wcs.pixel_to_world(field.truth["x"][k], field.truth["y"][k])
    x, y = moved.wcs.world_to_pixel(sky)
    i, j = round(float(y)), round(float(x))
    assert np.hypot(i - field.truth["y"][k], j - field.truth["x"][k]) > 3
    stamp = moved.image[0, i - 4 : i + 5, j - 4 : j + 5]
    yy, xx = np.mgrid[-4:5, -4:5]
    weight = np.clip(stamp, 0.3 * stamp.max(), None) - 0.3 * stamp.max()
    center = [(weight * a).sum() / weight.sum() for a in (yy, xx)]
    np.testing.assert_allclose(center, [y - i, x - j], atol=0.6)


def test_the_camera_is_shifted_and_turned():
    wcs = tangent_wcs((11, 21), 0.2, (150.0, 2.0), shift=(2.0, -3.0), rotation=30.0)
    assert isinstance(wcs, WCS)
    np.testing.assert_allclose(wcs.all_world2pix([[150.0, 2.0]], 0)[0], [7.0, 7.0])
    scale = np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600
    assert scale == pytest.approx(0.2)


def test_conditions():
    worse = DEEP.under(seeing=1.5, depth=-1.0)
    np.testing.assert_allclose(np.array(worse.psf_fwhm) / DEEP.psf_fwhm, 1.5)
    np.testing.assert_allclose(np.array(worse.sky_sigma) / DEEP.sky_sigma, 10**0.4)
    assert DEEP.bands == ("g", "i")
    with pytest.raises(ValueError, match="hsc_deep"):
        DEEP.only(["f814w"])


def test_light_outside_of_psf_images_is_that_of_the_moffat():
    """Beyond radius R it is (1 + (R / a)^2)^(1 - beta), between inner and outer circle."""
    beta, fwhm = DEEP.psf_beta, np.array(DEEP.psf_fwhm)
    a = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    bounds = [
        (1 + (r * DEEP.pixel_scale / a) ** 2) ** (1 - beta)
        for r in (20.5 * np.sqrt(2), 20.5)
    ]
    outside = 1 - light_inside(DEEP, 41)
    assert (bounds[0] < outside).all() and (outside < bounds[1]).all()


def test_light_curves_are_zero_before_and_peak_in_range(rng):
    galaxies = draw_galaxies(300, rng)
    drawn = draw_transients(galaxies, np.full(300, -1), rng, SETTINGS)
    assert len(drawn.host) == len(set(drawn.host)) == 300
    assert (drawn.flux[0] == 0).all() and (drawn.flux[1:] > 0).all()
    # Peaks lie between the epochs: no flux is above the brightest.
    assert drawn.flux[..., BANDS.index("i")].max() <= 10 ** (-0.4 * (20.5 - 27.0))
    with pytest.raises(ValueError, match="reference"):
        draw_transients(
            galaxies, np.full(300, -1), rng, SETTINGS._replace(off=(True,) * 3)
        )
