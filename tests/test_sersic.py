"""The Sersic table against closed forms, GalSim and the contour integral."""

import equinox as eqx
import galsim
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gamma, j0

from blendem.sersic import (
    LN_N_STEP,
    N_MAX,
    N_MIN,
    Q_MAX,
    build_table,
    integrate_transform,
    sersic_b,
    sersic_transform,
)

Q = np.geomspace(1e-4, 1e4, 200)
# The cubic splines are within 2e-6 of the integral; 3e-6 leaves room for the points
# between which it was looked for.
SPLINE = 3e-6


evaluate = jax.jit(sersic_transform)


def transform(q, n) -> np.ndarray:
    return np.array(evaluate(jnp.asarray(q**2), jnp.asarray(float(n))))


def test_b_holds_half_of_the_light():
    # n = 1: (1 + b) exp(-b) = 1/2; n = 1/2: exp(-b) = 1/2.
    assert sersic_b(1.0) == pytest.approx(1.6783469900166605, rel=1e-12)
    assert sersic_b(0.5) == pytest.approx(np.log(2), rel=1e-12)
    # Ciotti & Bertin 1999, A&A 352, 447, eq. 18; the next term is below 1e-6 for n = 4.
    n = 4.0
    series = 2 * n - 1 / 3 + 4 / (405 * n) + 46 / (25515 * n**2) + 131 / 1148175 / n**3
    assert sersic_b(n) == pytest.approx(series, abs=1e-5)


def test_gaussian_and_exponential_are_closed_forms():
    sigma = 1 / np.sqrt(
        2 * np.log(2)
    )  # half of a Gaussian is within sigma sqrt(2 ln 2)
    assert np.abs(transform(Q, 0.5) - np.exp(-((Q * sigma) ** 2) / 2)).max() < SPLINE
    r0 = 1 / 1.6783469900166605
    assert np.abs(transform(Q, 1.0) - (1 + (Q * r0) ** 2) ** -1.5).max() < SPLINE


@pytest.mark.parametrize("n", [0.3, 0.8, 1.7, 2.5, 4.0, 6.2])
def test_other_indices_match_galsim(n):
    params = galsim.GSParams(kvalue_accuracy=1e-9, folding_threshold=1e-5)
    profile = galsim.Sersic(n, half_light_radius=1.0, gsparams=params)
    q = np.geomspace(1e-3, 1e2, 40)
    expected = np.array([profile.kValue(k, 0).real for k in q])
    # GalSim's own table is within 4e-7 of the contour integral.
    assert np.abs(transform(q, n) - expected).max() < SPLINE + 1e-6


@pytest.mark.parametrize("n", [0.3, 2.0, 6.5])
def test_contour_integral_matches_quadrature(n):
    """Hankel transform in t = r^(1/n), where the profile is a plain exponential."""
    b = sersic_b(n)

    def integrand(t, q):
        return n * t ** (2 * n - 1) * np.exp(-b * t) * j0(q * t**n)

    norm = n * gamma(2 * n) / b ** (2 * n)
    for q in (0.03, 0.7, 3.0):
        value = quad(integrand, 0, 60 / b, args=(q,), limit=2000, epsabs=1e-11 * norm)
        expected = integrate_transform(np.array([q]), np.array([n]))[0, 0]
        assert value[0] / norm == pytest.approx(expected, abs=1e-8)


def test_table_is_within_tolerance_of_the_integral_everywhere():
    rng = np.random.default_rng(1)
    n = rng.uniform(N_MIN, N_MAX, 30)
    n = np.concatenate([n, N_MIN * (N_MAX / N_MIN) ** rng.random(30), [N_MIN, N_MAX]])
    q = np.exp(rng.uniform(np.log(1e-4), np.log(Q_MAX), 800))
    batched = jax.jit(jax.vmap(sersic_transform, (None, 0)))
    table = batched(jnp.asarray(q**2), jnp.asarray(n))
    assert np.abs(table - integrate_transform(q, n)).max() < SPLINE


