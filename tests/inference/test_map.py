"""Profile fits against GalSim, pixel fits against dense algebra."""

from functools import partial

import equinox as eqx
import galsim
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from blendem.blend import Blend
from blendem.inference.amplitude import Amplitudes
from blendem.inference.map import (
    MapSettings,
    PixelSettings,
    fit_pixels,
    fit_profiles,
)
from blendem.inference.posterior import BlendStatistics, posterior
from blendem.inference.statistics import STAR_SPREAD
from blendem.observation import Observation
from blendem.prior.gaussian import Basis, GaussianPrior
from blendem.renderer import Renderer

SCALE = 0.168  # [arcsec / pixel]
PSF_SIGMA = 0.7
PARAMS = galsim.GSParams(
    maximum_fft_size=16384, folding_threshold=1e-4, maxk_threshold=1e-4
)
SIZE = 48
# Centre (y, x), radius [pixel], shear, n; the last is a star.
SOURCES = (
    ((20.3, 18.6), 3.0, (0.25, -0.1), 1.0),
    ((27.2, 26.9), 2.0, (-0.1, 0.2), 2.5),
    ((17.8, 28.4), 0.0, (0.0, 0.0), 1.0),
)
FLUX = np.array([[40.0, 100.0], [30.0, 60.0], [50.0, 30.0]])
SETTINGS = MapSettings(n_bands=2, pixel_scale=SCALE, steps=300, stamp=31)


def observe(size, ratio=1.0, sigma=1.6, band_index=(0, 1), noise=0.01):
    """Noise-free image of the scene; pixels `ratio` model pixels wide, a Gaussian PSF."""
    psf = galsim.Gaussian(sigma=sigma * ratio, gsparams=PARAMS)
    middle = (size - 1) / 2
    # Both grids are centred on the same point.
    model_middle = (SIZE - 1) / 2
    image = np.zeros((len(band_index), size, size))
    for (center, radius, (g1, g2), n), flux in zip(SOURCES, FLUX, strict=True):
        galaxy = psf
        if radius > 0:
            shape = galsim.Sersic(n, half_light_radius=radius, gsparams=PARAMS)
            galaxy = galsim.Convolve(shape.shear(g1=g1, g2=g2), psf, gsparams=PARAMS)
        y, x = (np.array(center) - model_middle) / ratio
        drawn = galaxy.drawImage(
            nx=size, ny=size, scale=ratio, offset=(x, y), dtype=float
        ).array
        image += flux[list(band_index), None, None] * drawn
    stamp = psf.drawImage(nx=31, ny=31, scale=ratio, dtype=float).array
    return Observation(
        image=jnp.asarray(image),
        variance=jnp.full(image.shape, noise**2),
        psf=jnp.asarray(np.stack([stamp / stamp.sum()] * len(band_index))),
        jacobian=jnp.eye(2) * ratio,
        offset=jnp.full(2, model_middle - ratio * middle),
        band_index=band_index,
        same_grid=ratio == 1.0,
    )


def blend_of(observations, sources=3):
    """The scene with catalog positions that are 0.2 pixel off, and a rough first guess."""
    truth = np.array([s[0] for s in SOURCES])
    rng = np.random.default_rng(3)
    catalog = truth + 0.2 * rng.choice([-1, 1], truth.shape)
    star = np.array([s[1] == 0 for s in SOURCES])
    n = len(SOURCES)
    centers = np.broadcast_to(catalog[0], (sources, 2)).copy()
    centers[:n] = catalog
    blend = Blend(
        tuple(observations),
        jnp.asarray(centers),
        jnp.asarray(np.pad(star, (0, sources - n))),
        jnp.arange(sources) < n,
    )
    flux = np.zeros((sources, 2, 2))
    flux[:n, 0] = 0.5 * FLUX * ~star[:, None]
    flux[:n, 1] = np.where(star[:, None], 1.2, 0.3) * FLUX
    scale = np.ones(sources)
    scale[:n] = FLUX[:, 1]
    init = Amplitudes(
        jnp.asarray(scale),
        jnp.asarray(flux),
        jnp.full((sources, 2), 0.1),
        blend.centers,
        jnp.zeros((1, 2)),
        *jnp.zeros((2, len(blend.centers), 0)),
    )
    return blend, init


