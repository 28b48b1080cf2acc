"""Observations in and out of files: the input contract of docs/formats.md."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy import units
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from jaxtyping import Bool, Float, Int

from blendem.io.atomic import atomic_path
from blendem.io.bands import ModelBands, compare_bands
from blendem.io.catalogs import check_epochs, clean_catalog, read_catalog
from blendem.io.checks import (
    check_catalog,
    check_correlation,
    check_groups,
    check_pixels,
    check_psf,
    check_segmentation,
    check_shapes,
)
from blendem.io.psfex import read_psfex
from blendem.io.readers import RawObservation, Window, image_shape, read_raw
from blendem.io.table import (
    FieldRow,
    InputError,
    epochs_of,
    input_error,
    read_fields_table,
)
from blendem.survey.instruments import INSTRUMENTS
from blendem.survey.psf_model import PSFExModel

__all__ = [
    "FieldRow",
    "InputError",
    "ObservedField",
    "read_fields_table",
    "read_observation",
    "read_sources",
    "strips",
    "validate_fields",
    "write_field",
]

ZERO_POINT_ERROR = 0.01  # most between zero point and unit of the pixels [mag]
STRIP = 2048**2  # a larger image is read in strips of as many pixels


@dataclass(frozen=True)
class ObservedField:
    """One checked observation of a field.

    Attributes:
        field, instrument, path: As in the table of fields.
        bands: Name of each plane.
        image: Pixel values [unit], `(band, height, width)` float32; 0 where masked.
        variance: [unit^2], same shape, float32; inf where masked.
        psf: Effective PSF, sum 1, odd square, `(band, size, size)` float32; that of the middle
            of the image where it varies. On the pixels of the image, or finer ones.
        wcs: Celestial WCS, or None.
        magzero: `mag = magzero - 2.5 log10(flux)` (AB).
        unit: Unit of the pixels, as the file says it.
        correlation: Of the noise of two pixels by their distance, `(band, lag, lag)`, or None.
        catalog: Columns `id`, `x`, `y` [pixel, 0-based], `ra`, `dec` [deg] (NaN without
            WCS), `type` (`io.catalogs.TYPES`), `off`; None if sources are to be detected.
        psf_model: PSF that varies over the image; None: `psf` everywhere.
        oversampling: Pixels of `psf` per pixel of the image, along an axis.
        segmentation: Group of each pixel, 0 where there is none, where groups are known; the catalog
            then has columns `group` and `split`.
    """

    field: str
    instrument: str
    path: Path
    bands: tuple[str, ...]
    image: Float[np.ndarray, "band height width"]
    variance: Float[np.ndarray, "band height width"]
    psf: Float[np.ndarray, "band size size"]
    wcs: WCS | None
    magzero: float
    unit: str
    catalog: Table | None
    correlation: Float[np.ndarray, "band lag lag"] | None = None
    psf_model: PSFExModel | None = None
    oversampling: int = 1
    segmentation: Int[np.ndarray, "height width"] | None = None


GROUP_COLUMNS = ("group", "split")


def read_observation(
    row: FieldRow, columns: Sequence[str] = (), *, window: Window | None = None
) -> ObservedField:
    """Read and check one observation.

    Bands and zero point are those of the file, else of the table's columns, else of the
    instrument. Sources are those of column `catalog`, else of the file, else None. The PSF is
    that of column `psf`, else of the file. `columns` are further columns of numbers that a
    catalog must have. Of a `window` (y0, y1, x0, x1) pixels alone are read and checked: sources
    are those of `read_sources`, and a band may have no pixel there.

    Raises:
        InputError: It lists everything that is wrong with the file.
    """
    raw = read_raw(row.path, with_psf=not row.psf, window=window)
    where = f"{row.path} (field {row.field})"
    part = window is not None or raw.segmentation is not None
    bands, magzero, problems = _settle(row, raw)
    problems += check_shapes(raw.image, raw.variance, raw.psf, bands, raw.names)
    if problems:
        raise input_error(where, problems)
    image, variance = _single(raw.image), _single(raw.variance)
    first = (0, 0) if window is None else window[::2]
    problems += check_pixels(
        image, variance, raw.masked, bands, raw.names, first, complete=not part
    )
    if ((raw.variance > 0) & (variance < np.finfo(np.float32).tiny)).any():
        problems.append(
            f"{raw.names['VAR']}: values as small as {raw.variance.min():.3g} do not fit"
            " float32; give image and variance in a smaller unit and change MAGZERO"
        )
    psf_model = None
    if row.psf:
        psf_model, found = read_psfex(row.psf, bands, image.shape[1:], raw.origin)
        problems += found
    else:
        psf = raw.psf.astype(np.float64)
        problems += check_psf(psf, bands, raw.names["PSF"], raw.oversampling)
    if raw.correlation is not None:
        problems += check_correlation(raw.correlation, bands, raw.names["NOISECORR"])
    segmentation, catalog = raw.segmentation, None
    if segmentation is not None:
        columns = (*columns, *GROUP_COLUMNS)
        problems += check_segmentation(
            segmentation, image.shape[1:], raw.names["SEGMENT"]
        )
    if window is None:
        catalog, found = _sources(row, raw, image.shape[1:], columns)
        problems += found
    if problems:
        raise input_error(where, problems)
    if psf_model is not None:
        psf = psf_model.at((np.array(image.shape[1:]) - 1) / 2)
    masked = raw.masked | np.isposinf(variance)
    return ObservedField(
        field=row.field,
        instrument=row.instrument,
        path=row.path,
        bands=bands,
        image=np.where(masked, np.float32(0), image),
        variance=np.where(masked, np.float32(np.inf), variance),
        psf=_square(psf / psf.sum((1, 2), keepdims=True)).astype(np.float32),
        wcs=raw.wcs,
        magzero=magzero,
        unit=raw.unit,
        catalog=catalog,
        correlation=None if raw.correlation is None else raw.correlation.astype(float),
        psf_model=psf_model,
        oversampling=raw.oversampling,
        segmentation=segmentation,
    )


def read_sources(row: FieldRow) -> Table | None:
    """Catalog of an observation as `read_observation` has it, without its pixels.

    Raises:
        InputError: It lists everything that is wrong with the catalog.
    """
    shape = image_shape(row.path)
    raw = read_raw(row.path, with_psf=False, window=(0, 1, 0, 1))
    columns = () if raw.segmentation is None else GROUP_COLUMNS
    catalog, problems = _sources(row, raw, shape, columns)
    if problems:
        raise input_error(f"{row.path} (field {row.field})", problems)
    return catalog


def _sources(
    row: FieldRow, raw: RawObservation, shape: tuple[int, int], columns: Sequence[str]
) -> tuple[Table | None, list[str]]:
    """Checked sources of column `catalog`, else of the file, and their problems."""
    problems, catalog = [], None
    try:
        if row.catalog is not None:
            name, catalog = f"catalog {row.catalog}", read_catalog(row.catalog)
        elif raw.catalog is not None:
            name, catalog = raw.names["CATALOG"], raw.catalog
        if catalog is not None:
            catalog = clean_catalog(catalog, raw.wcs, name, columns)
            if len(catalog) or raw.segmentation is None:  # a tile may hold nothing
                problems += check_catalog(catalog, shape, raw.wcs, name)
            if raw.segmentation is not None:
                problems += check_groups(np.asarray(catalog["group"]), name)
            unknown = sorted(set(row.stars) - set(catalog["id"].tolist()))
            if unknown:
                problems.append(f"column stars: no source of {name} has id {unknown}")
            catalog["type"][np.isin(catalog["id"], row.stars)] = "star"
    except InputError as error:
        problems.append(str(error))
    return catalog, problems


def validate_fields(
    table: str | Path | Sequence[FieldRow], model: ModelBands | None = None
) -> list[str]:
    """Read every observation once and check it, and what must agree within a field.

    Args:
        table: Path of a table of fields, or its rows.
        model: Bands that the observations are compared with; None: any will do.

    Returns:
        What is no problem but should be known, one line each.

    Raises:
        InputError: It lists the problems of all files.
    """
    rows = table if isinstance(table, Sequence) and not isinstance(table, str) else None
    rows = read_fields_table(table) if rows is None else rows
    fields = {}
    for row in rows:
        fields.setdefault(row.field, []).append(row)
    problems, notes, observed = [], [], {}
    for name, group in fields.items():
        found, observed[name], known = _check_field(group)
        problems, notes = problems + found, notes + known
    # Bands of a file that cannot be read are not known.
    complete = all(len(observed[name]) == len(fields[name]) for name in fields)
    if model is not None and complete:
        found, known = compare_bands(observed, model)
        problems, notes = problems + found, notes + known
    if problems:
        where = f"{len(rows)} observations" if rows is table else str(table)
        raise input_error(where, problems)
    return notes


def _check_field(
    rows: Sequence[FieldRow],
) -> tuple[list[str], list[tuple[Path, tuple[str, ...]]], list[str]]:
    """Problems of the observations of a field; file and bands of those without; notes."""
    problems, has_wcs, bands, first, notes = [], {}, [], None, []
    for number, row in enumerate(rows):
        try:
            observed, hidden = _check_observation(row)
        except InputError as error:
            problems.append(str(error))
            continue
        has_wcs[row.path] = observed.wcs is not None
        bands.append((row.path, observed.bands))
        first = first or (observed if number == 0 else None)
        if number == 0 and 2 * hidden.sum() > len(hidden):
            notes.append(
                f"{row.path} (field {row.field}): {hidden.sum()} of {len(hidden)} sources lie on"
                " pixels that are masked in all bands; does the mask hold flags that do not spoil"
                " a pixel, such as DETECTED? Cards MP_* name its bits (docs/formats.md)"
            )
    if first is not None and first.catalog is not None:
        name = f"{row.catalog or first.path} (field {row.field})"
        problems += check_epochs(first.catalog, epochs_of(rows), name)
    if len(set(has_wcs.values())) > 1:
        without = next(path for path, has in has_wcs.items() if not has)
        problems.append(
            f"{without} (field {row.field}): no WCS, but another observation of the field has"
            " one; give every observation of a field a WCS, or none"
        )
    return problems, bands, notes


def _check_observation(row: FieldRow) -> tuple[ObservedField, Bool[np.ndarray, " n"]]:
    """An observation that has been read as a whole; a large one strip by strip, of which the first
    is returned, with all sources. Also which of these lie on masked pixels."""
    shape = image_shape(row.path)
    if shape is None or shape[0] * shape[1] <= STRIP:
        observed = read_observation(row)
        return observed, _hidden(observed.catalog, observed.variance, 0)
    first, seen, hidden, catalog = None, False, False, read_sources(row)
    for y0, y1 in strips(shape, STRIP):
        observed = read_observation(row, window=(y0, y1, 0, shape[1]))
        seen = seen | np.isfinite(observed.variance).any(axis=(1, 2))
        hidden = hidden | _hidden(catalog, observed.variance, y0)
        first = first or observed
    if not np.all(seen):
        empty = ", ".join(b for b, s in zip(first.bands, seen, strict=True) if not s)
        raise InputError(
            f"{row.path} (field {row.field}): band {empty}: every pixel is masked; drop the band"
            " from the file, or check its mask and variance"
        )
    return replace(first, catalog=catalog), hidden


def _hidden(
    catalog: Table | None, variance: Float[np.ndarray, "band height width"], y0: int
) -> Bool[np.ndarray, " n"]:
    """Sources on pixels of a strip, which begins in row `y0`, that are masked in all bands."""
    if catalog is None:
        return np.zeros(0, bool)
    y, x = (np.round(np.asarray(catalog[name], float)).astype(int) for name in "yx")
    y, x = y - y0, np.clip(x, 0, variance.shape[2] - 1)
    inside = (y >= 0) & (y < variance.shape[1])
    masked = ~np.isfinite(variance).any(axis=0)
    return inside & masked[np.where(inside, y, 0), x]


def strips(shape: tuple[int, int], pixels: int) -> Iterator[tuple[int, int]]:
    """Rows (y0, y1) of strips of an image of about as many pixels."""
    height = max(1, pixels // shape[1])
    for y0 in range(0, shape[0], height):
        yield y0, min(y0 + height, shape[0])


def _settle(
    row: FieldRow, raw: RawObservation
) -> tuple[tuple[str, ...] | None, float | None, list[str]]:
    """Bands and zero point from file, table and instrument, and their conflicts."""
    problems, planes, bands = [], len(raw.image), raw.bands
    instrument = INSTRUMENTS.get(row.instrument)
    if bands and row.bands and bands != row.bands:
        problems.append(
            f"bands: the file says {bands}, column `bands` says {row.bands}; correct one"
        )
    bands = bands or row.bands
    known = None if instrument is None else tuple(instrument.bands)
    if bands and known and not set(bands) <= set(known):
        problems.append(
            f"bands: {bands} are not those of instrument {row.instrument}, {known}; rename"
            " the bands or the instrument (names of your own are allowed)"
        )
    if not bands:
        if known is None or len(known) != planes:
            of = f"has {known}" if known else "is not a known one"
            problems.append(
                f"bands: neither the file nor column `bands` names the {planes} planes, and"
                f" instrument {row.instrument!r} {of}; add card BANDS, key `filters` or"
                " column `bands`"
            )
        bands = known
    magzero, found = _zero_point(row, raw)
    problems += found
    if magzero is None and instrument is not None:
        magzero = float(instrument.magzero)
    if magzero is None:
        problems.append(
            "zero point: neither the file nor column `magzero` has it and instrument"
            f" {row.instrument!r} is not a known one; add card MAGZERO, key `magzero` or"
            " column `magzero`"
        )
    elif not np.isfinite(magzero):
        problems.append(f"zero point: got {magzero}; give the AB zero point [mag]")
    return bands, magzero, problems


def _zero_point(row: FieldRow, raw: RawObservation) -> tuple[float | None, list[str]]:
    """AB zero point that file or table give, or that the unit of the pixels implies [mag]."""
    problems, magzero = [], raw.magzero
    if magzero is not None and row.magzero is not None and magzero != row.magzero:
        problems.append(
            f"zero point: the file says {magzero}, column `magzero` says {row.magzero};"
            " correct one"
        )
    magzero = row.magzero if magzero is None else magzero
    implied = _implied_zero_point(raw.unit)
    if magzero is None or implied is None:
        return implied if magzero is None else magzero, problems
    if abs(magzero - implied) > ZERO_POINT_ERROR:
        problems.append(
            f"zero point: it is {magzero}, but pixels in {raw.unit} have {implied:.2f}; correct"
            " BUNIT or the zero point"
        )
    return magzero, problems


def _implied_zero_point(unit: str) -> float | None:
    """AB magnitude of one nJy, nanomaggy, ...; None where the unit is not physical."""
    try:
        one = units.Unit(unit)
        if one == units.AB:  # the system, more likely than a unit of 3631 Jy
            return None
        maggies = units.zero_point_flux(3631 * units.Jy)
        flux = one.to(units.Jy, equivalencies=maggies) * units.Jy
    except (ValueError, TypeError, units.UnitsError):
        return None
    return round(float(flux.to_value(units.ABmag)), 3)


def _single(array: np.ndarray) -> np.ndarray:
    """Native float32; a variance beyond its range becomes inf, that is masked."""
    with np.errstate(over="ignore", under="ignore"):
        return array.astype(np.float32)


def _square(psf: Float[np.ndarray, "band height width"]) -> np.ndarray:
    """Pad the shorter odd side with zeros; the central pixel stays the central pixel."""
    side = max(psf.shape[1:])
    pad = [((side - n) // 2, (side - n) // 2) for n in psf.shape[1:]]
    return np.pad(psf, [(0, 0), *pad])


def write_field(
    path: str | Path,
    *,
    image: Float[np.ndarray, "band height width"],
    variance: Float[np.ndarray, "band height width"],
    psf: Float[np.ndarray, "band size size"],
    bands: Sequence[str],
    magzero: float,
    unit: str = "",
    wcs: WCS | None = None,
    mask: Bool[np.ndarray, "band height width"] | None = None,
    catalog: Table | None = None,
    cards: dict[str, str | float | int] | None = None,
    correlation: Float[np.ndarray, "band lag lag"] | None = None,
    oversampling: int = 1,
    segmentation: Int[np.ndarray, "height width"] | None = None,
) -> None:
    """Write an observation that `read_observation` reads back.

    Args:
        path: FITS file; it appears only when complete.
        image, variance, psf, bands, magzero, unit, wcs, catalog, correlation, oversampling,
            segmentation: As in `ObservedField`.
        mask: True where masked, besides pixels of infinite variance.
        cards: More cards for the primary header.

    Raises:
        ValueError: If the arrays do not fit together.
    """
    names = {"SCI": "`image`", "VAR": "`variance`", "PSF": "`psf`"}
    problems = list(
        check_shapes(
            np.asarray(image),
            np.asarray(variance),
            np.asarray(psf),
            tuple(bands),
            names,
        )
    )
    if problems:
        raise ValueError("; ".join(problems))
    masked = np.isposinf(variance)
    if mask is not None:
        masked = masked | np.asarray(mask, bool)
    header = wcs.to_header(relax=True) if wcs is not None else fits.Header()
    header["BANDS"] = (",".join(bands), "name of each plane")
    header["MAGZERO"] = (float(magzero), "AB zero point [mag]")
    header["BUNIT"] = (unit, "unit of the pixels")
    hdus = fits.HDUList(
        [
            fits.PrimaryHDU(),
            fits.ImageHDU(np.asarray(image, np.float32), header, name="SCI"),
            fits.ImageHDU(np.asarray(variance, np.float32), name="VAR"),
            fits.ImageHDU(masked.astype(np.uint8), name="MASK"),
            fits.ImageHDU(np.asarray(psf, np.float32), name="PSF"),
        ]
    )
    if oversampling != 1:
        card = (int(oversampling), "pixels of the PSF image per pixel of SCI")
        hdus["PSF"].header["PSF_SAMP"] = card
    if correlation is not None:
        hdus.append(
            fits.ImageHDU(np.asarray(correlation, np.float32), name="NOISECORR")
        )
    if segmentation is not None:
        hdus.append(fits.ImageHDU(np.asarray(segmentation, np.int32), name="SEGMENT"))
    for key, value in (cards or {}).items():
        hdus[0].header[key] = value
    if catalog is not None:
        table = fits.table_to_hdu(catalog)
        table.name = "CATALOG"
        hdus.append(table)
    with atomic_path(path) as temporary:
        hdus.writeto(temporary)
