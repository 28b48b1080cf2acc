"""Data and linear operator of one blend for a pixel-space prior, whitened by the noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blendem.blend import Blend
from blendem.inference.amplitude import (
    Amplitudes,
    fit_amplitudes,
    see_templates,
    source_slopes,
)
from blendem.inference.batch import run_batches
from blendem.inference.operator import AnyGrid, Separable, operator_of
from blendem.inference.statistics import STAR_SPREAD, Settings, n_offset_unknowns
from blendem.noise import Whitening
from blendem.precision import single_precision
from blendem.prior.gaussian import Basis
from blendem.prior.unet import PixelMoments
from blendem.psf import gaussian_transform
from blendem.renderer import Renderer

BRIGHT = 100.0  # peak S/N of a pixel above which a solve may take more iterations


class PixelProblem(eqx.Module):
    """Whitened data and linear operator of one blend.

    Attributes:
        operators, whitenings: Per observation.
        scale: What a stamp x of each galaxy is multiplied by, `(source, band)`; 0 for
            stars and padding.
        target: Whitened data minus the prior mean of the stars, `(pixel,)`.
        columns: Whitened images of the prior's modes, `(source x mode, pixel)`.
        nuisance: Those of star fluxes (`source x band`), shifts, sky and offsets.
        gram: Inner products of `columns` and `nuisance`.
        limit: Most iterations of a solve.
    """

    operators: tuple[Separable | AnyGrid, ...]
    whitenings: tuple[Whitening, ...]
    scale: Float[Array, "source band"]
    target: Float[Array, " pixel"]
    columns: Float[Array, "column pixel"]
    nuisance: Float[Array, "nuisance pixel"]
    gram: Float[Array, "unknown unknown"]
    limit: Array

    def forward(self, x: Float[Array, "source band stamp stamp"]) -> Array:
        """Whitened image of stamps x of the prior, all pixels in one axis."""
        x = x * self.scale[:, :, None, None]
        parts = [
            whiten(operator(x)).ravel()
            for operator, whiten in zip(self.operators, self.whitenings, strict=True)
        ]
        return jnp.concatenate(parts)


def pixel_problem(
    blend: Blend,
    amplitudes: Amplitudes,
    basis: Basis,
    moments: PixelMoments,
    settings: Settings,
    iterations: int,
    bright_iterations: int,
) -> PixelProblem:
    """Everything about the data of one padded blend that the sampler needs.

    Args:
        blend: The blend, its arrays in the precision of the prior.
        amplitudes: Amplitudes, centres and template fluxes.
        basis: Basis of the prior: templates and model PSF.
        moments: Of the prior.
        settings: As for `statistics.compute_statistics`: which nuisances there are.
        iterations, bright_iterations: Limits of the solves; the second where the peak S/N
            of a pixel exceeds 100.
    """
    if blend.shines is not None:
        raise ValueError(
            "the U-Net tier has no fluxes per epoch for variable stars: use prior.tier: latent"
        )
    n, n_bands = len(blend.present), len(basis.bands)
    dtype = moments.mean.dtype
    renderers = tuple(
        Renderer.of(o, settings.stamp, basis.psf_sigma).moved(offset)
        for o, offset in zip(blend.observations, amplitudes.offsets, strict=True)
    )
    whitenings = tuple(o.whitening for o in blend.observations)
    n_offsets = n_offset_unknowns(len(renderers), settings)
    present = blend.present.astype(dtype)
    s = amplitudes.scale * present
    star = blend.is_star.astype(dtype)
    scale = (s * (1 - star))[:, None] * moments.unit[None]
    n_sky = sum(len(o.band_index) for o in blend.observations)
    operators, target, columns, nuisance = [], [], [], []
    peak, first = 0.0, 0
    for number, (observation, renderer, whiten) in enumerate(
        zip(blend.observations, renderers, whitenings, strict=True)
    ):
        index, root = jnp.asarray(observation.band_index), whiten.root
        peak = jnp.maximum(peak, jnp.max(observation.image * root))
        templates = unit_templates(renderer, basis)
        point = jax.vmap(renderer.render_band, (None, None, 0))(
            templates[1], renderer.kernel, amplitudes.centers
        )
        point = whiten(point * (s * star)[:, None, None, None])
        data = whiten(observation.image) - jnp.sum(point, axis=0)
        # One flux per model band: bands that this observation lacks stay 0.
        slot = (index[None] == jnp.arange(n_bands)[:, None]).astype(dtype)
        fluxes = STAR_SPREAD * point[:, None] * slot[None, :, :, None, None]
        blocks = [fluxes.reshape(n * n_bands, -1)]
        if settings.centroid_sigma > 0 or n_offsets:
            seen = see_templates(renderer, templates)
            _, slope = source_slopes(
                renderer, seen, amplitudes.centers, amplitudes.flux
            )
            slope = whiten(slope * present[:, None, None, None, None])
        if settings.centroid_sigma > 0:
            blocks.append((settings.centroid_sigma * slope).reshape(2 * n, -1))
        if settings.sky_sigma > 0:
            count = jnp.sum(root > 0, axis=(-2, -1))
            noise = jnp.sqrt(count / jnp.maximum(jnp.sum(root**2, (-2, -1)), 1e-30))
            here = first + jnp.arange(len(index))
            slot = (jnp.arange(n_sky)[:, None] == here[None]).astype(dtype)
            slot = slot * (settings.sky_sigma * noise)[None]
            sky = slot[:, :, None, None] * whiten(jnp.ones_like(root))[None]
            blocks.append(sky.reshape(n_sky, -1))
        if n_offsets:
            whole = jnp.sum(slope, axis=0)
            data = data + jnp.tensordot(amplitudes.offsets[number], whole, 1)
            mine = (jnp.arange(n_offsets // 2) == number - 1).astype(dtype)
            slot = settings.offset_sigma * mine[:, None, None, None, None] * whole[None]
            blocks.append(slot.reshape(n_offsets, -1))
        target.append(data.ravel())
        first += len(observation.band_index)
        nuisance.append(jnp.concatenate(blocks))

        operator = operator_of(renderer, settings.stamp, amplitudes.centers)
        stamps = moments.modes[None] * scale[:, None, :, None, None]
        seen = whiten(operator.each(stamps))
        columns.append(seen.reshape(-1, root.size))
        operators.append(operator)
    columns = jnp.concatenate(columns, axis=1)
    nuisance = jnp.concatenate(nuisance, axis=1)
    both = jnp.concatenate([columns, nuisance])
    return PixelProblem(
        operators=tuple(operators),
        whitenings=whitenings,
        scale=scale,
        target=jnp.concatenate(target),
        columns=columns,
        nuisance=nuisance,
        gram=jnp.matmul(both, both.T, precision=jax.lax.Precision.HIGHEST),
        limit=jnp.where(peak > BRIGHT, bright_iterations, iterations),
    )


def unit_templates(renderer: Renderer, basis: Basis) -> Array:
    """Transforms of unit-flux templates: mean galaxy, point; `(2, band, m, half)`."""
    mean = renderer.stamp_transform(basis.mean[jnp.asarray(renderer.band_index)])
    ky, kx = renderer.stamp_frequencies()
    point = gaussian_transform(ky, kx, renderer.psf_sigma).astype(mean.dtype)
    extended = mean / mean[:, :1, :1].real
    return jnp.stack([extended, jnp.broadcast_to(point[None], mean.shape)])


def amplitudes_of(
    stack: Blend, basis: Basis, settings: Settings, batch: int
) -> Amplitudes:
    """Template amplitudes and centres of stacked blends, with the stack's leading axis."""
    basis = single_precision(basis)
    parts = run_batches(
        lambda blends: _amplitudes(blends, basis, settings), stack, batch
    )
    return Amplitudes(*parts)


@eqx.filter_jit
def _amplitudes(blends, basis, settings):
    def one(blend):
        renderers = [
            Renderer.of(o, settings.stamp, basis.psf_sigma) for o in blend.observations
        ]
        return tuple(
            fit_amplitudes(
                blend,
                renderers,
                [unit_templates(r, basis) for r in renderers],
                len(basis.bands),
                reference=settings.reference,
                iterations=settings.iterations,
                centroid_prior=settings.centroid_prior,
                offset_sigma=settings.offset_sigma,
            )
        )

    return jax.vmap(one)(blends)