@eqx.filter_jit
def fit(blend, init, settings):
    return fit_profiles(blend, init, jnp.asarray(PSF_SIGMA), settings)


@pytest.fixture(scope="module")
def single():
    blend, init = blend_of([observe(SIZE)])
    return blend, init, fit(blend, init, SETTINGS)


def assert_recovered(result):
    n = len(SOURCES)
    np.testing.assert_allclose(result.flux[:n], FLUX, rtol=0.01)
    centers = np.array([s[0] for s in SOURCES])
    np.testing.assert_allclose(result.center[:n], centers, atol=0.05)
    for k, (_, radius, shear, index) in enumerate(SOURCES[:2]):
        np.testing.assert_allclose(result.half_light_radius[k], radius, rtol=0.03)
        np.testing.assert_allclose(result.n[k], index, rtol=0.10)
        np.testing.assert_allclose(result.ellipticity[k], shear, atol=0.02)


def test_a_galsim_scene_is_recovered(single):
    """S/N of 400 and more: the priors move parameters by far less than the tolerances."""
    _, _, (result, losses) = single
    assert_recovered(result)
    assert bool(result.converged)
    assert losses[-1] < losses[0]
    assert result.n_data == 2 * SIZE**2
    # No noise was added, so what is left of chi2 is the model's error.
    assert result.chi2 < 0.05 * result.n_data


def test_two_observations_on_different_grids_agree():
    coarse = observe(32, ratio=1.5, sigma=1.2, band_index=(1,))
    blend, init = blend_of([observe(SIZE, band_index=(0,)), coarse])
    assert_recovered(fit(blend, init, SETTINGS)[0])


def test_masked_pixels_are_ignored(single):
    blend, init, _ = single
    o = blend.observations[0]
    variance = o.variance.at[:, 30:33, 10:13].set(jnp.inf)
    results = []
    for value in (0.0, 1e6, jnp.nan):
        image = o.image.at[:, 30:33, 10:13].set(value)
        other = eqx.tree_at(
            lambda b: (b.observations[0].image, b.observations[0].variance),
            blend,
            (image, variance),
        )
        results.append(fit(other, init, SETTINGS)[0])
    jax.tree.map(np.testing.assert_array_equal, results[0], results[1])
    jax.tree.map(np.testing.assert_array_equal, results[0], results[2])
    assert results[0].n_data == 2 * (SIZE**2 - 9)


def test_padding_changes_nothing(single):
    blend, init = blend_of(single[0].observations, sources=5)
    padded, _ = fit(blend, init, SETTINGS)
    expected = single[2][0]
    for name in ("flux", "half_light_radius", "ellipticity", "n", "center"):
        # Sums over more terms round differently, and 300 steps amplify that.
        np.testing.assert_allclose(
            getattr(padded, name)[:3], getattr(expected, name), rtol=1e-6, atol=1e-8
        )
    np.testing.assert_allclose(padded.loss, expected.loss, rtol=1e-9)


def test_a_batch_equals_its_blends_and_new_values_do_not_recompile(single):
    blend, init, (expected, _) = single
    counted = eqx.debug.assert_max_traces(fit_profiles, max_traces=1)
    program = eqx.filter_jit(
        jax.vmap(partial(counted, psf_sigma=jnp.asarray(PSF_SIGMA), settings=SETTINGS))
    )
    brighter = eqx.tree_at(
        lambda b: b.observations[0].image, blend, 1.1 * blend.observations[0].image
    )
    for order in ((0, 1), (1, 0)):
        pair = [(blend, brighter)[i] for i in order]
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *pair)
        result, _ = program(stacked, jax.tree.map(lambda a: jnp.stack([a, a]), init))
        place = order.index(0)
        np.testing.assert_allclose(result.flux[place], expected.flux, rtol=1e-6)
        np.testing.assert_allclose(result.n[place], expected.n, rtol=1e-6)
        np.testing.assert_allclose(
            result.flux[1 - place], 1.1 * expected.flux, rtol=2e-3
        )


