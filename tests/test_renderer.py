"""The operator against GalSim, its adjoint, and its gradients."""

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
)
from blendem.observation import Observation, Sampling, log_likelihood
from blendem.renderer import Renderer
from blendem.scene import Component, Scene, Source, render_scene
from blendem.spectrum import Spectrum

SIGMA = 0.7  # model PSF [model pixel]
SHEAR = (0.3, -0.2)
PARAMS = galsim.GSParams(
    maximum_fft_size=16384,
    folding_threshold=1e-4,
    maxk_threshold=1e-4,
    kvalue_accuracy=1e-6,
)
KINDS = ["point", "exponential", 0.5, 1.0, 2.5, 4.0, "bulge+disk"]


def pair(kind, radius, shear=SHEAR):
    """Return a profile and the same in GalSim, lengths in model pixels."""
    g = jnp.array(shear)
    if kind == "point":
        return PointSource(), galsim.DeltaFunction(gsparams=PARAMS)
    if kind == "bulge+disk":
        bulge, bulge_truth = pair(4.0, 0.6 * radius, (-0.1, 0.15))
        disk, disk_truth = pair("exponential", radius, shear)
        truth = 0.3 * bulge_truth + 0.7 * disk_truth
        return BulgeDisk(jnp.array(0.3), bulge, disk), truth
    if kind == "exponential":
        truth = galsim.Exponential(half_light_radius=radius, gsparams=PARAMS)
        profile = Exponential(jnp.array(radius), g)
    else:
        truth = galsim.Sersic(kind, half_light_radius=radius, gsparams=PARAMS)
        profile = Sersic(jnp.array(kind), jnp.array(radius), g)
    return profile, truth.shear(g1=shear[0], g2=shear[1])


