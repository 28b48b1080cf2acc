"""The sampler of pixel priors against dense closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blendem.blend import pad_observation, pad_sources, stack
from blendem.inference.amplitude import Amplitudes
from blendem.inference.batch import statistics_of
from blendem.inference.conjugate import conjugate_gradients
from blendem.inference.operator import AnyGrid, Separable
from blendem.inference.pixel_problem import pixel_problem
from blendem.inference.pixel_sampler import (
    PixelSettings,
    sample_blend,
    sample_prior_stamps,
)
from blendem.inference.posterior import chi2, posterior, unpad
from blendem.inference.statistics import Settings
from blendem.prior.gaussian import Basis, GaussianPrior
from blendem.prior.unet import PixelMoments, UNet, UNetPrior
from blendem.renderer import Renderer

STAMP, BANDS, MODES, SIZE, DRAWS = 9, 2, 6, 16, 512
CENTERS = np.array([[7.0, 6.3], [8.6, 9.0]])
SETTINGS = Settings(reference=0, stamp=STAMP, centroid_sigma=0.0)
SCALE = np.array([3.0, 2.0])


@pytest.fixture
def prior(rng, key):
    """A Gaussian prior: smooth modes, a small uniform remainder, a network of zeros."""
    r = np.arange(STAMP) - STAMP // 2
    y, x = np.meshgrid(r, r, indexing="ij")
    bell = np.exp(-(y**2 + x**2) / 8)
    shapes = [bell, bell * y, bell * x]
    flat = np.zeros((MODES, BANDS, STAMP, STAMP))
    for i, shape in enumerate(shapes):
        flat[2 * i] = shape
        flat[2 * i + 1, i % BANDS] = shape
    q = np.linalg.qr(flat.reshape(MODES, -1).T)[0].T
    modes = q.reshape(flat.shape)
    variance = np.geomspace(4, 0.3, MODES)
    mean = np.broadcast_to(bell, flat.shape[1:]) / bell.sum()
    unit = np.array([0.5, 0.8])
    scaled = modes * np.sqrt(variance)[:, None, None, None] * unit[:, None, None]
    dual = modes / np.sqrt(variance)[:, None, None, None] / unit[:, None, None]
    basis = Basis(
        mean=mean * unit[:, None, None],
        modes=scaled,
        eigenvalues=variance,
        residual=np.array(0.0),
        psf_sigma=np.array(0.7),
        pixel_scale=np.array(0.168),
        bands=("g", "i"),
        analysis=dual,
    )
    moments = PixelMoments(unit, mean, modes, variance, np.full(mean.shape, 1e-2))
    network = jax.tree.map(
        lambda a: jnp.zeros_like(a) if eqx.is_array(a) else a,
        UNet(BANDS, (4,), 4, 1, key=key),
    )
    return UNetPrior.wiener(GaussianPrior.standard(basis), moments, network)


def make_blend(rng, noise, star=False, image=None, slots=2):
    r = np.arange(9) - 4
    psf = np.exp(-(r[:, None] ** 2 + r[None] ** 2) / (2 * 1.4**2))
    psf = np.broadcast_to(psf / psf.sum(), (BANDS, 9, 9))
    variance = noise**2 * rng.uniform(0.5, 2, (BANDS, SIZE, SIZE))
    variance[0, 3, 4:7] = np.inf
    image = rng.normal(size=variance.shape) * noise if image is None else image
    observation = pad_observation(
        image,
        variance,
        psf,
        size=SIZE,
        jacobian=np.eye(2),
        offset=np.zeros(2),
        band_index=(0, 1),
        same_grid=True,
    )
    blend = pad_sources((observation,), CENTERS, np.array([False, star]), slots)
    return jax.tree.map(jnp.asarray, blend)


def amplitudes():
    return Amplitudes(
        SCALE.astype(np.float32),
        np.ones((2, 2, BANDS), np.float32),
        np.ones((2, BANDS), np.float32),
        CENTERS.astype(np.float32),
        np.zeros((1, 2), np.float32),
        *np.zeros((2, len(CENTERS), 0), np.float32),
    )


def dense(blend, prior, star=False):
    """Matrix from (x of galaxies, star fluxes) to pixels, by the renderer's FFTs."""
    renderer = Renderer.of(blend.observations[0], STAMP, jnp.float32(0.7))
    p = BANDS * STAMP**2
    units = np.eye(p).reshape(p, BANDS, STAMP, STAMP)
    units = units * np.asarray(prior.moments.unit)[:, None, None]
    columns, mean, covariance = [], [], []
    flat = np.asarray(prior.moments.modes).reshape(MODES, -1)
    remainder = float(prior.moments.remainder.flat[0])
    cov = flat.T @ ((prior.moments.variance - remainder)[:, None] * flat)
    cov += remainder * np.eye(p)
    for k in range(2):
        if star and k == 1:
            continue
        image = renderer.render_stamps(
            jnp.asarray(units, jnp.float32), jnp.asarray(CENTERS[k], jnp.float32)
        )
        columns.append(np.asarray(image, float).reshape(p, -1).T * SCALE[k])
        mean.append(np.asarray(prior.moments.mean).ravel())
        covariance.append(cov)
    return np.concatenate(columns, axis=1), np.concatenate(mean), covariance


