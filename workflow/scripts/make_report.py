"""The HTML report of a run."""

import json
from pathlib import Path

import numpy as np

from blendem.io.atomic import atomic_path
from blendem.io.products import read_table
from blendem.logs import configure_logging
from blendem.report import read_figures, render_report


def main(
    template: Path,
    summary: Path,
    provenance: Path,
    catalog: Path,
    figures: list[Path],
    captions: list[Path],
    output: Path,
    *,
    title: str,
    band: str,
    rows: int,
) -> None:
    """Read everything, render, write."""
    table = read_table(catalog)[0]
    shown = ["id", "type", "x", "y", f"flux_{band}", f"flux_err_{band}", f"mag_{band}"]
    shown += [f"mag_err_{band}", "size", "e1", "e2", f"blendedness_{band}", "flags"]
    names = [
        f"{name} [{table[name].unit}]" if table[name].unit else name for name in shown
    ]
    brightest = np.argsort(-np.nan_to_num(np.asarray(table[f"flux_{band}"])))[:rows]
    values = [[table[name][i].item() for name in shown] for i in brightest]
    clean = [
        [None if isinstance(v, float) and not np.isfinite(v) else v for v in row]
        for row in values
    ]
    text = render_report(
        template.read_text(),
        title=title,
        summary=json.loads(summary.read_text()),
        provenance=json.loads(provenance.read_text()),
        catalog=(names, [["-" if v is None else v for v in row] for row in clean]),
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
        Path(given.catalog),
        [Path(path) for path in given.figures],
        [Path(path) for path in given.captions],
        Path(snakemake.output.report),
        title=params.title,
        band=params.band,
        rows=params.rows,
    )
