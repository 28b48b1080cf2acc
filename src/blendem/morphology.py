"""Shapes of sources: closed-form profiles by their Fourier transforms, or free pixels.

A profile *is* its transform: the PSF, the pixel, sub-pixel shifts, other pixel scales and
rotations are then products, and the flux, the value at k = 0, is 1 in every branch.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from blendem.psf import fast_length, frequencies, gaussian_transform
from blendem.sersic import sersic_transform

# Half-light radius of an exponential disk in units of its scale radius: the root of
# (1 + x) exp(-x) = 1/2.
EXPONENTIAL_HALF_LIGHT = 1.6783469900166605


def as_float(value: ArrayLike | Sequence) -> Float[Array, "..."]:
    """Return `value` as an array: floats keep their precision, all else gets float32."""
    leaves = [leaf for leaf in jax.tree.leaves(value) if hasattr(leaf, "dtype")]
    dtypes = [jnp.asarray(leaf).dtype for leaf in leaves]
    dtypes = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return jnp.asarray(value, jnp.result_type(*dtypes) if dtypes else jnp.float32)


def squared_radius(
    ky: Float[Array, "*k"], kx: Float[Array, "*k"], ellipticity: Float[Array, " 2"]
) -> Float[Array, "*k"]:
    """Square of the frequency at which a round profile has the sheared one's transform.

    The shear [[1 + g1, g2], [g2, 1 - g1]] / sqrt(1 - g^2), in (x, y), keeps areas; being
    symmetric it acts on frequencies as it does on positions.

    References:
        Bernstein & Jarvis 2002, AJ 123, 583 (reduced shear g = (a - b) / (a + b)).
    """
    g1, g2 = ellipticity[0], ellipticity[1]
    y = g2 * kx + (1 - g1) * ky
    x = (1 + g1) * kx + g2 * ky
    return (y**2 + x**2) / (1 - g1**2 - g2**2)


class AbstractProfile(eqx.Module):
    """A shape of unit flux, symmetric under rotation by 180 degrees about its centre."""

    @abstractmethod
    def fourier(
        self, ky: Float[Array, "*k"], kx: Float[Array, "*k"]
    ) -> Float[Array, "*k"]:
        """Transform of the centred profile; real, 1 at k = 0.

        Args:
            ky: Angular frequency along y [radian / model pixel].
            kx: Angular frequency along x, of the same shape.
        """


class PointSource(AbstractProfile):
    """A star: all flux at the centre."""

    def fourier(
        self, ky: Float[Array, "*k"], kx: Float[Array, "*k"]
    ) -> Float[Array, "*k"]:
        return jnp.ones_like(ky)


class Exponential(AbstractProfile):
    """An exponential disk, I ~ exp(-r / r0).

    Attributes:
        half_light_radius: Geometric mean of the two semi-axes of the ellipse that holds
            half of the flux [model pixel], shape `()`, > 0.
        ellipticity: Reduced shear (g1, g2), dimensionless, shape `(2,)`, |g| < 1;
            g1 > 0 is elongated along x, as in GalSim.

    References:
        Freeman 1970, ApJ 160, 811.
    """

    half_light_radius: Float[Array, ""] = eqx.field(converter=as_float)
    ellipticity: Float[Array, " 2"] = eqx.field(converter=as_float)

    def fourier(
        self, ky: Float[Array, "*k"], kx: Float[Array, "*k"]
    ) -> Float[Array, "*k"]:
        scale = self.half_light_radius / EXPONENTIAL_HALF_LIGHT
        root = jnp.sqrt(1 + squared_radius(ky, kx, self.ellipticity) * scale**2)
        return 1 / root**3


class Sersic(AbstractProfile):
    """A Sersic profile, I ~ exp(-b (r / R_e)^(1/n)), not truncated.

    Attributes:
        n: Sersic index, shape `()`, within [0.3, 6.5]: see `sersic_transform`.
        half_light_radius: As in `Exponential` [model pixel], shape `()`, > 0.
        ellipticity: As in `Exponential`, shape `(2,)`.

    References:
        Graham & Driver 2005, PASA 22, 118.
    """

    n: Float[Array, ""] = eqx.field(converter=as_float)
    half_light_radius: Float[Array, ""] = eqx.field(converter=as_float)
    ellipticity: Float[Array, " 2"] = eqx.field(converter=as_float)

    def fourier(
        self, ky: Float[Array, "*k"], kx: Float[Array, "*k"]
    ) -> Float[Array, "*k"]:
        q2 = squared_radius(ky, kx, self.ellipticity) * self.half_light_radius**2
        return sersic_transform(q2, self.n)


class BulgeDisk(AbstractProfile):
    """A bulge and a disk with one centre and one spectrum.

    Attributes:
        bulge_fraction: Share of the bulge in the flux, shape `()`, within [0, 1].
        bulge: The bulge, usually with n = 4.
        disk: The disk.
    """

    bulge_fraction: Float[Array, ""] = eqx.field(converter=as_float)
    bulge: Sersic
    disk: Exponential

    def fourier(
        self, ky: Float[Array, "*k"], kx: Float[Array, "*k"]
    ) -> Float[Array, "*k"]:
        bulge, disk = self.bulge.fourier(ky, kx), self.disk.fourier(ky, kx)
        return disk + self.bulge_fraction * (bulge - disk)


class PixelMorphology(eqx.Module):
    """Free pixels on the odd stamp of the frame, with their own flux in every band.

    Attributes:
        image: Model image, as docs/architecture.md defines it, shape
            `(band, height, width)`; the centre of the source is the central pixel.

    Raises:
        ValueError: If a side is even, which leaves no central pixel.
    """

    image: Float[Array, "band height width"] = eqx.field(converter=as_float)

    def __check_init__(self):
        shape = self.image.shape
        if len(shape) != 3 or shape[1] % 2 == 0 or shape[2] % 2 == 0:
            raise ValueError(
                "`image` must be (band, height, width) with odd sides so that the stamp"
                f" has a central pixel; got {shape}. Pad or crop by one pixel."
            )


def image(
    profile: AbstractProfile,
    center: Float[Array, " 2"],
    shape: tuple[int, int],
    *,
    psf_sigma: Float[Array, ""] | None = None,
    oversample: int | None = None,
    pad: float = 4.0,
) -> Float[Array, "height width"]:
    """Image of a profile of unit flux: flux per pixel.

    Args:
        profile: The shape; its parameters set the precision of the result.
        center: Position (y, x) [model pixel] on the image, 0-based.
        shape: Height and width [model pixel]. Static.
        psf_sigma: With a value, the *model image*: convolved with a Gaussian of this
            sigma [model pixel], which includes the pixel response, and sampled. With
            `None`, no PSF and integrated over pixels.
        oversample: Samples per pixel and axis; every `oversample`-th is kept. Static.
            It sets the highest frequency, oversample x pi. By default 3 with a PSF (the
            Gaussian of sigma = 0.7 is 3e-10 there) and 10 without, where only 1 / k
            damps: for R_e = 3 the largest error in units of the peak is 1e-5 for n = 1,
            5e-4 for n = 2.5, 2e-3 for n = 4; a point source is not represented.
        pad: Side of the periodic grid in units of the image's. Static. Light further
            than about (pad - 1/2) sides away comes back: 1e-4 of the flux for n = 4,
            R_e = 3 on 41 pixels.

    Raises:
        ValueError: If `oversample` or `pad` is below 1.
    """
    if oversample is None:
        oversample = 10 if psf_sigma is None else 3
    if oversample < 1 or pad < 1:
        raise ValueError(
            f"`oversample` and `pad` must be 1 or more; got {oversample} and {pad}."
        )
    center = as_float(center)
    size = fast_length(math.ceil(pad * max(shape))) * oversample
    ky, kx = (k * oversample for k in frequencies(size, center.dtype))
    if psf_sigma is None:
        response = jnp.sinc(ky / (2 * jnp.pi)) * jnp.sinc(kx / (2 * jnp.pi))
    else:
        response = gaussian_transform(ky, kx, psf_sigma)
    phase = jnp.exp(-1j * (ky * center[0] + kx * center[1]))
    samples = jnp.fft.irfft2(profile.fourier(ky, kx) * response * phase, (size, size))
    samples = samples * oversample**2  # flux per pixel, not per sample
    height, width = shape
    return samples[::oversample, ::oversample][:height, :width]
