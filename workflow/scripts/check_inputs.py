"""Check every observation of the run before any long work."""

import json
import logging
from pathlib import Path

from blendem.io.atomic import atomic_path
from blendem.io.bands import ModelBands
from blendem.io.fields import read_fields_table, validate_fields
from blendem.logs import configure_logging

LOG = logging.getLogger(__name__)


def main(
    fields: str | None, checked: Path, bands: ModelBands, redshift: str | None = None
) -> None:
    """Read all rows of a table of fields, report every problem at once.

    With the name of a column of redshifts: also what galaxies behind dust need.
    """
    if fields is not None:
        for note in validate_fields(fields, bands):
            LOG.warning(note)
        if redshift is not None:
            # Here, since it imports what other runs do not need.
            from blendem.io.dust import check_dusty

            check_dusty(read_fields_table(fields), redshift, bands.names)
    with atomic_path(checked) as temporary:
        temporary.write_text(json.dumps({"fields": fields}) + "\n")


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    params = snakemake.params
    main(
        params.fields,
        Path(snakemake.output.checked),
        ModelBands(**params.bands),
        params.redshift,
    )
