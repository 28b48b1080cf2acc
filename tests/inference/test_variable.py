"""Stars with a flux of their own in every image: free, independent, off where they are off."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.inference import test_statistics as known
from tests.inference.test_statistics import SIGMA, STAMP, gaussian

from blendem.blend import Blend
from blendem.inference.amplitude import plane_scale
from blendem.inference.map import MapSettings, PixelSettings, fit_pixels, fit_profiles
from blendem.inference.posterior import posterior, unpad
from blendem.inference.statistics import Settings, compute_statistics, transform_basis
from blendem.measure.light_curves import LightCurve
from blendem.observation import Observation
from blendem.prior.gaussian import GaussianPrior
from blendem.renderer import Renderer

CENTER, HOST = np.array([12.3, 12.6]), np.array([13.1, 12.0])
FLUX = np.array([0.0, 0.0, 30.0, 50.0, 7.0, 20.0])  # three epochs of two bands
SHINES = FLUX > 0
WIDTHS, NOISE = (1.3, 1.8, 1.5), (0.02, 0.05, 0.03)
SETTINGS = Settings(1, STAMP, 0, centroid_sigma=0.0)


def make_basis():
    """As many modes as there are images at least: those known, and sharper ones."""
    basis = known.make_basis()
    modes = np.concatenate([basis.modes, 0.5 * np.roll(basis.modes, 1, axis=-1)])
    values = np.sum(modes**2, axis=(1, 2, 3))
    return eqx.tree_at(lambda b: (b.modes, b.eigenvalues), basis, (modes, values))


def observe(rng=None):
    """A transient of `FLUX` on a galaxy of the mean shape and flux 40."""
    basis, observations = make_basis(), []
    for epoch, (width, noise) in enumerate(zip(WIDTHS, NOISE, strict=True)):
        empty = Observation(
            jnp.zeros((2, 25, 25)),
            jnp.full((2, 25, 25), noise**2),
            jnp.stack([jnp.asarray(gaussian(11, width))] * 2),
            jnp.eye(2),
            jnp.array([0.3, -0.2]) * epoch,
            (0, 1),
            True,
        )
        draw = Renderer.of(empty, STAMP, SIGMA).render_stamps
        r = np.arange(STAMP) - STAMP // 2
        point = np.exp(-0.5 * (r[:, None] ** 2 + r**2) / SIGMA**2)
        point = point / point.sum() * FLUX[2 * epoch : 2 * epoch + 2, None, None]
        image = draw(jnp.asarray(40 * basis.mean), jnp.asarray(HOST))
        image = image + draw(jnp.asarray(point), jnp.asarray(CENTER))
        if rng is not None:
            image = image + noise * rng.normal(size=image.shape)
        observations.append(eqx.tree_at(lambda o: o.image, empty, image))
    shines = np.stack([np.zeros(6, bool), SHINES, np.zeros(6, bool)])
    return Blend(
        tuple(observations),
        jnp.asarray(np.stack([HOST, CENTER, HOST])),
        np.array([False, True, False]),
        np.array([True, True, False]),
        shines,
    )


@eqx.filter_jit
def statistics(blend, transforms):
    return compute_statistics(blend, transforms, 2, SIGMA, SETTINGS)


@pytest.fixture(scope="module")
def transforms():
    renderers = [Renderer.of(o, STAMP, SIGMA) for o in observe().observations]
    return [transform_basis(make_basis(), r) for r in renderers]


def light_of(blend, transforms):
    """Statistics, posterior mean and deviation of the fluxes of every plane."""
    s = statistics(blend, transforms)
    n_modes = len(make_basis().modes)
    reduced = unpad(
        *(np.asarray(x) for x in (s.H, s.b)),
        *(float(x) for x in (s.r2, s.log_norm, s.n_data)),
        present=np.asarray(blend.present),
        is_star=np.asarray(blend.is_star),
        n_modes=n_modes,
    )
    p = posterior(reduced, GaussianPrior.standard(make_basis()))
    scale = np.asarray(plane_scale(s.plane_flux, s.plane_error))[1]
    start = n_modes * int(blend.present[0])
    mean = p.mean[start : start + n_modes]
    sd = np.sqrt(np.diag(p.covariance))[start : start + n_modes]
    curve = LightCurve.of(scale, SHINES, mean, np.stack([mean - sd, mean + sd]))
    return s, p, curve, scale * sd[: len(scale)]


def test_fluxes_of_images_without_noise_are_the_true_ones(transforms):
    s, p, curve, sd = light_of(observe(), transforms)
    np.testing.assert_allclose(s.plane_flux[1], FLUX, rtol=0.02, atol=1e-6)
    np.testing.assert_allclose(curve.mean, FLUX, atol=0.02)
    assert (curve.mean[:2] == 0).all() and (sd[2:] > 0).all() and (sd[:2] == 0).all()
    # The host is the mean galaxy of the prior.
    host = np.asarray(s.scale)[0] * (1 + 0 * p.mean[0])
    assert host == pytest.approx(40, rel=0.05)
    np.testing.assert_array_equal(s.plane_flux[0], 0)
    np.testing.assert_array_equal(s.plane_error[1] == 0, ~SHINES)


def test_pulls_are_standard_normal(transforms, rng):
    pulls = []
    for _ in range(60):
        _, _, curve, sd = light_of(observe(rng), transforms)
        pulls.append(((curve.mean - FLUX) / np.where(sd > 0, sd, 1))[2:])
    pulls = np.array(pulls)
    assert abs(pulls.mean()) < 4 / np.sqrt(pulls.size)
    assert 0.8 < pulls.std() < 1.2


def test_an_epoch_that_is_off_says_nothing_about_the_others(transforms):
    """Other data where the star is off change the host, and the star only through it."""
    blend = observe()
    _, _, lone, _ = light_of(
        eqx.tree_at(lambda b: b.present, blend, present(0)), transforms
    )
    # Alone, with the galaxy still in the image, the star takes light of the host.
    assert (lone.mean[2:] > FLUX[2:] + 1).all()
    bright = eqx.tree_at(
        lambda b: b.observations[0].image, blend, blend.observations[0].image * 2
    )
    without = eqx.tree_at(lambda b: b.present, bright, present(0))
    _, _, same, _ = light_of(without, transforms)
    np.testing.assert_array_equal(same.mean, lone.mean)


def present(missing):
    values = np.array([True, True, False])
    values[missing] = False
    return values


def test_masked_planes_have_no_flux(transforms):
    blend = observe()
    dark = eqx.tree_at(
        lambda b: b.observations[1].variance, blend, jnp.full((2, 25, 25), jnp.inf)
    )
    _, _, curve, _ = light_of(dark, transforms)
    assert np.isnan(curve.mean[2:4]).all()
    np.testing.assert_allclose(curve.mean[4:], FLUX[4:], atol=0.02)


def test_profile_fits_have_a_flux_per_plane(transforms):
    blend = observe()
    settings = MapSettings(2, 0.168, "exponential", steps=150, stamp=STAMP)
    s = statistics(blend, transforms)
    fit = eqx.filter_jit(
        lambda b, s: fit_profiles(b, s, jnp.asarray(SIGMA), settings)[0]
    )(blend, s)
    np.testing.assert_array_equal(fit.plane_flux[1][:2], 0)
    # A Gaussian galaxy is no exponential: what is left of it moves the star a little.
    np.testing.assert_allclose(fit.plane_flux[1][2:], FLUX[2:], rtol=0.15, atol=1.0)
    np.testing.assert_array_equal(fit.flux[1], 0)
    prior = GaussianPrior.standard(make_basis())
    with pytest.raises(ValueError, match="per epoch"):
        fit_pixels(blend, s, prior, jnp.asarray(0.1), PixelSettings(2))


def test_a_blend_knows_its_planes():
    blend = observe()
    assert blend.planes == ((0, 1), (2, 3), (4, 5))
    np.testing.assert_array_equal(blend.is_variable, [False, True, False])
    plain = eqx.tree_at(lambda b: b.shines, blend, None)
    assert not np.any(plain.is_variable)
    assert jax.tree.structure(plain) != jax.tree.structure(blend)
