"""Stamps and fields: fluxes, noise, coordinates and truth by another route."""

import galsim
import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from scipy import stats

from blendem.survey.instruments import INSTRUMENTS
from blendem.survey.layout import blend_positions
from blendem.survey.population import (
    draw_galaxies,
    draw_stars,
    galaxy_density,
    total_flux,
)
from blendem.survey.profiles import draw_models, draw_observed
from blendem.survey.simulate import draw_stamps, simulate_field
from blendem.survey.truth import half_light_radius

HSC = INSTRUMENTS["hsc_deep"]


def simulate(seed=11, **settings):
    settings = {"shape": (128, 160), "stamp": 49, "psf_size": 31} | settings
    return simulate_field(HSC, rng=np.random.default_rng(seed), **settings)


@pytest.fixture(scope="module")
def field():
    return simulate()


@pytest.fixture(scope="module")
def blends():
    return simulate(shape=(256, 256), mode="blends", n_blends=16)


def test_flux_of_a_stamp_is_that_of_the_catalog():
    """Small galaxies fit in the stamp: disks of 0.3" have 1e-9 of their light outside."""
    galaxies = draw_galaxies(60, np.random.default_rng(1))
    small = galaxies[(galaxies["hlr_disk"] < 0.3) & (galaxies["n_disk"] <= 1.5)]
    small = small[small["bt_i"] == 0]
    assert len(small) > 10
    stamps = draw_stamps(small, HSC, stamp=49, psf_sigma=0.7)
    for b, band in enumerate(HSC.bands):
        flux = stamps[:, b].sum(axis=(1, 2), dtype=float)
        # 0.2 %: GalSim's accuracy settings and the wings of n = 1.5.
        np.testing.assert_allclose(flux, total_flux(small, band), rtol=2e-3)


def test_relaxed_accuracy_costs_less_than_stated():
    galaxies = draw_galaxies(25, np.random.default_rng(1))
    settings = dict(stamp=49, psf_sigma=0.7, pixel_scale=0.168)
    tight = galsim.GSParams(
        folding_threshold=1e-3,
        maxk_threshold=3e-4,
        kvalue_accuracy=1e-5,
        maximum_fft_size=16384,
    )
    fast = draw_models(galaxies, ("i",), **settings)
    slow = draw_models(galaxies, ("i",), gsparams=tight, **settings)
    error = np.abs(fast - slow).sum(axis=(1, 2, 3)) / slow.sum(axis=(1, 2, 3))
    assert np.median(error) < 1e-3
    assert error.max() < 4e-3
    assert error.max() > 0


def test_a_round_exponential_matches_its_analytic_second_moment():
    """Second moments add: 6 h^2 along both axes for an Exponential, halved, plus the PSF."""
    galaxy = draw_galaxies(1, np.random.default_rng(1), population="wrong")
    galaxy = galaxy.assign(q_disk=0.5, beta=0.0, hlr_disk=0.5)
    image = draw_stamps(galaxy, HSC, stamp=101, psf_sigma=0.7)[0, 2].astype(float)
    axis = np.arange(101) - 50
    xx = np.sum(image * axis[None, :] ** 2) / image.sum()
    yy = np.sum(image * axis[:, None] ** 2) / image.sum()
    # Half-light radius = 1.6783 scale lengths; <x^2> = 3 h^2; the area is kept.
    h2 = (0.5 / 0.168 / 1.67835) ** 2
    # 1 %: wings beyond the stamp and the accuracy settings.
    assert np.isclose(xx, 3 * h2 / 0.5 + 0.49, rtol=0.01)
    assert np.isclose(yy, 3 * h2 * 0.5 + 0.49, rtol=0.01)


def test_observed_star_is_the_shifted_moffat():
    star = draw_stars(1, np.random.default_rng(1))
    observed, corner = draw_observed(star, HSC, np.array([[30.3, 20.8]]), size=41)
    np.testing.assert_array_equal(corner, [[30 - 20, 21 - 20]])
    # The shift in arcsec of the profile, where the code offsets the pixel grid.
    moffat = galsim.Moffat(beta=3.1, fwhm=HSC.psf_fwhm[0])
    moffat = moffat.shift(-0.2 * 0.168, 0.3 * 0.168) * float(
        star["flux_g_point"].iloc[0]
    )
    expected = moffat.drawImage(nx=41, ny=41, scale=0.168).array
    np.testing.assert_allclose(observed[0, 0], expected, atol=3e-4 * expected.max())


