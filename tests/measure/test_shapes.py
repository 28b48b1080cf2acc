"""Half-light radii and moments against GalSim and closed forms."""

import galsim
import jax
import numpy as np
import pytest

from blendem.measure.shapes import (
    ShapeFlag,
    growth_weights,
    half_light_radius,
    measure_chunk,
    measure_shapes,
)

SCALE, SIDE, PSF_SIGMA = 0.168, 49, 0.7  # HSC pixel, and the model PSF [pixel]


def draw(galaxy, side=SIDE, scale=SCALE):
    """A model image as the docs define it."""
    convolved = galsim.Convolve(galaxy, galsim.Gaussian(sigma=PSF_SIGMA * SCALE))
    stamp = convolved.drawImage(
        nx=side, ny=side, scale=scale, method="no_pixel", dtype=float
    )
    return stamp.array


GALAXIES = {
    "gaussian": galsim.Gaussian(sigma=0.2).shear(g1=0.2, g2=0.1),
    "round exponential": galsim.Exponential(half_light_radius=0.5),
    "sheared exponential": galsim.Exponential(half_light_radius=0.5).shear(
        g1=0.3, g2=-0.2
    ),
    "tall": galsim.Exponential(half_light_radius=0.4).shear(g1=-0.5, g2=0),
    "de Vaucouleurs": galsim.DeVaucouleurs(half_light_radius=0.4).shear(
        g1=-0.1, g2=0.4
    ),
    "off center": galsim.Exponential(half_light_radius=0.4)
    .shear(g1=0, g2=0.3)
    .shift(0.1, -0.2),
}


@pytest.mark.parametrize("name", GALAXIES)
def test_moments_agree_with_hsm(name):
    image = draw(GALAXIES[name])
    hsm = galsim.hsm.FindAdaptiveMom(galsim.Image(image), guess_sig=2.0)
    measured = measure_shapes(image[None], SCALE, chunk=1)
    assert measured["flags"][0] == 0
    # HSM stops at steps of 1e-6 and cuts its weight at 5 sigma.
    assert measured["e1"][0] == pytest.approx(hsm.observed_e1, abs=1e-5)
    assert measured["e2"][0] == pytest.approx(hsm.observed_e2, abs=1e-5)
    assert measured["sigma"][0] == pytest.approx(hsm.moments_sigma * SCALE, rel=1e-5)


def test_moments_of_a_gaussian_have_the_stated_signs():
    """Long along +x: e1 > 0. Long along the diagonal x = y: e2 > 0. Exact covariance."""
    y, x = np.mgrid[-24:25, -24:25]
    images, expected = [], []
    for cov in ([[9.0, 0], [0, 4]], [[4, 0], [0, 9]], [[6, 2], [2, 6]]):  # of (x, y)
        p = np.linalg.inv(cov)
        images.append(
            np.exp(-(p[0, 0] * x**2 + 2 * p[0, 1] * x * y + p[1, 1] * y**2) / 2)
        )
        trace = np.trace(cov)
        expected.append([(cov[0][0] - cov[1][1]) / trace, 2 * cov[0][1] / trace])
    measured = measure_shapes(np.stack(images), 1.0, chunk=4)
    got = np.stack([measured["e1"], measured["e2"]], axis=1)
    np.testing.assert_allclose(
        got, expected, atol=1e-6
    )  # sampling of sigma 2 pixel is exact
    sigma = [36**0.25, 36**0.25, 32**0.25]
    np.testing.assert_allclose(measured["sigma"], sigma, rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.8, 1.0, 2.3, 5.0])
def test_half_light_radius_of_a_gaussian(sigma):
    y, x = np.mgrid[-24:25, -24:25]
    image = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    # sqrt(2 ln 2). Aliased power grows towards small sigma: 0.2 % at 0.8 pixel, see below.
    tolerance = 5e-3 if sigma < 1 else 5e-4
    expected = np.sqrt(2 * np.log(2)) * sigma * 0.2
    assert half_light_radius(image, 0.2) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(
    "name", ["round exponential", "sheared exponential", "de Vaucouleurs"]
)
def test_half_light_radius_does_not_depend_on_the_pixel(name):
    """GalSim draws the same convolved galaxy four times finer, over the same field."""
    coarse = half_light_radius(draw(GALAXIES[name]), SCALE)
    fine = half_light_radius(draw(GALAXIES[name], 4 * SIDE + 1, SCALE / 4), SCALE / 4)
    # The fine stamp is 0.5 % wider, which moves the total of an n = 4 profile by ~0.1 %.
    assert coarse == pytest.approx(fine, rel=2e-3)


