"""What is wrong with the arrays and the catalog of an observation: one line per problem.

Each function yields messages of the form "part: what it got; what to do".
"""

from collections.abc import Iterator

import numpy as np
from astropy.table import Table
from astropy.wcs import WCS
from jaxtyping import Bool, Float

# A PSF image that was built on an even grid or rolled is off by half a pixel or more per
# axis. PSFs that were drawn at a source's sub-pixel position are off by up to 0.72 pixel (100
# blends of an LSST simulation, measured as here), and all bands by the same amount, which
# only moves the fitted centre. Above 1 pixel the image is not centred in any usual sense.
PSF_OFFSET = 1.0
PSF_CORE = 0.1  # the centroid is that of the pixels above this fraction of the peak
WCS_AGREEMENT = 1.0  # x, y and ra, dec of a source may differ by this much [pixel]


def check_shapes(image, variance, psf, bands, names) -> Iterator[str]:
    """Numbers of axes, agreement of shapes, numeric types, bands. Nothing else is safe."""
    for key, array in (("SCI", image), ("VAR", variance), ("PSF", psf)):
        if array is None:  # a PSF that comes from elsewhere
            continue
        if array.ndim != 3 or 0 in array.shape:
            yield f"{names[key]}: has shape {array.shape}; give (band, y, x)"
        elif array.dtype.kind not in "iuf":
            yield f"{names[key]}: holds {array.dtype}; give real numbers"
    if variance.shape != image.shape:
        yield (
            f"{names['VAR']}: has shape {variance.shape}, the image {image.shape}; give one"
            " variance per pixel of the image"
        )
    both = psf is not None and psf.ndim == 3 and image.ndim == 3
    if both and len(psf) != len(image):
        yield (
            f"{names['PSF']}: {len(psf)} PSFs for {len(image)} bands; give one per band"
        )
    if bands is not None and len(bands) != len(image):
        yield (
            f"bands: {len(bands)} names {bands} for {len(image)} planes of {names['SCI']};"
            " name one band per plane (card BANDS, key `filters` or column `bands`)"
        )
    if bands is not None and len(set(bands)) != len(bands):
        yield f"bands: {bands} names a band twice; give each observation its own row"


def check_pixels(
    image: Float[np.ndarray, "band height width"],
    variance: Float[np.ndarray, "band height width"],
    masked: Bool[np.ndarray, "band height width"],
    bands: tuple[str, ...],
    names: dict[str, str],
    first: tuple[int, int] = (0, 0),
    *,
    complete: bool = True,
) -> Iterator[str]:
    """NaN, impossible variances, and bands without a single usable pixel.

    Of a part of an image that begins at pixel `first` (y, x), or is not `complete`, a band may have
    none.
    """
    used = ~masked & ~np.isposinf(variance)
    mask = f"mask the pixels ({names['MASK']}, or infinite variance)"
    for key, array, bad, what in (
        ("VAR", variance, np.isnan(variance), "are NaN"),
        ("VAR", variance, variance <= 0, "have zero or negative variance"),
        ("SCI", image, ~np.isfinite(image), "are not finite"),
    ):
        where = np.argwhere(bad & used)
        if len(where):
            b, y, x = where[0]
            yield (
                f"{names[key]}: {len(where)} unmasked pixels {what}, the first in band"
                f" {bands[b]} at (x, y) = ({x + first[1]}, {y + first[0]}) with"
                f" {array[b, y, x]}; {mask}"
            )
    for band, plane in zip(bands, used, strict=True):
        if complete and not plane.any():
            yield (
                f"band {band}: every pixel is masked; drop the band from the file, or check"
                f" {names['MASK']} and {names['VAR']}"
            )


def check_psf(
    psf: Float[np.ndarray, "band height width"],
    bands: tuple[str, ...],
    name: str,
    oversampling: int = 1,
) -> Iterator[str]:
    """Even sides, NaN, a sum that cannot be normalised, an image that is off centre.

    `oversampling` is the number of pixels of `psf` per pixel of the observation.
    """
    height, width = psf.shape[1:]
    if height % 2 == 0 or width % 2 == 0:
        yield (
            f"{name}: has even sides ({height}, {width}); pad or crop to odd sides so that"
            " the PSF is centred on the central pixel"
        )
        return
    if not np.isfinite(psf).all():
        yield f"{name}: holds NaN or infinite pixels; repair the PSF model"
        return
    for band, plane in zip(bands, psf, strict=True):
        total = plane.sum()
        if total <= 0:
            yield f"{name}: sums to {total:.3g} in band {band}; it must be positive"
            continue
        dy, dx = centroid(plane)
        if np.hypot(dy, dx) > PSF_OFFSET * oversampling:
            yield (
                f"{name}: off centre by (x, y) = ({dx:.2f}, {dy:.2f}) pixel in band {band}"
                f" (at most {PSF_OFFSET * oversampling}); shift it to the central pixel"
                f" ({width // 2}, {height // 2})"
            )


