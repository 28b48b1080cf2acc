"""Basis and Gaussian prior against dense NumPy."""

import jax.numpy as jnp
import numpy as np

from blendem.prior.gaussian import Basis, GaussianPrior


def make_prior(rng):
    flat = np.linalg.qr(rng.normal(size=(50, 3)))[0].T * np.array([[2.0], [1.0], [0.5]])
    basis = Basis(
        rng.normal(size=(2, 5, 5)),
        flat.reshape(3, 2, 5, 5),
        np.array([4.0, 1.0, 0.25]),
        np.array(0.0),
        jnp.array(0.7),
        jnp.array(1.0),
        ("g", "i"),
    )
    root = rng.normal(size=(3, 3))
    return GaussianPrior.from_moments(basis, rng.normal(size=3), root @ root.T)


def test_encode_inverts_decode_with_any_leading_axes(rng):
    basis = make_prior(rng).basis
    for lead in ((), (4,), (2, 3)):
        z = rng.normal(size=(*lead, 3))
        u = basis.decode(z)
        assert u.shape == (*lead, 2, 5, 5)
        expected = basis.mean + np.einsum("...i,ibyx->...byx", z, basis.modes)
        np.testing.assert_allclose(u, expected, atol=1e-12)
        np.testing.assert_allclose(basis.encode(u), z, atol=1e-12)


def test_denoiser_is_the_wiener_filter(rng):
    prior = make_prior(rng)
    flat = prior.basis.modes.reshape(3, -1)
    covariance = flat.T @ np.asarray(prior.covariance) @ flat
    mean = np.ravel(prior.basis.decode(prior.mean))
    u_t = rng.normal(size=(2, 3, 2, 5, 5))
    gain = covariance @ np.linalg.inv(covariance + 0.3**2 * np.eye(50))
    expected = mean + (u_t.reshape(2, 3, 50) - mean) @ gain.T
    result = prior.denoise(u_t, jnp.array(0.3))
    np.testing.assert_allclose(np.reshape(result, (2, 3, 50)), expected, atol=1e-10)


def test_samples_have_the_moments(rng, key):
    prior = make_prior(rng)
    n = 40_000
    z = np.asarray(prior.sample(n, key=key))
    sd = np.sqrt(np.diag(prior.covariance))
    # Five standard errors.
    assert np.all(np.abs(z.mean(0) - prior.mean) < 5 * sd / np.sqrt(n))
    error = np.abs(np.cov(z.T) - prior.covariance) / np.outer(sd, sd)
    assert np.all(error < 5 * np.sqrt(2 / n))