def test_half_light_radius_of_an_exponential_is_galsims():
    """Without a PSF and well sampled: the number given to GalSim."""
    image = galsim.Exponential(half_light_radius=4.0).drawImage(
        nx=99, ny=99, scale=1.0, method="no_pixel", dtype=float
    )
    # The cusp at the centre is not band-limited, and is one sample: 1 % of the flux is 0.5 %.
    assert half_light_radius(image.array, 1.0) == pytest.approx(4.0, rel=1e-2)


def test_growth_weights_sum_to_the_area():
    """A constant is band-limited: inside radius r it holds pi r^2 (r well inside the stamp)."""
    radii, weights = growth_weights(99)
    well_inside = radii < 15
    area = weights.sum(axis=1)[well_inside]
    # What a finite stamp cuts off a sinc aperture decays as a power of the margin.
    np.testing.assert_allclose(
        area, np.pi * radii[well_inside] ** 2, rtol=2e-2, atol=2e-2
    )


def test_bad_stamps_are_flagged_and_not_raised(rng):
    good = draw(GALAXIES["sheared exponential"])
    broken = good.copy()
    broken[3, 4] = np.nan
    ring = np.zeros_like(good)
    ring[0], ring[-1] = 1.0, 1.0  # all flux beyond the inscribed circle, nearly
    images = np.stack([good, -good, np.zeros_like(good), broken, ring])
    measured = measure_shapes(images, SCALE, chunk=8)
    flags = measured["flags"]
    assert flags[0] == 0
    assert flags[1] & ShapeFlag.NO_FLUX and flags[1] & ShapeFlag.NO_MOMENTS
    assert flags[2] & ShapeFlag.NO_FLUX and flags[2] & ShapeFlag.NO_MOMENTS
    assert flags[3] & ShapeFlag.NOT_FINITE
    assert flags[4] & ShapeFlag.NO_RADIUS
    assert np.isfinite([measured[k][0] for k in ("size", "e1", "e2", "sigma")]).all()
    for name in ("size", "e1", "e2", "sigma"):
        assert np.isnan(measured[name][1:4]).all()
    noise = measure_shapes(rng.normal(size=(64, SIDE, SIDE)), SCALE, chunk=64)
    assert (noise["flags"] > 0).mean() > 0.9  # measured: 99.5 % of pure noise


def test_noise_in_the_wings_moves_the_radius_little(rng):
    """S/N 110 in the stamp sum: the error of the total is 0.9 %, of the radius about as much."""
    image = draw(GALAXIES["round exponential"])
    sigma = 0.009 * image.sum() / SIDE
    noisy = image + sigma * rng.normal(size=(64, SIDE, SIDE))
    size = measure_shapes(noisy, SCALE, chunk=64)["size"]
    exact = half_light_radius(image, SCALE)
    assert np.abs(np.median(size) / exact - 1) < 0.01
    assert np.std(size) / exact < 0.03


def test_batches_agree_with_single_stamps_and_compile_once():
    images = np.stack([draw(g) for g in GALAXIES.values()])
    one_by_one = [measure_shapes(i[None], SCALE, chunk=1)["e1"][0] for i in images]
    before = measure_chunk._cache_size()
    for n in (1, 4, 6):  # below, at and beyond one chunk
        batch = measure_shapes(images[:n], SCALE, chunk=4)
        assert all(len(v) == n for v in batch.values())
        np.testing.assert_allclose(batch["e1"], one_by_one[:n], atol=1e-12)
    assert measure_chunk._cache_size() <= before + 1
    assert len(measure_shapes(images[:0], SCALE)["e1"]) == 0


def test_single_precision_is_enough():
    images = np.stack([draw(g) for g in GALAXIES.values()])
    double = measure_shapes(images, SCALE, chunk=8)
    single = measure_shapes(
        images.astype(np.float32) * np.float32(1e-12), SCALE, chunk=8
    )
    for name in ("size", "e1", "e2"):
        np.testing.assert_allclose(single[name], double[name], atol=1e-5)
    assert jax.dtypes.canonicalize_dtype(float) == np.float64  # so that the two differ


def test_even_or_oblong_stamps_are_refused():
    with pytest.raises(ValueError, match="odd"):
        measure_shapes(np.ones((1, 48, 48)), SCALE)
    with pytest.raises(ValueError, match="square"):
        measure_shapes(np.ones((1, 47, 49)), SCALE)
