"""Amplitudes and centres that a pipeline would know: joint least squares of templates.

Each source gets two templates, the mean galaxy of the prior and a point source, at the
catalog position. All sources and bands of the blend are fitted jointly with non-negative
fluxes, and the centres are improved by Gauss-Newton steps between such fits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from blendem.blend import Blend
from blendem.renderer import Renderer

N_TEMPLATES = 2  # extended, compact
SWEEPS = 60  # of coordinate descent over the templates
FLOOR = 2.0  # lowest amplitude, in units of its noise for an isolated source
MAX_STEP = 0.5  # of one Gauss-Newton step of a centre [model pixel]


class Amplitudes(NamedTuple):
    """Result of `fit_amplitudes`; of several blends with a leading axis.

    Attributes:
        scale: Reference-band flux `s_k`, bounded from below, `(source,)`.
        flux: Flux per template and model band, `(source, 2, band)`.
        flux_error: Noise of the flux of an isolated source per band, `inf` where the
            band has no data, `(source, band)`.
        centers: Improved centres (y, x) [model pixel], `(source, 2)`.
    """

    scale: Float[Array | np.ndarray, "*stack source"]
    flux: Float[Array | np.ndarray, "*stack source template band"]
    flux_error: Float[Array | np.ndarray, "*stack source band"]
    centers: Float[Array | np.ndarray, "*stack source 2"]


def nonnegative_least_squares(
    gram: Float[Array, "n n"], rhs: Float[Array, " n"], sweeps: int = SWEEPS
) -> Float[Array, " n"]:
    """Minimise `x^T gram x / 2 - rhs^T x` over x >= 0 by cyclic coordinate descent.

    Coordinates without data (zero diagonal) stay 0.
    """
    n = len(rhs)
    diagonal = jnp.diagonal(gram)
    inverse = jnp.where(diagonal > 0, 1 / jnp.where(diagonal > 0, diagonal, 1.0), 0.0)

    def update(step, x):
        i = step % n
        value = jnp.maximum(x[i] + (rhs[i] - gram[i] @ x) * inverse[i], 0.0)
        return x.at[i].set(jnp.where(inverse[i] > 0, value, 0.0))

    return jax.lax.fori_loop(0, sweeps * n, update, jnp.zeros_like(rhs))


def template_images(
    renderer: Renderer,
    templates: Complex[Array | np.ndarray, "template _ m half"],
    centers: Float[Array, "source 2"],
) -> Float[Array, "source template band height width"]:
    """Unit-flux templates of every source on the pixels of an observation."""
    return jax.vmap(lambda c: renderer.render_transform(templates, c))(centers)


def fit_amplitudes(
    blend: Blend,
    renderers: Sequence[Renderer],
    templates: Sequence[Complex[Array | np.ndarray, "template _ _ _"]],
    n_bands: int,
    *,
    reference: int,
    iterations: int,
    centroid_prior: float,
) -> Amplitudes:
    """Fit template fluxes and, if `iterations` > 0, centres.

    Args:
        blend: The blend.
        renderers: One for each observation.
        templates: `Renderer.stamp_transform` of unit-flux templates, for each observation
            in its own bands.
        n_bands: Number of model bands.
        reference: Index of the reference band, whose flux is the amplitude.
        iterations: Gauss-Newton steps of the centres.
        centroid_prior: Standard deviation of the catalog positions [model pixel].
    """
    n = len(blend.present)
    # Stars have the compact template only; padding has none.
    allowed = blend.present[:, None] & jnp.stack(
        [~blend.is_star, jnp.ones_like(blend.is_star)], axis=1
    )
    dtype = renderers[0].psf_sigma.dtype

    def solve(centers):
        gram = jnp.zeros((n_bands, n * N_TEMPLATES, n * N_TEMPLATES), dtype)
        rhs = jnp.zeros((n_bands, n * N_TEMPLATES), dtype)
        for observation, renderer, template in zip(
            blend.observations, renderers, templates, strict=True
        ):
            image = template_images(renderer, template, centers)
            image = image * allowed[:, :, None, None, None]
            image = image.reshape(n * N_TEMPLATES, *image.shape[2:])
            index = jnp.asarray(renderer.band_index)
            weighted = image * observation.weight[None]
            gram = gram.at[index].add(jnp.einsum("ibyx,jbyx->bij", weighted, image))
            rhs = rhs.at[index].add(
                jnp.einsum("ibyx,byx->bi", weighted, observation.image)
            )
        flux = jax.vmap(nonnegative_least_squares)(gram, rhs)
        return flux.reshape(n_bands, n, N_TEMPLATES).transpose(1, 2, 0), gram

    def step(centers, _):
        flux, _ = solve(centers)
        hessian = jnp.eye(2 * n, dtype=dtype) / centroid_prior**2
        gradient = -((centers - blend.centers) / centroid_prior**2).ravel()
        for observation, renderer, template in zip(
            blend.observations, renderers, templates, strict=True
        ):
            model, slope = source_slopes(renderer, template, centers, flux)
            residual = observation.image - jnp.sum(model, axis=0)
            weight = observation.weight
            slope = slope.reshape(2 * n, *slope.shape[2:])
            hessian = hessian + jnp.einsum("ibyx,jbyx->ij", slope * weight[None], slope)
            gradient = gradient + jnp.einsum("ibyx,byx->i", slope, weight * residual)
        move = jnp.linalg.solve(hessian, gradient).reshape(n, 2)
        move = jnp.clip(move, -MAX_STEP, MAX_STEP)
        moved = blend.centers + jnp.clip(
            centers + move - blend.centers, -3 * centroid_prior, 3 * centroid_prior
        )
        return jnp.where(blend.present[:, None], moved, blend.centers), None

    centers = blend.centers
    if iterations:
        centers, _ = jax.lax.scan(step, centers, length=iterations)
    flux, gram = solve(centers)
    diagonal = jnp.diagonal(gram, axis1=1, axis2=2).reshape(n_bands, n, N_TEMPLATES)
    # A star has no extended template, its noise is that of the compact one.
    information = jnp.where(blend.is_star[None], diagonal[:, :, 1], diagonal[:, :, 0])
    seen = information > 0
    error = jnp.where(seen, 1 / jnp.sqrt(jnp.where(seen, information, 1.0)), jnp.inf).T
    total = jnp.sum(flux, axis=1)
    # Without data in the reference band the best-measured band stands in.
    best = jnp.argmin(
        jnp.where(seen.T, error / jnp.maximum(total, 1e-30), jnp.inf), axis=1
    )
    band = jnp.where(seen.T[:, reference], reference, best)[:, None]
    chosen = jnp.take_along_axis(total, band, axis=1)[:, 0]
    floor = FLOOR * jnp.take_along_axis(error, band, axis=1)[:, 0]
    scale = jnp.maximum(chosen, jnp.where(jnp.isfinite(floor), floor, 1.0))
    return Amplitudes(jnp.where(blend.present, scale, 1.0), flux, error, centers)


def source_slopes(
    renderer: Renderer,
    templates: Complex[Array | np.ndarray, "template _ m half"],
    centers: Float[Array, "source 2"],
    flux: Float[Array, "source template _"],
) -> tuple[
    Float[Array, "source band height width"], Float[Array, "source 2 band height width"]
]:
    """Template model of every source and its derivative by the centre (y, x)."""
    index = jnp.asarray(renderer.band_index)

    def one(center, f):
        def render(c):
            transform = jnp.sum(templates * f[:, index, None, None], axis=0)
            return renderer.render_transform(transform, c)

        basis = jnp.eye(2, dtype=center.dtype)
        model, slope_y = jax.jvp(render, (center,), (basis[0],))
        _, slope_x = jax.jvp(render, (center,), (basis[1],))
        return model, jnp.stack([slope_y, slope_x])

    return jax.vmap(one)(centers, flux)
