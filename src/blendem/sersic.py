"""Fourier transform of the untruncated Sersic profile, as a differentiable table.

The transform of I(r) ~ exp(-b (r / R_e)^(1/n)) has no closed form. By Parseval's theorem
for Mellin transforms it is a contour integral of Gamma functions that converges
exponentially, for every n, so the table is exact to rounding and is built in 0.1 s.
"""

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import gammaincinv, loggamma

N_MIN, N_MAX = 0.3, 6.5  # range of the index in the table
# Nodes, uniform in ln n and in x = ln(q^2 + Q_SOFT^2) / 2 with q = k R_e. Near k = 0 the
# transform is a power series in q^2, hence in exp(2 x): the table holds k = 0 itself,
# without a branch, and derivatives exist there. The cubic spline through 40 x 288 nodes
# is within 2e-6 of the integral (tests/test_sersic.py; the largest error is at n = 0.3).
N_NODES, Q_NODES = 40, 288
Q_SOFT, Q_MAX = 1e-2, 1e5  # at Q_MAX the transform is below 3e-7
LN_N_STEP = math.log(N_MAX / N_MIN) / (N_NODES - 1)
X_STEP = math.log(Q_MAX / Q_SOFT) / (Q_NODES - 1)


def sersic_b(n: float | np.ndarray) -> float | np.ndarray:
    """Constant b that makes R_e the half-light radius: P(2 n, b) = 1/2 (NumPy)."""
    return gammaincinv(2 * np.asarray(n, float), 0.5)


