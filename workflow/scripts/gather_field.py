"""Catalog, regions, model and residual of a large field from those of its tiles."""

import logging
from pathlib import Path

import numpy as np

from blendem.io.fields import read_observation
from blendem.io.gather import gather_catalog, write_mosaic
from blendem.io.products import write_catalog
from blendem.io.regions import write_regions
from blendem.io.table import FieldRow
from blendem.logs import configure_logging
from blendem.survey.extract import pixel_scale_of

LOG = logging.getLogger(__name__)


def main(
    row: FieldRow,
    sources: Path,
    tiles: list[Path],
    catalogs: list[Path],
    models: list[Path],
    output: Path,
    regions: Path,
    mosaic: Path,
) -> None:
    """Every source of the field is in one tile."""
    table, meta = gather_catalog(sources, tiles, catalogs)
    write_catalog(output, table, meta)
    field = read_observation(row, window=(0, 1, 0, 1))
    write_regions(regions, table, pixel_scale_of(field.wcs, np.nan))
    write_mosaic(mosaic, row, tiles, models, table["id", "x", "y", "blend"], meta)
    done = np.asarray(table["n_samples"]) > 0
    LOG.info("%s: %d sources, %d with a result", row.field, len(table), done.sum())


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    given, made = snakemake.input, snakemake.output
    main(
        FieldRow.of(snakemake.params.row),
        Path(given.sources),
        [Path(path) for path in given.tiles],
        [Path(path) for path in given.catalogs],
        [Path(path) for path in given.models],
        Path(made.catalog),
        Path(made.regions),
        Path(made.mosaic),
    )