@pytest.mark.parametrize("kind", ["exponential", "bulge_disk"])
def test_other_profiles_fit_a_disk(kind):
    """With the disk and the star only; the free bulge of a pure disk comes out small."""
    blend, init = blend_of([observe(SIZE)])
    settings = SETTINGS._replace(profile=kind)
    result, _ = fit(blend, init, settings)
    # The n = 2.5 neighbour cannot be fitted exactly and disturbs the disk's wings.
    np.testing.assert_allclose(result.half_light_radius[0], 3.0, rtol=0.1)
    np.testing.assert_allclose(result.flux[0], FLUX[0], rtol=0.1)
    if kind == "bulge_disk":
        assert result.n[0] < 0.1 < result.n[1]


def test_an_unknown_profile_is_named():
    blend, init = blend_of([observe(SIZE)])
    with pytest.raises(ValueError, match="moffat"):
        fit_profiles(blend, init, jnp.asarray(0.7), SETTINGS._replace(profile="moffat"))


# Pixels. A tiny scene: 2 galaxies, 1 star, 2 bands, 12 x 12 pixels, stamps of 7.
STAMP, TINY = 7, 12


@pytest.fixture
def tiny(rng):
    r2 = np.sum(np.mgrid[-3:4, -3:4] ** 2, axis=0)
    mean = np.exp(-0.5 * r2 / 1.3**2)
    mean = np.stack([0.7 * mean, mean]) / mean.sum()
    modes = 0.3 * mean * rng.normal(size=(3, 2, STAMP, STAMP))
    basis = Basis(
        mean=jnp.asarray(mean),
        modes=jnp.asarray(modes),
        eigenvalues=jnp.sum(jnp.asarray(modes) ** 2, axis=(1, 2, 3)),
        residual=jnp.asarray(0.01),
        psf_sigma=jnp.asarray(PSF_SIGMA),
        pixel_scale=jnp.asarray(SCALE),
        bands=("g", "i"),
    )
    lower = np.tril(0.3 * rng.normal(size=(3, 3))) + np.eye(3)
    prior = GaussianPrior(basis, jnp.asarray(rng.normal(size=3)), jnp.asarray(lower))
    psf = np.exp(-0.5 * r2 / 1.2**2)
    variance = rng.uniform(0.5, 2.0, (2, TINY, TINY))
    variance[1, 3, 4] = np.inf
    observation = Observation(
        image=jnp.asarray(rng.normal(size=(2, TINY, TINY)) + 1.0),
        variance=jnp.asarray(variance),
        psf=jnp.asarray(np.stack([psf, psf]) / psf.sum()),
        jacobian=jnp.eye(2),
        offset=jnp.zeros(2),
        band_index=(0, 1),
        same_grid=True,
    )
    blend = Blend(
        (observation,),
        jnp.array([[5.0, 4.3], [6.2, 7.1], [3.1, 8.0], [5.0, 4.3]]),
        jnp.array([False, False, True, False]),
        jnp.array([True, True, True, False]),
    )
    init = Amplitudes(
        jnp.array([20.0, 30.0, 10.0, 1.0]),
        jnp.zeros((4, 2, 2)),
        jnp.ones((4, 2)),
        blend.centers,
        jnp.zeros((1, 2)),
        *jnp.zeros((2, len(blend.centers), 0)),
    )
    return blend, init, prior


def design(blend, init, basis):
    """Matrices A_k of the three sources in units of their scale: every pixel, or flux."""
    o, n = blend.observations[0], 2 * STAMP**2
    renderer = Renderer.of(o, STAMP, basis.psf_sigma)
    unit = jnp.eye(n).reshape(n, 2, STAMP, STAMP)
    render = jax.vmap(renderer.render_stamps, (0, None))
    galaxies = [np.asarray(render(unit, c)).reshape(n, -1).T for c in blend.centers[:2]]
    # A star is the observed PSF, moved.
    phase = renderer.phase(blend.centers[2])[None]
    point = np.asarray(renderer.render_fourier(renderer.psf_fourier * phase))
    star = np.zeros((2, 2, TINY, TINY))
    star[0, 0], star[1, 1] = point
    columns = [*galaxies, star.reshape(2, -1).T]
    return [float(s) * c for s, c in zip(init.scale[:3], columns, strict=True)]