@pytest.mark.parametrize("n", [0.4, 1.0, 4.0, 6.3])
def test_small_frequencies_follow_the_moments(n):
    """F = 1 - q^2 <r^2> / 4 + O(q^4), <r^2> = Gamma(4 n) / Gamma(2 n) / b^(2 n)."""
    moment = gamma(4 * n) / gamma(2 * n) / sersic_b(n) ** (2 * n)
    at_zero = jnp.zeros(3)
    assert np.abs(transform(np.zeros(3), n) - 1).max() < 1e-14  # the flux, a node
    slope = jax.jit(jax.grad(lambda q2, n: sersic_transform(q2, n).sum()))(at_zero, n)
    # A derivative of the spline at its edge, hence the percent: where q^2 <r^2> / 4
    # itself is 1e-3 this is 1e-5 of F.
    np.testing.assert_allclose(slope, -moment / 4, rtol=0.01)


@pytest.mark.parametrize("n", [0.35, 1.0, N_MIN * np.exp(20 * LN_N_STEP), 3.7])
def test_derivatives_match_differences_of_the_integral(n):
    """The third n is a node of the table, where a spline of less smoothness would jump."""
    q, eps = np.geomspace(0.02, 50, 60), 1e-4
    weight = np.random.default_rng(2).normal(size=q.size)

    def exact(q, n):
        return integrate_transform(q, np.array([n]))[0] @ weight

    def table(q2, n):
        return sersic_transform(q2, n) @ jnp.asarray(weight)

    by_q2, by_n = jax.jit(jax.grad(table, (0, 1)))(jnp.asarray(q**2), jnp.asarray(n))
    expected = (exact(q, n + eps) - exact(q, n - eps)) / (2 * eps)
    assert abs(expected) > 0.05
    # dF/dn of the table is within 1e-4 (at n = 0.3), times |weight| ~ sqrt(60).
    assert by_n == pytest.approx(expected, abs=5e-4)
    second = jax.jit(jax.grad(jax.grad(table, 1), 1))(jnp.asarray(q**2), jnp.asarray(n))
    eps = 1e-3
    expected = exact(q, n + eps) - 2 * exact(q, n) + exact(q, n - eps)
    assert second == pytest.approx(expected / eps**2, rel=0.02, abs=0.02)
    up = integrate_transform(q * (1 + 1e-5), np.array([n]))[0]
    down = integrate_transform(q * (1 - 1e-5), np.array([n]))[0]
    by_ln_q = 2 * q**2 * np.array(by_q2)
    np.testing.assert_allclose(by_ln_q, weight * (up - down) / 2e-5, atol=3e-4)


def test_outside_of_the_table_the_nearest_profile_stays():
    assert np.array_equal(transform(Q, 9.0), transform(Q, N_MAX))
    assert np.array_equal(transform(Q, 0.1), transform(Q, N_MIN))
    grad = jax.jit(jax.grad(lambda n: sersic_transform(jnp.asarray(Q**2), n).sum()))
    assert grad(jnp.asarray(9.0)) == 0 and grad(jnp.asarray(6.0)) != 0
    assert transform(np.array([1e9]), 4.0) == transform(np.array([Q_MAX]), 4.0)


def test_single_precision_follows_the_input():
    q2, n = jnp.asarray(Q**2, jnp.float32), jnp.float32(4.0)
    value = sersic_transform(q2, n)
    assert value.dtype == jnp.float32
    # Rounding of ln q (up to 11.5) and of four taps: a few float32 epsilons, 1e-7 each.
    assert np.abs(value - transform(Q, 4.0)).max() < 2e-6


def test_table_is_built_once_and_new_values_do_not_recompile():
    assert build_table() is build_table()
    counted = eqx.debug.assert_max_traces(sersic_transform, max_traces=1)
    run = eqx.filter_jit(counted)
    values = [float(run(jnp.array([4.0]), jnp.asarray(n))[0]) for n in (0.7, 2.0, 5.0)]
    assert len(set(values)) == 3
