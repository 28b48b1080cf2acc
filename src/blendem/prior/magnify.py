"""Galaxies that are larger than their stamp: the same basis, magnified.

Galaxies look alike when zoomed. The stamps of a basis, magnified by 2 or 4 and given on model
pixels again, reach as much further and keep their coordinates: all that is linear stays so.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from blendem.prior.gaussian import Basis

NODES = 512  # of the quadrature over frequencies


class LargeStamps(NamedTuple):
    """Magnified mean and modes of a basis; the coordinates are those of the basis.

    Attributes:
        mean, modes, psf_sigma: As in `Basis`, on larger stamps.
    """

    mean: Float[np.ndarray, "band large large"]
    modes: Float[np.ndarray, "mode band large large"]
    psf_sigma: Float[Array | np.ndarray, ""]


def magnified_side(stamp: int, zoom: int) -> int:
    """Side of stamps magnified by 2^`zoom` [model pixel], odd: outermost pixels stay so."""
    return 2**zoom * (stamp - 1) + 1


def magnifier(
    stamp: int, factor: int, psf_sigma: float
) -> Float[np.ndarray, "large stamp"]:
    """Matrix `W` that magnifies an image `x` to `W x W^T`, of the same flux.

    Magnified light has a PSF that is wider by `factor`. In Fourier space it is brought
    back to the model PSF, which is separable since both are Gaussian:

        X'(k) = X(factor k) exp(sigma^2 k^2 (factor^2 - 1) / 2),    |k_y|, |k_x| < pi / factor

    Finer structure than that is in no stamp. At the last frequency the model PSF has
    exp(-(pi sigma / factor)^2 / 2) left, and the stamp exp(-(pi sigma)^2 / 2): 0.55 and 0.09
    for a sigma of 0.7 and a factor of 2, which is no more than the data have of it.

    Args:
        stamp: Side of the image, odd.
        factor: Magnification.
        psf_sigma: Sigma of the model PSF [model pixel].
    """
    half = stamp // 2
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    q, weights = 0.5 * np.pi * (nodes + 1), 0.5 * np.pi * weights
    sharpen = np.exp(0.5 * psf_sigma**2 * q**2 * (1 - 1 / factor**2))
    u = np.arange(factor * 2 * half + 1) - factor * half
    j = np.arange(stamp) - half
    distance = u[:, None] / factor - j
    return np.cos(distance[..., None] * q) @ (weights * sharpen) / (np.pi * factor)


def magnify(basis: Basis, zoom: int) -> Basis | LargeStamps:
    """Mean and modes of a basis, magnified by 2^zoom; 0 gives the basis itself."""
    if zoom == 0:
        return basis
    factor = 2**zoom
    mean, modes = np.asarray(basis.mean), np.asarray(basis.modes)
    matrix = magnifier(mean.shape[-1], factor, float(basis.psf_sigma))

    def large(stamps):
        return (matrix @ stamps.astype(float) @ matrix.T).astype(np.float32)

    return LargeStamps(
        large(mean), np.stack([large(mode) for mode in modes]), basis.psf_sigma
    )


def kinds_of(basis: Basis, zoom: Int[np.ndarray, " n"]) -> list[Basis | LargeStamps]:
    """`magnify` for every zoom from 0 to the largest."""
    return [magnify(basis, number) for number in range(int(zoom.max(initial=0)) + 1)]


def decode_modes(
    kinds: Sequence[Basis | LargeStamps],
    zoom: Int[np.ndarray, " n"],
    z: Float[np.ndarray, "n mode"],
    side: int,
) -> Float[np.ndarray, "n band side side"]:
    """Sum of the modes of galaxies, without their mean, in the middle of stamps of one side.

    Args:
        kinds: `magnify` for every zoom from 0 on.
        zoom: Of each galaxy.
        z: Coordinates.
        side: Side of the result, that of the largest kind or more [model pixel].
    """
    bands = len(kinds[0].mean)
    out = np.zeros((len(z), bands, side, side), np.float32)
    for number in np.unique(zoom):
        modes = np.asarray(kinds[number].modes)
        rows, stamp = zoom == number, modes.shape[-1]
        images = z[rows].astype(np.float32) @ modes.reshape(len(modes), -1)
        out[rows] = fit_side(images.reshape(-1, bands, stamp, stamp), side)
    return out


def fit_side(
    stamps: Float[np.ndarray, "*n stamp stamp"], side: int
) -> Float[np.ndarray, "*n side side"]:
    """Centred stamps cut or padded with zeros to another odd side."""
    more = (side - stamps.shape[-1]) // 2
    if more < 0:
        return stamps[..., -more:more, -more:more]
    return np.pad(stamps, [(0, 0)] * (stamps.ndim - 2) + [(more, more)] * 2)