def dense_images(blend, init, prior, tau, sky_sigma):
    """The same posterior mean with every matrix written out."""
    basis, o = prior.basis, blend.observations[0]
    n = 2 * STAMP**2
    modes = np.asarray(prior.cholesky).T @ np.asarray(basis.modes).reshape(3, n)
    mean = np.asarray(basis.decode(prior.mean)).ravel()
    square = np.asarray(basis.mean).ravel() ** 2
    P = modes.T @ modes + tau**2 * float(basis.residual) * np.diag(
        square / square.sum()
    )
    P = scipy.linalg.block_diag(P, P, STAR_SPREAD**2 * np.eye(2))
    A = np.concatenate(design(blend, init, basis), axis=1)
    m = np.concatenate([mean, mean, np.ones(2)])
    keep = np.isfinite(np.asarray(o.variance).ravel())
    S = np.diag(np.asarray(o.variance).ravel()[keep])
    sky = np.zeros((len(keep), 2))
    for band in range(2):
        w = np.asarray(o.weight[band])
        sd = sky_sigma * np.sqrt((w > 0).sum() / w.sum())
        sky[band * TINY**2 : (band + 1) * TINY**2, band] = sd
    C = S + A[keep] @ P @ A[keep].T + sky[keep] @ sky[keep].T
    v = np.linalg.solve(C, np.asarray(o.image).ravel()[keep] - A[keep] @ m)
    x = m + P @ A[keep].T @ v
    rendered = A @ x + sky @ (sky[keep].T @ v)
    images = [float(init.scale[k]) * x[k * n : (k + 1) * n] for k in range(2)]
    star = float(init.scale[2]) * x[-2:]
    return np.stack(images).reshape(2, 2, STAMP, STAMP), star, rendered


@pytest.mark.parametrize("sky_sigma", [0.0, 0.5])
def test_pixels_equal_a_dense_solve(tiny, sky_sigma):
    blend, init, prior = tiny
    result = fit_pixels(
        blend, init, prior, jnp.asarray(0.7), PixelSettings(200, sky_sigma)
    )
    images, star, rendered = dense_images(blend, init, prior, 0.7, sky_sigma)
    # Conjugate gradients end at rounding, here about 1e-12 of the right-hand side. The
    # star's kernel is damped by `KERNEL_FLOOR`, which the dense truth does without.
    assert result.residuals[-1] < 1e-9
    np.testing.assert_allclose(result.images[:2], images, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(result.star_flux[2], star, rtol=1e-3)
    np.testing.assert_allclose(result.rendered[0].ravel(), rendered, atol=1e-3)
    assert not np.any(result.images[3])
    np.testing.assert_allclose(
        np.sum(result.images[2], axis=(-2, -1)), star, rtol=1e-3
    )  # what a stamp of 7 pixels holds


def test_without_a_remainder_pixels_equal_the_latent_posterior(tiny):
    blend, init, prior = tiny
    basis, o = prior.basis, blend.observations[0]
    A = design(blend, init, basis)
    modes = np.asarray(basis.modes).reshape(3, -1).T
    mean = np.asarray(basis.mean).ravel()
    columns = [A[0] @ modes, A[1] @ modes]
    # `posterior` has a star's fluxes as the first of its coordinates, prior N(0, 1).
    star = np.zeros((len(A[2]), 3))
    star[:, :2] = STAR_SPREAD * A[2]
    matrix = np.concatenate([*columns, star], axis=1)
    weight = np.asarray(o.weight).ravel()
    r = np.asarray(o.image).ravel() - (A[0] + A[1]) @ mean - A[2] @ np.ones(2)
    statistics = BlendStatistics(
        H=matrix.T @ (weight[:, None] * matrix),
        b=matrix.T @ (weight * r),
        r2=float(r @ (weight * r)),
        log_norm=0.0,
        n_data=float(np.sum(weight > 0)),
        is_star=np.array([False, False, True]),
        n_modes=3,
    )
    w = posterior(statistics, prior).mean
    expected = np.asarray(basis.decode(jnp.asarray(w[:6].reshape(2, 3))))
    expected = expected * np.asarray(init.scale)[:2, None, None, None]
    result = fit_pixels(blend, init, prior, jnp.asarray(0.0), PixelSettings(100))
    # The star's kernel is damped by `KERNEL_FLOOR`, the truth here is not.
    np.testing.assert_allclose(result.images[:2], expected, rtol=1e-4, atol=1e-4)
    star_flux = float(init.scale[2]) * (1 + STAR_SPREAD * w[6:8])
    np.testing.assert_allclose(result.star_flux[2], star_flux, rtol=1e-3)
