"""PSFEx files of a PSF whose width is known everywhere."""

from pathlib import Path

import numpy as np
from astropy.io import fits

# The PSF is a sum of two Gaussians of these scales [pixel].
NARROW, WIDE = 1.5, 1.8


def weight_at(x: float, shape: tuple[int, int]) -> float:
    """Share of the wide Gaussian at `x` [pixel, 0-based]: 0 at the left edge, 1 at the right."""
    return (x + 0.5) / shape[1]


def gaussian(sigma: float, side: int, step: float = 1.0) -> np.ndarray:
    """Round Gaussian of unit flux per pixel, sampled at steps of `step` pixel."""
    r = step * (np.arange(side) - side // 2)
    return np.exp(-0.5 * (r[:, None] ** 2 + r**2) / sigma**2) / (2 * np.pi * sigma**2)


def psf_at_x(x: float, shape: tuple[int, int], side: int) -> np.ndarray:
    """The PSF at `x`, from the formula."""
    w = weight_at(x, shape)
    image = (1 - w) * gaussian(NARROW, side) + w * gaussian(WIDE, side)
    return image / image.sum()


def write_psfex(
    path: Path, shape: tuple[int, int], *, side: int = 31, step: float = 1.0, **cards
) -> Path:
    """Write the PSF of an image of `shape` as PSFEx does, of degree 2 in x and y, or of 0.

    Args:
        path: File.
        shape: Height and width of the image [pixel].
        side: Side of the model [sample].
        step: Side of a sample [pixel].
        cards: Cards that differ, `None` for one that is missing; `mask` multiplies the samples.
            `POLDEG1=0, PSFAXIS3=1` is the PSF of the middle everywhere.
    """
    narrow, wide = gaussian(NARROW, side, step), gaussian(WIDE, side, step)
    # 1, x, x^2, y, xy, y^2; x is 0 in the middle of the image and -1/2, 1/2 at its edges.
    basis = np.zeros((6, side, side), np.float32)
    basis[0], basis[1] = 0.5 * (narrow + wide), wide - narrow
    basis = (basis * cards.pop("mask", 1.0))[: cards.get("PSFAXIS3", 6)]
    column = fits.Column(
        "PSF_MASK",
        f"{basis.size}E",
        dim=f"({side},{side},{len(basis)})",
        array=basis[None],
    )
    table = fits.BinTableHDU.from_columns([column], name="PSF_DATA")
    for axis, (name, n) in enumerate((("X", shape[1]), ("Y", shape[0])), 1):
        table.header[f"POLGRP{axis}"] = 1
        table.header[f"POLNAME{axis}"] = f"{name}_IMAGE"
        # PSFEx counts pixels from 1.
        table.header[f"POLZERO{axis}"] = (n + 1) / 2
        table.header[f"POLSCAL{axis}"] = float(n)
    values = {"POLNAXIS": 2, "POLNGRP": 1, "POLDEG1": 2, "PSF_SAMP": step}
    values |= {"PSFNAXIS": 3, "PSFAXIS1": side, "PSFAXIS2": side, "PSFAXIS3": 6}
    for key, value in (values | cards).items():
        if value is not None:
            table.header[key] = value
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, overwrite=True)
    return path