def integrate_transform(
    q: Float[np.ndarray, " k"], n: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n k"]:
    """Transform of unit-flux Sersic profiles by contour integration (NumPy, float64).

    F(q) = int q^-s G(s) ds / (2 pi i) along Re s = 1/2, where G, the Mellin transform of
    F, is the product of those of the profile and of the Bessel function J0:
    G(s) = b^(n s) Gamma(n (2 - s)) / Gamma(2 n) 2^(s-1) Gamma(s/2) / Gamma(1 - s/2).
    The trapezoid rule errs by aliases 2 pi / step = 63 away in ln q: exp(-31). Since
    |G| ~ exp(-pi n |Im s| / 2), the cut at |Im s| = 150 loses exp(-70) for n = 0.3.

    Args:
        q: Angular frequency times half-light radius [radian], > 0.
        n: Sersic indices.

    References:
        Baes & Gentile 2011, A&A 525, A136 (Mellin transforms of Sersic profiles);
        Graham & Driver 2005, PASA 22, 118 (definitions).
    """
    step = 0.1
    s = 0.5 + 1j * np.arange(-150, 150 + step / 2, step)
    n = np.asarray(n, float)[:, None]
    profile = n * s * np.log(sersic_b(n)) + loggamma(n * (2 - s)) - loggamma(2 * n)
    bessel = (s - 1) * np.log(2) + loggamma(s / 2) - loggamma(1 - s / 2)
    powers = np.exp(-np.multiply.outer(s, np.log(np.asarray(q, float))))
    return (np.exp(profile + bessel) @ powers).real * step / (2 * np.pi)


def spline_coefficients(value: np.ndarray) -> np.ndarray:
    """Uniform cubic B-spline coefficients through `value` along its first axis.

    N nodes take N + 2 coefficients; the third derivative is continuous at the second
    and the last but one node ("not a knot"), which closes the system.
    """
    n = len(value)
    rows = np.arange(n)
    matrix = np.zeros((n + 2, n + 2))
    for offset, weight in enumerate((1 / 6, 2 / 3, 1 / 6)):
        matrix[rows, rows + offset] = weight
    matrix[n, :5] = matrix[n + 1, -5:] = (1, -4, 6, -4, 1)
    return np.linalg.solve(matrix, np.concatenate([value, np.zeros_like(value[:2])]))


@lru_cache(maxsize=1)
def build_table() -> np.ndarray:
    """B-spline coefficients of F, axes (ln n, x), `(N_NODES + 2, Q_NODES + 2)`."""
    n = N_MIN * np.exp(LN_N_STEP * np.arange(N_NODES))
    x = np.log(Q_SOFT) + X_STEP * np.arange(1, Q_NODES)
    value = integrate_transform(np.sqrt(np.exp(2 * x) - Q_SOFT**2), n)
    value = np.concatenate([np.ones((N_NODES, 1)), value], axis=1)  # F(0) = 1
    table = spline_coefficients(spline_coefficients(value).T).T
    table.flags.writeable = False  # the cache hands out one array
    return table


def _weights(f: Array) -> tuple[Array, ...]:
    """Uniform cubic B-spline at fraction `f` of an interval."""
    g = 1 - f
    inner = 2 / 3 - f**2 * (1 - f / 2)
    outer = 2 / 3 - g**2 * (1 - g / 2)
    return g**3 / 6, inner, outer, f**3 / 6


def _slopes(f: Array) -> tuple[Array, ...]:
    """Derivatives of `_weights` by `f`."""
    g = 1 - f
    return -(g**2) / 2, f * (1.5 * f - 2), g * (2 - 1.5 * g), f**2 / 2


def _split(u: Array, intervals: int) -> tuple[Array, Array, Array]:
    """Interval of the node coordinate `u`, fraction in it, and 1 where `u` is inside."""
    inside = ((u >= 0) & (u <= intervals)).astype(u.dtype)
    u = jnp.clip(u, 0, intervals)
    index = jnp.clip(u.astype(jnp.int32), 0, intervals - 1)
    return index, u - index.astype(u.dtype), inside


def _node(q2: Array) -> Array:
    """Node coordinate in x; 0 at q = 0."""
    return 0.5 / X_STEP * jnp.log1p(q2 / Q_SOFT**2)


def _row(n: Float[Array, ""]) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Spline coefficients in x at index `n`, and their derivative by `n`."""
    index, f, inside = _split(jnp.log(n / N_MIN) / LN_N_STEP, N_NODES - 1)
    table = jnp.asarray(build_table(), n.dtype)
    nodes = jax.lax.dynamic_slice_in_dim(table, index, 4, axis=0)
    slope = jnp.stack(_slopes(f)) @ nodes * (inside / (LN_N_STEP * n))
    return jnp.stack(_weights(f)) @ nodes, slope


def _taps(row: Float[Array, " c"], index: Array, weights: tuple[Array, ...]) -> Array:
    """Sum of four coefficients from `index` on, weighted."""
    taps = [row.at[index + j].get(mode="promise_in_bounds") for j in range(4)]
    return sum(w * tap for w, tap in zip(weights, taps, strict=True))


@jax.custom_jvp
def _evaluate(q2: Float[Array, "*k"], n: Float[Array, ""]) -> Float[Array, "*k"]:
    index, f, _ = _split(_node(q2), Q_NODES - 1)
    return _taps(_row(n)[0], index, _weights(f))


@_evaluate.defjvp
def _evaluate_jvp(primals, tangents):
    # The rule of the gather would be a scatter per frequency, which is slow; the splines'
    # own derivatives make the pull-back a product and a sum.
    (q2, n), (q2_dot, n_dot) = primals, tangents
    index, f, inside = _split(_node(q2), Q_NODES - 1)
    row, row_slope = _row(n)
    weights = _weights(f)
    by_q2 = _taps(row, index, _slopes(f)) * inside / (2 * X_STEP * (q2 + Q_SOFT**2))
    value = _taps(row, index, weights)
    return value, by_q2 * q2_dot + _taps(row_slope, index, weights) * n_dot


def sersic_transform(q2: Float[Array, "*k"], n: Float[Array, ""]) -> Float[Array, "*k"]:
    """Transform of the round, untruncated Sersic profile of unit flux.

    Twice continuously differentiable in both arguments, also at q = 0. It is a function
    of q^2 so that no square root stands in the way there.

    Args:
        q2: Square of angular frequency times half-light radius, (k R_e)^2. Above
            `Q_MAX`^2 the value, below 3e-7, stays constant.
        n: Sersic index, shape `()`. Outside [0.3, 6.5] the nearest profile is returned
            and the derivative is 0: bound it where it is set.
    """
    dtype = jnp.result_type(q2, n)
    return _evaluate(jnp.asarray(q2, dtype), jnp.asarray(n, dtype))
