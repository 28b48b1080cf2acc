"""Which fields are cut into tiles, and the rows of these in the table of fields."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from blendem.io.readers import image_shape
from blendem.io.table import FieldRow, InputError
from blendem.survey.tiles import tile_grid


def rows_in_tiles(
    rows: Sequence[FieldRow],
    size: int,
    margin: int,
    folder: Path,
    shape: tuple[int, int] | None = None,
) -> tuple[list[FieldRow], dict[str, list[str]]]:
    """Rows with a row for each tile of a large field, and the names of these by field.

    Fields of several observations, and files that do not tell their size, stay whole.

    Args:
        rows: Of the table of fields.
        size, margin: As in `tile_grid`.
        folder: Where the files of the tiles go.
        shape: Height and width of every field, where no file exists yet; None: that of the file.

    Raises:
        InputError: If a field has the name of a tile.
    """
    fields = [row.field for row in rows]
    found, tiled = [], {}
    for row in rows:
        alone = fields.count(row.field) == 1
        its = (shape or image_shape(row.path)) if alone else None
        grid = tile_grid(its, size, margin) if its else []
        if len(grid) < 2:
            found.append(row)
            continue
        tiled[row.field] = [f"{row.field}.{tile.name}" for tile in grid]
        # The tile says what else the row said.
        found += [
            replace(
                row,
                field=name,
                path=folder / f"{name}.fits",
                catalog=None,
                bands=None,
                magzero=None,
                stars=(),
            )
            for name in tiled[row.field]
        ]
    if clash := sorted(
        {name for names in tiled.values() for name in names} & set(fields)
    ):
        raise InputError(f"field {clash[0]}: has the name of a tile; rename the field")
    return found, tiled