@pytest.mark.parametrize(
    ("noise", "predictor", "corrector", "steps"),
    [(0.3, "draw", 0.0, 4), (0.01, "draw", 0.0, 4), (0.3, "ddim", 0.1, 96)],
)
def test_gaussian_prior_gives_the_closed_form(
    rng, key, prior, noise, predictor, corrector, steps
):
    blend = make_blend(rng, noise)
    A, mean, covariances = dense(blend, prior)
    observation = blend.observations[0]
    weight = np.asarray(observation.weight, float).ravel()
    p = len(mean) // 2
    cov = np.zeros((2 * p, 2 * p))
    cov[:p, :p], cov[p:, p:] = covariances
    truth = rng.multivariate_normal(mean, cov)
    image = A @ truth + noise * rng.normal(size=len(A))
    blend = eqx.tree_at(
        lambda b: b.observations[0].image,
        blend,
        image.reshape(BANDS, SIZE, SIZE).astype(np.float32),
    )
    seen = weight > 0
    marginal = A[seen] @ cov @ A[seen].T + np.diag(1 / weight[seen])
    gain = np.linalg.solve(marginal, A[seen] @ cov).T
    expected = mean + gain @ (image[seen] - A[seen] @ mean)
    posterior = cov - gain @ A[seen] @ cov

    settings = PixelSettings(
        steps=steps,
        predictor=predictor,
        corrector=corrector,
        iterations=60,
        bright_iterations=60,
        tolerance=1e-4,
    )
    d = sample_blend(prior, blend, amplitudes(), DRAWS, SETTINGS, settings, key=key)

    unit = np.asarray(prior.moments.unit)[:, None, None]
    x = d.images / (SCALE[:, None, None, None] * unit)
    # Coefficients along the modes of both sources, whitened by the exact posterior.
    flat = np.asarray(prior.moments.modes).reshape(MODES, -1)
    Q = np.kron(np.eye(2), flat)
    c = x.reshape(DRAWS, -1) @ Q.T
    lower = np.linalg.cholesky(Q @ posterior @ Q.T)
    white = np.linalg.solve(lower, (c - Q @ expected).T)
    # 512 draws: the error of a mean is 0.044, of a variance 0.063; of 12 numbers.
    assert np.abs(white.mean(axis=1)).max() < 4.5 * 0.044
    assert white.var(axis=1).mean() == pytest.approx(1, abs=0.1)
    # The remainder, which the data hardly see, keeps its variance.
    rest = x - (c @ Q).reshape(x.shape)
    out = np.eye(2 * p) - Q.T @ Q
    assert (rest.reshape(DRAWS, -1).var(axis=0)).sum() == pytest.approx(
        np.trace(out @ posterior @ out), rel=0.05
    )
    assert d.residual < 1e-3 and d.guards == 0 and not d.failed.any()
    # z, and what z does not hold.
    u = d.images / SCALE[:, None, None, None]
    np.testing.assert_allclose(d.z, prior.basis.encode(u), rtol=1e-4, atol=1e-4)
    assert (d.outside > 0).all() and (d.outside < 1).all()


