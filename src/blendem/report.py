"""The report of a run: one HTML file that needs nothing else."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from astropy.table import Table
from docutils.core import publish_parts

# Columns of the catalog that a reader sees.
SHOWN = ("id", "type", "x", "y", "flux_{band}", "flux_err_{band}", "mag_{band}")
SHOWN += ("mag_err_{band}", "size", "e1", "e2", "blendedness_{band}", "flags")


class Figure(NamedTuple):
    """A picture of the report.

    Attributes:
        name: Short name, also its anchor.
        image: The PNG file's bytes.
        caption: reStructuredText; its first line is the title.
    """

    name: str
    image: bytes
    caption: str


def render_caption(text: str) -> tuple[str, str]:
    """Title and HTML body of a caption; its first line is the title.

    Raises:
        ValueError: If the caption is empty.
    """
    if not text.strip():
        raise ValueError("a caption is empty; write a title line and a paragraph.")
    title, _, body = text.strip().partition("\n")
    settings = {
        "report_level": 4,
        "file_insertion_enabled": False,
        "raw_enabled": False,
    }
    parts = publish_parts(body.strip(), writer="html5", settings_overrides=settings)
    return title.strip(), parts["body"]


def format_number(value: float | None) -> str:
    """A number with the digits that matter; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "-"
    if float(value).is_integer() and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.4g}"


def brightest_sources(
    catalogs: Mapping[str, Table], band: str, rows: int
) -> tuple[list[str], list[list[Any]]]:
    """Names of columns with their units, and the brightest sources of all fields.

    Args:
        catalogs: Of every field, by its name; at least one.
        band: In which sources are bright; a flux that is not finite counts as 0.
        rows: How many sources there may be.
    """
    shown = [name.format(band=band) for name in SHOWN]
    found = []
    for field, table in catalogs.items():
        flux = np.nan_to_num(np.asarray(table[f"flux_{band}"]), posinf=0, neginf=0)
        for i in np.argsort(-flux, stable=True)[:rows]:
            found.append((flux[i], [field, *(table[c][i].item() for c in shown)]))
    found.sort(key=lambda source: -source[0])
    units = [next(iter(catalogs.values()))[name].unit for name in shown]
    names = [f"{n} [{u}]" if u else n for n, u in zip(shown, units, strict=True)]
    return ["field", *names], [row for _, row in found[:rows]]


def render_report(
    template: str,
    *,
    title: str,
    summary: Mapping[str, Any],
    provenance: Mapping[str, Any],
    catalog: tuple[Sequence[str], Sequence[Sequence[Any]]],
    figures: Sequence[Figure],
) -> str:
    """Fill the template of the report.

    Args:
        template: Jinja2 text of `workflow/report/report.html.j2`.
        title: Of the run.
        summary: Content of `summary.json`.
        provenance: Content of `provenance.json`.
        catalog: Names of the columns shown, and rows.
        figures: In order.
    """
    pictures = []
    for figure in figures:
        heading, body = render_caption(figure.caption)
        data = base64.b64encode(figure.image).decode()
        pictures.append(
            {"name": figure.name, "title": heading, "caption": body, "data": data}
        )
    numbers = [
        {"name": name, **entry, "text": format_number(entry["value"])}
        for name, entry in summary["numbers"].items()
    ]
    names, rows = catalog
    cells = [
        [format_number(v) if isinstance(v, float) else str(v) for v in row]
        for row in rows
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        title=title,
        command=summary["command"],
        numbers=numbers,
        provenance=provenance,
        columns=names,
        rows=cells,
        figures=pictures,
    )


def read_figures(images: Sequence[Path], captions: Sequence[Path]) -> list[Figure]:
    """Pictures and their captions, matched by the name of their files.

    Raises:
        ValueError: If a picture has no caption.
    """
    texts = {path.stem: path for path in captions}
    missing = [path.stem for path in images if path.stem not in texts]
    if missing:
        raise ValueError(
            f"no caption for {', '.join(missing)}; add workflow/report/*.rst"
        )
    return [
        Figure(path.stem, path.read_bytes(), texts[path.stem].read_text())
        for path in images
    ]
