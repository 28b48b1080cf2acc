"""Large fields in tiles: every blend is in one of them, with all that it needs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from blendem.survey.significance import detection_image

Box = tuple[int, int, int, int]  # y0, y1, x0, x1 [pixel]


class Tile(NamedTuple):
    """A part of a field.

    Attributes:
        name: Of the tile, unique in its field.
        core: Pixels whose blends are its own. The cores of a field fill it without overlap.
        window: Pixels that it holds: the core and a margin about it, as far as the field goes.
    """

    name: str
    core: Box
    window: Box


def tile_grid(shape: Sequence[int], size: int, margin: int) -> list[Tile]:
    """Tiles of a field, row by row.

    Args:
        shape: Height and width of the field [pixel].
        size: Largest side of a core [pixel]; cores are as equal as whole pixels allow.
        margin: Of a window about its core [pixel].
    """
    (rows, height), (columns, width) = (_cuts(side, size) for side in shape)
    return [
        Tile(
            f"t{i:02d}_{j:02d}",
            (y0, y1, x0, x1),
            (
                max(0, y0 - margin),
                min(height, y1 + margin),
                max(0, x0 - margin),
                min(width, x1 + margin),
            ),
        )
        for i, (y0, y1) in enumerate(rows)
        for j, (x0, x1) in enumerate(columns)
    ]


def _cuts(side: int, size: int) -> tuple[list[tuple[int, int]], int]:
    """Nearly equal parts of a side, none longer than `size`, and the side."""
    ends = np.linspace(0, side, -(-side // size) + 1).round().astype(int).tolist()
    return list(zip(ends[:-1], ends[1:], strict=True)), side


def owners(
    tiles: Sequence[Tile],
    pixel: Int[np.ndarray, "n 2"],
    labels: Int[np.ndarray, " n"],
    light: Float[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """Index of the tile of every source: that whose core has the brightest source of its blend.

    Args:
        tiles: Of `tile_grid`.
        pixel: Pixel (y, x) of each source in the field.
        labels: Its blend.
        light: What decides which source is the brightest.
    """
    core_of = np.full(len(pixel), -1)
    for index, tile in enumerate(tiles):
        y0, y1, x0, x1 = tile.core
        y, x = pixel.T
        core_of[(y >= y0) & (y < y1) & (x >= x0) & (x < x1)] = index
    # The last of each blend in this order is its brightest.
    order = np.lexsort((np.arange(len(light)), light, labels))
    found, first = np.unique(labels[order][::-1], return_index=True)
    brightest = order[::-1][first]
    return core_of[brightest[np.searchsorted(found, labels)]]


def significance_of(
    read: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
    shape: tuple[int, int],
    psf: Float[np.ndarray, "band size size"],
    rows: Sequence[tuple[int, int]],
) -> Float[np.ndarray, "height width"]:
    """`detection_image` of a field that is read strip by strip, float32.

    Args:
        read: Image and variance `(band, rows, width)` of rows y0 to y1.
        shape: Height and width of the field.
        psf: Effective PSFs of sum 1.
        rows: Rows (y0, y1) of the strips.
    """
    halo, found = psf.shape[-1] // 2, np.zeros(shape, np.float32)
    for y0, y1 in rows:
        low, high = max(0, y0 - halo), min(shape[0], y1 + halo)
        strip = detection_image(*read(low, high), psf)
        found[y0:y1] = strip[y0 - low : y1 - low]
    return found
