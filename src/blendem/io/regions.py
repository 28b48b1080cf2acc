"""Sources as regions of SAOImage DS9."""

from pathlib import Path

import numpy as np
from astropy.table import Table

from blendem.io.atomic import atomic_path

RADIUS = 5.0  # of sources without a measured size [pixel]
LEAST = 2.0  # smallest radius [pixel]
# Galaxy, star, and any source with a flag.
COLOURS = {"galaxy": "green", "star": "cyan", "variable": "magenta"}
FLAGGED = "red"


def write_regions(path: str | Path, catalog: Table, pixel_scale: float | None) -> None:
    """Write a circle of two half-light radii per source, in pixels of the image.

    The text of a region is the id of its source; flagged sources are red.

    Args:
        path: Region file (.reg); it appears only when complete.
        catalog: Columns `id`, `x`, `y` [pixel, 0-based], `type`, `flags` and `size` [arcsec].
        pixel_scale: Side of a pixel [arcsec]; None: all circles have one radius.
    """
    size = np.ma.filled(np.ma.asarray(catalog["size"], float), np.nan)
    radius = np.full(len(catalog), np.nan)
    if pixel_scale is not None:
        radius = 2 * size / pixel_scale
    radius = np.where(np.isfinite(radius), np.maximum(radius, LEAST), RADIUS)
    lines = ["# Region file format: DS9 version 4.1", "image"]
    for row, r in zip(catalog, radius, strict=True):
        colour = FLAGGED if row["flags"] else COLOURS[str(row["type"])]
        # DS9 counts pixels from 1.
        where = f"{row['x'] + 1:.3f},{row['y'] + 1:.3f},{r:.2f}"
        lines.append(f"circle({where}) # color={colour} text={{{row['id']}}}")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