def test_image_is_the_sum_of_observed_stamps_plus_white_noise(field):
    """Stamps are added on a canvas large enough that nothing is clipped."""
    height, width = field.image.shape[1:]
    pad = field.observed.shape[-1]
    canvas = np.zeros((5, height + 2 * pad, width + 2 * pad))
    for stamp, (y, x) in zip(field.observed, field.corner, strict=True):
        canvas[:, y + pad : y + 2 * pad, x + pad : x + 2 * pad] += stamp
    noise = field.image - canvas[:, pad:-pad, pad:-pad]
    pull = noise / np.sqrt(field.variance)
    # chi2 of N independent pixels: N +- sqrt(2 N), per band; four standard errors.
    n = height * width
    chi2 = np.sum(pull**2, axis=(1, 2))
    assert np.all(np.abs(chi2 - n) < 4 * np.sqrt(2 * n))
    assert stats.kstest(pull.ravel(), "norm").pvalue > 1e-3
    lag = np.mean(pull[:, :, 1:] * pull[:, :, :-1])
    assert abs(lag) < 4 / np.sqrt(pull.size)
    np.testing.assert_allclose(
        np.sqrt(field.variance[:, 0, 0]), HSC.sky_sigma, rtol=1e-6
    )


def test_photon_noise_adds_to_the_variance():
    settings = dict(shape=(64, 64), stamp=31, density=3.0)
    sky = simulate(**settings)
    both = simulate(electrons=5.0, **settings)
    # Same seed, same sources: the extra variance is the noise-free image over the gain.
    extra = both.variance - sky.variance
    residual = both.image.astype(float) - sky.image
    np.testing.assert_array_equal(both.model, sky.model)
    assert extra.min() >= 0
    bright = extra > 0.05
    ratio = np.mean(residual[bright] ** 2 / extra[bright])
    assert abs(ratio - 1) < 5 * np.sqrt(2 / bright.sum())


def test_number_of_sources_is_that_of_the_real_sky():
    """46 10^(0.31 (i - 25)) per arcmin^2 times the multiplier; Poisson errors."""
    area = (96 * 0.168 / 60) ** 2
    field = simulate(
        shape=(96, 96),
        stamp=9,
        psf_size=9,
        mag_limit=23.0,
        density=200.0,
        star_density=2000.0,
    )
    stars = np.sum(field.catalog["type"] == "star")
    galaxies = len(field.catalog) - stars
    expected = 200 * 46 * (10 ** (0.31 * -2) - 10 ** (0.31 * -7)) * area
    assert expected > 120
    assert abs(galaxies - expected) < 4 * np.sqrt(expected)
    assert abs(stars - 2000 * area) < 4 * np.sqrt(2000 * area)


def test_catalog_coordinates_are_offsets_on_the_tangent_plane(field):
    """Offsets from the centre through SkyCoord, not through the WCS."""
    catalog = field.catalog
    centre = SkyCoord(150.11917, 2.20583, unit="deg")
    sky = SkyCoord(catalog["ra"], catalog["dec"], unit="deg")
    separation = centre.separation(sky).to_value(units.arcsec)
    dx, dy = catalog["x"] - 79.5, catalog["y"] - 63.5
    # The plane and the sphere differ by (15")^2 relative, 2e-9.
    np.testing.assert_allclose(separation, 0.168 * np.hypot(dx, dy), atol=1e-5)
    angle = centre.position_angle(sky).to_value("rad")
    np.testing.assert_allclose(separation * np.cos(angle), 0.168 * dy, atol=1e-5)
    # East is left.
    np.testing.assert_allclose(separation * np.sin(angle), -0.168 * dx, atol=1e-5)
    x, y = field.wcs.world_to_pixel_values(catalog["ra"], catalog["dec"])
    np.testing.assert_allclose(x, catalog["x"], atol=1e-7)
    np.testing.assert_allclose(y, catalog["y"], atol=1e-7)


def test_light_lies_where_the_catalog_says(field):
    """Flux-weighted centroid of a star's stamp, against x and y."""
    for k in np.flatnonzero(field.catalog["type"] == "star"):
        image = field.observed[k, 2].astype(float)
        side = np.arange(image.shape[-1])
        y = np.sum(image.sum(axis=1) * side) / image.sum() + field.corner[k, 0]
        x = np.sum(image.sum(axis=0) * side) / image.sum() + field.corner[k, 1]
        # Moffat wings cut by the stamp: less than 1 % of half a pixel.
        assert abs(y - field.catalog["y"][k]) < 0.01
        assert abs(x - field.catalog["x"][k]) < 0.01


def test_same_seed_same_field_and_sources_keep_their_shapes(field):
    again = simulate()
    np.testing.assert_array_equal(again.image, field.image)
    # More stars and a deeper exposure: galaxies, their knots included, stay the same.
    stars = simulate(star_density=20.0)
    n = int(np.sum(field.catalog["type"] == "galaxy"))
    np.testing.assert_array_equal(stars.model[:n], field.model[:n])
    assert len(stars.catalog) > len(field.catalog)
    other = simulate(seed=12)
    assert not np.array_equal(other.image, field.image)


