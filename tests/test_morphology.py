"""Closed-form profiles against GalSim, gradients against finite differences."""

import equinox as eqx
import galsim
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from blendem.morphology import (
    BulgeDisk,
    Exponential,
    PixelMorphology,
    PointSource,
    Sersic,
    as_float,
)
from blendem.morphology import image as image_eagerly
from blendem.spectrum import Spectrum

SIDE = 41
SIGMA = 0.7  # model PSF [pixel]
SHEAR = (0.3, -0.2)
RADIUS = 3.0  # [pixel]
image = eqx.filter_jit(image_eagerly)  # fewer programs than operation by operation
PARAMS = galsim.GSParams(
    maximum_fft_size=16384,
    folding_threshold=1e-5,
    maxk_threshold=1e-5,
    kvalue_accuracy=1e-8,
    xvalue_accuracy=1e-8,
)


def pair(kind, shear=SHEAR, radius=RADIUS):
    """Return a profile and the same in GalSim."""
    g = jnp.array(shear)
    if kind == "point":
        return PointSource(), galsim.DeltaFunction(gsparams=PARAMS)
    if kind == "bulge+disk":
        bulge, bulge_truth = pair(4.0, (-0.1, 0.15), 1.5)
        disk, disk_truth = pair("exponential", shear, radius)
        return BulgeDisk(
            jnp.array(0.3), bulge, disk
        ), 0.3 * bulge_truth + 0.7 * disk_truth
    if kind == "exponential":
        truth = galsim.Exponential(half_light_radius=radius, gsparams=PARAMS)
        profile = Exponential(jnp.array(radius), g)
    else:
        truth = galsim.Sersic(kind, half_light_radius=radius, gsparams=PARAMS)
        profile = Sersic(jnp.array(kind), jnp.array(radius), g)
    return profile, truth.shear(g1=shear[0], g2=shear[1])


def draw(truth, offset):
    """Draw with the pixel response that `truth` already has."""
    drawn = truth.shift(offset[1], offset[0]).drawImage(
        nx=SIDE, ny=SIDE, scale=1.0, method="no_pixel", dtype=float
    )
    return drawn.array


KINDS = ["point", "exponential", 0.5, 1.0, 2.5, 4.0, "bulge+disk"]
PLACES = [((0.0, 0.0), (0.0, 0.0)), ((0.3, -0.4), SHEAR)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("offset", "shear"), PLACES)
def test_model_image_matches_galsim(kind, offset, shear):
    profile, truth = pair(kind, shear)
    truth = galsim.Convolve(truth, galsim.Gaussian(sigma=SIGMA, gsparams=PARAMS))
    expected = draw(truth, offset)
    center = jnp.array(offset) + SIDE // 2

    model = image(profile, center, (SIDE, SIDE), psf_sigma=jnp.array(SIGMA))

    # The wings of n = 4 that wrap around on the grid of 4 x 41 pixels, where GalSim's
    # grid is wider, are below 1e-4 of the flux; measured 9e-5, and 2e-6 of the peak.
    assert abs(model.sum() - expected.sum()) < 1e-4
    assert np.abs(model - expected).max() < 1e-5 * expected.max()


# Largest error in units of the peak. Without a PSF only the pixel damps high frequencies;
# those above 10 pi are cut, and an n = 4 cusp still errs by 2e-3 of its peak.
CUT = {
    "exponential": 1e-4,
    0.5: 1e-5,
    1.0: 1e-4,
    2.5: 1e-3,
    4.0: 5e-3,
    "bulge+disk": 5e-3,
}


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize(("offset", "shear"), PLACES)
def test_pixel_integrated_image_matches_galsim(kind, offset, shear):
    profile, truth = pair(kind, shear)
    # In real space: an FFT would need GalSim to cut the cusp too.
    pixel = galsim.Pixel(1.0, gsparams=PARAMS)
    if kind == "bulge+disk":  # a sum must be convolved term by term in real space
        parts = [galsim.Convolve(t, pixel, real_space=True) for t in truth.obj_list]
        expected = sum(draw(part, offset) for part in parts)
    else:
        expected = draw(galsim.Convolve(truth, pixel, real_space=True), offset)
    center = jnp.array(offset) + SIDE // 2

    model = image(profile, center, (SIDE, SIDE))

    # Wings that wrap around as in the test above; GalSim in real space has none.
    assert abs(model.sum() - expected.sum()) < 1e-4
    assert np.abs(model - expected).max() < CUT[kind] * expected.max()


