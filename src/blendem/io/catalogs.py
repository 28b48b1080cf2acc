"""Catalogs of sources that users give: columns found, completed and made plain."""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from blendem.io.fitsfile import is_fits, open_fits
from blendem.io.table import InputError

TYPES = ("galaxy", "star", "variable")
SEPARATOR = ";"  # of the epochs in column `off`


def read_catalog(path: Path) -> Table:
    """Read a catalog file: FITS (HDU CATALOG, else the first table), ECSV or CSV.

    Raises:
        InputError: If it is missing, of another kind, or damaged.
    """
    if not path.is_file():
        raise InputError(
            f"catalog {path}: no such file; check column `catalog` of the table of fields"
        )
    if is_fits(path):
        tables = [hdu for hdu in open_fits(path) if isinstance(hdu, fits.BinTableHDU)]
        if not tables:
            raise InputError(
                f"catalog {path}: holds no table; write the sources as one"
            )
        named = [hdu for hdu in tables if hdu.name == "CATALOG"]
        return Table.read((named or tables)[0])
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".ecsv"):
        raise InputError(
            f"catalog {path}: unknown kind of file; give FITS, ECSV or CSV"
        )
    try:
        return Table.read(path, format=f"ascii{suffix}")
    except (OSError, ValueError, TypeError, zlib.error) as error:
        raise InputError(
            f"catalog {path}: cannot be read as {suffix[1:].upper()} ({error}); write it"
            " again, for example with astropy.table.Table.write"
        ) from None


def clean_catalog(
    catalog: Table, wcs: WCS | None, name: str, columns: Sequence[str] = ()
) -> Table:
    """Columns id, x, y, ra, dec, type and off of a catalog, and `columns` of numbers.

    Names are compared without case. Positions come from `x`, `y`, else from `ra`, `dec`
    and the WCS; the other pair is computed, NaN where there is no WCS. Sources without a
    `type` are galaxies. `off` names the epochs in which a variable source is known not to shine,
    separated by semicolons.

    Raises:
        InputError: If a column is missing or of a wrong kind.
    """
    more, columns = columns, {column.lower(): column for column in catalog.colnames}

    def numbers(key: str) -> np.ndarray:
        column = catalog[columns[key]]
        if column.dtype.kind not in "iuf" or column.ndim != 1:
            raise InputError(
                f"{name}: column {key} must hold numbers, got {column.dtype}"
            )
        return np.ma.filled(np.ma.asarray(column, float), np.nan)

    if "id" not in columns:
        raise InputError(
            f"{name}: lacks column id, it has {catalog.colnames}; number the sources"
        )
    ids = catalog[columns["id"]]
    if ids.dtype.kind not in "iu" and len(ids):
        raise InputError(f"{name}: column id must hold integers, got {ids.dtype}")
    if np.ma.getmaskarray(np.ma.asarray(ids)).any():
        raise InputError(f"{name}: column id has empty rows; number all sources")
    if len(ids) and ids.dtype.kind == "u" and ids.max() > np.iinfo(np.int64).max:
        raise InputError(
            f"{name}: column id holds {ids.max()}, more than a signed 64-bit number can; number"
            " the sources anew"
        )
    pixel, sky = {"x", "y"} <= columns.keys(), {"ra", "dec"} <= columns.keys()
    if not pixel and not sky:
        raise InputError(
            f"{name}: lacks columns x, y or ra, dec, it has {catalog.colnames}; add one pair"
        )
    if not pixel and wcs is None:
        raise InputError(
            f"{name}: has ra, dec but the image has no WCS; add columns x, y (0-based) or a"
            " WCS in HDU SCI"
        )
    ra = dec = np.full(len(catalog), np.nan)
    if sky:
        ra, dec = numbers("ra"), numbers("dec")
    if pixel:
        x, y = numbers("x"), numbers("y")
        if not sky and wcs is not None and len(catalog):
            ra, dec = wcs.all_pix2world(x, y, 0)
    elif len(catalog):
        x, y = wcs.all_world2pix(ra, dec, 0, quiet=True)
    else:
        x = y = ra
    clean = Table(
        {"id": np.asarray(ids, np.int64), "x": x, "y": y, "ra": ra, "dec": dec}
    )
    clean["type"] = _types(catalog, columns.get("type"), name)
    clean["off"] = _texts(catalog, columns.get("off"))
    for key in more:
        if key.lower() not in columns:
            raise InputError(
                f"{name}: lacks column {key}, which the settings of this run need; it has"
                f" {catalog.colnames}: add it, or name another one"
            )
        clean[key] = numbers(key.lower())
    for key, unit in (("x", "pixel"), ("y", "pixel"), ("ra", "deg"), ("dec", "deg")):
        clean[key].unit = unit
    return clean


def _types(catalog: Table, column: str | None, name: str) -> np.ndarray:
    """One of `TYPES` for each source."""
    values = np.char.lower(_texts(catalog, column))
    values = np.where(values == "", "galaxy", values)
    unknown = sorted(set(values.tolist()) - set(TYPES))
    if unknown:
        raise InputError(
            f"{name}: column type holds {unknown[:5]}; give `galaxy`, `star` or `variable`"
        )
    return values.astype("U8")


def _texts(catalog: Table, column: str | None) -> np.ndarray:
    """Text of each source, without spaces about it; empty without the column."""
    if column is None:
        return np.full(len(catalog), "", "U1")
    values = np.ma.filled(np.ma.asarray(catalog[column]).astype("U"), "")
    return np.char.strip(values)


def epochs_off(catalog: Table) -> list[tuple[str, ...]]:
    """Epochs in which each source of a clean catalog is known not to shine."""
    return [
        tuple(part.strip() for part in text.split(SEPARATOR) if part.strip())
        for text in catalog["off"].tolist()
    ]


def check_epochs(catalog: Table, epochs: Sequence[str], name: str) -> Iterator[str]:
    """Whether the epochs of a field can tell its variable sources from what is behind them.

    Args:
        catalog: A clean catalog.
        epochs: Name of the epoch of every observation of the field.
        name: Of the catalog, for messages.
    """
    known = sorted(set(epochs))
    for source, off in zip(catalog, epochs_off(catalog), strict=True):
        who = f"{name}: source {source['id']}"
        if source["type"] != "variable":
            if off:
                yield (
                    f"{who} is off in {', '.join(off)} but of type {source['type']}; make it"
                    " `variable`, or leave column off empty"
                )
            continue
        if unknown := sorted(set(off) - set(known)):
            yield (
                f"{who} is off in {', '.join(unknown)}, the field has epochs"
                f" {', '.join(known)} (column `epoch` of the table of fields); correct one"
            )
        elif set(off) == set(known):
            yield f"{who} is off in every epoch; remove it, or correct column off"
        elif len(known) < 2:
            yield (
                f"{who} is variable, but the field has one epoch: nothing tells the source from"
                " its host; add a reference epoch to the table of fields, or make it a `star`"
            )
