"""What users came for: catalogs, per-source images, posterior draws, as FITS and HDF5."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy import units
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from jaxtyping import Float, Int

from blendem.io.atomic import atomic_path
from blendem.io.fitsfile import open_fits
from blendem.io.h5 import read_h5, write_h5
from blendem.io.samples import Samples, read_samples, write_samples
from blendem.io.table import InputError

__all__ = [
    "Samples",
    "View",
    "read_h5",
    "read_light_curves",
    "read_models",
    "read_samples",
    "read_table",
    "read_views",
    "write_catalog",
    "write_h5",
    "write_images",
    "write_map",
    "write_models",
    "write_samples",
]

# Cards that say where a product comes from. PRIOR and CONFIG are hashes.
PROVENANCE = {
    "METHOD": "how the sources were inferred",
    "PRIOR": "sha256 of the prior file, or none",
    "CONFIG": "hash of the configuration",
    "VERSION": "version of blendem",
}
# Unit of a column by its name, or by what comes before the last underscore and band.
COLUMN_UNITS = {
    "x": "pixel",
    "y": "pixel",
    "ra": "deg",
    "dec": "deg",
    "mag": "mag",
    "mag_err": "mag",
    "half_light_radius": "arcsec",
    "size": "arcsec",
    "size_err": "arcsec",
    "hlr": "arcsec",
    "hlr_err": "arcsec",
    "angle": "rad",
    "mjd": "d",
    "A_V": "mag",
}
LIGHT_CURVES = "LIGHTCURVES"  # HDU
FLUX_COLUMNS = ("flux", "flux_err", "flux_q16", "flux_q84", "flux_median")


class View(NamedTuple):
    """An observation of a field but the first, and its model.

    Attributes:
        instrument: As in the table of fields.
        bands: Name of each plane.
        image, model, variance: In the unit of the first observation, `(band, y, x)`; infinite
            variance is masked.
        wcs: Of its pixels, or None.
    """

    instrument: str
    bands: tuple[str, ...]
    image: Float[np.ndarray, "_ _ _"]
    model: Float[np.ndarray, "_ _ _"]
    variance: Float[np.ndarray, "_ _ _"]
    wcs: WCS | None


def write_catalog(
    path: str | Path,
    table: Table | Mapping[str, Any],
    meta: Mapping[str, Any],
    *,
    flux_unit: str = "",
    name: str = "CATALOG",
    light_curves: Table | None = None,
) -> None:
    """Write one row per source as a FITS table with units and provenance.

    Args:
        path: FITS file; it appears only when complete.
        table: Columns of docs/formats.md. Units that a column has are kept; others are
            set by its name.
        meta: Header cards. METHOD, PRIOR, CONFIG and VERSION are needed.
        flux_unit: Unit of the flux columns, as `ObservedField.unit`.
        name: Name of the table HDU.
        light_curves: Of variable sources, for HDU LIGHTCURVES; None: there are none.

    Raises:
        ValueError: If a card of provenance is missing or a key is no FITS keyword.
    """
    hdus = [_table(name, table, flux_unit)]
    if light_curves is not None:
        hdus.append(_table(LIGHT_CURVES, light_curves, flux_unit))
    for hdu in hdus:
        _add_cards(hdu.header, meta)
    with atomic_path(path) as temporary:
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(temporary)


def read_light_curves(path: str | Path) -> Table | None:
    """Light curves of a file of `write_catalog`; None where nothing varies.

    Raises:
        InputError: If the file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the rule that makes it")
    for hdu in open_fits(path)[1:]:
        if hdu.name == LIGHT_CURVES:
            table = Table.read(hdu, unit_parse_strict="silent")
            table.convert_bytestring_to_unicode()
            return table
    return None


def write_map(
    path: str | Path,
    table: Table | Mapping[str, Any],
    meta: Mapping[str, Any],
    *,
    flux_unit: str = "",
    light_curves: Table | None = None,
) -> None:
    """Write the parameters of closed-form fits as `write_catalog` does, in HDU MAP."""
    write_catalog(
        path, table, meta, flux_unit=flux_unit, name="MAP", light_curves=light_curves
    )