def test_central_pixel_of_a_cusp_is_integrated():
    """Evaluated at its centre the pixel would read 0.331 of the flux, not 0.139."""
    profile, _ = pair(4.0, (0.0, 0.0))
    model = image(profile, jnp.array([7.0, 7.0]), (15, 15))
    assert model[7, 7] == pytest.approx(0.139, rel=0.02)
    finer = image(profile, jnp.array([7.0, 7.0]), (15, 15), oversample=20, pad=3.0)
    # GalSim 2.8.5, Convolve(Sersic, Pixel, real_space=True): 0.13776.
    assert finer[7, 7] == pytest.approx(0.13776, rel=1e-3)


@pytest.mark.parametrize("kind", ["exponential", 0.5, 2.5, "bulge+disk"])
def test_transform_matches_galsim_at_any_frequency(kind):
    """Another grid, rotated and scaled, is a matrix on the frequencies."""
    profile, truth = pair(kind)
    ky, kx = np.random.default_rng(0).normal(size=(2, 30))
    angle, scale = galsim.Angle(30, galsim.degrees), 1.7
    cos, sin = np.cos(angle.rad) * scale, np.sin(angle.rad) * scale
    turned = truth.rotate(angle).dilate(scale)
    expected = [turned.kValue(x, y).real for x, y in zip(kx, ky, strict=True)]

    value = profile.fourier(
        jnp.array(cos * ky - sin * kx), jnp.array(sin * ky + cos * kx)
    )

    np.testing.assert_allclose(value, expected, atol=4e-6)  # the table, see test_sersic


@pytest.mark.parametrize(
    ("kind", "psf_sigma"),
    [("exponential", SIGMA), (1.7, SIGMA), ("bulge+disk", SIGMA), ("bulge+disk", None)],
)
def test_gradients_match_finite_differences(kind, psf_sigma):
    profile, _ = pair(kind)
    shape = (15, 17)
    weight = jnp.array(np.random.default_rng(3).normal(size=shape))
    sigma = None if psf_sigma is None else jnp.array(psf_sigma)

    def loss(parameters):
        profile, center = parameters
        drawn = image(profile, center, shape, psf_sigma=sigma, oversample=4, pad=2.0)
        return jnp.sum(weight * drawn)

    flat, unflatten = ravel_pytree((profile, jnp.array([7.2, 7.9])))
    run = jax.jit(lambda flat: loss(unflatten(flat)))
    gradient = jax.jit(jax.grad(lambda flat: loss(unflatten(flat))))(flat)
    eps = 1e-5
    steps = eps * jnp.eye(flat.size)
    expected = jnp.array([(run(flat + d) - run(flat - d)) / (2 * eps) for d in steps])

    assert jnp.all(jnp.abs(expected) > 1e-5)  # every parameter matters
    # Truncation eps^2 f''' and rounding 1e-16 / eps are both near 1e-10.
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", ["exponential", 1.0, 4.0, "bulge+disk"])
def test_gradients_are_finite_for_round_profiles_at_zero_frequency(kind):
    """k = 0 and g = 0 are where a square root would give NaN; debug_nans is on."""
    profile, _ = pair(kind, (0.0, 0.0))
    k = jnp.array([0.0, 0.3])
    jacobian = eqx.filter_jit(eqx.filter_jacrev(lambda p: p.fourier(k, 0.5 * k)))(
        profile
    )
    for leaf in jax.tree.leaves(jacobian):
        # At k = 0 the value is 1 whatever the parameters; 1e-12 is the spline's rounding.
        assert jnp.all(jnp.abs(leaf[0]) < 1e-12)
        assert jnp.all(jnp.abs(leaf[1]) > 1e-5)


