"""Find the sources of a large field, group them into blends, and cut the field into tiles."""

import logging
from pathlib import Path

import numpy as np
from astropy.table import Table

from blendem.blend import Bucket
from blendem.config import BlendsConfig, DetectConfig, TilesConfig
from blendem.io.fields import (
    STRIP,
    ObservedField,
    read_observation,
    read_sources,
    strips,
    write_field,
)
from blendem.io.products import write_images
from blendem.io.readers import ORIGIN, PLACE, image_shape
from blendem.io.table import FieldRow, InputError
from blendem.logs import configure_logging
from blendem.survey.detect import detect_catalog
from blendem.survey.extract import largest_extent
from blendem.survey.footprints import Footprints, group_footprints
from blendem.survey.psf_model import at_pixels, psf_at
from blendem.survey.tiles import Tile, owners, significance_of, tile_grid

LOG = logging.getLogger(__name__)


def main(
    row: FieldRow,
    sources: Path,
    tiles: list[Path],
    config: TilesConfig,
    blends: BlendsConfig,
    detection: DetectConfig,
    meta: dict,
) -> None:
    """The catalog with the tile of every source, and the tiles, which are fields of their own."""
    shape = image_shape(row.path)
    first = read_observation(row, window=(0, 1, 0, 1))
    psf = psf_at(first.psf_model or first.psf, (np.array(shape) - 1) / 2)
    psf = at_pixels(psf, first.oversampling)

    def rows(y0: int, y1: int) -> ObservedField:
        return read_observation(row, window=(y0, y1, 0, shape[1]))

    def read(y0: int, y1: int) -> tuple[np.ndarray, np.ndarray]:
        part = rows(y0, y1)
        return part.image, part.variance

    significance = significance_of(read, shape, psf, list(strips(shape, STRIP)))
    catalog = read_sources(row)
    if catalog is None:
        try:
            # The first pixel of the window is that of the field: so is its WCS.
            catalog = detect_catalog(
                significance,
                first.wcs,
                threshold=detection.threshold,
                minarea=detection.minarea,
            )
        except ValueError as error:
            raise InputError(f"{row.path} (field {row.field}): {error}") from None
    LOG.info("%s: %d sources", row.field, len(catalog))
    positions = np.stack([catalog["y"], catalog["x"]], axis=-1).astype(float)
    buckets = [Bucket(b.sources, b.size) for b in blends.buckets]
    if first.segmentation is not None:
        known = [rows(*strip).segmentation for strip in strips(shape, STRIP)]
        groups = Footprints(
            np.asarray(catalog["group"], int),
            np.concatenate(known).astype(np.int32),
            np.asarray(catalog["split"], bool),
        )
    else:
        groups = group_footprints(
            significance,
            positions,
            threshold=detection.group_threshold,
            max_sources=detection.max_sources,
            max_extent=largest_extent(buckets, detection.max_sources),
        )
    pixel = np.clip(np.round(positions).astype(int), 0, np.array(shape) - 1)
    grid = tile_grid(shape, config.size, config.margin(blends))
    owner = owners(grid, pixel, groups.labels, significance[tuple(pixel.T)])
    catalog["group"], catalog["split"] = groups.labels, groups.split.astype(int)
    names = np.array([path.stem for path in tiles])
    # Of a cut-out: its place in the image that PSFEx knows.
    origin = (0, 0) if first.psf_model is None else first.psf_model.origin
    for index, (tile, path) in enumerate(zip(grid, tiles, strict=True)):
        chosen = owner == index
        _write_tile(row, tile, path, catalog[chosen], groups.segmentation, origin)
        LOG.info("%s: %d sources", path.stem, chosen.sum())
    catalog["tile"] = names[owner]
    write_images(sources, {}, sources=catalog, meta=meta)


def _write_tile(
    row: FieldRow,
    tile: Tile,
    path: Path,
    catalog: Table,
    segmentation: np.ndarray,
    origin: tuple[int, int],
) -> None:
    y0, y1, x0, x1 = tile.window
    part = read_observation(row, window=tile.window)
    catalog = catalog.copy()
    catalog["x"], catalog["y"] = catalog["x"] - x0, catalog["y"] - y0
    write_field(
        path,
        image=part.image,
        variance=part.variance,
        psf=part.psf,
        bands=part.bands,
        magzero=part.magzero,
        unit=part.unit,
        wcs=part.wcs,
        catalog=catalog,
        cards=dict(zip(PLACE, (y0, x0), strict=True))
        | dict(zip(ORIGIN, (int(y0 + origin[0]), int(x0 + origin[1])), strict=True))
        | {"FIELD": row.field},
        correlation=part.correlation,
        oversampling=part.oversampling,
        segmentation=segmentation[y0:y1, x0:x1],
    )


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    params = snakemake.params
    main(
        FieldRow.of(params.row),
        Path(snakemake.output.sources),
        [Path(path) for path in snakemake.output.tiles],
        TilesConfig(**params.tiles),
        BlendsConfig(**params.blends),
        DetectConfig(**params.detect),
        params.meta,
    )
