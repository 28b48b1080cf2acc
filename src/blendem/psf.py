"""Transforms of point spread functions, and the difference kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Array, Complex, Float, Num

# The difference kernel divides by the model PSF. Where its transform falls below this
# value the division is damped, so that noise of a measured PSF image is not blown up.
# 1e-3 changes the kernel by 1e-6 on the axes and by 1.6 % in the corners of the FFT plane
# for a model sigma of 0.7 pixel, where an HSC PSF has 1e-5 of its power left.
KERNEL_FLOOR = 1e-3


def frequencies(
    n: int, dtype=jnp.float32, n_low: int | None = None
) -> tuple[Array, Array]:
    """Angular frequencies (ky, kx) [radian / pixel] of an `rfft2` of side `n`.

    With `n_low` the lowest ones only, in the order of an `rfft2` of that side.
    """
    low = n if n_low is None else n_low
    step = 2 * jnp.pi * (low / n)
    ky = step * jnp.fft.fftfreq(low).astype(dtype)
    kx = step * jnp.fft.rfftfreq(low).astype(dtype)
    ky, kx = jnp.meshgrid(ky, kx, indexing="ij")
    return ky, kx


def crop_frequencies(
    transform: Num[Array | np.ndarray, "*batch n half"], n_low: int
) -> Num[Array | np.ndarray, "*batch low halflow"]:
    """The lowest frequencies of an `rfft2`, as `frequencies` has them; NumPy or JAX."""
    if n_low == transform.shape[-2]:
        return transform
    half = n_low // 2
    xp = jnp if isinstance(transform, jax.Array) else np
    rows = xp.concatenate(
        [transform[..., :half, :], transform[..., -half:, :]], axis=-2
    )
    return rows[..., : half + 1]


def fast_length(n: int) -> int:
    """Return the next even FFT length with small prime factors, at least `n`."""
    n = scipy.fft.next_fast_len(n, real=True)
    while n % 2:
        n = scipy.fft.next_fast_len(n + 1, real=True)
    return n


def gaussian_transform(
    ky: Float[Array, "*k"], kx: Float[Array, "*k"], sigma: Float[Array, ""]
) -> Float[Array, "*k"]:
    """Transform of a round unit Gaussian of scale `sigma` [pixel]."""
    return jnp.exp(-0.5 * (ky**2 + kx**2) * sigma**2)


def image_transform(
    psf: Float[Array, "*batch band size size"], n: int
) -> Complex[Array, "*batch band n half"]:
    """Transform of a centred odd PSF image on the `rfft2` grid of side `n`.

    Raises:
        ValueError: If the PSF image is larger than the grid.
    """
    size = psf.shape[-1]
    if size > n:
        raise ValueError(
            f"the PSF image ({size} pixels) is larger than the FFT grid ({n}); crop it"
            " or use a larger bucket."
        )
    pad = [(0, 0)] * (psf.ndim - 2) + [(0, n - size), (0, n - size)]
    centred = jnp.roll(jnp.pad(psf, pad), (-(size // 2), -(size // 2)), (-2, -1))
    return jnp.fft.rfft2(centred)


def image_transform_at(
    psf: Float[Array, "band size size"],
    ky: Float[Array, "height half"],
    kx: Float[Array, "height half"],
) -> Complex[Array, "band height half"]:
    """Transform of a centred odd PSF image at any angular frequency of its own grid.

    It is the band-limited one: 0 outside the Nyquist square |k| <= pi.
    """
    r = jnp.arange(psf.shape[-1], dtype=psf.dtype) - psf.shape[-1] // 2
    r = r[None, None]
    phase_y = jnp.exp(-1j * ky[..., None] * r)  # (height, half, size)
    phase_x = jnp.exp(-1j * kx[..., None] * r)
    rows = jnp.einsum("hki,bij->bhkj", phase_y, psf.astype(phase_y.dtype))
    value = jnp.einsum("bhkj,hkj->bhk", rows, phase_x)
    inside = (jnp.abs(ky) <= jnp.pi) & (jnp.abs(kx) <= jnp.pi)
    return jnp.where(inside[None], value, 0.0)


def difference_kernel(
    observed: Complex[Array, "band height half"], model: Float[Array, "height half"]
) -> Complex[Array, "band height half"]:
    """Kernel that takes the model PSF to the observed one, observed / model, damped.

    It is the Wiener division `observed model / (model^2 + KERNEL_FLOOR^2)`, scaled so
    that the flux (the value at k = 0) is kept exactly.
    """
    inverse = model * (1 + KERNEL_FLOOR**2) / (model**2 + KERNEL_FLOOR**2)
    return observed * inverse[None].astype(observed.dtype)
