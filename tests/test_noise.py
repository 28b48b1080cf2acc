"""Whitening of correlated noise against dense matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

from blendem.noise import (
    Whitening,
    draw_noise,
    estimate_correlation,
    neighbour_weights,
    whiten_rows,
)
from blendem.observation import Observation, log_likelihood


def drizzled(width=1.4, reach=3):
    """Correlation of white noise that was averaged over squares of `width` pixels."""
    lag = np.abs(np.arange(-reach, reach + 1))
    line = np.maximum(1 - lag / width, 0.0)
    return np.outer(line, line)


def covariance(correlation, sigma):
    """Dense covariance of all pixels of one band."""
    height, width = sigma.shape
    y, x = (c.ravel() for c in np.mgrid[:height, :width])
    reach = len(correlation) // 2
    dy, dx = y[:, None] - y[None], x[:, None] - x[None]
    near = (np.abs(dy) <= reach) & (np.abs(dx) <= reach)
    rho = np.where(
        near,
        correlation[np.where(near, dy, 0) + reach, np.where(near, dx, 0) + reach],
        0,
    )
    return rho * np.outer(sigma.ravel(), sigma.ravel())


def make(rng, shape=(14, 12)):
    sigma = 0.5 + rng.random(shape)
    masked = np.zeros(shape, bool)
    masked[4:7, 3:6], masked[10, 10] = True, True
    variance = np.where(masked, np.inf, sigma**2)
    weight = np.where(masked, 0.0, sigma**-2)
    return sigma, masked, variance, weight


def test_whitened_noise_is_white(rng):
    sigma, masked, _, weight = make(rng)
    rho = drizzled()
    whiten = Whitening.of(jnp.asarray(weight)[None], rho[None])
    images = jnp.eye(sigma.size).reshape(-1, 1, *sigma.shape)
    W = np.asarray(whiten(images)).reshape(sigma.size, -1).T
    used = ~masked.ravel()
    assert (W[~used] == 0).all() and (W[:, ~used] == 0).all()
    S, W = covariance(rho, sigma)[np.ix_(used, used)], W[np.ix_(used, used)]
    product = W @ S @ W.T
    np.testing.assert_allclose(np.diag(product), 1, atol=1e-9)
    # A correlation that reaches past the neighbours leaves a percent.
    assert np.abs(product - np.eye(len(S))).max() < 0.02
    exact = np.linalg.slogdet(S)[1]
    assert abs(float(whiten.log_determinant()[0]) - exact) < 2e-3 * len(S)
    # Taken for independent, the same noise is far from white.
    assert (
        np.abs(S / np.sqrt(np.outer(np.diag(S), np.diag(S))) - np.eye(len(S))).max()
        > 0.2
    )


def test_masked_neighbours_are_marginalised(rng):
    """The prediction from what is left is the exact conditional mean."""
    rho = drizzled(reach=2)
    used = rng.random((5, 5)) > 0.3
    used[2, 2] = True
    weights, gain = neighbour_weights(jnp.asarray(rho), jnp.asarray(used))
    S = covariance(rho, np.ones((5, 5)))
    before = np.flatnonzero(used.ravel()[:12])
    expected = np.linalg.solve(S[np.ix_(before, before)], S[before, 12])
    found = np.asarray(weights)[:, 2, 2]
    np.testing.assert_allclose(found[before], expected, atol=1e-12)
    assert np.count_nonzero(found) <= len(before)
    left = 1 - expected @ S[before, 12]
    np.testing.assert_allclose(gain[2, 2], left**-0.5)


def test_rows_are_whitened_as_images(rng):
    sigma, masked, _, weight = make(rng)
    rho = drizzled()
    whiten = Whitening.of(jnp.asarray(weight)[None], rho[None])
    images = rng.normal(size=(3, *sigma.shape))
    expected = np.asarray(whiten(jnp.asarray(images)[:, None]))[:, 0]
    pixels = np.flatnonzero(~masked)
    n = len(pixels)
    filled = jnp.asarray(np.concatenate([pixels, np.zeros(20, int)]))
    counts = jnp.arange(len(filled)) < n
    rows = (images * np.sqrt(weight)).reshape(3, -1).T[filled] * counts[:, None]
    found = whiten_rows(rows, filled, counts, whiten.weights[0], whiten.gain[0])
    np.testing.assert_allclose(found[:n], expected.reshape(3, -1).T[pixels], atol=1e-12)
    np.testing.assert_array_equal(found[n:], 0)


def test_transpose_is_the_adjoint(rng):
    sigma, _, _, weight = make(rng)
    whiten = Whitening.of(jnp.asarray(weight)[None], drizzled()[None])
    a, b = (jnp.asarray(rng.normal(size=(1, *sigma.shape))) for _ in range(2))
    left, right = jnp.vdot(whiten(a), b), jnp.vdot(a, whiten.transpose(b))
    np.testing.assert_allclose(left, right, rtol=1e-12)


def test_likelihood_is_the_dense_one(rng):
    sigma, masked, variance, _ = make(rng)
    rho, model = drizzled(), rng.normal(size=(1, *sigma.shape))
    image = model + sigma * draw_noise(rho, sigma.shape, rng)
    observation = Observation(
        jnp.asarray(np.where(masked, 1e3, image)),
        jnp.asarray(variance)[None],
        jnp.ones((1, 1, 1)),
        jnp.eye(2),
        jnp.zeros(2),
        (0,),
        True,
        correlation=rho[None],
    )
    used = ~masked.ravel()
    S = covariance(rho, sigma)[np.ix_(used, used)]
    r = (image - model).ravel()[used]
    expected = -0.5 * (
        r @ np.linalg.solve(S, r)
        + np.linalg.slogdet(S)[1]
        + used.sum() * np.log(2 * np.pi)
    )
    found = float(log_likelihood(jnp.asarray(model), observation))
    assert abs(found - expected) < 0.005 * used.sum()


def test_drawn_noise_is_what_is_estimated(rng):
    rho = drizzled()
    noise = np.stack([draw_noise(rho, (300, 280), rng) for _ in range(4)])
    found, variance = zip(
        *(estimate_correlation(1.3 * n, np.ones(n.shape, bool), 3) for n in noise),
        strict=True,
    )
    # 336000 pixels, each lag has about that many pairs: 0.002, four of them.
    np.testing.assert_allclose(np.mean(found, axis=0), rho, atol=0.01)
    np.testing.assert_allclose(np.mean(variance), 1.3**2, rtol=0.02)
    opposite = np.mean(noise[:, 0] * noise[:, -1])
    assert abs(opposite) < 5 * (4 * 280) ** -0.5


def test_sources_do_not_enter_the_estimate(rng):
    rho = drizzled()
    image = draw_noise(rho, (200, 200), rng)
    image[50:90, 60:120] += 30
    used = np.ones(image.shape, bool)
    used[48:92, 58:122] = False
    found, _ = estimate_correlation(image, used, 3)
    np.testing.assert_allclose(found, rho, atol=0.04)


def test_too_few_pixels_are_refused(rng):
    used = np.zeros((40, 40), bool)
    with pytest.raises(ValueError, match="no pixel is free"):
        estimate_correlation(np.zeros((40, 40)), used, 3)
    used[:10, :10] = True
    with pytest.raises(ValueError, match="smaller reach"):
        estimate_correlation(np.zeros((40, 40)), used, 3)
