"""Sufficient statistics of a blend in the latent basis.

With `x_k = s_k (mean + sum_i z_ki modes_i)` every observation enters only through
`H = sum_o A_o^T S_o^-1 A_o` and `b = sum_o A_o^T S_o^-1 (y_o - A_o s mean)`: computed once,
they serve every prior in that basis, every EM lap and every sampler step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Array, Complex, Float

from blendem.blend import Blend
from blendem.inference.amplitude import (
    Amplitudes,
    fit_amplitudes,
    plane_scale,
    templates_seen,
)
from blendem.inference.posterior import own_unknowns
from blendem.noise import whiten_rows
from blendem.prior.gaussian import Basis
from blendem.prior.magnify import LargeStamps
from blendem.psf import crop_frequencies
from blendem.renderer import Renderer

# Standard deviation of a star's flux in units of its amplitude, per band, about the
# amplitude of the reference band: wide enough for any colour (3 is a factor of 10 at 3 sd).
STAR_SPREAD = 3.0

BLOCKS = 8  # of sources at most, whose products are written out
WRITTEN_OUT = 4  # sources of a blend up to which a loop over them is written out


class Settings(NamedTuple):
    """Choices that change the program; hashable.

    Attributes:
        reference: Index of the reference band among the model bands.
        stamp: Side of the stamps [model pixel].
        iterations: Gauss-Newton steps of the centres (0: catalog positions are kept).
        centroid_prior: Standard deviation of catalog positions [model pixel].
        centroid_sigma: Standard deviation of the centre that is left after those steps and
            is marginalised through two derivative modes per source; 0 turns them off.
        pixels: Most unmasked pixels of a blend in each observation: only they enter the
            sums. 0, or nothing for an observation: all pixels.
        sky_sigma: Prior standard deviation of an unknown flat sky per observation and band,
            in units of the pixel noise; 0 turns it off.
        offset_sigma: Prior standard deviation of the astrometric offset of every observation but
            the first [model pixel]; 0 turns it off.
    """

    reference: int
    stamp: int
    iterations: int = 3
    centroid_prior: float = 0.3
    centroid_sigma: float = 0.05
    sky_sigma: float = 0.0
    pixels: tuple[int, ...] = ()
    offset_sigma: float = 0.0


class Statistics(NamedTuple):
    """What the data say about the unknowns w of a blend, each with prior N(0, 1) at lap 0.

    The unknowns are ordered: z of every source (`source x mode`), then if
    `centroid_sigma` > 0 the shift (y, x) of every source, then if `sky_sigma` > 0 the sky
    of every observation and band, then if `offset_sigma` > 0 the offset (y, x) of every
    observation but the first. The z of a star are its fluxes, one per model band.

    Attributes:
        H: `A^T S^-1 A`, `(unknown, unknown)`.
        b: `A^T S^-1 (y - m)` with the prior-mean model m, `(unknown,)`.
        r2: `(y - m)^T S^-1 (y - m)`.
        log_norm: Sum of `log(2 pi variance)` over unmasked pixels.
        n_data: Number of unmasked pixels of all bands and observations.
        scale: Amplitudes `s_k` [flux], `(source,)`.
        centers: Centres (y, x) [model pixel], `(source, 2)`.
        flux: Template fluxes, `(source, template, band)`.
        flux_error: Isolated flux errors, `(source, band)`.
        sky_scale: Standard deviation of each sky unknown [flux per pixel].
        offsets: Where the offsets were linearised (y, x) [model pixel], `(observation, 2)`. Their
            unknowns are the offsets themselves over `offset_sigma`.
        plane_flux, plane_error: Of variable stars, as in `Amplitudes`. Their z are fluxes over
            `plane_scale`, one per plane, in place of one per band.
    """

    H: Float[Array, "unknown unknown"]
    b: Float[Array, " unknown"]
    r2: Float[Array, ""]
    log_norm: Float[Array, ""]
    n_data: Float[Array, ""]
    scale: Float[Array, " source"]
    centers: Float[Array, "source 2"]
    flux: Float[Array, "source template band"]
    flux_error: Float[Array, "source band"]
    sky_scale: Float[Array, " sky"]
    offsets: Float[Array, "observation 2"]
    plane_flux: Float[Array, "source plane"]
    plane_error: Float[Array, "source plane"]


class BasisTransforms(eqx.Module):
    """Fourier transforms of a basis on the FFT grid of one bucket's observation.

    Where a blend has magnified sources (`Blend.zoom`) there is one of each for every zoom.

    Attributes:
        modes: `(band, mode, m, half)`, the observation's bands first, for the scan.
        mean: `(band, m, half)`.
        templates: Unit-flux extended and compact templates, `(template, band, m, half)`.
    """

    modes: Complex[Array | np.ndarray, "band *zoom mode m half"]
    mean: Complex[Array | np.ndarray, "band *zoom m half"]
    templates: Complex[Array | np.ndarray, "*zoom template band m half"]


def transform_basis(basis: Basis | LargeStamps, renderer: Renderer) -> BasisTransforms:
    """Transform a basis once for all blends of a bucket (SciPy, outside any program).

    Only static attributes of the renderer are used: its shape is enough.
    """
    index, n = list(renderer.band_index), renderer.n_stamp
    side = basis.mean.shape[-1]

    def transform(stamps):
        pad = [(0, 0)] * (stamps.ndim - 2) + [(0, n - side)] * 2
        rolled = np.roll(np.pad(stamps, pad), (-(side // 2), -(side // 2)), (-2, -1))
        return crop_frequencies(
            scipy.fft.rfft2(rolled.astype(np.float32)), renderer.n_low
        )

    mean = transform(np.asarray(basis.mean)[index])
    extended = mean / mean[:, :1, :1].real
    ky = 2 * np.pi * scipy.fft.fftfreq(n)[:, None]
    kx = 2 * np.pi * scipy.fft.rfftfreq(n)[None, :]
    compact = np.exp(-0.5 * (ky**2 + kx**2) * float(basis.psf_sigma) ** 2)
    compact = np.broadcast_to(crop_frequencies(compact, renderer.n_low), mean.shape)
    return BasisTransforms(
        modes=np.stack([transform(np.asarray(basis.modes)[:, i]) for i in index]),
        mean=mean.astype(np.complex64),
        templates=np.stack([extended, compact]).astype(np.complex64),
    )


def compute_statistics(
    blend: Blend,
    transforms: Sequence[BasisTransforms],
    n_bands: int,
    psf_sigma: Float[Array, ""],
    settings: Settings,
    amplitudes: Amplitudes | None = None,
    seen: Sequence[Array] | None = None,
) -> Statistics:
    """Amplitudes, centres and sufficient statistics of one blend.

    Args:
        blend: A padded blend; `vmap` over its leading axis for a batch.
        transforms: `transform_basis` for each observation.
        n_bands: Number of model bands.
        psf_sigma: Sigma of the model PSF [model pixel].
        settings: Static choices.
        amplitudes: Take these, with their centres, instead of fitting them.
        seen: `see_basis` of each observation, if it has been computed: it is the same for all
            blends with the same PSF.
    """
    renderers = [Renderer.of(o, settings.stamp, psf_sigma) for o in blend.observations]
    if amplitudes is None:
        amplitudes = fit_amplitudes(
            blend,
            renderers,
            [
                t.templates if blend.zoom is None else t.templates[blend.zoom]
                for t in transforms
            ],
            n_bands,
            reference=settings.reference,
            iterations=settings.iterations,
            centroid_prior=settings.centroid_prior,
            offset_sigma=settings.offset_sigma,
        )
    n_sky = sum(len(o.band_index) for o in blend.observations) * (
        settings.sky_sigma > 0
    )
    totals, sky_scales, first = None, [], 0
    for number, (observation, renderer, transform) in enumerate(
        zip(blend.observations, renderers, transforms, strict=True)
    ):
        n_pixels = settings.pixels[number] if number < len(settings.pixels) else 0
        used = jnp.any(observation.weight > 0, axis=0).ravel()
        pixels = jnp.nonzero(used, size=n_pixels or used.size, fill_value=0)[0]
        # What fills up the list must not count.
        counts = jnp.arange(len(pixels)) < jnp.sum(used)
        sums, sky = _accumulate(
            blend,
            number,
            renderer.moved(amplitudes.offsets[number]),
            transform,
            amplitudes,
            settings,
            n_sky,
            first,
            (pixels, counts),
            None if seen is None else seen[number],
        )
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
        first += len(observation.band_index)
        sky_scales.append(sky)
    H, b, r2, log_norm, n_data = totals
    return Statistics(
        H=jnp.triu(H) + jnp.triu(H, 1).T,
        b=b,
        r2=r2,
        log_norm=log_norm,
        n_data=n_data,
        scale=amplitudes.scale,
        centers=amplitudes.centers,
        flux=amplitudes.flux,
        flux_error=amplitudes.flux_error,
        sky_scale=jnp.concatenate(sky_scales)[:n_sky],
        offsets=amplitudes.offsets,
        plane_flux=amplitudes.plane_flux,
        plane_error=amplitudes.plane_error,
    )


def pad_statistics(
    found: dict[str, np.ndarray],
    centers: Float[Array | np.ndarray, "blend padding 2"],
    n_modes: int,
    settings: Settings,
) -> dict[str, np.ndarray]:
    """Statistics of stacked blends as they would be with more sources that are padding.

    Args:
        found: Fields of `Statistics`, each with a leading axis for the blends.
        centers: Of the padding [model pixel].
        n_modes: Unknowns of a source, without its shift.
        settings: What `found` was computed with.
    """
    n_blends, padding = centers.shape[:2]
    if not padding:
        return found
    n, n_unknowns = found["scale"].shape[1], found["b"].shape[1]
    shifts = settings.centroid_sigma > 0
    others = n_unknowns - n * (n_modes + 2 * shifts)
    mine = own_unknowns(np.arange(n + padding) < n, n_modes, shifts, others)
    slots = np.flatnonzero(mine)
    H = np.zeros((n_blends, len(mine), len(mine)), found["H"].dtype)
    H[:, slots[:, None], slots[None]] = found["H"]
    b = np.zeros((n_blends, len(mine)), found["b"].dtype)
    b[:, slots] = found["b"]

    def longer(name, fill):
        pad = [(0, 0), (0, padding)] + [(0, 0)] * (found[name].ndim - 2)
        return np.pad(found[name], pad, constant_values=fill)

    return found | {
        "H": H,
        "b": b,
        "centers": np.concatenate([found["centers"], np.asarray(centers)], axis=1),
        "scale": longer("scale", 1.0),
        "flux": longer("flux", 0.0),
        "flux_error": longer("flux_error", np.inf),
        "plane_flux": longer("plane_flux", 0.0),
        "plane_error": longer("plane_error", 0.0),
    }


def see_basis(transform: BasisTransforms, renderer: Renderer) -> Array:
    """What an observation shows of a basis, at no place yet: `Renderer.see` of every band.

    The columns are modes, mean, extended and compact template.
    """
    return jax.vmap(renderer.see)(_columns_of(transform), renderer.kernel)


def _columns_of(transform: BasisTransforms) -> Array:
    """Transforms of all that a source may be made of, `(band, *zoom, column, m, half)`."""
    templates = jnp.moveaxis(jnp.asarray(transform.templates), -3, 0)
    mean = jnp.asarray(transform.mean)[..., None, :, :]
    return jnp.concatenate([jnp.asarray(transform.modes), mean, templates], axis=-3)


def n_offset_unknowns(n_observations: int, settings: Settings) -> int:
    """Number of unknowns that are astrometric offsets; they are the last ones."""
    return 2 * (n_observations - 1) if settings.offset_sigma > 0 else 0


def _accumulate(
    blend, number, renderer, transform, amplitudes, settings, n_sky, first, chosen, seen
):
    """Sums over the bands of one observation, band after band to bound memory.

    `chosen` holds the numbers of the pixels that enter, and whether each one counts. What is not
    `seen` yet is, one band after the other.
    """
    pixels, counts = chosen
    observation = blend.observations[number]
    n_offsets = n_offset_unknowns(len(blend.observations), settings)
    whitening = observation.whitening
    dtype = renderer.psf_sigma.dtype
    n_modes, n_sources = transform.modes.shape[-3], len(blend.present)
    scale = jnp.where(blend.present, amplitudes.scale, 0.0)
    centers = amplitudes.centers
    weight = observation.weight
    count = jnp.sum(weight > 0, axis=(-2, -1))
    noise = jnp.sqrt(count / jnp.maximum(jnp.sum(weight, axis=(-2, -1)), 1e-30))
    sky_scale = settings.sky_sigma * jnp.where(count > 0, noise, 0.0)
    is_variable = blend.is_variable
    free = plane_scale(amplitudes.plane_flux, amplitudes.plane_error)
    flux_here = templates_seen(
        jnp.asarray(amplitudes.flux),
        jnp.asarray(amplitudes.plane_flux),
        blend.planes[number],
        observation.band_index,
    )

    def band_terms(carry, inputs):
        (
            stamps,
            kernel,
            image,
            variance,
            model_band,
            position,
            sky_sd,
            white,
        ) = inputs
        if seen is None:
            stamps = renderer.see(stamps, kernel)
        image, variance = image.ravel()[pixels], variance.ravel()[pixels]
        masked = jnp.isinf(variance) | ~counts
        variance = jnp.where(masked, 1.0, variance)
        root = jnp.where(masked, 0.0, 1 / jnp.sqrt(variance))

        def weigh(values):
            values = values * root[:, None]
            if white is None:
                return values
            return whiten_rows(values, pixels, counts, *white)

        def columns(k):
            center, s, is_star = centers[k], scale[k], blend.is_star[k]
            flux = flux_here[k]
            own_columns = stamps if blend.zoom is None else stamps[blend.zoom[k]]
            images = renderer.render_columns(own_columns, center, pixels)
            # The compact template is a point source.
            galaxy, average, psf = images[:, :n_modes], images[:, -3], images[:, -1]
            slot = (jnp.arange(n_modes) == model_band).astype(dtype) * STAR_SPREAD
            cols = jnp.where(is_star, slot[None] * psf[:, None], galaxy) * s
            prior_mean = s * jnp.where(is_star, psf, average)
            if blend.shines is not None:
                own = (jnp.arange(n_modes) == position).astype(dtype)
                own = own[None] * psf[:, None] * free[k, position]
                cols = jnp.where(is_variable[k], own, cols)
                prior_mean = jnp.where(is_variable[k], 0.0, prior_mean)

            mixed = own_columns[..., -2:] @ flux[:, model_band]
            _, slopes = renderer.render_slopes(mixed[..., None], center, pixels)
            slopes = slopes[..., 0].T
            return weigh(cols), prior_mean, slopes

        # One source after the other: as one batch the products are twice as slow on a CPU. A loop
        # of XLA is up to 13 % slower than one that is written out for few sources, no slower for
        # many, and compiles in less time and memory, which counts with several observations.
        if len(blend.observations) > 1 or n_sources > WRITTEN_OUT:
            cols, prior_mean, slopes = jax.lax.map(columns, jnp.arange(n_sources))
        else:
            each = [columns(k) for k in range(n_sources)]
            cols, prior_mean, slopes = (list(t) for t in zip(*each, strict=True))
            prior_mean, slopes = jnp.stack(prior_mean), jnp.stack(slopes)
        slopes = jnp.moveaxis(slopes, 0, 1)
        others = []
        if settings.centroid_sigma > 0:
            own = slopes * (settings.centroid_sigma * blend.present)[None, :, None]
            others.append(own.reshape(len(pixels), -1))
        if n_sky:
            slot = (jnp.arange(n_sky) == position).astype(dtype) * sky_sd
            others.append(jnp.broadcast_to(slot[None], (len(pixels), n_sky)))
        mean_image = jnp.sum(prior_mean, axis=0)
        if n_offsets:
            whole = jnp.sum(slopes * blend.present[None, :, None], axis=1)
            # Linear about `offsets`, with the prior about 0.
            mean_image = mean_image - whole @ amplitudes.offsets[number]
            mine = (jnp.arange(n_offsets // 2) == number - 1).astype(dtype)
            slot = settings.offset_sigma * mine[None, :, None] * whole[:, None]
            others.append(slot.reshape(len(pixels), -1))
        # Sources in a few blocks, then all other unknowns and the residual as one more.
        blocks = [
            jnp.concatenate([cols[k] for k in block], axis=1)
            if len(block) > 1
            else cols[block[0]]
            for block in parts
        ]
        residual = (image - mean_image)[:, None]
        blocks.append(weigh(jnp.concatenate([*others, residual], axis=1)))
        log_norm = jnp.sum(jnp.where(masked, 0.0, jnp.log(2 * jnp.pi * variance)))
        if white is not None:
            gain = jnp.where(masked, 1.0, white[1].ravel()[pixels])
            log_norm = log_norm - 2 * jnp.sum(jnp.log(gain))
        products, total, n_data = carry
        # The matrix is symmetric: its upper blocks are enough.
        products = [
            product + blocks[i].T @ blocks[j]
            for product, (i, j) in zip(products, upper, strict=True)
        ]
        return (
            products,
            total + log_norm,
            n_data + jnp.sum(~masked).astype(dtype),
        ), None

    n_others = n_sky + n_offsets + (2 * n_sources if settings.centroid_sigma > 0 else 0)
    parts = [
        list(part) for part in np.array_split(np.arange(n_sources), BLOCKS) if len(part)
    ]
    widths = [n_modes * len(part) for part in parts] + [n_others + 1]
    upper = [(i, j) for i in range(len(widths)) for j in range(i, len(widths))]
    zero = jnp.zeros((), dtype)
    carry = ([jnp.zeros((widths[i], widths[j]), dtype) for i, j in upper], zero, zero)
    n_bands = len(observation.band_index)
    inputs = (
        _columns_of(transform) if seen is None else seen,
        renderer.kernel,
        observation.image,
        observation.variance,
        jnp.asarray(observation.band_index),
        first + jnp.arange(n_bands),
        sky_scale,
        None if whitening.weights is None else (whitening.weights, whitening.gain),
    )
    (products, log_norm, n_data), _ = jax.lax.scan(band_terms, carry, inputs)
    whole = dict(zip(upper, products, strict=True))
    matrix = jnp.block(
        [
            [
                whole[i, j] if i <= j else jnp.zeros((widths[i], widths[j]), dtype)
                for j in range(len(widths))
            ]
            for i in range(len(widths))
        ]
    )
    # The last column belongs to the residual.
    H, b, r2 = matrix[:-1, :-1], matrix[:-1, -1], matrix[-1, -1]
    return (H, b, r2, log_norm, n_data), sky_scale


def render_sources(
    images: Float[Array, "source band stamp stamp"],
    centers: Float[Array, "source 2"],
    blend: Blend,
    psf_sigma: Float[Array, ""],
) -> tuple[Float[Array, "source _ _ _"], ...]:
    """Model images of all sources on the pixels of every observation of a blend."""
    rendered = []
    for observation in blend.observations:
        renderer = Renderer.of(observation, images.shape[-1], psf_sigma)
        index = jnp.asarray(observation.band_index)
        rendered.append(jax.vmap(renderer.render_stamps)(images[:, index], centers))
    return tuple(rendered)
