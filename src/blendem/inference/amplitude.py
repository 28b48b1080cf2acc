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
OFFSET_STEPS = 3  # where the centres are held
MAX_STEP = 0.5  # of one Gauss-Newton step of a centre [model pixel]
# Prior deviation of the flux of a variable star in a plane: this many times its noise, plus this
# many times its template flux. It moves the flux by less than 3e-4 of its noise.
FREE_NOISE, FREE_FLUX = 100.0, 10.0


class Amplitudes(NamedTuple):
    """Result of `fit_amplitudes`; of several blends with a leading axis.

    Attributes:
        scale: Reference-band flux `s_k`, bounded from below, `(source,)`.
        flux: Flux per template and model band, `(source, 2, band)`.
        flux_error: Noise of the flux of an isolated source per band, `inf` where the
            band has no data, `(source, band)`.
        centers: Improved centres (y, x) [model pixel], `(source, 2)`.
        offsets: How far each observation is off the first one (y, x) [model pixel],
            `(observation, 2)`; 0 where offsets are not fitted.
        plane_flux: Flux of variable stars in every plane where they shine, 0 elsewhere and for
            others, `(source, plane)`; without variable stars there are no planes. It is not in
            `flux`.
        plane_error: Noise of it for an isolated source, `inf` where there are no data, 0 where
            the source does not shine, `(source, plane)`.
    """

    scale: Float[Array | np.ndarray, "*stack source"]
    flux: Float[Array | np.ndarray, "*stack source template band"]
    flux_error: Float[Array | np.ndarray, "*stack source band"]
    centers: Float[Array | np.ndarray, "*stack source 2"]
    offsets: Float[Array | np.ndarray, "*stack observation 2"]
    plane_flux: Float[Array | np.ndarray, "*stack source plane"]
    plane_error: Float[Array | np.ndarray, "*stack source plane"]

    def first_sources(self, n: int) -> "Amplitudes":
        """Of stacked blends, the first `n` sources of each."""
        few = {k: v[:, :n] for k, v in self._asdict().items() if k != "offsets"}
        return self._replace(**few)


def plane_scale(
    plane_flux: Float[Array | np.ndarray, "*stack source plane"],
    plane_error: Float[Array | np.ndarray, "*stack source plane"],
) -> Float[Array, "*stack source plane"]:
    """Prior deviation of the fluxes of variable stars: their unknowns are fluxes over it.

    It is 0 where a star is off or not observed.
    """
    error = jnp.where(jnp.isfinite(plane_error), plane_error, 0.0)
    wide = FREE_NOISE * error + FREE_FLUX * jnp.abs(plane_flux)
    return jnp.where(error > 0, wide, 0.0)


def flux_seen(
    flux: Float[Array, "source band"],
    plane_flux: Float[Array, "source plane"],
    planes: Sequence[int],
    band_index: Sequence[int],
) -> Float[Array, "source band"]:
    """Fluxes that one observation sees: with those of variable stars in its planes."""
    if not plane_flux.shape[-1]:
        return flux
    return flux.at[:, jnp.asarray(band_index)].add(plane_flux[:, jnp.asarray(planes)])


def templates_seen(
    flux: Float[Array, "source template band"],
    plane_flux: Float[Array, "source plane"],
    planes: Sequence[int],
    band_index: Sequence[int],
) -> Float[Array, "source template band"]:
    """As `flux_seen`, for template fluxes: a variable star is a point source."""
    point = flux_seen(flux[:, 1], plane_flux, planes, band_index)
    return flux.at[:, 1].set(point)


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


def see_templates(
    renderer: Renderer,
    templates: Complex[Array | np.ndarray, "*source template _ m half"],
) -> Array:
    """Templates as an observation sees them, at no place yet (`Renderer.see`).

    Returns:
        `(*source, ..., template, band)`.
    """
    see = jax.vmap(renderer.see, in_axes=(-3, 0), out_axes=-1)
    return see(jnp.asarray(templates), renderer.kernel)


def template_images(
    renderer: Renderer, seen: Array, centers: Float[Array, "source 2"]
) -> Float[Array, "source template band height width"]:
    """Unit-flux templates of every source, from `see_templates`, on the pixels of an observation."""

    def one(own, center):
        flat = own.reshape(*own.shape[:2], -1)
        values = renderer.render_columns(flat, center)
        images = values.reshape(*renderer.shape, *own.shape[-2:])
        return jnp.moveaxis(images, (0, 1), (-2, -1))

    return jax.vmap(one, in_axes=(_source_axis(seen), 0))(seen, centers)