def grid(ratio, degrees):
    """d(model pixel) / d(observed pixel), in (y, x)."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return ratio * np.array([[cos, sin], [-sin, cos]])


def galsim_wcs(jacobian):
    """The same map for GalSim, which has (x, y)."""
    return galsim.JacobianWCS(
        jacobian[1, 1], jacobian[1, 0], jacobian[0, 1], jacobian[0, 0]
    )


def moffat(fwhm=4.2, beta=4.765, size=61):
    """PSF image with the pixel response, and the profile without; observed pixels.

    1e-5 of the light is beyond 30 pixels.
    """
    truth = galsim.Moffat(beta=beta, fwhm=fwhm, gsparams=PARAMS)
    image = truth.drawImage(nx=size, ny=size, scale=1.0, dtype=float).array
    return image / image.sum(), truth, "auto"


def measured(image):
    """A PSF image taken for the truth, by GalSim's interpolation.

    GalSim's own steps are finer where the image is padded more; sinc would be exact, but
    a Lanczos kernel of 15 pixels is as good for a PSF of 4 pixels.
    """
    truth = galsim.InterpolatedImage(
        galsim.Image(image, scale=1.0),
        x_interpolant="lanczos15",
        k_interpolant="quintic",
        pad_factor=6,
        flux=1.0,
        gsparams=PARAMS,
    )
    return image, truth, "no_pixel"


def observe(
    image, shape, jacobian=None, offset=(0.0, 0.0), band_index=(0,), oversampling=1
):
    """Observation without data, with one PSF in all bands, in double precision."""
    same = jacobian is None
    return Observation(
        image=jnp.zeros((len(band_index), *shape)),
        variance=jnp.ones((len(band_index), *shape)),
        psf=jnp.stack([jnp.asarray(image)] * len(band_index)),
        jacobian=jnp.eye(2) if same else jnp.asarray(jacobian),
        offset=jnp.asarray(offset, float),
        band_index=band_index,
        same_grid=same,
        sampling=Sampling() if same else Sampling.of(jacobian, oversampling),
    )


def draw(galaxy, psf, method, shape, center, jacobian):
    """Noise-free observed image by GalSim; `center` in observed pixels (y, x)."""
    wcs = galsim_wcs(jacobian)
    # Lengths of the PSF are observed pixels: take it to the world of the model.
    psf = psf.transform(wcs.dudx, wcs.dudy, wcs.dvdx, wcs.dvdy)
    psf = psf / abs(np.linalg.det(jacobian))
    middle = (np.array(shape) - 1) / 2
    offset = np.array(center) - middle
    drawn = galsim.Convolve(galaxy, psf, gsparams=PARAMS).drawImage(
        nx=shape[1],
        ny=shape[0],
        wcs=wcs,
        method=method,
        offset=(offset[1], offset[0]),
        dtype=float,
    )
    return drawn.array


def scene_of(profile, center):
    flux = Spectrum(jnp.array([1.0]))
    return Scene((Source(jnp.asarray(center), (Component(profile, flux),)),))


@eqx.filter_jit
def render(scene, observation):
    renderer = Renderer.of(observation, 41, jnp.array(SIGMA))
    return render_scene(scene, renderer)[0]


def check(model, expected, peak=1e-3, flux=1e-4):
    assert expected.sum() > 0.5
    assert abs(model.sum() - expected.sum()) < flux
    assert np.abs(model - expected).max() < peak * expected.max()


# ------------------------------------------------------------------ closed-form profiles

# Model pixels per observed pixel, rotation, radius [model pixel]: the same grid; an
# observation of 0.03" for a model of 0.168"; and the other way round.
GRIDS = {
    "same": (None, 0, 3.0),
    "fine": (0.03 / 0.168, 17, 1.2),
    "coarse": (0.168 / 0.03, 17, 12.0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRIDS)
def test_profiles_match_galsim_with_a_moffat(kind, name):
    ratio, degrees, radius = GRIDS[name]
    image, psf, method = moffat()
    profile, galaxy = pair(kind, fitting_radius(kind, ratio, radius))
    check_profile(profile, galaxy, image, psf, method, ratio, degrees)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["same", "coarse"])
def test_profiles_match_galsim_with_an_hsc_psf(kind, name, data_dir):
    ratio, degrees, radius = GRIDS[name]
    path = sorted((data_dir / "hsc_blends").glob("*.npz"))[0]
    with np.load(path) as file:
        image = file["psfs"][2 if name == "same" else 3]
    image, psf, method = measured(image / image.sum())
    profile, galaxy = pair(kind, fitting_radius(kind, ratio, radius))
    check_profile(profile, galaxy, image, psf, method, ratio, degrees)


def fitting_radius(kind, ratio, radius):
    """A steep profile that is small enough for the FFT grid.

    n = 4 has 2 % of its light beyond 10 half-light radii. The FFT grid is the image plus
    half a stamp and half a PSF, and light beyond it comes back: 1e-3 of the flux for 3
    observed pixels, below 1e-4 for one.
    """
    if kind == 4.0:
        return ratio or 1.0
    return radius / 2 if kind in (2.5, "bulge+disk") else radius


def check_profile(profile, galaxy, image, psf, method, ratio, degrees):
    shape, at = (79, 83), np.array([39.3, 41.6])
    jacobian = None if ratio is None else grid(ratio, degrees)
    full = np.eye(2) if ratio is None else jacobian
    offset = np.array([2.0, -3.0])
    observation = observe(image, shape, jacobian, offset)

    model = render(scene_of(profile, full @ at + offset), observation)

    expected = draw(galaxy, psf, method, shape, at, full)
    check(np.asarray(model), expected)


# ------------------------------------------------------------------------- free pixels

STAMP_GRIDS = {
    "same": (None, 0, 3.0, 61),
    "lsst": (0.2 / 0.168, 17, 3.0, 61),
    "coarse": (0.168 / 0.03, 17, 8.0, 151),
    "aligned": (0.168 / 0.03, 0, 8.0, 151),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STAMP_GRIDS)
def test_stamps_match_galsim(kind, name):
    """The stamp is cut: n = 4 loses light beyond it, so the truth is drawn of all light."""
    ratio, degrees, radius, stamp = STAMP_GRIDS[name]
    image, psf, method = moffat(size=41)
    _, galaxy = pair(kind, radius)
    gaussian = galsim.Gaussian(sigma=SIGMA, gsparams=PARAMS)
    pixels = galsim.Convolve(galaxy, gaussian).drawImage(
        nx=stamp, ny=stamp, scale=1.0, method="no_pixel", dtype=float
    )
    jacobian = None if ratio is None else grid(ratio, degrees)
    full = np.eye(2) if ratio is None else jacobian
    shape, at = (79, 83), np.array([39.3, 41.6])
    renderer = Renderer.of(observe(image, shape, jacobian), stamp, jnp.array(SIGMA))

    model = np.asarray(
        eqx.filter_jit(renderer.render_stamps)(
            jnp.asarray(pixels.array)[None], jnp.asarray(full @ at)
        )
    )[0]

    expected = draw(galaxy, psf, method, shape, at, full)
    inside = pixels.array.sum()
    # The operator keeps the flux of the stamp.
    assert abs(model.sum() - inside) < 1e-4 * inside
    if kind in (2.5, 4.0):
        # 1-5 % of the light is beyond the stamp and missing from the model.
        check(model, expected, peak=1e-2, flux=0.05)
    elif kind == "bulge+disk":
        check(model, expected, flux=5e-3)
    elif kind == "point":
        # The model PSF of 0.7 pixel has 6e-5 of its power at 2 pi: sampling folds it in.
        check(model, expected, peak=2e-3)
    else:
        check(model, expected)


@pytest.mark.parametrize("degrees", [0, 17])
def test_frequencies_that_are_left_out_do_not_matter(degrees, rng):
    """An HSC-like grid holds the lowest tenth of what a model for HST does."""
    jacobian = grid(0.168 / 0.03, degrees)
    observation = observe(moffat(size=41)[0], (23, 19), jacobian, (3.0, -4.0))
    whole = eqx.tree_at(lambda o: o.image, observation, observation.image)
    object.__setattr__(whole, "sampling", Sampling())
    few, all_of_them = (
        Renderer.of(o, 101, jnp.array(SIGMA)) for o in (observation, whole)
    )
    assert few.n_low < 0.35 * all_of_them.n_low
    stamp, center = jnp.asarray(rng.random((1, 101, 101))), jnp.array([60.3, 48.9])
    found, expected = (
        np.asarray(r.render_stamps(stamp, center)) for r in (few, all_of_them)
    )
    # The kernel of interpolation is right to 1e-5 of the peak.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * expected.max())


@pytest.mark.parametrize(
    ("ratio", "degrees"), [(None, 0), (0.168 / 0.05, 0), (0.168 / 0.05, 17)]
)
def test_slopes_are_derivatives(ratio, degrees, rng):
    """On the grid of the model, on one that only has another scale, and on a turned one."""
    jacobian = None if ratio is None else grid(ratio, degrees)
    observation = observe(moffat(size=15)[0], (13, 11), jacobian)
    renderer = Renderer.of(observation, 21, jnp.array(SIGMA))
    stamps = np.outer(np.hanning(21), np.hanning(21)) * rng.random((3, 1, 21, 21))
    transform = renderer.stamp_transform(jnp.asarray(stamps))[:, 0]
    seen = renderer.see(transform, renderer.kernel[0])
    center = np.array([6.3, 5.9]) @ (np.eye(2) if ratio is None else jacobian.T)
    render = jax.jit(lambda c: renderer.render_columns(seen, c))
    pixels = jnp.array([50, 3, 71])
    value, slopes = jax.jit(lambda c: renderer.render_slopes(seen, c, pixels))(center)
    np.testing.assert_allclose(value, render(center)[pixels], rtol=1e-9, atol=1e-12)
    for axis, step in enumerate(1e-4 * np.eye(2)):
        change = (render(center + step) - render(center - step)) / 2e-4
        size = np.abs(change).max()
        np.testing.assert_allclose(slopes[axis], change[pixels], atol=1e-6 * size)
    assert renderer.separable == (degrees == 0)


@pytest.mark.parametrize("kind", ["exponential", 1.0])
def test_an_undersampled_image_with_an_oversampled_psf(kind):
    """A PSF of 1.1 pixels FWHM, known on a grid that is four times finer."""
    fine, ratio, stamp = 4, 3.0, 151
    jacobian, shape, at = grid(ratio, 0), (31, 33), np.array([15.2, 16.4])
    psf = galsim.Moffat(beta=4.765, fwhm=1.1, gsparams=PARAMS)
    pixel = galsim.Convolve(psf, galsim.Pixel(1.0), gsparams=PARAMS)
    image = pixel.drawImage(
        nx=125, ny=125, scale=1 / fine, method="no_pixel", dtype=float
    ).array
    observation = observe(image / image.sum(), shape, jacobian, oversampling=fine)
    profile, galaxy = pair(kind, 6.0)
    expected = draw(galaxy, psf, "auto", shape, at, jacobian)

    check(np.asarray(render(scene_of(profile, jacobian @ at), observation)), expected)

    gaussian = galsim.Gaussian(sigma=SIGMA, gsparams=PARAMS)
    pixels = galsim.Convolve(galaxy, gaussian).drawImage(
        nx=stamp, ny=stamp, scale=1.0, method="no_pixel", dtype=float
    )
    renderer = Renderer.of(observation, stamp, jnp.array(SIGMA))
    stamps = jnp.asarray(pixels.array)[None]
    model = renderer.render_stamps(stamps, jnp.asarray(jacobian @ at))
    check(np.asarray(model)[0], expected)
    # The same PSF without the finer grid is aliased.
    coarse = image[2::fine, 2::fine]
    aliased = observe(coarse / coarse.sum(), shape, jacobian)
    renderer = Renderer.of(aliased, stamp, jnp.array(SIGMA))
    wrong = np.asarray(renderer.render_stamps(stamps, jnp.asarray(jacobian @ at)))[0]
    assert np.abs(wrong - expected).max() > 2e-3 * expected.max()


def test_an_oversampled_psf_needs_a_finer_model():
    with pytest.raises(ValueError, match="finer model grid"):
        image, _, _ = moffat(size=21)
        Observation(
            jnp.zeros((1, 9, 9)),
            jnp.ones((1, 9, 9)),
            jnp.asarray(image)[None],
            jnp.eye(2),
            jnp.zeros(2),
            (0,),
            True,
            Sampling(oversampling=2),
        )


# ------------------------------------------------------------- adjoint, gradients, masks

TURNS = [(None, 0), (0.2 / 0.168, 17), (0.2 / 0.168, 0)]


@pytest.mark.parametrize(("ratio", "degrees"), TURNS)
def test_adjoint_of_stamps(ratio, degrees, rng):
    jacobian = None if ratio is None else grid(ratio, degrees)
    image, _, _ = moffat(size=21)
    observation = observe(image, (31, 27), jacobian, band_index=(0, 1))
    renderer = Renderer.of(observation, 23, jnp.array(SIGMA))
    center = jnp.array([12.3, 14.8])
    u = jnp.asarray(rng.normal(size=(2, 23, 23)))
    w = jnp.asarray(rng.normal(size=(2, 31, 27)))

    def forward(u):
        return renderer.render_stamps(u, center)

    image = jax.jit(forward)(u)
    (back,) = jax.jit(jax.linear_transpose(forward, u))(w)

    # Two random vectors are nearly orthogonal: compare with their lengths.
    scale = jnp.linalg.norm(image) * jnp.linalg.norm(w)
    assert jnp.abs(jnp.vdot(image, w)) > 1e-4 * scale
    assert jnp.abs(jnp.vdot(image, w) - jnp.vdot(u, back)) < 1e-12 * scale
    # An adjoint of the same A, but not of a symmetric one: a column by hand.
    impulse = jnp.zeros_like(u).at[1, 9, 14].set(1.0)
    np.testing.assert_allclose(jnp.vdot(forward(impulse), w), back[1, 9, 14], rtol=1e-9)


def two_sources(shape=(21, 21)):
    """A scene with all morphologies on two bands, centres away from pixels."""
    sersic = Sersic(jnp.array(1.7), jnp.array(2.0), jnp.array(SHEAR))
    mixture, _ = pair("bulge+disk", 2.5)
    disk = Exponential(jnp.array(1.5), jnp.array([0.1, 0.2]))
    pixels = np.random.default_rng(5).normal(size=(2, 9, 9)) + 1
    flux = [Spectrum(jnp.array(f)) for f in ((3.0, 5.0), (4.0, 2.0), (1.0, 2.5))]
    one = Spectrum(jnp.array([1.0, 1.0]))
    return Scene(
        (
            Source(
                jnp.array([9.3, 10.8]),
                (Component(sersic, flux[0]), Component(PointSource(), flux[1])),
            ),
            Source(
                jnp.array([13.1, 8.4]),
                (Component(mixture, flux[2]), Component(disk, flux[0])),
            ),
            Source(
                jnp.array([6.2, 12.7]),
                (Component(PixelMorphology(jnp.asarray(pixels)), one),),
            ),
        )
    )


def noisy(scene, jacobian, rng, shape=(21, 21)):
    """An observation of a scene, with one masked block of NaN."""
    image, _, _ = moffat(size=15)
    empty = observe(image, shape, jacobian, band_index=(0, 1))
    renderer = Renderer.of(empty, 9, jnp.array(SIGMA))
    clean = np.asarray(eqx.filter_jit(render_scene)(scene, renderer))
    data = clean + 0.3 * rng.normal(size=clean.shape)
    variance = 0.3 + rng.random(clean.shape)
    variance[0, 7:10, 8:12] = np.inf
    return (
        eqx.tree_at(
            lambda o: (o.image, o.variance),
            empty,
            (jnp.asarray(data), jnp.asarray(variance)),
        ),
        renderer,
    )


@pytest.mark.parametrize(("ratio", "degrees"), TURNS)
def test_likelihood_gradients_match_finite_differences(ratio, degrees, rng):
    scene = two_sources()
    jacobian = None if ratio is None else grid(ratio, degrees)
    observation, renderer = noisy(scene, jacobian, rng)
    flat, unflatten = ravel_pytree(scene)

    def loss(flat):
        return log_likelihood(render_scene(unflatten(flat), renderer), observation)

    gradient = jax.jit(jax.grad(loss))(flat)
    eps = 1e-5
    # All of the profiles, centres and fluxes; a third of the 162 free pixels.
    chosen = np.r_[0 : flat.size - 162, flat.size - 162 : flat.size : 3]
    run = jax.jit(lambda steps: jax.lax.map(lambda d: loss(flat + d), steps))
    steps = eps * jnp.eye(flat.size)[chosen]
    expected = (run(steps) - run(-steps)) / (2 * eps)

    assert jnp.all(jnp.abs(expected) > 1e-6)  # every parameter matters
    # Rounding: the likelihood is 1e3, so 1e3 * 1e-16 / 1e-5 = 1e-8, on each side.
    np.testing.assert_allclose(gradient[chosen], expected, rtol=1e-5, atol=2e-6)


def test_a_nan_under_the_mask_reaches_nothing(rng):
    scene = two_sources()
    observation, renderer = noisy(scene, None, rng)
    flat, unflatten = ravel_pytree(scene)

    @jax.jit
    def value(flat, image):
        seen = eqx.tree_at(lambda o: o.image, observation, image)
        return log_likelihood(render_scene(unflatten(flat), renderer), seen)

    masked = np.isinf(observation.variance)
    with jax.debug_nans(False):  # the NaN below is the input's
        hidden = jnp.where(masked, jnp.nan, observation.image)
        seen = value(flat, hidden), *jax.grad(value, (0, 1))(flat, hidden)
    clean = (
        value(flat, observation.image),
        *jax.grad(value, (0, 1))(flat, observation.image),
    )
    for a, b in zip(seen, clean, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (np.asarray(seen[2])[masked] == 0).all()
    assert (np.asarray(seen[2])[~masked] != 0).all()
