"""PSFs that vary over an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from galsim import PositionD
from galsim.des import DES_PSFEx
from jaxtyping import Float

# PSFEx scales coordinates by the range of its stars: they are within 0.5 of its middle. A
# polynomial is trusted a quarter of the range beyond them, for the rim of the image.
REACH = 0.75


@runtime_checkable
class PSFModel(Protocol):
    """A PSF that depends on the position in an image."""

    def at(
        self, position: Sequence[float] | Float[np.ndarray, " 2"]
    ) -> Float[np.ndarray, "band size size"]:
        """Effective PSF of sum 1 at (y, x) [pixel], of the same odd size everywhere."""
        ...


def psf_at(
    psf: Float[np.ndarray, "band size size"] | PSFModel,
    position: Sequence[float] | Float[np.ndarray, " 2"],
) -> Float[np.ndarray, "band size size"]:
    """PSF at `position` (y, x) [pixel]; an image holds everywhere."""
    return psf if isinstance(psf, np.ndarray) else psf.at(position)


def at_pixels(
    psf: Float[np.ndarray, "band size size"], oversampling: int
) -> Float[np.ndarray, "band _ _"]:
    """A PSF on the pixels of its image, from one that is finer by `oversampling`.

    An effective PSF holds the response of a pixel already: it is sampled, not binned, which
    would count the pixel twice. For the same reason its samples keep their sum.
    """
    if oversampling == 1:
        return psf
    first = psf.shape[-1] // 2 % oversampling
    picked = psf[:, first::oversampling, first::oversampling]
    return picked / picked.sum(axis=(1, 2), keepdims=True)


def nyquist_amplitude(
    psf: Float[np.ndarray, "band size size"],
) -> Float[np.ndarray, " band"]:
    """Transform of PSF images of sum 1 at the highest frequency of an axis, the larger one.

    What is left there was folded back by the sampling: the image is aliased.
    """
    sign = (-1.0) ** np.arange(psf.shape[-1])
    return np.maximum(
        np.abs(np.sum(psf * sign, axis=(1, 2))),
        np.abs(np.sum(psf * sign[:, None], axis=(1, 2))),
    )


@dataclass(frozen=True)
class PSFExModel:
    """Polynomials of PSFEx, one per band, drawn on the pixels of their image.

    Attributes:
        models: As GalSim reads them.
        names: What to call each of them in messages.
        size: Side of the images [pixel], odd.
        origin: Pixel (y, x) of the models at which the image begins: that of a part of a field.

    References:
        Bertin 2011, ASP Conf. Ser. 442, 435 (PSFEx).
    """

    models: tuple[DES_PSFEx, ...]
    names: tuple[str, ...]
    size: int
    origin: tuple[int, int] = (0, 0)

    def at(
        self, position: Sequence[float] | Float[np.ndarray, " 2"]
    ) -> Float[np.ndarray, "band size size"]:
        """Effective PSF of sum 1 at (y, x) [pixel, 0-based], float32.

        Raises:
            ValueError: If a model does not reach `position` or is no PSF there.
        """
        images, position = [], np.add(position, self.origin)
        for model, name in zip(self.models, self.names, strict=True):
            try:
                images.append(draw_psfex(model, position, self.size))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return np.stack(images).astype(np.float32)


def psfex_size(model: DES_PSFEx) -> int:
    """Odd side [pixel] of the image that the samples of a model fill."""
    half = (max(model.basis.shape[1:]) - 1) / 2 * model.sample_scale
    return 2 * int(half + 1e-6) + 1


def draw_psfex(
    model: DES_PSFEx,
    position: Sequence[float] | Float[np.ndarray, " 2"],
    size: int,
) -> Float[np.ndarray, "size size"]:
    """Draw a model at a position, centred on the central pixel, of sum 1.

    Models of PSFEx include the pixel response, so that they are sampled, not integrated.

    Args:
        model: Polynomial in the position of an image.
        position: Pixel (y, x), 0-based; PSFEx counts from 1.
        size: Side of the image [pixel], odd.

    Raises:
        ValueError: If the model does not reach `position`, or has NaN or no positive sum there.
    """
    y, x = (float(value) for value in position)
    zero, scale = (model.x_zero, model.y_zero), (model.x_scale, model.y_scale)
    at = f"(x, y) = ({x:.1f}, {y:.1f})"
    axes = zip((x, y), zero, scale, strict=True)
    beyond = any(abs(value + 1 - z) > REACH * s for value, z, s in axes)
    if beyond and model.fit_order > 0:
        covered = ", ".join(
            f"{axis} = {z - s / 2 - 1:.1f} to {z + s / 2 - 1:.1f}"
            for axis, z, s in zip("xy", zero, scale, strict=True)
        )
        raise ValueError(
            f"its stars cover {covered} and do not reach {at}; give the model of this very"
            " image, in its own pixels"
        )
    where = PositionD(x + 1, y + 1)
    samples = model.getPSFArray(where)
    if not np.isfinite(samples).all():
        raise ValueError(f"holds NaN or infinite values at {at}; fit the model again")
    # GalSim would scale them to sum 1, whatever they are.
    if samples.sum() <= 0:
        raise ValueError(f"has no positive sum at {at}; fit the model again")
    image = model.getPSF(where).drawImage(
        nx=size, ny=size, scale=1.0, method="no_pixel", dtype=float
    )
    return image.array / image.array.sum()
