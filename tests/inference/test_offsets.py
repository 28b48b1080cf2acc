"""Offsets of observations from the first one: found, with their errors."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from tests.inference.test_statistics import SIGMA, STAMP, gaussian, make_basis

from blendem.blend import Blend
from blendem.inference.posterior import posterior, unpad
from blendem.inference.statistics import Settings, compute_statistics, transform_basis
from blendem.observation import Observation, Sampling
from blendem.prior.gaussian import GaussianPrior
from blendem.renderer import Renderer

CENTERS = np.array([[11.3, 9.6], [14.2, 15.9]])
GRIDS = {"same": np.eye(2), "coarse": np.diag([1.7, 1.7])}


def observe(jacobian, offset, noise, rng):
    """Two galaxies of the mean shape and flux 40, seen `offset` off where the WCS has them."""
    same = np.allclose(jacobian, np.eye(2))
    side = int(25 / jacobian[0, 0])
    empty = Observation(
        jnp.zeros((2, side, side)),
        jnp.full((2, side, side), noise**2),
        jnp.stack([jnp.asarray(gaussian(11, 1.5))] * 2),
        jnp.asarray(jacobian),
        jnp.zeros(2),
        (0, 1),
        same,
        Sampling() if same else Sampling.of(jacobian),
    )
    draw = eqx.filter_jit(Renderer.of(empty, STAMP, SIGMA).render_stamps)
    mean = jnp.asarray(make_basis().mean)
    image = sum(40 * np.asarray(draw(mean, jnp.asarray(c + offset))) for c in CENTERS)
    image = image + noise * rng.normal(size=image.shape)
    return eqx.tree_at(lambda o: o.image, empty, jnp.asarray(image))


@pytest.mark.parametrize("grid", GRIDS)
def test_an_offset_is_found_with_its_error(grid, rng):
    true, sigma, n = np.array([0.3, -0.4]), 0.5, 24
    basis = make_basis()
    prior = GaussianPrior.standard(basis)
    # The mean galaxy has a flux of 1 in the reference band: amplitudes are right.
    settings = Settings(1, STAMP, 0, centroid_sigma=0.02, offset_sigma=sigma)
    run, transforms = eqx.filter_jit(compute_statistics), None
    pulls, errors = [], []
    for _ in range(n):
        observations = (
            observe(np.eye(2), np.zeros(2), 0.15, rng),
            observe(GRIDS[grid], true, 0.15, rng),
        )
        blend = Blend(
            observations, jnp.asarray(CENTERS), np.zeros(2, bool), np.ones(2, bool)
        )
        transforms = transforms or [
            transform_basis(basis, Renderer.of(o, STAMP, SIGMA)) for o in observations
        ]
        s = run(blend, transforms, 2, SIGMA, settings)
        known = unpad(
            np.asarray(s.H),
            np.asarray(s.b),
            float(s.r2),
            float(s.log_norm),
            float(s.n_data),
            present=np.ones(2, bool),
            is_star=np.zeros(2, bool),
            n_modes=len(basis.modes),
        )
        p = posterior(known, prior)
        error = sigma * np.sqrt(np.diag(p.covariance)[-2:])
        pulls.append((sigma * p.mean[-2:] - true) / error)
        errors.append(error)
    # 24 pulls of each axis: their mean is known to 0.2, their scatter to 0.1.
    assert np.abs(np.mean(pulls, axis=0)).max() < 4 * n**-0.5
    assert 0.5 < np.std(pulls) < 1.5
    assert np.max(errors) < 0.1 and np.abs(true).min() > 3 * np.median(errors)
