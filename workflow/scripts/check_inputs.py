"""Check every observation of the run before any long work."""

import json
from pathlib import Path

from blendem.io.atomic import atomic_path
from blendem.io.dust import check_dusty
from blendem.io.fields import read_fields_table, validate_fields
from blendem.logs import configure_logging


def main(
    fields: str | None,
    checked: Path,
    redshift: str | None = None,
    bands: tuple[str, ...] = (),
) -> None:
    """Read all rows of a table of fields, report every problem at once.

    With the name of a column of redshifts: also what galaxies behind dust need.
    """
    if fields is not None:
        validate_fields(fields)
        if redshift is not None:
            check_dusty(read_fields_table(fields), redshift, bands)
    with atomic_path(checked) as temporary:
        temporary.write_text(json.dumps({"fields": fields}) + "\n")


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        snakemake.params.fields,
        Path(snakemake.output.checked),
        snakemake.params.redshift,
        tuple(snakemake.params.bands),
    )
