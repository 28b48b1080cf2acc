"""Exact EM: the evidence cannot fall, and the truth is its fixed point."""

import jax.numpy as jnp
import numpy as np
import pytest

from blendem.inference.em import add, expectation, maximization
from blendem.inference.posterior import BlendStatistics, posterior
from blendem.prior.gaussian import Basis, GaussianPrior
from blendem.prior.pca import fit_basis

D = 3


def make_basis(rng):
    """An invariant basis, by the library, of random blobs."""
    r = np.arange(9) - 4
    blobs = []
    for _ in range(40):
        y, x, s = rng.normal(), rng.normal(), rng.uniform(1, 2)
        blobs.append(np.exp(-((r[:, None] - y) ** 2 + (r[None] - x) ** 2) / (2 * s**2)))
    stamps = np.array(blobs, np.float32)[:, None]
    return fit_basis(stamps, D, bands=("i",), psf_sigma=0.7, pixel_scale=1.0, rng=rng)


def make_blends(n, prior, rng, noise=1.0, stars=True):
    """Two sources each on 12 random pixels, truths from `prior`."""
    d, out = len(prior.mean), []
    for i in range(n):
        star = np.array([False, stars and i % 5 == 0])
        A = rng.normal(size=(12, 2 * d)) / noise
        z = (
            np.asarray(prior.mean)
            + rng.normal(size=(2, d)) @ np.asarray(prior.cholesky).T
        )
        z[star] = rng.normal(size=(star.sum(), d))
        r = A @ z.ravel() + rng.normal(size=12)
        out.append(
            BlendStatistics(
                A.T @ A, A.T @ r, r @ r, 12 * np.log(2 * np.pi), 12, star, d
            )
        )
    return out


def test_the_evidence_never_falls(rng):
    basis = make_basis(rng)
    d = len(basis.modes)
    truth = GaussianPrior.from_moments(
        basis, np.r_[1.5, np.zeros(d - 1)], np.diag(np.r_[0.3, np.ones(d - 1)])
    )
    blends = make_blends(60, truth, rng)
    for symmetric in (False, True):
        prior, evidence = GaussianPrior.standard(basis), []
        for _ in range(12):
            total, each = expectation(blends, prior)
            evidence.append(total.log_evidence)
            np.testing.assert_allclose(each.sum(), total.log_evidence)
            prior = maximization(total, prior, symmetric=symmetric)
        gain = np.diff(evidence)
        # float32 modes make the group's representation orthogonal to 1e-6 only.
        assert gain.min() > (-1e-3 if symmetric else -1e-8)
        assert gain[0] > 1


def test_the_m_step_has_the_moments_of_the_posteriors(rng):
    basis = make_basis(rng)
    prior = GaussianPrior.standard(basis)
    d = len(basis.modes)
    blends = make_blends(9, prior, rng)
    first, second = [], []
    for s in blends:
        p = posterior(s, prior)
        for k in range(2):
            if not s.is_star[k]:
                block = slice(k * d, (k + 1) * d)
                first.append(p.mean[block])
                second.append(
                    p.covariance[block, block] + np.outer(first[-1], first[-1])
                )
    mean = np.mean(first, axis=0)
    half, _ = expectation(blends[:4], prior)
    other, _ = expectation(blends[4:], prior)
    total = add(half, other)
    assert total.count == len(first) == 16  # two of the 18 sources are stars
    assert total.n_data == 9 * 12

    new = maximization(total, prior, symmetric=False)

    np.testing.assert_allclose(new.mean, mean, rtol=1e-9)
    expected = np.mean(second, axis=0) - np.outer(mean, mean)
    np.testing.assert_allclose(new.covariance, expected, rtol=1e-7, atol=1e-9)


def test_em_recovers_the_prior_of_many_blends(rng):
    modes = rng.normal(size=(2, 1, 5, 5))
    basis = Basis(
        np.zeros((1, 5, 5)), modes, np.sum(modes**2, (1, 2, 3)), np.array(0.0),
        jnp.array(0.7), jnp.array(1.0), ("i",),
    )  # fmt: skip
    covariance = np.array([[0.5, 0.3], [0.3, 0.8]])
    truth = GaussianPrior.from_moments(basis, np.array([1.0, -2.0]), covariance)
    blends = make_blends(200, truth, rng, noise=0.5, stars=False)
    prior = GaussianPrior.standard(basis)
    for _ in range(8):
        total, _ = expectation(blends, prior)
        prior = maximization(total, prior, symmetric=False)
    # Five standard errors for 400 galaxies whose noise adds little to their scatter.
    np.testing.assert_allclose(prior.mean, truth.mean, atol=5 * np.sqrt(1.0 / 400))
    np.testing.assert_allclose(
        prior.covariance, covariance, atol=5 * np.sqrt(2.0 / 400)
    )


def test_em_without_galaxies_is_refused(rng):
    prior = GaussianPrior.standard(make_basis(rng))
    total, _ = expectation([], prior)
    with pytest.raises(ValueError, match="no galaxy to learn from"):
        maximization(total, prior)
