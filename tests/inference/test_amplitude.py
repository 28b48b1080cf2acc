"""Template fluxes and centres against scipy and known sources."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls

from blendem.blend import Blend
from blendem.inference.amplitude import fit_amplitudes, nonnegative_least_squares
from blendem.observation import Observation
from blendem.psf import frequencies, gaussian_transform
from blendem.renderer import Renderer

MODEL, PSF, STAMP = jnp.array(0.7), 1.5, 15


def test_nonnegative_least_squares_is_that_of_scipy(rng):
    for _ in range(5):
        A, y = rng.normal(size=(20, 6)), rng.normal(size=20)
        expected = nnls(A, y)[0]
        assert (expected == 0).any()  # a bound is active
        result = nonnegative_least_squares(jnp.asarray(A.T @ A), jnp.asarray(A.T @ y))
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_coordinates_without_data_stay_zero():
    gram, rhs = jnp.diag(jnp.array([2.0, 0.0])), jnp.array([4.0, 0.0])
    np.testing.assert_allclose(nonnegative_least_squares(gram, rhs), [2.0, 0.0])


def gaussian(side, center, sigma=PSF):
    y, x = np.mgrid[:side, :side]
    image = np.exp(-0.5 * ((y - center[0]) ** 2 + (x - center[1]) ** 2) / sigma**2)
    return image / (2 * np.pi * sigma**2)


def fit(truth, fluxes, catalog, iterations, sigma=0.1, centroid_prior=1.0):
    """Stars of known flux in two bands, seen through a Gaussian PSF; no noise added."""
    side = 25
    image = np.stack(
        [
            sum(f * gaussian(side, c) for f, c in zip(band, truth, strict=True))
            for band in fluxes
        ]
    )
    psf = np.stack([gaussian(17, (8, 8))] * 2)
    observation = Observation(
        jnp.asarray(image),
        jnp.full(image.shape, sigma**2),
        jnp.asarray(psf / psf.sum((1, 2), keepdims=True)),
        jnp.eye(2),
        jnp.zeros(2),
        (0, 1),
        True,
    )
    n = len(truth)
    blend = Blend(
        (observation,), jnp.asarray(catalog), np.ones(n, bool), np.ones(n, bool)
    )
    renderer = Renderer.of(observation, STAMP, MODEL)
    ky, kx = frequencies(renderer.n_stamp, jnp.float64)
    point = gaussian_transform(ky, kx, MODEL)[None].astype(complex)
    wide = gaussian_transform(ky, kx, jnp.array(1.5))[None].astype(complex)
    templates = jnp.stack([jnp.repeat(t, 2, axis=0) for t in (wide, point)])
    run = jax.jit(
        lambda b: fit_amplitudes(
            b,
            [renderer],
            [templates],
            2,
            reference=1,
            iterations=iterations,
            centroid_prior=centroid_prior,
        )
    )
    return run(blend)


def test_overlapping_stars_get_their_fluxes():
    centers = np.array([[11.3, 10.6], [12.1, 13.4]])
    fluxes = np.array([[50.0, 20.0], [80.0, 10.0]])
    result = fit(centers, fluxes, centers, 0)
    # A damped kernel and a cut PSF image: 1e-3 of the flux.
    np.testing.assert_allclose(result.flux[:, 1], fluxes.T, rtol=2e-3)
    np.testing.assert_array_equal(result.flux[:, 0], 0.0)  # stars are not extended
    np.testing.assert_allclose(result.scale, fluxes[1], rtol=2e-3)
    # Noise of an isolated point source: sigma sqrt(4 pi) PSF sigma.
    error = 0.1 * np.sqrt(4 * np.pi) * PSF
    np.testing.assert_allclose(result.flux_error, error, rtol=2e-3)


def test_amplitude_is_bounded_from_below():
    centers = np.array([[12.0, 12.0]])
    result = fit(centers, np.array([[0.0], [1e-3]]), centers, 0)
    expected = 2 * 0.1 * np.sqrt(4 * np.pi) * PSF
    np.testing.assert_allclose(result.scale, expected, rtol=2e-3)


def test_bright_isolated_star_is_recentred():
    truth = np.array([[12.3, 11.8]])
    result = fit(truth, np.array([[100.0], [200.0]]), truth - [[0.3, -0.2]], 4)
    np.testing.assert_allclose(result.centers, truth, atol=0.02)


def test_centre_cannot_leave_three_prior_sigma():
    truth = np.array([[12.6, 12.0]])
    catalog = np.array([[12.0, 12.0]])
    result = fit(
        truth, np.array([[1e3], [1e3]]), catalog, 4, sigma=0.01, centroid_prior=0.1
    )
    np.testing.assert_allclose(result.centers, [[12.3, 12.0]], atol=1e-3)