def read_table(path: str | Path) -> tuple[Table, dict[str, Any]]:
    """Read a table of `write_catalog` or `write_map`, and its provenance cards.

    Raises:
        InputError: If the file is missing, damaged or holds no table.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the rule that makes it")
    hdus = [hdu for hdu in open_fits(path) if isinstance(hdu, fits.BinTableHDU)]
    if not hdus:
        raise InputError(f"{path}: holds no table; run the rule that makes it again")
    cards = {key: hdus[0].header[key] for key in PROVENANCE if key in hdus[0].header}
    table = Table.read(hdus[0], unit_parse_strict="silent")
    table.convert_bytestring_to_unicode()
    return table, cards


def write_models(
    path: str | Path,
    *,
    sources: Table,
    bands: Sequence[str],
    model_mean: Float[np.ndarray, "source band stamp stamp"],
    model_std: Float[np.ndarray, "source band stamp stamp"],
    observed_mean: Float[np.ndarray, "source band height width"],
    observed_std: Float[np.ndarray, "source band height width"],
    corner: Int[np.ndarray, "source 2"],
    meta: Mapping[str, Any],
    unit: str = "",
    image: Float[np.ndarray, "band y x"] | None = None,
    model: Float[np.ndarray, "band y x"] | None = None,
    variance: Float[np.ndarray, "band y x"] | None = None,
    wcs: WCS | None = None,
    views: Sequence[View] = (),
) -> None:
    """Write the images of all sources of a field as FITS.

    Args:
        path: FITS file; it appears only when complete.
        sources: Column `id` and any others, one row per source; goes to HDU IDS.
        bands: Names of the bands.
        model_mean, model_std: Posterior at model resolution, centred on the source.
        observed_mean, observed_std: The same, seen by the first observation.
        corner: Pixel (y, x) of the image where each observed stamp begins. It may lie
            outside; IDS holds it as `corner_x`, `corner_y`.
        meta: Header cards as in `write_catalog`.
        unit: Unit of all images.
        image, model: The whole field and its model; SCI, MODEL and RESIDUAL.
        variance: Variance of the whole field, VAR [unit^2].
        wcs: WCS of the whole field.
        views: The other observations; SCI_1, MODEL_1, RESIDUAL_1, VAR_1 and so on.

    Raises:
        ValueError: If shapes disagree or provenance is missing.
    """
    n, shape = len(sources), (len(sources), len(bands))
    stamps = {
        "MODEL_MEAN": np.asarray(model_mean),
        "MODEL_STD": np.asarray(model_std),
        "OBS_MEAN": np.asarray(observed_mean),
        "OBS_STD": np.asarray(observed_std),
    }
    for name, array in stamps.items():
        other = stamps[name.replace("STD", "MEAN")]
        if array.ndim != 4 or array.shape[:2] != shape or array.shape != other.shape:
            raise ValueError(
                f"`{name}` must be (source, band, y, x) with {shape[0]} sources and"
                f" {shape[1]} bands, means like deviations; got {array.shape}."
            )
    if np.shape(corner) != (n, 2):
        raise ValueError(f"`corner` must have shape ({n}, 2); got {np.shape(corner)}.")
    primary = fits.PrimaryHDU()
    _add_cards(primary.header, meta)
    hdus = fits.HDUList([primary])
    for name, array in stamps.items():
        hdus.append(_image(name, array, bands, unit))
    table = Table(sources, copy=True)
    table["corner_x"], table["corner_y"] = np.asarray(corner).T[::-1]
    hdus.append(_table("IDS", table, unit))
    whole = {"SCI": image, "MODEL": model, "VAR": variance}
    if image is not None and model is not None:
        whole["RESIDUAL"] = np.asarray(image) - np.asarray(model)
    for name, array in whole.items():
        if array is not None:
            hdus.append(_image(name, np.asarray(array), bands, unit, wcs))
    for number, view in enumerate(views, start=1):
        whole = {"SCI": view.image, "MODEL": view.model, "VAR": view.variance}
        whole["RESIDUAL"] = view.image - view.model
        for name, array in whole.items():
            hdu = _image(f"{name}_{number}", array, view.bands, unit, view.wcs)
            hdu.header["INSTRUME"] = (view.instrument, "as in the table of fields")
            hdus.append(hdu)
    with atomic_path(path) as temporary:
        hdus.writeto(temporary)


def write_images(
    path: str | Path,
    images: Mapping[str, tuple[np.ndarray, str, Sequence[str]]],
    *,
    sources: Table,
    meta: Mapping[str, Any],
    unit: str = "",
    wcs: WCS | None = None,
) -> None:
    """Write any images as FITS, and the table IDS of the sources that they show.

    Args:
        path: FITS file; it appears only when complete.
        images: By the name of their HDU: array, unit, names of the planes.
        sources: Column `id` and any others.
        meta: Header cards as in `write_catalog`.
        unit: Of fluxes in the table.
        wcs: Of images of three axes, which show the whole field.

    Raises:
        ValueError: If provenance is missing.
    """
    primary = fits.PrimaryHDU()
    _add_cards(primary.header, meta)
    hdus = fits.HDUList([primary])
    for name, (array, its_unit, bands) in images.items():
        whole = wcs if np.ndim(array) == 3 else None
        hdus.append(_image(name, np.asarray(array), bands, its_unit, whole))
    hdus.append(_table("IDS", sources, unit))
    with atomic_path(path) as temporary:
        hdus.writeto(temporary)


def read_models(path: str | Path) -> dict[str, Any]:
    """Read `write_models` or `write_images`: arrays by the name of their HDU, and the table IDS.

    Raises:
        InputError: If the file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the rule that makes it")
    content = {}
    for hdu in open_fits(path)[1:]:
        if hdu.is_image:
            content[hdu.name] = hdu.data.astype(np.float32)
        else:
            content[hdu.name] = Table.read(hdu, unit_parse_strict="silent")
    return content


