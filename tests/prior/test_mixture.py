"""The mixture prior, its denoiser and its posteriors against brute force on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from tests.inference.test_posterior import make_prior

from blendem.prior.gaussian import GaussianPrior
from blendem.prior.mixture import MixturePrior, exact_posterior
from blendem.prior.mixture_fit import LIMIT, beyond, fit_mixture

WEIGHTS = np.array([0.2, 0.5, 0.3])
CENTERS = np.array([[-1.0, 0.5], [0.8, 0.2], [0.1, -1.2]])
COVARIANCES = np.array(
    [[[0.3, 0.1], [0.1, 0.2]], [[0.2, -0.05], [-0.05, 0.4]], [[0.15, 0], [0, 0.1]]]
)


def make():
    return MixturePrior.of(WEIGHTS, CENTERS, COVARIANCES)


def grid_2d(n=241, half=5.0):
    line = np.linspace(-half, half, n)
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


def density(points):
    return sum(
        w * multivariate_normal(m, c).pdf(points)
        for w, m, c in zip(WEIGHTS, CENTERS, COVARIANCES, strict=True)
    )


def moments(points, p):
    p = p / p.sum()
    mean = p @ points
    return mean, np.einsum("n,ni,nj->ij", p, points - mean, points - mean)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 5.0])
def test_denoiser_is_the_posterior_mean_and_covariance(sigma):
    points = grid_2d()
    e_t = np.array([[0.3, -0.4], [2.0, 1.0]])
    mean, variance = make().denoise_latent(jnp.asarray(e_t), jnp.asarray(sigma))
    same, full = make().denoise_full(jnp.asarray(e_t), jnp.asarray(sigma))
    for k, noisy in enumerate(e_t):
        noise = np.exp(-0.5 * np.sum((points - noisy) ** 2, axis=1) / sigma**2)
        expected, covariance = moments(points, density(points) * noise)
        # Sums over a grid finer than the densities converge exponentially.
        np.testing.assert_allclose(mean[k], expected, atol=1e-7)
        np.testing.assert_allclose(same[k], expected, atol=1e-7)
        np.testing.assert_allclose(variance[k], np.diag(covariance), atol=1e-7)
        np.testing.assert_allclose(full[k], covariance, atol=1e-7)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 5.0])
def test_draws_given_a_noisy_vector_follow_the_exact_density(sigma, key):
    e_t = jnp.broadcast_to(jnp.array([0.3, -0.4]), (20000, 2))
    draws, full = make().draw_full(e_t, jnp.asarray(sigma), key)
    _, expected = make().denoise_full(e_t[:1], jnp.asarray(sigma))
    np.testing.assert_allclose(full[7], expected[0], rtol=1e-10)
    points = grid_2d()
    step = points - np.asarray(e_t[:1])
    noise = np.exp(-0.5 * np.sum(step**2, axis=1) / sigma**2)
    p = density(points) * noise / np.sum(density(points) * noise)
    # Parts in four quarters see the shape, not only the moments; error of a part 0.0035.
    for corner in ((0.0, -0.4), (0.6, 0.0)):
        for side in (1, -1):
            inside = (side * (points - corner) > 0).all(axis=1)
            part = (side * (np.asarray(draws) - corner) > 0).all(axis=1).mean()
            assert part == pytest.approx(p[inside].sum(), abs=0.02)


def test_one_standard_component_is_the_gaussian_prior(key, rng):
    prior = MixturePrior.of([2.0], np.zeros((1, 3)), np.ones(1))
    gaussian = GaussianPrior.standard(make_prior(rng, 3).basis)
    e_t = jax.random.normal(key, (4, 2, 3))
    one = prior.denoise_latent(e_t, jnp.asarray(0.7))
    two = gaussian.denoise_latent(e_t, jnp.asarray(0.7))
    for a, b in zip(one, two, strict=True):
        assert a.shape == (4, 2, 3)
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_draws_have_the_moments_of_the_mixture(key):
    e = np.asarray(make().sample(20000, key=key))
    mean, covariance = moments(grid_2d(), density(grid_2d()))
    # Five standard errors.
    assert np.abs(e.mean(axis=0) - mean).max() < 5 * np.sqrt(covariance.max() / 20000)
    np.testing.assert_allclose(np.cov(e.T), covariance, atol=0.05)


def test_posterior_of_one_galaxy_is_that_of_a_grid(rng):
    factor, target = np.array([[1.5, 0.0], [0.7, 0.4]]), np.array([0.5, -0.3])
    points = grid_2d()
    likelihood = np.exp(-0.5 * np.sum((target - points @ factor) ** 2, axis=1))
    mean, covariance = moments(points, density(points) * likelihood)
    exact = exact_posterior(make(), factor, target)
    np.testing.assert_allclose(exact.mean, mean, atol=1e-7)
    np.testing.assert_allclose(exact.covariance, covariance, atol=1e-7)
    parts = [
        w * np.sum(multivariate_normal(m, c).pdf(points) * likelihood)
        for w, m, c in zip(WEIGHTS, CENTERS, COVARIANCES, strict=True)
    ]
    np.testing.assert_allclose(exact.weights, parts / np.sum(parts), atol=1e-9)


def test_posterior_of_two_degenerate_galaxies_is_that_of_a_grid(rng):
    """One coordinate each, and data that see mostly the sum: modes swap places."""
    prior = MixturePrior.of([0.3, 0.7], [[-1.0], [1.0]], [0.1, 0.2])
    factor, target = np.array([[3.0, 0.2], [3.0, -0.1]]), np.array([0.3, 0.1])
    exact = exact_posterior(prior, factor, target)
    assert exact.choices.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    points = grid_2d()
    likelihood = np.exp(-0.5 * np.sum((target - points @ factor) ** 2, axis=1))

    def part(c, x):
        w, m, v = [(0.3, -1.0, 0.1), (0.7, 1.0, 0.2)][c]
        return w * np.exp(-0.5 * (x - m) ** 2 / v) / np.sqrt(v)

    parts = np.array(
        [part(a, points[:, 0]) * part(b, points[:, 1]) for a, b in exact.choices]
    )
    parts = parts * likelihood
    np.testing.assert_allclose(
        exact.weights, parts.sum(axis=1) / parts.sum(), atol=1e-9
    )
    mean, covariance = moments(points, parts.sum(axis=0))
    np.testing.assert_allclose(exact.mean, mean, atol=1e-7)
    np.testing.assert_allclose(exact.covariance, covariance, atol=1e-7)
    e = exact.draw(20000, rng)
    assert e.shape == (20000, 2, 1)
    # Five standard errors of a fraction.
    assert np.abs(exact.mode_weights(e) - exact.weights).max() < 5 * 0.5 / 141
    np.testing.assert_allclose(np.cov(e[:, :, 0].T), covariance, atol=0.05)


def test_mode_weights_follow_the_draws():
    """Draws all in one mode are counted there, whatever the prior says."""
    prior = MixturePrior.of([0.5, 0.5], [[-3.0], [3.0]], [0.1, 0.1])
    exact = exact_posterior(prior, np.zeros((2, 2)), np.zeros(2))
    np.testing.assert_allclose(exact.weights, 0.25)
    e = np.array([[[-3.0], [3.0]], [[-2.8], [3.1]], [[3.0], [3.0]], [[2.9], [-3]]])
    np.testing.assert_allclose(exact.mode_weights(e), [0, 0.5, 0.25, 0.25], atol=1e-9)


def test_bad_mixtures_and_likelihoods_are_refused():
    with pytest.raises(ValueError, match="must be positive"):
        MixturePrior.of([0.5, 0.0], [[-1.0], [1.0]], [1.0, 1.0])
    with pytest.raises(ValueError, match="must be positive"):
        MixturePrior.of([0.5, 0.5], [[-1.0], [1.0]], [1.0, 0.0])
    with pytest.raises(ValueError, match="3 rows, which is no multiple of the 2 modes"):
        exact_posterior(make(), np.zeros((3, 3)), np.zeros(3))


def test_rows_with_their_own_noise(key):
    e_t = jax.random.normal(key, (5, 2))
    sigma = jnp.geomspace(0.01, 10, 5)
    mean, variance = make().denoise_latent(e_t, sigma)
    for k in range(5):
        one = make().denoise_latent(e_t[k : k + 1], sigma[k])
        np.testing.assert_allclose(mean[k], one[0][0], rtol=1e-10)
        np.testing.assert_allclose(variance[k], one[1][0], rtol=1e-10)


def test_fit_finds_the_mixture_that_made_the_data(key):
    e = make().sample(20000, key=key)
    found = fit_mixture(e, 3, 200)
    order = np.argsort(found.centers[:, 0])  # -1, 0.1, 0.8
    expected = [0, 2, 1]
    np.testing.assert_allclose(found.weights[order], WEIGHTS[expected], atol=0.03)
    np.testing.assert_allclose(found.centers[order], CENTERS[expected], atol=0.05)
    covariances = COVARIANCES[expected]
    np.testing.assert_allclose(found.covariances[order], covariances, atol=0.03)


def test_common_shape_helps_where_components_have_few_rows(rng):
    d, n = 12, 60
    shape = np.diag(np.geomspace(0.1, 2, d))
    scales, far = np.array([0.3, 3.0]), np.array([[-8.0] * d, [8.0] * d])
    truth = MixturePrior.of([0.5, 0.5], far, scales[:, None, None] * shape)
    kind = np.arange(n) % 2
    e = (
        far[kind]
        + rng.normal(size=(n, d)) @ np.sqrt(shape) * np.sqrt(scales[kind])[:, None]
    )
    start = MixturePrior.of([0.5, 0.5], far, np.ones(2))
    error = {}
    for shrink in (0.0, 30.0, 1e6):
        found = fit_mixture(e, 2, 3, start=start, shrink=shrink)
        ratio = np.linalg.solve(np.asarray(truth.covariances), found.covariances)
        error[shrink] = np.abs(np.linalg.eigvals(ratio) - 1).max()
    assert error[30.0] < 0.8 * error[0.0]
    shapes = np.asarray(found.covariances)
    ratio = np.linalg.solve(shapes[0], shapes[1])
    np.testing.assert_allclose(ratio, ratio[0, 0] * np.eye(d), atol=2e-3 * ratio[0, 0])


def test_too_few_galaxies_for_a_mixture_say_what_to_do():
    with pytest.raises(ValueError, match=r"2 galaxies.*3 components.*stamps\.n"):
        fit_mixture(np.zeros((2, 4)), 3, 1)


def test_a_longer_step_goes_on_in_the_same_direction():
    before = make()
    fitted = MixturePrior.of(
        [0.3, 0.3, 0.4],
        CENTERS + 0.1,
        COVARIANCES * np.array([2.0, 0.5, 10])[:, None, None],
    )
    same = beyond(before, fitted, 1.0)
    np.testing.assert_allclose(same.weights, fitted.weights, rtol=1e-9)
    np.testing.assert_allclose(same.centers, fitted.centers, rtol=1e-9)
    np.testing.assert_allclose(same.covariances, fitted.covariances, rtol=1e-9)
    longer = beyond(before, fitted, 1.5)
    np.testing.assert_allclose(longer.centers, CENTERS + 0.15, rtol=1e-9)
    factor = np.array([2.0**1.5, 0.5**1.5, 10 * LIMIT])[:, None, None]
    np.testing.assert_allclose(longer.covariances, COVARIANCES * factor, rtol=1e-9)
    expected = WEIGHTS * (np.array([0.3, 0.3, 0.4]) / WEIGHTS) ** 1.5
    np.testing.assert_allclose(longer.weights, expected / expected.sum(), rtol=1e-9)
    # Part of the way there is no limit; no step at all changes nothing.
    half = beyond(before, fitted, 0.5)
    factor = np.array([2.0, 0.5, 10])[:, None, None] ** 0.5
    np.testing.assert_allclose(half.covariances, COVARIANCES * factor, rtol=1e-9)
    none = beyond(before, fitted, 0.0)
    np.testing.assert_allclose(none.covariances, COVARIANCES, rtol=1e-9)
    np.testing.assert_allclose(none.weights, WEIGHTS, rtol=1e-9)
    # Far beyond a fit that is narrow in one direction covariances stay positive.
    narrow = np.array([[0.1, 0.0], [0.0, 1e-6]]) + 0.05
    narrow = MixturePrior.of(WEIGHTS, CENTERS, np.tile(narrow, (3, 1, 1)))
    assert (np.asarray(beyond(before, narrow, 1.9).values) > 0).all()
    with pytest.raises(ValueError, match="different shapes"):
        beyond(before, MixturePrior.of([1.0], CENTERS[:1], COVARIANCES[:1]), 1.5)


def test_a_longer_step_speeds_up_what_data_hardly_constrain(rng):
    """EM of a Gaussian seen through noise of 1.7 deviations, against its maximum likelihood."""
    noise, y = 3.0, 0.5 + 2 * rng.normal(size=5000)
    best = np.array([y.mean(), y.var() - noise])
    left = {}
    for relax in (1.0, 1.8):
        prior = MixturePrior.of([1.0], np.zeros((1, 1)), np.full((1, 1, 1), 0.5))
        for _ in range(10):
            mean, variance = prior.centers[0, 0], prior.covariances[0, 0, 0]
            gain = variance / (variance + noise)
            e = mean + gain * (y - mean)
            spread = e.var() + gain * noise
            fitted = MixturePrior.of([1.0], [[e.mean()]], [[[spread]]])
            prior = beyond(prior, fitted, relax)
        found = np.array([prior.centers[0, 0], prior.covariances[0, 0, 0]])
        left[relax] = np.abs(found - best)
    assert (left[1.8] < 0.8 * left[1.0]).all()


def test_a_brightness_does_not_scale_with_the_galaxy(rng):
    """Compact and extended galaxies of the same spread in brightness, with a strong common shape."""
    d, n = 3, 4000
    scale = np.repeat([0.1, 10.0], n // 2)
    far = np.repeat([-100.0, 100.0], n // 2)
    e = rng.normal(size=(n, d)) * np.sqrt(scale)[:, None] + far[:, None]
    e = np.column_stack([e, 0.5 * rng.normal(size=n)])
    start = MixturePrior.of([0.5, 0.5], [[-100.0] * d + [0], [100.0] * d + [0]], [1, 1])
    found = fit_mixture(e, 2, 2, start=start, shrink=1e6, scaling=d)
    covariances = np.asarray(found.covariances)
    np.testing.assert_allclose(covariances[:, d, d], 0.25, rtol=0.1)
    np.testing.assert_allclose(covariances[:, d, :d], 0, atol=1e-3)
    np.testing.assert_allclose(covariances[:, 0, 0], [0.1, 10], rtol=0.15)
    # As one more mode it would have the relative spread of the compact ones.
    found = fit_mixture(e, 2, 2, start=start, shrink=1e6)
    assert np.asarray(found.covariances)[1, d, d] > 4


def test_components_change_as_all_do(rng):
    """Two shapes, a common stretch of both, a strong common part: shapes stay, the stretch goes on."""
    d, n = 3, 20000
    far = np.array([[-50.0] * d, [50.0] * d])
    shapes = np.array([np.diag([4.0, 1.0, 1.0]), np.diag([1.0, 1.0, 4.0])])
    stretch = np.diag([1.0, 1.5, 1.0])
    start = MixturePrior.of([0.5, 0.5], far, shapes)
    kind = np.arange(n) % 2
    roots = np.sqrt(stretch @ shapes @ stretch)
    e = far[kind] + np.einsum("nij,nj->ni", roots[kind], rng.normal(size=(n, d)))
    found = fit_mixture(e, 2, 2, start=start, shrink=1e8, mend=0.0)
    # Errors of variances of 10000 rows: 1.4 %. Means of shapes are of trace 1, so that the
    # stretch of the mean is not quite that of each.
    expected = stretch @ shapes @ stretch
    np.testing.assert_allclose(found.covariances, expected, rtol=0.08, atol=0.08)
    # One shape for both would be round in the first and last coordinate.
    found = fit_mixture(e, 2, 2, start=start, shrink=1e8)
    one = np.asarray(found.covariances)[0]
    np.testing.assert_allclose(one[0, 0], one[2, 2], rtol=0.05)
    half = fit_mixture(e, 2, 1, start=start, shrink=1e8, mend=0.5)
    between = 0.5 * (one + expected[0])
    np.testing.assert_allclose(half.covariances[0], between, rtol=0.1, atol=0.1)