def check_correlation(
    correlation: np.ndarray, bands: tuple[str, ...], name: str
) -> Iterator[str]:
    """Shape, centre, symmetry and size of the correlation of noise."""
    shape = correlation.shape
    odd = correlation.ndim == 3 and shape[1] == shape[2] and shape[1] % 2 == 1
    if not odd or len(correlation) != len(bands):
        yield (
            f"{name}: has shape {shape}; give (band, lag, lag) with an odd number of lags and"
            f" one plane for each of the {len(bands)} bands"
        )
        return
    if correlation.dtype.kind not in "iuf" or not np.isfinite(correlation).all():
        yield f"{name}: must hold finite real numbers"
        return
    middle = shape[1] // 2
    if not np.allclose(correlation[:, middle, middle], 1, atol=1e-3):
        yield (
            f"{name}: is {correlation[:, middle, middle]} at lag 0; divide by it, the variance is"
            " that of the image"
        )
    if not np.allclose(correlation, correlation[:, ::-1, ::-1], atol=1e-3):
        yield f"{name}: differs at opposite lags; a correlation does not"
    if np.abs(correlation).max() > 1 + 1e-3:
        yield f"{name}: is above 1 at some lag; it is no correlation"


def check_segmentation(
    segmentation: np.ndarray, shape: tuple[int, int], name: str
) -> Iterator[str]:
    """Shape and type of the groups of pixels."""
    if segmentation.shape != shape or segmentation.dtype.kind not in "iu":
        yield (
            f"{name}: holds {segmentation.dtype} of shape {segmentation.shape}; give whole"
            f" numbers (y, x), one per pixel of the image, {shape}"
        )


def check_groups(group: Float[np.ndarray, " source"], name: str) -> Iterator[str]:
    """Whether every source has a group."""
    if not np.all((group >= 1) & (group == np.round(group))):
        yield (
            f"{name}: column group must hold whole numbers from 1 on, those of its pixels in HDU"
            " SEGMENT; 0 is no group: give such a source a number of its own"
        )


def centroid(psf: Float[np.ndarray, "height width"]) -> tuple[float, float]:
    """Offset (y, x) [pixel] of the core of a PSF image from its central pixel."""
    core = np.where(psf >= PSF_CORE * psf.max(), psf, 0.0)
    y, x = np.indices(psf.shape)
    total = core.sum()
    return (
        float((core * y).sum() / total - psf.shape[0] // 2),
        float((core * x).sum() / total - psf.shape[1] // 2),
    )


def check_catalog(
    catalog: Table, shape: tuple[int, int], wcs: WCS | None, name: str
) -> Iterator[str]:
    """Sources with a unique id inside the image. Columns are those of `clean_catalog`."""
    if len(catalog) == 0:
        yield (
            f"{name}: no source; list at least one, or leave the catalog out to detect"
            " sources"
        )
        return
    ids = np.asarray(catalog["id"])
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        yield f"{name}: duplicate id {_some(values[counts > 1])}; ids must be unique"
    x, y = np.asarray(catalog["x"]), np.asarray(catalog["y"])
    lost = ~(np.isfinite(x) & np.isfinite(y))
    if lost.any():
        yield f"{name}: no position for id {_some(ids[lost])}; give x, y or ra, dec"
    height, width = shape
    inside = (np.abs(x - (width - 1) / 2) <= width / 2) & (
        np.abs(y - (height - 1) / 2) <= height / 2
    )
    outside = ~lost & ~inside
    if outside.any():
        first = int(np.argmax(outside))
        yield (
            f"{name}: {outside.sum()} of {len(ids)} positions outside the image of {width} x"
            f" {height} pixels, id {_some(ids[outside])}, the first at (x, y) ="
            f" ({x[first]:.1f}, {y[first]:.1f}); remove them, or check that x, y are 0-based"
            " and not swapped"
        )
    if wcs is not None and not lost.any() and np.isfinite(catalog["ra"]).all():
        sky = wcs.all_world2pix(np.c_[catalog["ra"], catalog["dec"]], 0, quiet=True)
        apart = np.hypot(sky[:, 0] - x, sky[:, 1] - y)
        if not (apart <= WCS_AGREEMENT).all():
            worst = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)))
            yield (
                f"{name}: x, y and ra, dec of id {ids[worst]} are {apart[worst]:.1f} pixel"
                " apart; x, y are 0-based, ra, dec in degrees; correct one or drop it"
            )


def _some(ids: np.ndarray, most: int = 5) -> str:
    """The first few of many ids."""
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(map(str, ids[:most])) + more
