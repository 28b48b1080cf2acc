"""Raw content of observation files: FITS and NPZ become one `RawObservation`.

Nothing is judged here but whether the parts exist and can be read; see `io.checks`.
"""

import warnings
import zipfile
import zlib
from collections import ChainMap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS, FITSFixedWarning

from blendem.io.fitsfile import DAMAGE, browse_fits, is_fits, open_fits
from blendem.io.table import InputError, split_bands

# Bits of LSST image masks (lsst.afw.image.Mask, default planes) whose pixels are not used:
# BAD, SAT, EDGE, SUSPECT, NO_DATA, the choice of LSST's multi-band deblender
# (meas_extensions_scarlet, `utils.defaultBadPixelMasks`; its later versions add planes).
# DETECTED, INTRP, CR and others stay in.
LSST_PLANES = {"BAD": 0, "SAT": 1, "EDGE": 4, "SUSPECT": 7, "NO_DATA": 8}
# Images of a file that are read in part, and cards of the place of a tile in its field.
OF_PIXELS = ("SCI", "VAR", "MASK", "SEGMENT")
PARTS = (*OF_PIXELS, "PSF", "NOISECORR", "CATALOG")
ORIGIN = ("TILE_Y", "TILE_X")  # for PSFEx
PLACE = ("FIELD_Y", "FIELD_X")  # for the mosaic
Window = tuple[int, int, int, int]  # y0, y1, x0, x1 [pixel]


@dataclass(frozen=True)
class RawObservation:
    """What a file holds, before any check.

    Attributes:
        image, variance: `(band, height, width)`; variance is inf where weights are 0.
        masked: True where pixels are not used, same shape.
        psf: `(band, height, width)`; None if it was not asked for.
        oversampling: Pixels of `psf` per pixel of the image, along an axis.
        correlation: Of the noise, `(band, lag, lag)`; None where the file has none.
        names: What the file calls `image`, `variance`, `mask`, `psf` and `catalog`.
        bands, magzero, unit, wcs, catalog: None (unit: empty) where the file is silent.
        segmentation: Group of each pixel, `(height, width)`, or None.
        origin: Pixel (y, x) of the whole field at which the image begins.
    """

    image: np.ndarray
    variance: np.ndarray
    masked: np.ndarray
    psf: np.ndarray | None
    oversampling: int
    correlation: np.ndarray | None
    names: dict[str, str]
    bands: tuple[str, ...] | None
    magzero: float | None
    unit: str
    wcs: WCS | None
    catalog: Table | None
    segmentation: np.ndarray | None = None
    origin: tuple[int, int] = (0, 0)


def image_shape(path: Path) -> tuple[int, int] | None:
    """Height and width of a FITS observation by its header; None: it does not tell.

    What is wrong with the file is for `read_raw` to say.
    """
    if not path.is_file() or not is_fits(path):
        return None
    try:
        header = fits.getheader(path, "SCI")
        return int(header["NAXIS2"]), int(header["NAXIS1"])
    except (KeyError, *DAMAGE):
        return None


