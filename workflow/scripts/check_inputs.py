"""Check every observation of the run before any long work."""

import json
import logging
from pathlib import Path

from blendem.io.atomic import atomic_path
from blendem.io.bands import ModelBands
from blendem.io.fields import validate_fields
from blendem.logs import configure_logging

LOG = logging.getLogger(__name__)


def main(fields: str | None, checked: Path, bands: ModelBands) -> None:
    """Read all rows of a table of fields, report every problem at once."""
    if fields is not None:
        for note in validate_fields(fields, bands):
            LOG.warning(note)
    with atomic_path(checked) as temporary:
        temporary.write_text(json.dumps({"fields": fields}) + "\n")


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    params = snakemake.params
    main(params.fields, Path(snakemake.output.checked), ModelBands(**params.bands))
