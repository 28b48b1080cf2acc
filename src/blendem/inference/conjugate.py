"""Conjugate gradients for many right sides at once, with scalars of their own."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Solution(NamedTuple):
    """Result of `conjugate_gradients`, one row per draw.

    Attributes:
        x: Solutions, `(draw, n)`.
        residual: Norm of the residual over that of the right side, `(draw,)`.
        guards: Draws that met negative curvature.
        iterations: Number of iterations.
    """

    x: Array
    residual: Array
    guards: Array
    iterations: Array


def conjugate_gradients(
    apply: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    rhs: Float[Array, "draw n"],
    limit: Array,
    tolerance: float,
) -> Solution:
    """Solve a positive definite system for many right sides, each with its own scalars.

    A draw stops where its residual is below the tolerance, or where it meets a direction
    of curvature <= 0, in which the operator is not positive definite: that is counted.

    Args:
        apply: The operator, on `(draw, n)`.
        precondition: An approximate inverse, symmetric.
        rhs: Right sides.
        limit: Most iterations.
        tolerance: Relative residual at which a draw stops.
    """
    size = jnp.sum(rhs**2, axis=1)
    safe = jnp.where(size > 0, size, 1.0)

    def proceed(state):
        return (state[-1] < limit) & jnp.any(state[4])

    def iterate(state):
        x, r, p, rho, active, guards, count = state
        cp = apply(p)
        curvature = jnp.sum(p * cp, axis=1)
        bad = active & ~(curvature > 0)
        active = active & ~bad
        alpha = jnp.where(active, rho / jnp.where(active, curvature, 1.0), 0.0)
        x = x + alpha[:, None] * p
        r = r - alpha[:, None] * cp
        y = precondition(r)
        next_rho = jnp.sum(r * y, axis=1)
        beta = jnp.where(active, next_rho / jnp.where(active, rho, 1.0), 0.0)
        rho = jnp.where(active, next_rho, rho)
        active = active & (jnp.sum(r**2, axis=1) > tolerance**2 * size) & (rho > 0)
        guards = guards + jnp.sum(bad, dtype=jnp.int32)
        return x, r, y + beta[:, None] * p, rho, active, guards, count + 1

    y = precondition(rhs)
    rho = jnp.sum(rhs * y, axis=1)
    zero = jnp.int32(0)
    state = (jnp.zeros_like(rhs), rhs, y, rho, (size > 0) & (rho > 0), zero, zero)
    x, r, *_, guards, count = jax.lax.while_loop(proceed, iterate, state)
    return Solution(x, jnp.sqrt(jnp.sum(r**2, axis=1) / safe), guards, count)