def test_truth_of_two_equal_sources():
    """t1 = t2 at the same place: <t, 2t> in the denominator, blendedness one half."""
    from blendem.survey.truth import blendedness

    image = np.random.default_rng(1).random((1, 2, 5, 5)).astype(np.float32)
    both = np.concatenate([image, image])
    together = blendedness(both, np.array([[-3, 4], [-3, 4]]))
    np.testing.assert_allclose(together, 0.5, rtol=1e-6)
    apart = blendedness(both, np.array([[-3, 4], [2, 4]]))
    np.testing.assert_allclose(apart, 0.0, atol=1e-6)
    # Half of the light of the second overlaps by one row.
    rows = np.ones((2, 1, 3, 3), np.float32)
    shifted = blendedness(rows, np.array([[0, 0], [2, 0]]))
    np.testing.assert_allclose(shifted, 1 - 9 / 12, rtol=1e-6)


def test_half_light_radius_of_a_gaussian():
    """sigma sqrt(2 ln 2) of an analytic Gaussian sampled on pixels."""
    axis = np.arange(61) - 30
    image = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 3.0**2))
    # Whole pixels make the curve of growth a staircase: 2 %.
    expected = 3.0 * np.sqrt(2 * np.log(2)) * 0.168
    assert np.isclose(half_light_radius(image, 0.168), expected, rtol=0.02)


def test_truth_columns_agree_with_the_images(field):
    truth = field.truth
    for b, band in enumerate(field.bands):
        inside = field.model[:, b].sum(axis=(1, 2), dtype=float)
        np.testing.assert_allclose(truth[f"flux_model_{band}"], inside, rtol=1e-6)
        # A stamp holds no more than the total, up to the accuracy of the FFT.
        assert np.all(truth[f"flux_model_{band}"] < 1.002 * truth[f"flux_{band}"])
    magnitude = 27.0 - 2.5 * np.log10(truth["flux_i"])
    np.testing.assert_allclose(magnitude, truth["mag_i"], rtol=1e-9)
    assert np.all((truth["stamp_fraction"] > 0.8) & (truth["stamp_fraction"] < 1.002))
    star = truth["type"] == "star"
    # A star is the model PSF: half-light radius 0.7 sqrt(2 ln 2) pixel; on whole pixels, 10 %.
    assert np.allclose(truth["hlr"][star], 0.7 * 1.1774 * 0.168, rtol=0.1)
    assert np.all(truth["hlr"][~star] > truth["hlr"][star].max())


def test_truth_snr_and_shape(field, blends):
    """S/N of a star from the PSF; ellipticity of disks along their major axes."""
    truth = field.truth
    star = truth["type"] == "star"
    norm = np.sqrt(np.sum(field.psf[2].astype(float) ** 2))
    expected = truth["flux_i"][star] * norm / HSC.sky_sigma[2]
    # The star lies between pixels, the PSF on one: 1 % of the sum of squares.
    np.testing.assert_allclose(truth["snr_i"][star], expected, rtol=0.01)
    truth = blends.truth
    # A disk dominates where there is no bulge and there are no knots.
    disk = (truth["bt_i"] == 0) & (truth["knots_n"] == 0) & (truth["q_disk"] < 0.6)
    # Smaller disks are round in the model PSF, and the pixel grid turns them.
    disk &= truth["hlr_disk"] > 0.2
    assert disk.sum() >= 3
    angle = np.arctan2(truth["e2"][disk], truth["e1"][disk]) / 2
    difference = np.angle(np.exp(2j * (angle - truth["beta"][disk]))) / 2
    # The sampling of the model image leaves 0.01 rad.
    assert np.all(np.abs(difference) < 0.03)
    q = truth["q_disk"][disk]
    ellipticity = np.hypot(truth["e1"][disk], truth["e2"][disk])
    assert np.all(ellipticity < (1 - q**2) / (1 + q**2) + 0.02)


def test_blends_have_two_to_six_sources_and_span_blendedness(blends):
    tile = blends.catalog["blend"]
    counts = np.bincount(tile)
    assert len(counts) == 16
    assert counts.min() >= 2
    assert counts.max() <= 6
    value = blends.truth["blendedness_i"]
    assert np.all((value > -1e-6) & (value < 1))
    # All strengths are there: at least a tenth below 0.2, between and above 0.6.
    low, middle, high = np.histogram(value, [-1e-6, 0.2, 0.6, 1])[0] / len(value)
    assert min(low, middle, high) > 0.1
    # Each source lies within 0.3 of a tile (64 pixels) of its tile's centre.
    centre = np.stack(np.divmod(tile, 4), axis=1) * 64 + 31.5
    position = np.stack([blends.catalog["y"], blends.catalog["x"]], axis=1)
    distance = np.hypot(*(position - centre).T)
    assert distance.max() < 0.3 * 64 + 1


