"""Truth of the tiles of a simulated field."""

from pathlib import Path

import numpy as np
from astropy.table import Table

from blendem.io.gather import place_tile
from blendem.io.products import read_h5, read_models, write_h5
from blendem.logs import configure_logging


def main(truth: Path, sources: Path, tiles: list[Path], truths: list[Path]) -> None:
    """Each source goes to the tile that has its blend."""
    arrays, attrs = read_h5(truth)
    table, known = Table(arrays["table"]), read_models(sources)["IDS"]
    tile_of = dict(zip(known["id"].tolist(), known["tile"].tolist(), strict=True))
    names = np.array([tile_of[number] for number in table["id"].tolist()])
    for tile, path in zip(tiles, truths, strict=True):
        place = place_tile(tile)
        chosen = np.flatnonzero(names == place.name)
        part = {
            name: array[chosen] for name, array in arrays.items() if name != "table"
        }
        part["corner"] = part["corner"] - place.corner
        part["table"] = table[chosen]
        for axis, first in zip("yx", place.corner, strict=True):
            part["table"][axis] -= first
        write_h5(path, part, attrs)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    given = snakemake.input
    main(
        Path(given.truth),
        Path(given.sources),
        [Path(path) for path in given.tiles],
        [Path(path) for path in snakemake.output.truths],
    )