def read_raw(
    path: Path, *, with_psf: bool = True, window: Window | None = None
) -> RawObservation:
    """Read an observation file by its suffix.

    Args:
        path: FITS or NPZ file.
        with_psf: Whether it must have a PSF; else what it has of one is passed over.
        window: Pixels (y0, y1, x0, x1) that are read, of FITS files; None: all. The WCS follows, the
            catalog does not.

    Raises:
        InputError: If it is missing, of another kind, damaged, or lacks a part.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; check column `path` of the table of fields and, if it is"
            " used there, BLENDEM_DATA"
        )
    if is_fits(path):
        return _read_fits(path, with_psf, window)
    if path.suffix.lower() == ".npz":
        return _read_npz(path, with_psf)
    raise InputError(
        f"{path}: unknown kind of file; give FITS (.fits, .fits.gz) or .npz"
    )


def _read_fits(path: Path, with_psf: bool, window: Window | None) -> RawObservation:
    if window is None:
        return _parse_fits(path, open_fits(path), with_psf, None)
    with browse_fits(path) as hdus:
        return _parse_fits(path, hdus, with_psf, window)


def _parse_fits(
    path: Path, hdus: fits.HDUList, with_psf: bool, window: Window | None
) -> RawObservation:
    found = {hdu.name: hdu for hdu in hdus}
    names = [hdu.name for hdu in hdus]
    if twice := [name for name in PARTS if names.count(name) > 1]:
        raise InputError(
            f"{path}: has more than one HDU {' and '.join(twice)}; stack the bands into one cube"
            " (band, y, x) each, see docs/formats.md"
        )
    part = (...,) if window is None else (..., slice(*window[:2]), slice(*window[2:]))

    def image(name: str) -> np.ndarray:
        hdu = found.get(name)
        if hdu is None or not hdu.is_image or not hdu.shape:
            raise InputError(
                f"{path}: lacks the image HDU {name}, it has"
                f" {', '.join(n or 'an unnamed HDU' for n in found)}; see docs/formats.md"
            )
        if window is not None and name in OF_PIXELS:
            return _planes(np.asarray(hdu.section[part]))
        return _planes(np.asarray(hdu.data))

    sci, variance = image("SCI"), image("VAR")
    psf = image("PSF") if with_psf else None
    oversampling = 1
    if with_psf:
        value = found["PSF"].header.get("PSF_SAMP", 1)
        oversampling = _oversampling(path, "card PSF_SAMP of HDU PSF", value)
    # Cards of the primary header hold where SCI itself is silent.
    card = ChainMap(dict(found["SCI"].header), dict(hdus[0].header))
    if "MASK" in found:
        mask_header = found["MASK"].header
        planes = {n: mask_header.get(f"MP_{n}") for n in LSST_PLANES}
        planes = {n: bit for n, bit in planes.items() if bit is not None}
        masked = _mask(path, "HDU MASK", image("MASK"), sci.shape, planes or None)
    else:
        masked = np.zeros(sci.shape, bool)
    bands = card.get("BANDS")
    magzero = card.get("MAGZERO")
    wcs, corner = _read_wcs(path, "SCI", found["SCI"].header, hdus), np.zeros(2, int)
    if wcs is None and found["SCI"] is not hdus[0]:
        wcs = _read_wcs(path, "PRIMARY", hdus[0].header, hdus)
    if window is not None:
        corner = np.array(window[::2])
        if wcs is not None:
            # astropy would cut the slices to the sides of the cube, of which it takes the wrong ones.
            wcs.pixel_shape = None
            wcs = wcs[part[1:]]
    catalog = None
    if "CATALOG" in found:
        if not isinstance(found["CATALOG"], fits.BinTableHDU | fits.TableHDU):
            raise InputError(f"{path}: HDU CATALOG is not a table; write it as one")
        catalog = Table.read(found["CATALOG"])
    return RawObservation(
        image=sci,
        variance=variance,
        masked=masked,
        psf=psf,
        oversampling=oversampling,
        correlation=image("NOISECORR") if "NOISECORR" in found else None,
        names={k: f"HDU {k}" for k in PARTS},
        bands=None if bands is None else split_bands(str(bands)),
        magzero=_number(path, "card MAGZERO of HDU SCI", magzero),
        unit=_unit(path, "card BUNIT", card.get("BUNIT", "")),
        wcs=wcs,
        catalog=catalog,
        segmentation=image("SEGMENT")[0] if "SEGMENT" in found else None,
        origin=tuple((corner + [int(card.get(name, 0)) for name in ORIGIN]).tolist()),
    )


def _unit(path: Path, name: str, value: object) -> str:
    """Unit of the pixels as a FITS header can hold it."""
    unit = str(value).strip()
    if not (unit.isascii() and unit.isprintable()):
        raise InputError(
            f"{path}: {name} is {unit!r}; FITS headers hold ASCII alone: write `uJy`, not `\u00b5Jy`"
        )
    return unit


def _read_wcs(
    path: Path, name: str, header: fits.Header, hdus: fits.HDUList
) -> WCS | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        try:
            wcs = WCS(header, fobj=hdus, naxis=2)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise InputError(
                f"{path}: the WCS in HDU {name} cannot be read ({error}); repair or remove it"
            ) from None
    return wcs if wcs.has_celestial else None


def _read_npz(path: Path, with_psf: bool) -> RawObservation:
    try:
        # NumPy does not close a path that turns out to be no archive.
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            data = {key: file[key] for key in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        # NumPy proposes to unpickle whatever is not an archive; that is not the remedy.
        reason = "not an npz archive" if "pickle" in str(error) else error
        if "Object arrays" in str(error):
            reason = "holds pickled objects, which are not read"
        raise InputError(
            f"{path}: truncated, damaged or not readable ({reason}); copy it again, or save"
            " plain arrays with numpy.savez"
        ) from None
    except AttributeError:  # a single array with the suffix of an archive
        raise InputError(
            f"{path}: holds one array, not named ones; save it with numpy.savez"
        ) from None

    def first(*keys: str) -> str:
        for key in keys:
            if key in data:
                return key
        raise InputError(
            f"{path}: lacks key {' or '.join(f'`{k}`' for k in keys)}, it has"
            f" {', '.join(sorted(data))}; see docs/formats.md"
        )

    image = _planes(data[first("images", "image")])
    name = first("variance", "weights")
    variance = _planes(data[name])
    if name == "weights":
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = np.where(variance == 0, np.inf, 1.0 / variance)
    masked = np.zeros(image.shape, bool)
    if "mask" in data:
        masked |= _mask(path, "key `mask`", data["mask"], image.shape, LSST_PLANES)
    where = next((k for k in ("catalog", "peaks", "centers") if k in data), "catalog")
    catalog = _npz_catalog(path, where, data[where]) if where in data else None
    if "footprint" in data:
        inside = _mask(path, "key `footprint`", data["footprint"], image.shape, None)
        masked |= inside if _is_outside(inside, catalog) else ~inside
    psf = first("psfs", "psf") if with_psf else None
    oversampling = 1
    if with_psf:
        value = data.get("psf_samp", 1)
        oversampling = _oversampling(path, "key `psf_samp`", value)
    correlation = "noise_correlation"
    bands = data.get("filters")
    return RawObservation(
        image=image,
        variance=variance,
        masked=masked,
        psf=_planes(data[psf]) if with_psf else None,
        oversampling=oversampling,
        correlation=_planes(data[correlation]) if correlation in data else None,
        names={
            "SCI": "key `images`",
            "VAR": f"key `{name}`",
            "MASK": "key `mask`",
            "PSF": f"key `{psf}`",
            "NOISECORR": f"key `{correlation}`",
            "CATALOG": f"key `{where}`",
        },
        bands=None if bands is None else tuple(str(b) for b in np.atleast_1d(bands)),
        magzero=_number(path, "key `magzero`", data.get("magzero")),
        unit=_unit(path, "key `unit`", data.get("unit", "")),
        wcs=None,
        catalog=catalog,
    )


def _is_outside(footprint: np.ndarray, catalog: Table | None) -> bool:
    """Whether a footprint is true outside, as that of the public blends of an LSST simulation
    (scarlet_test): it holds none of the sources."""
    if catalog is None or not len(catalog) or not {"x", "y"} <= set(catalog.colnames):
        return False
    y, x = (np.nan_to_num(np.asarray(catalog[k], float)) for k in "yx")
    y, x = (
        np.clip(np.round(v).astype(int), 0, n - 1)
        for v, n in zip((y, x), footprint.shape[-2:], strict=True)
    )
    return not footprint[..., y, x].any()


def _npz_catalog(path: Path, key: str, values: np.ndarray) -> Table:
    """Positions of an NPZ file.

    A structured array has named fields. A plain `(n, 2)` array is (x, y) under `catalog`
    and `peaks`, and (y, x) under `centers`, as in the test sets of scarlet_lite.
    """
    if values.dtype.names:
        catalog = Table(np.atleast_1d(values))
    elif values.ndim == 2 and values.shape[1] == 2 and values.dtype.kind in "iuf":
        names = ("y", "x") if key == "centers" else ("x", "y")
        catalog = Table(np.asarray(values, float), names=names)
    else:
        raise InputError(
            f"{path}: key `{key}` must be (n, 2) positions or have fields x and y, got"
            f" {values.dtype} of shape {values.shape}; see docs/formats.md"
        )
    if "id" not in catalog.colnames:
        catalog.add_column(np.arange(len(catalog)), name="id", index=0)
    return catalog


def _oversampling(path: Path, name: str, value: object) -> int:
    """Pixels of the PSF image per pixel of the observation, along an axis.

    The card of that name in files of PSFEx is the inverse.
    """
    number = np.asarray(value)
    plain = number.size == 1 and number.dtype.kind in "iuf"
    number = float(number.ravel()[0]) if plain else np.nan
    if number >= 1 and number == round(number):
        return int(number)
    inverse = 1 / number if number > 0 else np.nan
    whole = inverse > 1.5 and abs(inverse - round(inverse)) < 1e-3 * inverse
    hint = (
        f" {round(inverse)}, if that is the side of one over the other,"
        if whole
        else ""
    )
    raise InputError(
        f"{path}: {name} is {value}; give the number of pixels of the PSF image per pixel of"
        f" the observation along an axis, a whole number from 1 on:{hint} or resample the PSF"
    )


def _number(path: Path, name: str, value: object) -> float | None:
    """A zero point, or None where there is none."""
    if value is None:
        return None
    value = np.asarray(value)
    if value.size != 1 or value.dtype.kind not in "iuf":
        raise InputError(
            f"{path}: {name} is {value.tolist()!r}; give one number, the AB zero point [mag]"
        )
    return float(value.ravel()[0])


def _planes(array: np.ndarray) -> np.ndarray:
    """A single plane is an image of one band."""
    return array[None] if array.ndim == 2 else array


def _mask(
    path: Path,
    name: str,
    values: np.ndarray,
    shape: tuple[int, ...],
    planes: dict[str, int] | None,
) -> np.ndarray:
    """True where pixels are masked (for a footprint: where they are inside).

    Values other than 0 and 1 are bits: those of `planes` count. Without `planes` every
    value that is not 0 counts.
    """
    if values.dtype.kind not in "biu":
        raise InputError(
            f"{path}: {name} must hold booleans or integers, got {values.dtype}; convert it"
        )
    if values.ndim not in (2, 3) or values.shape not in (
        shape,
        shape[1:],
        (1, *shape[1:]),
    ):
        raise InputError(
            f"{path}: {name} has shape {values.shape}, the image has {shape}; give (band, y,"
            " x) or (y, x)"
        )
    if planes is None or values.dtype.kind == "b" or values.max(initial=0) <= 1:
        masked = values != 0
    else:
        masked = (
            values.astype(np.int64) & sum(1 << bit for bit in planes.values())
        ) != 0
    return np.broadcast_to(masked, shape)