def test_profiles_are_vmapped_over_parameters():
    radius, n = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.6, 1.5, 4.0])
    shear = jnp.array([[0.1, 0.0], [0.0, -0.4], [0.2, 0.3]])
    ky, kx = jnp.array(np.random.default_rng(0).normal(size=(2, 4, 5)))
    batch = eqx.filter_vmap(Sersic)(n, radius, shear)
    values = eqx.filter_jit(eqx.filter_vmap(lambda p: p.fourier(ky, kx)))(batch)
    for i in range(3):
        single = Sersic(n[i], radius[i], shear[i]).fourier(ky, kx)
        np.testing.assert_allclose(values[i], single, rtol=1e-12, atol=1e-14)
    assert np.ptp(np.array(values), axis=0).max() > 0.1


@pytest.mark.parametrize("kind", ["exponential", 2.5, "bulge+disk"])
def test_single_precision_is_kept_and_enough(kind):
    profile, _ = pair(kind)
    center, sigma = jnp.array([10.3, 9.6]), jnp.array(SIGMA)
    expected = image(profile, center, (21, 21), psf_sigma=sigma)
    single = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), (profile, center, sigma)
    )
    model = image(*single[:2], (21, 21), psf_sigma=single[2])
    assert model.dtype == jnp.float32
    # The spline's argument rounds to 1e-6 of a node and the phase k y to 1e-5 radian.
    assert jnp.abs(model - expected).max() < 1e-5 * expected.max()


def test_new_parameters_do_not_recompile():
    run = eqx.filter_jit(eqx.debug.assert_max_traces(image_eagerly, max_traces=1))
    sums = []
    for n, radius in ((0.7, 1.0), (2.0, 2.0), (4.0, 3.0)):
        profile = Sersic(n, radius, (0.1, 0.0))
        sigma = jnp.float32(0.6 + 0.1 * n)
        sums.append(float(run(profile, jnp.zeros(2), (9, 9), psf_sigma=sigma).sum()))
    assert len(set(sums)) == 3


def test_as_float_keeps_precision():
    assert as_float(1).dtype == jnp.float32
    assert as_float((0.1, 0.2)).dtype == jnp.float32
    assert as_float(np.float64(0.1)).dtype == jnp.float64
    assert as_float((jnp.array(0.1), jnp.array(0.2))).dtype == jnp.float64
    assert as_float(np.arange(3)).dtype == jnp.float32
    with jax.enable_x64(False):  # without a warning, which would be an error
        assert as_float(np.float64(0.1)).dtype == jnp.float32


@pytest.mark.parametrize("shape", [(5, 4, 5), (5, 5, 4), (5, 5)])
def test_even_stamps_are_refused(shape):
    with pytest.raises(ValueError, match=r"odd sides .*got \(5, "):
        PixelMorphology(jnp.ones(shape))
    PixelMorphology(jnp.ones((5, 3, 5)))


@pytest.mark.parametrize("argument", [{"oversample": 0}, {"pad": 0.5}])
def test_grids_that_are_too_small_are_refused(argument):
    with pytest.raises(ValueError, match="`oversample` and `pad` must be 1 or more"):
        image_eagerly(PointSource(), jnp.zeros(2), (5, 5), **argument)


def test_spectrum_follows_the_magnitude_system():
    # Five magnitudes are a factor of 100; at the zero point the flux is 1.
    spectrum = Spectrum.from_magnitudes(jnp.array([27.0, 22.0, 24.5]), jnp.array(27.0))
    np.testing.assert_allclose(spectrum.flux, [1, 100, 10], rtol=1e-12)
    np.testing.assert_allclose(spectrum.colours, [5.0, -2.5], rtol=1e-12)
    with pytest.raises(ValueError, match="one value per band"):
        Spectrum(jnp.array(3.0))
