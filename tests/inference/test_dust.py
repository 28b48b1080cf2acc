"""Galaxies behind dust: forward model, Jacobian, and draws against exact references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blendem.inference.dust import DustSettings, correct, sample
from blendem.inference.dust_model import DustLikelihood, DustModel, compress, linearise
from blendem.inference.likelihood import LatentLikelihood
from blendem.inference.sampler import SamplerSettings
from blendem.inference.sampler import sample as sample_galaxy
from blendem.observation import Observation
from blendem.prior.dust import DustPrior, calzetti
from blendem.prior.gaussian import Basis, GaussianPrior
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior, exact_posterior
from blendem.renderer import Renderer

PIXELS, BANDS = 9, 2
LAW, TILT = np.array([[1.3, 0.7]]), np.array([[-0.3, 0.3]])


def mixture(n, rng=None):
    """One standard component, or two of unequal shape."""
    if rng is None:
        return MixturePrior.of([1.0], np.zeros((1, n)), np.ones(1))
    centers = np.stack([np.full(n, -0.5), np.full(n, 0.5)])
    return MixturePrior.of([0.4, 0.6], centers, np.array([0.4, 0.9]))


def toy_model(rng, *, galaxy=1, dust=1, slope_sd=0.0, link="softplus", mixed=False):
    source = rng if mixed else None
    return DustModel(
        mixtures=(mixture(galaxy, source), mixture(dust, source)),
        galaxy_mean=rng.uniform(1, 2, (BANDS, PIXELS)),
        galaxy_modes=0.4 * rng.uniform(0, 1, (galaxy, BANDS, PIXELS)),
        dust_mean=rng.uniform(0, 0.5, PIXELS),
        dust_modes=rng.uniform(0.3, 0.9, (dust, PIXELS)),
        slope_sd=np.asarray(slope_sd),
        link=link,
    )


def toy_likelihood(model, rng, snr, *, sources=1, rank=6, scale=1.0):
    """Data of sources drawn from the model."""
    operator = snr * rng.normal(size=(sources, BANDS, rank, PIXELS)) / PIXELS
    like = DustLikelihood(
        operator,
        np.zeros((BANDS, rank)),
        np.full(sources, scale),
        np.repeat(LAW, sources, axis=0),
        np.repeat(TILT, sources, axis=0),
    )
    truth = 0.7 * rng.normal(size=(sources, model.n_latent))
    data, _ = linearise(model, like, jnp.asarray(truth))
    noise = rng.normal(size=(BANDS, rank))
    return like._replace(data=np.asarray(data).reshape(BANDS, rank) + noise), truth


def predict(model, like, e):
    """The same in NumPy, from the formula of the paper."""
    n, d = model.sizes
    total = 0.0
    for k, one in enumerate(e):
        field = model.dust_mean + one[n : n + d] @ model.dust_modes
        A = np.log1p(np.exp(field)) if model.link == "softplus" else field
        x = model.galaxy_mean + np.tensordot(one[:n], model.galaxy_modes, 1)
        law = like.law[k] * np.exp(model.slope_sd * one[-1] * like.tilt[k])
        image = like.scale[k] * x * 10 ** (-0.4 * law[:, None] * A)
        total = total + np.einsum("brp,bp->br", like.operator[k], image)
    return total.ravel()


@pytest.mark.parametrize("link", ["softplus", "linear"])
def test_prediction_and_jacobian_of_two_sources(rng, link):
    model = toy_model(rng, galaxy=3, dust=2, slope_sd=0.2, link=link)
    like, _ = toy_likelihood(model, rng, 5.0, sources=2, scale=1.7)
    e = rng.normal(size=(2, model.n_latent))
    predicted, jacobian = linearise(model, like, jnp.asarray(e))
    np.testing.assert_allclose(predicted, predict(model, like, e), rtol=1e-10)
    step, expected = 1e-5, []
    for i in range(e.size):
        move = np.zeros(e.size)
        move[i] = step
        up, down = (
            predict(model, like, e + s * move.reshape(e.shape)) for s in (1, -1)
        )
        expected.append((up - down) / (2 * step))
    # Central differences: step^2 of truncation, rounding over step.
    np.testing.assert_allclose(jacobian, expected, atol=1e-8)
    assert (np.abs(np.array(expected)).max(axis=1) > 1e-3).all()


def grid_posterior(model, like, half=4.5, n=241):
    """Galaxy and dust, one coordinate each, on a grid: points and weights."""
    line = np.linspace(-half, half, n)
    points = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    e = np.column_stack([points, np.zeros(len(points))])
    chi2 = [
        np.sum((like.data.ravel() - predict(model, like, one[None])) ** 2) for one in e
    ]
    log_p = -0.5 * np.array(chi2)
    for i, prior in enumerate(model.mixtures):
        parts = [
            w * np.exp(-0.5 * (points[:, i] - c[0]) ** 2 / v[0]) / np.sqrt(v[0])
            for w, c, v in zip(prior.weights, prior.centers, prior.values, strict=True)
        ]
        log_p = log_p + np.log(np.sum(parts, axis=0))
    p = np.exp(log_p - log_p.max())
    return points, p / p.sum()


def moments(points, p):
    mean = p @ points
    return mean, np.sqrt(p @ (points - mean) ** 2)


@pytest.mark.parametrize("snr", [3.0, 20.0])
def test_corrected_draws_follow_the_exact_posterior(rng, key, snr):
    model = toy_model(rng, mixed=True)
    like, _ = toy_likelihood(model, rng, snr)
    points, p = grid_posterior(model, like)
    mean, sd = moments(points, p)
    draws = sample(model, like, 4000, DustSettings(corrections=20), key=key)
    e = draws.e[:, 0, :2]
    # Five standard errors of the mean of independent draws.
    assert np.abs((e.mean(axis=0) - mean) / sd).max() < 5 / np.sqrt(4000)
    np.testing.assert_allclose(e.std(axis=0), sd, rtol=0.06)
    # The shape too: part beyond one sd on either side along the curved ridge.
    for side in (1, -1):
        for i in range(2):
            inside = side * (points[:, i] - mean[i]) > sd[i]
            part = np.mean(side * (e[:, i] - mean[i]) > sd[i])
            assert part == pytest.approx(p[inside].sum(), abs=0.03)
    assert draws.acceptance > 0.3


def test_metropolis_steps_find_the_posterior_from_the_prior(rng, key):
    """They need no good start: exact whatever the reverse process gave."""
    model = toy_model(rng, mixed=True)
    like, _ = toy_likelihood(model, rng, 3.0)
    mean, sd = moments(*grid_posterior(model, like))
    start = model.prior_draw(2000, key=key)[:, None]
    e, chi2, _ = correct(model, like, start, 80, key=key)
    e = np.asarray(e)[:, 0, :2]
    assert np.abs((e.mean(axis=0) - mean) / sd).max() < 5 / np.sqrt(2000)
    np.testing.assert_allclose(e.std(axis=0), sd, rtol=0.08)
    expected = [
        np.sum((like.data.ravel() - predict(model, like, np.r_[one, 0.0][None])) ** 2)
        for one in e[:5]
    ]
    np.testing.assert_allclose(chi2[:5], expected, rtol=1e-6)


def test_what_linearisation_costs_without_correction(rng, key):
    """Close to the exact moments: a third of a standard deviation."""
    model = toy_model(rng, mixed=True)
    like, _ = toy_likelihood(model, rng, 20.0)
    mean, sd = moments(*grid_posterior(model, like))
    draws = sample(model, like, 2000, DustSettings(corrections=0), key=key)
    e = draws.e[:, 0, :2]
    assert np.abs((e.mean(axis=0) - mean) / sd).max() < 0.33
    np.testing.assert_allclose(e.std(axis=0), sd, rtol=0.33)
    assert np.isnan(draws.acceptance)


def test_without_dust_the_draws_are_those_of_a_galaxy(rng, key):
    """Fields far below zero attenuate nothing: the problem is linear and has an exact answer."""
    model = toy_model(rng, galaxy=3, dust=2, mixed=True)
    model = DustModel(
        **{**vars(model), "dust_mean": np.full(PIXELS, -60.0)},
    )
    like, _ = toy_likelihood(model, rng, 4.0)
    flat = np.einsum("brp,gbp->gbr", like.operator[0], model.galaxy_modes)
    flat = flat.reshape(3, -1)
    mean = np.einsum("brp,bp->br", like.operator[0], model.galaxy_mean).ravel()
    target = like.data.ravel() - mean
    exact = exact_posterior(model.mixtures[0], flat, target)
    draws = sample(model, like, 4000, DustSettings(corrections=0), key=key)
    galaxy = draws.e[:, 0, :3]
    settings = SamplerSettings(predictor="draw")
    lower = np.linalg.cholesky(flat @ flat.T)
    seen = np.linalg.solve(lower, flat @ target)
    same = LatentLikelihood(lower, seen, 1, 3, 0.0, 12.0)
    existing = sample_galaxy(
        model.mixtures[0], [same], 4000, settings, keys=[jax.random.fold_in(key, 1)]
    )[0].e[:, 0]
    sd = np.sqrt(np.diag(exact.covariance))
    # Two means of 4000 draws.
    gap = np.abs(galaxy.mean(axis=0) - existing.mean(axis=0)) / sd
    assert gap.max() < 5 * np.sqrt(2 / 4000)
    np.testing.assert_allclose(galaxy.std(axis=0), existing.std(axis=0), rtol=0.08)
    # Dust and slope are as they were before.
    rest = draws.e[:, 0, 3:]
    prior = np.asarray(model.prior_draw(20000, key=key))[:, 3:]
    np.testing.assert_allclose(rest.mean(axis=0), prior.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(rest.std(axis=0), prior.std(axis=0), rtol=0.08)


def test_compression_keeps_the_likelihood_of_a_blend(rng):
    """Two sources at sub-pixel centres against the renderer, pixel by pixel."""
    side, sigma = 9, 0.7
    line = np.arange(side) - side // 2
    r = np.hypot(line[:, None], line[None])
    shapes = np.exp(-r / rng.uniform(0.8, 2.5, (30, BANDS, 1, 1)))
    psf = np.exp(-0.5 * (r / 1.4) ** 2)
    observation = Observation(
        image=np.zeros((BANDS, 17, 19)),
        variance=rng.uniform(0.5, 2.0, (BANDS, 17, 19)),
        psf=np.repeat((psf / psf.sum())[None], BANDS, axis=0),
        jacobian=np.eye(2),
        offset=np.zeros(2),
        band_index=(0, 1),
        same_grid=True,
    )
    centers = np.array([[7.3, 6.1], [8.6, 11.8]])
    operator, projection = compress(observation, centers, shapes, sigma, rank=40)
    observation = jax.tree.map(jnp.asarray, observation)
    renderer = Renderer.of(observation, side, jnp.asarray(sigma))
    pair = shapes[[3, 17]]
    image = sum(
        renderer.render_stamps(jnp.asarray(x), jnp.asarray(c))
        for x, c in zip(pair, centers, strict=True)
    )
    whitened = np.asarray(image) / np.sqrt(observation.variance)
    whitened = whitened.reshape(BANDS, -1)
    seen = np.einsum("kbrp,kbp->br", operator, pair.reshape(2, BANDS, -1))
    np.testing.assert_allclose(
        np.einsum("brp,bp->br", projection, whitened), seen, atol=1e-5
    )
    # 60 example images span less than 40 directions: nothing is lost.
    assert np.sum(seen**2) == pytest.approx(np.sum(whitened**2), rel=1e-4)
    # Rows are orthonormal, so that compressed white noise is white.
    gram = np.einsum("brp,bsp->brs", projection, projection)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(40), gram.shape), atol=1e-6)


def priors(rng, side=5):
    def latent(bands, n):
        modes = rng.normal(size=(n, len(bands), side, side))
        basis = Basis(
            mean=rng.normal(size=(len(bands), side, side)),
            modes=modes,
            eigenvalues=np.ones(n),
            residual=np.asarray(0.0),
            psf_sigma=np.asarray(0.7),
            pixel_scale=np.asarray(0.2),
            bands=bands,
        )
        root = np.tril(rng.normal(size=(n, n)))
        return LatentPrior(GaussianPrior(basis, rng.normal(size=n), root), mixture(n))

    return latent(("g", "r"), 4), DustPrior(latent(("A_V",), 3), "softplus")


def test_model_decodes_as_its_priors_do(rng):
    galaxy, dust = priors(rng)
    model = DustModel.of(galaxy, dust)
    e = rng.normal(size=(6, model.n_latent))
    z = galaxy.mean + e[:, :4] @ galaxy.cholesky.T
    expected = galaxy.basis.decode(z).reshape(6, 2, -1)
    np.testing.assert_allclose(model.intrinsic(jnp.asarray(e)), expected, rtol=1e-8)
    z = dust.latent.mean + e[:, 4:7] @ dust.latent.cholesky.T
    A = np.asarray(dust.attenuation(z)).reshape(6, -1)
    np.testing.assert_allclose(model.attenuation(jnp.asarray(e)), A, rtol=1e-8)


def test_a_prior_with_fine_coordinates_is_refused(rng):
    galaxy, dust = priors(rng)
    short = LatentPrior(galaxy.gaussian, mixture(2))
    with pytest.raises(ValueError, match="2 coordinates of 4"):
        DustModel.of(short, dust)


def test_a_free_slope_is_learned_where_bands_show_it(rng, key):
    """Many bands of a known galaxy: the slope is measured, its prior N(0, 1) is not the answer."""
    model = toy_model(rng, slope_sd=0.4)
    wave = np.array([450.0, 800.0])
    law, tilt = calzetti(wave)[None], np.log(wave / 550)[None]
    like, _ = toy_likelihood(model, rng, 1.0, rank=9)
    e = np.array([[0.2, 1.0, 1.5]])
    like = like._replace(
        law=law, tilt=tilt, operator=300 * np.eye(9)[None, None].repeat(BANDS, 1)
    )
    data, _ = linearise(model, like, jnp.asarray(e))
    like = like._replace(data=np.asarray(data).reshape(BANDS, 9))
    draws = sample(model, like, 500, key=key)
    slope = draws.e[:, 0, -1]
    assert slope.std() < 0.3
    assert abs(slope.mean() - 1.5) < 3 * slope.std()
