"""Check every observation of the run before any long work."""

import json
from pathlib import Path

from blendem.io.atomic import atomic_path
from blendem.io.fields import validate_fields
from blendem.logs import configure_logging


def main(fields: str | None, checked: Path) -> None:
    """Read all rows of a table of fields, report every problem at once."""
    if fields is not None:
        validate_fields(fields)
    with atomic_path(checked) as temporary:
        temporary.write_text(json.dumps({"fields": fields}) + "\n")


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(snakemake.params.fields, Path(snakemake.output.checked))