def test_blended_sources_are_never_closer_than_two_pixels():
    position, blend = blend_positions(30, (300, 300), np.random.default_rng(2))
    for k in range(30):
        y, x = position[blend == k].T
        distance = np.hypot(y[:, None] - y, x[:, None] - x)
        assert np.all(distance[~np.eye(len(y), dtype=bool)] >= 2.0)


@pytest.mark.parametrize("name", ["lsst_10yr", "hst_f814w", "hsc_wide"])
def test_other_instruments(name):
    """Brightness of the same sky: total flux over zero point, in every band."""
    instrument = INSTRUMENTS[name]
    field = simulate_field(
        instrument,
        (80, 80),
        rng=np.random.default_rng(4),
        mode="blends",
        n_blends=1,
        stamp=61,
    )
    assert field.image.shape == (len(instrument.bands), 80, 80)
    star_free = field.truth["stamp_fraction"] > 0.99
    observed = field.observed.sum(axis=(2, 3), dtype=float)[star_free]
    total = np.stack([field.truth[f"flux_{b}"] for b in field.bands], axis=1)
    # Light in the wings of the PSF beyond 50 pixels: 2 % in HST's 2.5 arcsec.
    np.testing.assert_allclose(observed, total[star_free], rtol=0.03)


def test_undetected_galaxies_are_light_without_a_source():
    settings = dict(shape=(256, 256), mag_limit=23.0, star_density=0.0)
    plain = simulate(**settings)
    more = simulate(**settings, undetected_limit=25.0)
    assert len(more.catalog) == len(plain.catalog) == len(more.truth)
    np.testing.assert_array_equal(more.catalog["x"], plain.catalog["x"])
    np.testing.assert_array_equal(more.model, plain.model)
    # The noise is the same: what differs is light, as much as the counts say.
    extra = (more.image - plain.image)[HSC.index("i")]
    assert extra.min() > -1e-3
    magnitudes = np.linspace(23, 25, 201)
    steps = np.diff([galaxy_density(m) for m in magnitudes])
    area = 256**2 * (HSC.pixel_scale / 60) ** 2
    flux = 10 ** (-0.4 * (0.5 * (magnitudes[1:] + magnitudes[:-1]) - plain.magzero))
    assert extra.sum() == pytest.approx(area * (steps * flux).sum(), rel=0.4)
    with pytest.raises(ValueError, match="`undetected_limit` must be fainter"):
        simulate(**settings, undetected_limit=22.0)


def test_empty_field():
    field = simulate(density=0.0, star_density=0.0, shape=(32, 32))
    assert len(field.truth) == 0
    assert field.model.shape == (0, 5, 49, 49)
    assert {"flux_i", "blendedness_i", "hlr", "e1"} <= set(field.truth.colnames)


def test_errors_name_what_is_wrong(rng):
    with pytest.raises(ValueError, match=r"`mode` must be one of.*got 'grid'"):
        simulate_field(HSC, (64, 64), rng=rng, mode="grid")
    with pytest.raises(ValueError, match=r"`stamp` must be odd.*got 48"):
        simulate_field(HSC, (64, 64), rng=rng, stamp=48)
    with pytest.raises(ValueError, match="Lower `n_blends`"):
        simulate_field(HSC, (64, 64), rng=rng, mode="blends", n_blends=16)
    with pytest.raises(ValueError, match="`electrons` must be positive"):
        simulate_field(HSC, (32, 32), rng=rng, electrons=0.0, density=0.0)
    with pytest.raises(ValueError, match=r"no fluxes in bands \['K'\]"):
        draw_stamps(draw_galaxies(1, rng), HSC, stamp=9, psf_sigma=0.7, bands=("K",))


def test_catalog_positions_stay_inside_of_the_image():
    """Errors of a pixel would carry some of the sources at the edge out of it."""
    shape = (64, 96)
    field = simulate_field(
        INSTRUMENTS["hsc_wide"],
        shape,
        rng=np.random.default_rng(3),
        density=20.0,
        mag_limit=23.0,
        star_density=0.0,
        stamp=17,
        psf_size=17,
        centroid_error=30.0,
    )
    x, y = np.asarray(field.catalog["x"]), np.asarray(field.catalog["y"])
    moved = np.hypot(x - field.truth["x"], y - field.truth["y"])
    assert len(x) > 3 and moved.max() > 10
    assert np.all((x > -0.5) & (x < shape[1] - 0.5))
    assert np.all((y > -0.5) & (y < shape[0] - 0.5))