def test_star_flux_is_that_of_least_squares(rng, key, prior):
    """One bright star alone: its flux is given by the data, not by the wide prior."""
    noise = 0.02
    blend = make_blend(rng, noise, star=True)
    renderer = Renderer.of(blend.observations[0], STAMP, jnp.float32(0.7))
    flux = np.array([5.0, 1.5])
    point = np.zeros((BANDS, SIZE, SIZE))
    psf = pixel_problem(
        blend,
        Amplitudes(*(jnp.asarray(a) for a in amplitudes())),
        jax.tree.map(jnp.asarray, prior.basis),
        jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), prior.moments),
        SETTINGS,
        10,
        10,
    )
    root = np.asarray(psf.whitenings[0].root)
    columns = np.asarray(psf.nuisance).reshape(2, BANDS, BANDS, SIZE, SIZE)
    assert (columns[0] == 0).all()
    # Columns are 3 times the amplitude; the point is that of the model's Gaussian.
    for band in range(BANDS):
        safe = np.where(root[band] > 0, root[band], 1)
        point[band] = columns[1, band, band] / safe / (3 * SCALE[1])
    assert point[1].sum() == pytest.approx(1, abs=0.02)
    image = point * flux[:, None, None] + noise * rng.normal(size=point.shape)
    faint = amplitudes()._replace(scale=np.array([1e-3, SCALE[1]], np.float32))
    blend = eqx.tree_at(
        lambda b: b.observations[0].image, blend, image.astype(np.float32)
    )
    d = sample_blend(prior, blend, faint, 64, SETTINGS, PixelSettings(steps=4), key=key)
    drawn = SCALE[1] * (1 + 3 * d.z[:, 1, :BANDS])
    weight = root**2
    best = (point * image * weight).sum((1, 2)) / (point**2 * weight).sum((1, 2))
    error = 1 / np.sqrt((point**2 * weight).sum((1, 2)))
    assert np.abs(drawn.mean(0) - best).max() < 5 * error.max() / 8 + 0.01
    np.testing.assert_allclose(drawn.std(0), error, rtol=0.4)
    assert (d.images[:, 1] == 0).all()
    assert renderer.same_grid


@pytest.mark.parametrize("star", [False, True])
def test_draws_in_the_basis_follow_the_statistics(rng, key, prior, star):
    """What goes on from the draws is what `H` and `b` say, in their order.

    Without light outside the modes the prior is the Gaussian of the basis, whose posterior is
    closed. Two sources of three slots, shifts and sky.
    """
    prior = eqx.tree_at(
        lambda p: p.moments.remainder, prior, np.full((BANDS, STAMP, STAMP), 1e-7)
    )
    settings = SETTINGS._replace(centroid_sigma=0.2, sky_sigma=0.5)
    blend = make_blend(rng, 0.3, star=star, slots=3)
    known = Amplitudes(
        *(np.concatenate([a, a[:1]]).astype(np.float32) for a in amplitudes()[:-3]),
        amplitudes().offsets,
        *np.zeros((2, 3, 0), np.float32),
    )
    present = np.array([True, True, False])
    one = jax.tree.map(lambda a: a[None], known)
    sums = statistics_of(stack([blend], 1), prior.basis, settings, 1, one)
    s = unpad(
        *(sums[name][0] for name in ("H", "b")),
        *(float(sums[name][0]) for name in ("r2", "log_norm", "n_data")),
        present=present,
        is_star=np.array([False, star, False]),
        n_modes=MODES,
    )
    p = posterior(s, prior.gaussian)
    choice = PixelSettings(steps=4, iterations=60, tolerance=1e-5)

    d = sample_blend(prior, blend, known, DRAWS, settings, choice, key=key)

    w = d.unknowns(present)
    assert w.shape == (DRAWS, 2 * MODES + 2 * 2 + BANDS)
    assert d.n_data == s.n_data
    # By pixels and by sums, both of float32; light outside the basis: 162 pixels of 1e-7.
    np.testing.assert_allclose(chi2(s, w), d.chi2, rtol=2e-3)
    # A star has its fluxes in the first slots; the others are nothing.
    kept = np.ones(w.shape[1], bool)
    if star:
        kept[MODES + BANDS : 2 * MODES] = False
        assert (w[:, ~kept] == 0).all()
    lower = np.linalg.cholesky(p.covariance[np.ix_(kept, kept)])
    white = np.linalg.solve(lower, (w - p.mean)[:, kept].T)
    # 512 draws: the error of a mean is 0.044, of a variance 0.063; of 18 numbers.
    assert np.abs(white.mean(axis=1)).max() < 4.5 * 0.044
    assert np.abs(white.var(axis=1) - 1).max() < 4.5 * 0.063


