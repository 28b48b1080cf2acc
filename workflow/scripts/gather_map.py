"""Profile fits of a large field from those of its tiles."""

from pathlib import Path

from blendem.io.gather import gather_catalog
from blendem.io.products import write_map
from blendem.logs import configure_logging

if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    given = snakemake.input
    tiles, catalogs = (
        [Path(p) for p in paths] for paths in (given.tiles, given.catalogs)
    )
    table, meta = gather_catalog(Path(given.sources), tiles, catalogs)
    write_map(Path(snakemake.output.catalog), table, meta)