def _source_axis(seen: Array) -> int | None:
    """First axis of `see_templates` where every source has its own."""
    return 0 if seen.ndim == 5 else None


def fit_amplitudes(
    blend: Blend,
    renderers: Sequence[Renderer],
    templates: Sequence[Complex[Array | np.ndarray, "*_ template _ _ _"]],
    n_bands: int,
    *,
    reference: int,
    iterations: int,
    centroid_prior: float,
    offset_sigma: float = 0.0,
) -> Amplitudes:
    """Fit template fluxes, if `iterations` > 0 centres, and if `offset_sigma` > 0 offsets.

    Args:
        blend: The blend.
        renderers: One for each observation.
        templates: `Renderer.stamp_transform` of unit-flux templates, for each observation
            in its own bands; with a first axis for the sources where they differ.
        n_bands: Number of model bands.
        reference: Index of the reference band, whose flux is the amplitude.
        iterations: Gauss-Newton steps of the centres.
        centroid_prior: Standard deviation of the catalog positions [model pixel].
        offset_sigma: Standard deviation of the offsets of all observations but the first [model
            pixel]; 0: they are 0.
    """
    n, n_observations = len(blend.present), len(renderers)
    fit_offsets = offset_sigma > 0 and n_observations > 1
    # Stars have the compact template only; padding has none.
    allowed = blend.present[:, None] & jnp.stack(
        [~blend.is_star, ~blend.is_variable], axis=1
    )
    dtype = renderers[0].psf_sigma.dtype
    fixed = n * N_TEMPLATES
    # Variable stars have one more unknown in every plane, of the band of the plane.
    n_planes = 0 if blend.shines is None else blend.shines.shape[-1]
    size = fixed + n * n_planes

    seen = [
        see_templates(renderer, own)
        for renderer, own in zip(renderers, templates, strict=True)
    ]

    def solve(centers, offsets):
        gram = jnp.zeros((n_bands, size, size), dtype)
        rhs = jnp.zeros((n_bands, size), dtype)
        for observation, renderer, template, offset, planes in zip(
            blend.observations, renderers, seen, offsets, blend.planes, strict=True
        ):
            image = template_images(renderer.moved(offset), template, centers)
            index = jnp.asarray(renderer.band_index)
            slots = jnp.broadcast_to(jnp.arange(fixed), (len(planes), fixed))
            columns = image * allowed[:, :, None, None, None]
            columns = columns.reshape(fixed, *image.shape[2:])
            if n_planes:
                number = jnp.asarray(planes)
                free = image[:, 1] * blend.shines[:, number, None, None]
                columns = jnp.concatenate([columns, free])
                own = fixed + n_planes * jnp.arange(n)[None] + number[:, None]
                slots = jnp.concatenate([slots, own], axis=1)
            weighted = columns * observation.weight[None]
            gram = gram.at[index[:, None, None], slots[:, :, None], slots[:, None]].add(
                jnp.einsum("ibyx,jbyx->bij", weighted, columns)
            )
            rhs = rhs.at[index[:, None], slots].add(
                jnp.einsum("ibyx,byx->bi", weighted, observation.image)
            )
        found = jax.vmap(nonnegative_least_squares)(gram, rhs)
        flux = found[:, :fixed].reshape(n_bands, n, N_TEMPLATES).transpose(1, 2, 0)
        # A plane has one band: it is zero in all others.
        plane_flux = jnp.sum(found[:, fixed:], axis=0).reshape(n, n_planes)
        return flux, plane_flux, jnp.diagonal(gram, axis1=1, axis2=2)

    def step(state, _):
        centers, offsets = state
        flux, plane_flux, _ = solve(centers, offsets)
        away = (centers - blend.centers) / centroid_prior**2
        hessian, gradient = jnp.full(2 * n, 1 / centroid_prior**2), -away.ravel()
        if fit_offsets:
            away = offsets[1:] / offset_sigma**2
            hessian = jnp.append(hessian, jnp.full(away.size, 1 / offset_sigma**2))
            gradient = jnp.append(gradient, -away.ravel())
        hessian = jnp.diag(hessian)
        for number, (observation, renderer, template) in enumerate(
            zip(blend.observations, renderers, seen, strict=True)
        ):
            moved = renderer.moved(offsets[number])
            here = templates_seen(
                flux, plane_flux, blend.planes[number], renderer.band_index
            )
            model, slope = source_slopes(moved, template, centers, here)
            residual = observation.image - jnp.sum(model, axis=0)
            weight, whole = observation.weight, jnp.sum(slope, axis=0)
            slope = slope.reshape(2 * n, *slope.shape[2:])
            if fit_offsets:
                mine = jnp.arange(1, n_observations) == number
                slots = mine[:, None, None, None, None] * whole[None]
                slope = jnp.concatenate([slope, slots.reshape(-1, *whole.shape[1:])])
            hessian = hessian + jnp.einsum("ibyx,jbyx->ij", slope * weight[None], slope)
            gradient = gradient + jnp.einsum("ibyx,byx->i", slope, weight * residual)
        move = jnp.linalg.solve(hessian, gradient).reshape(-1, 2)
        move = jnp.clip(move, -MAX_STEP, MAX_STEP)
        if not iterations:  # the offsets alone
            move = move.at[:n].set(0.0)
        if fit_offsets:
            limit = 3 * offset_sigma
            offsets = offsets.at[1:].set(
                jnp.clip(offsets[1:] + move[n:], -limit, limit)
            )
            move = move[:n]
        moved = blend.centers + jnp.clip(
            centers + move - blend.centers, -3 * centroid_prior, 3 * centroid_prior
        )
        return (jnp.where(blend.present[:, None], moved, blend.centers), offsets), None

    centers, offsets = blend.centers, jnp.zeros((n_observations, 2), dtype)
    steps = iterations or OFFSET_STEPS * fit_offsets
    if steps:
        (centers, offsets), _ = jax.lax.scan(step, (centers, offsets), length=steps)
    flux, plane_flux, diagonal = solve(centers, offsets)
    free = jnp.sum(diagonal[:, fixed:], axis=0).reshape(n, n_planes)
    diagonal = diagonal[:, :fixed].reshape(n_bands, n, N_TEMPLATES)
    # A star has no extended template, its noise is that of the compact one.
    information = jnp.where(blend.is_star[None], diagonal[:, :, 1], diagonal[:, :, 0])
    known = information > 0
    error = jnp.where(
        known, 1 / jnp.sqrt(jnp.where(known, information, 1.0)), jnp.inf
    ).T
    total = jnp.sum(flux, axis=1)
    # Without data in the reference band the best-measured band stands in.
    best = jnp.argmin(
        jnp.where(known.T, error / jnp.maximum(total, 1e-30), jnp.inf), axis=1
    )
    band = jnp.where(known.T[:, reference], reference, best)[:, None]
    chosen = jnp.take_along_axis(total, band, axis=1)[:, 0]
    floor = FLOOR * jnp.take_along_axis(error, band, axis=1)[:, 0]
    scale = jnp.maximum(chosen, jnp.where(jnp.isfinite(floor), floor, 1.0))
    plane_error = jnp.where(
        free > 0, 1 / jnp.sqrt(jnp.where(free > 0, free, 1.0)), jnp.inf
    )
    if n_planes:
        plane_error = jnp.where(blend.shines, plane_error, 0.0)
    return Amplitudes(
        jnp.where(blend.present, scale, 1.0),
        flux,
        error,
        centers,
        offsets,
        plane_flux,
        plane_error,
    )


def source_slopes(
    renderer: Renderer,
    seen: Array,
    centers: Float[Array, "source 2"],
    flux: Float[Array, "source template _"],
) -> tuple[
    Float[Array, "source band height width"], Float[Array, "source 2 band height width"]
]:
    """Template model of every source, from `see_templates`, and its derivative by the centre (y, x)."""
    index = jnp.asarray(renderer.band_index)

    def one(own, center, f):
        mixed = jnp.sum(own * f[None, None][..., index], axis=-2)
        model, slopes = renderer.render_slopes(mixed, center)
        both = jnp.concatenate([model[None], slopes]).reshape(3, *renderer.shape, -1)
        both = jnp.moveaxis(both, -1, 1)
        return both[0], both[1:]

    return jax.vmap(one, in_axes=(_source_axis(seen), 0, 0))(seen, centers, flux)