def test_matrix_operator_is_the_renderer(rng):
    """FFT, phase and gather of the renderer give the same numbers as the products.

    White stamps have light at every frequency; the kernel leaves out the last one, whose wave
    has one phase only on a grid, so that moving it before or after sampling differs. Both end a
    source's patch about half the FFT grid from its centre: the products at that distance, the
    renderer at whole pixels from the pixel of the centre, so that they may differ in the last
    rows and columns.
    """
    blend = make_blend(rng, 1.0)
    renderer = Renderer.of(blend.observations[0], STAMP, jnp.float32(0.7))
    last = renderer.n_low // 2
    kernel = renderer.kernel.at[:, last].set(0.0).at[:, :, last].set(0.0)
    renderer = eqx.tree_at(lambda r: r.kernel, renderer, kernel)
    at = CENTERS - np.array([[5.0, 0.0], [0.0, 0.0]])  # the first patch ends inside
    centers = jnp.asarray(at, jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, BANDS, STAMP, STAMP)), jnp.float32)
    fast, plain = Separable.of(renderer, STAMP, centers), AnyGrid(renderer, centers)
    one, other = np.asarray(fast.each(x[:, None])), np.asarray(plain.each(x[:, None]))
    pixels = np.arange(SIZE)
    away = np.abs(pixels[None, None] - at[:, :, None])  # (source, axis, pixel)
    away = np.maximum(away[:, 0, :, None], away[:, 1, None, :])
    half = renderer.n_stamp / 2
    inside = np.broadcast_to((away <= half - 0.5)[:, None, None], one.shape)
    outside = np.broadcast_to((away > half)[:, None, None], one.shape)
    assert inside.mean() > 0.7 and outside.any()
    # Float32 sums of 18 x 18 terms, kernels up to 1: 2e-7 each, largest value about 1.
    tolerance = 3e-6 * np.abs(other).max()
    np.testing.assert_allclose(one[inside], other[inside], rtol=0, atol=tolerance)
    assert (one[outside] == 0).all()
    np.testing.assert_allclose(fast(x), one.sum(axis=(0, 1)), rtol=0, atol=tolerance)
    # The statistics end a patch as the products do: same numbers everywhere.
    for k in range(2):
        for band in range(BANDS):
            columns = renderer.render_columns(
                renderer.see(
                    renderer.stamp_transform(x[k, band][None]), renderer.kernel[band]
                ),
                centers[k],
                jnp.arange(SIZE**2),
            )
            np.testing.assert_allclose(
                one[k, 0, band].ravel(), columns[:, 0], rtol=0, atol=tolerance
            )
    y = jnp.asarray(rng.normal(size=(BANDS, SIZE, SIZE)), jnp.float32)
    (back,) = jax.linear_transpose(fast, x)(y)
    assert float((back * x).sum()) == pytest.approx(
        float((y * fast(x)).sum()), rel=1e-4
    )


def test_conjugate_gradients_solves_each_draw(rng):
    root = rng.normal(size=(20, 20))
    matrix = root @ root.T + np.diag(np.geomspace(1, 1e3, 20))
    rhs = rng.normal(size=(3, 20)) * np.array([[1.0], [1e4], [0.0]])
    found = conjugate_gradients(
        lambda p: p @ matrix,
        lambda r: r / np.diag(matrix)[None],
        jnp.asarray(rhs),
        jnp.int32(100),
        1e-9,
    )
    np.testing.assert_allclose(found.x @ matrix, rhs, atol=1e-8 * np.abs(rhs).max())
    np.testing.assert_allclose(found.x[0], np.linalg.solve(matrix, rhs[0]), rtol=1e-6)
    assert (np.asarray(found.residual) < 1e-8).all() and int(found.guards) == 0
    few = conjugate_gradients(
        lambda p: p @ matrix, lambda r: r, jnp.asarray(rhs), jnp.int32(2), 1e-9
    )
    assert int(few.iterations) == 2 and float(few.residual[0]) > 1e-3
    actual = np.linalg.norm(few.x[0] @ matrix - rhs[0]) / np.linalg.norm(rhs[0])
    assert float(few.residual[0]) == pytest.approx(actual, rel=1e-9)


def test_negative_curvature_is_counted_once_per_draw(rng):
    matrix = np.diag([2.0, 1.0, -1.0])
    rhs = jnp.asarray([[1.0, 1.0, 0.0], [0.1, 0.2, 3.0]])
    found = conjugate_gradients(
        lambda p: p @ matrix, lambda r: r, rhs, jnp.int32(20), 1e-8
    )
    assert int(found.guards) == 1
    assert np.isfinite(found.x).all()
    np.testing.assert_allclose(found.x[0], [0.5, 1.0, 0.0], atol=1e-8)


def test_prior_stamps_have_the_moments_of_the_prior(prior, key):
    u = sample_prior_stamps(prior, 1024, PixelSettings(steps=3), key=key)
    x = u / np.asarray(prior.moments.unit)[:, None, None]
    flat = np.asarray(prior.moments.modes).reshape(MODES, -1)
    c = (x - np.asarray(prior.moments.mean)).reshape(len(x), -1) @ flat.T
    sd = np.sqrt(prior.moments.variance)
    # 1024 draws: 3 % of a deviation, 4 % of a variance.
    assert np.abs(c.mean(0) / sd).max() < 5 * 0.032
    np.testing.assert_allclose(c.var(0), prior.moments.variance, rtol=0.25)


def test_other_stamp_side_is_refused(rng, prior, key):
    with pytest.raises(ValueError, match=r"9 pixels wide, settings\.stamp is 11"):
        sample_blend(
            prior,
            make_blend(rng, 1.0),
            amplitudes(),
            2,
            SETTINGS._replace(stamp=11),
            key=key,
        )
