"""The HTML report of a run."""

import json
from pathlib import Path

from blendem.io.atomic import atomic_path
from blendem.io.products import read_table
from blendem.logs import configure_logging
from blendem.report import brightest_sources, read_figures, render_report


def main(
    template: Path,
    summary: Path,
    provenance: Path,
    catalogs: list[Path],
    figures: list[Path],
    captions: list[Path],
    output: Path,
    *,
    title: str,
    band: str,
    rows: int,
) -> None:
    """Read everything, render, write."""
    tables = {path.stem: read_table(path)[0] for path in catalogs}
    text = render_report(
        template.read_text(),
        title=title,
        summary=json.loads(summary.read_text()),
        provenance=json.loads(provenance.read_text()),
        catalog=brightest_sources(tables, band, rows),
        figures=read_figures(figures, captions),
    )
    with atomic_path(output) as temporary:
        temporary.write_text(text)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    given, params = snakemake.input, snakemake.params
    main(
        Path(given.template),
        Path(given.summary),
        Path(given.provenance),
        [Path(path) for path in given.catalogs],
        [Path(path) for path in given.figures],
        [Path(path) for path in given.captions],
        Path(snakemake.output.report),
        title=params.title,
        band=params.band,
        rows=params.rows,
    )
