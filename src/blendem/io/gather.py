"""Products of tiles put together to those of their field."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack

from blendem.io.fields import STRIP, read_observation, strips
from blendem.io.fitsfile import browse_fits
from blendem.io.products import read_models, read_table, write_images
from blendem.io.readers import PLACE, image_shape
from blendem.io.table import FieldRow, InputError


class Placed(NamedTuple):
    """A tile in its field.

    Attributes:
        name: Of the tile, that of its files.
        corner: Its first pixel (y, x) in the field.
    """

    name: str
    corner: tuple[int, int]


def place_tile(path: Path) -> Placed:
    """Where the tile of a file lies."""
    header = fits.getheader(path)
    return Placed(path.stem, (header[PLACE[0]], header[PLACE[1]]))


def gather_catalog(
    sources: Path, tiles: Sequence[Path], catalogs: Sequence[Path]
) -> tuple[Table, dict[str, Any]]:
    """One table of the sources of all tiles, in the order of their ids, and its cards.

    Positions are those in the field, `blend` is unique in it, and `tile` tells where the draws of a
    source are.

    Args:
        sources: Table of all sources of the field.
        tiles: Files of the tiles.
        catalogs: Their catalogs, in the same order.

    Raises:
        InputError: If a source is missing, or there twice.
    """
    parts, cards, blends = [], {}, 0
    for path, catalog in zip(map(Path, tiles), catalogs, strict=True):
        table, cards = read_table(catalog)
        place = place_tile(path)
        table["y"], table["x"] = (
            table[name] + first for name, first in zip("yx", place.corner, strict=True)
        )
        table["blend"] += blends
        if len(table):
            blends = int(table["blend"].max()) + 1
            table["tile"] = place.name
            parts.append(table)
    table = vstack(parts, join_type="exact", metadata_conflicts="silent")
    table.sort("id")
    wanted = np.sort(np.asarray(read_models(sources)["IDS"]["id"]))
    if not np.array_equal(np.asarray(table["id"]), wanted):
        found, times = np.unique(table["id"], return_counts=True)
        lost, again = np.setdiff1d(wanted, found), found[times > 1]
        raise InputError(
            f"{sources}: of {len(wanted)} sources {len(lost)} are in no tile"
            f" ({lost[:5].tolist()}) and {len(again)} in several ({again[:5].tolist()}); run the"
            " rules of the tiles again"
        )
    return table, cards


def write_mosaic(
    path: Path,
    row: FieldRow,
    tiles: Sequence[Path],
    models: Sequence[Path],
    sources: Table,
    meta: dict[str, Any],
) -> None:
    """Write MODEL and RESIDUAL of a whole field from those of its tiles.

    Strip by strip, through files beside it: memory does not grow with the field.

    Args:
        path: FITS file; it appears only when complete.
        row: The field.
        tiles: Files of the tiles.
        models: Their images, in the same order.
        sources: Goes to HDU IDS.
        meta: Header cards as in `write_catalog`.
    """
    height, width = image_shape(row.path)
    places = [place_tile(Path(tile)).corner for tile in tiles]
    whole = read_observation(row, window=(0, 1, 0, 1))
    header = fits.getheader(models[0], "MODEL")
    bands = tuple(header["BANDS"].split(","))
    order = [bands.index(b) for b in whole.bands]
    shape = (len(bands), height, width)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        model, residual = (
            np.memmap(f"{folder}/{name}", ">f4", "w+", shape=shape)
            for name in ("model", "residual")
        )
        for tile, (first_y, first_x) in zip(models, places, strict=True):
            with browse_fits(Path(tile)) as hdus:
                part = np.asarray(hdus["MODEL"].data)
            y, x = first_y + part.shape[1], first_x + part.shape[2]
            model[:, first_y:y, first_x:x] += part
        for y0, y1 in strips((height, width), STRIP):
            strip = read_observation(row, window=(y0, y1, 0, width))
            residual[:, y0:y1] = -model[:, y0:y1]
            for plane, band in zip(strip.image, order, strict=True):
                residual[band, y0:y1] += plane
        unit = header.get("BUNIT", "")
        write_images(
            path,
            {"MODEL": (model, unit, bands), "RESIDUAL": (residual, unit, bands)},
            sources=sources,
            meta=meta,
            unit=unit,
            wcs=whole.wcs,
        )