def read_views(path: str | Path) -> list[View]:
    """The observations of a field but the first, of `write_models`.

    Raises:
        InputError: If the file is missing or damaged.
    """
    arrays = read_models(path)
    views = []
    while f"SCI_{len(views) + 1}" in arrays:
        number = len(views) + 1
        header = fits.getheader(path, f"SCI_{number}")
        wcs = WCS(header, naxis=2)
        views.append(
            View(
                str(header["INSTRUME"]),
                tuple(header["BANDS"].split(",")),
                *(arrays[f"{name}_{number}"] for name in ("SCI", "MODEL", "VAR")),
                wcs if wcs.has_celestial else None,
            )
        )
    return views


def _table(name: str, table: Table | Mapping[str, Any], flux_unit: str):
    """Table HDU with the units that the columns have, or that their names imply."""
    table = Table(table, copy=True)
    # A survey's own unit (`nanomaggy`, `3.631 uJy`) is written as it is, whatever FITS allows.
    own = {}
    for column in table.colnames:
        if table[column].unit is None and (unit := _unit(column, flux_unit)):
            if unit == flux_unit:
                own[column] = unit
            else:
                table[column].unit = units.Unit(unit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", units.UnitsWarning)
        hdu = fits.table_to_hdu(table)
        for column, unit in own.items():
            hdu.columns[column].unit = unit
    hdu.name = name
    return hdu


def _image(name, array, bands, unit, wcs=None) -> fits.ImageHDU:
    header = wcs.to_header(relax=True) if wcs is not None else fits.Header()
    header["BANDS"] = (",".join(bands), "name of each plane")
    header["BUNIT"] = (unit, "unit of the pixels")
    # What has the type of FITS stays where it is, on disk if it is there.
    on_disk = array.dtype == np.dtype(">f4")
    data = array if on_disk else array.astype(np.float32)
    return fits.ImageHDU(data, header, name=name)


def _unit(column: str, flux_unit: str) -> str:
    """Unit of a column from its name, such as `mag_err_i`."""
    for key in (column, column.rpartition("_")[0]):
        if key in FLUX_COLUMNS:
            return flux_unit
        if key in COLUMN_UNITS:
            return COLUMN_UNITS[key]
    return "pixel" if column.startswith("corner_") else ""


def _add_cards(header: fits.Header, meta: Mapping[str, Any]) -> None:
    missing = [key for key in PROVENANCE if key not in meta]
    if missing:
        raise ValueError(
            f"`meta` lacks {', '.join(missing)}, got {list(meta)}; a product must say where"
            " it comes from."
        )
    for key, value in meta.items():
        if len(key) > 8 or not key.replace("-", "").replace("_", "").isalnum():
            raise ValueError(
                f"`meta` key {key!r} is no FITS keyword; use at most 8 letters and digits."
            )
        # A long value leaves no room for a comment on its card.
        comment = PROVENANCE.get(key, "") if len(str(value)) < 20 else ""
        header[key.upper()] = (value, comment)
