"""Reports: what they hold, and that a browser shows it."""

import io
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from matplotlib.figure import Figure
from tests.browser.run import find_chromium, open_chromium, problems_of

from blendem.report import Figure as Picture
from blendem.report import brightest_sources, format_number, render_report

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "workflow" / "report" / "report.html.j2"
NUMBER = {"value": 1.25, "unit": "mag", "n": 3, "meaning": "of <all> sources"}
PROVENANCE = {
    "run": "test",
    "time": "2026-01-01T00:00:00+00:00",
    "git": {"commit": "0123", "dirty": True},
    "config_hash": "abc",
    "seed": 1,
    "lock": {"path": "envs/requirements.txt", "sha256": "def"},
    "device": {"kind": "cpu", "count": 1},
    "python": "3.11",
    "platform": {"system": "Linux", "machine": "x86_64"},
    "packages": {"numpy": "2"},
}


def report(caption="A title\nWhat it shows.", image=None, rows=((1, 2.5),)):
    """HTML of a report with one figure."""
    if image is None:
        buffer = io.BytesIO()
        Figure(figsize=(1, 1)).savefig(buffer, format="png")
        image = buffer.getvalue()
    return render_report(
        TEMPLATE.read_text(),
        title="A run & its numbers",
        summary={"command": "snakemake", "numbers": {"scatter": NUMBER}},
        provenance=PROVENANCE,
        catalog=(["id", "flux_i [nJy]"], rows),
        figures=[Picture("chi2", image, caption)],
    )


@pytest.fixture(scope="module")
def chromium():
    found = find_chromium()
    if found is None:
        pytest.skip("no chromium and chromedriver here; tests/browser/install.sh")
    with open_chromium(*found) as browser:
        yield browser


def test_a_report_opens_in_chromium_without_problems(chromium, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(report())
    assert problems_of(chromium, page, files=False) == []


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda: report(image=b"no picture"), "figure A title is no picture"),
        (lambda: report(caption="A title"), "figure A title has no caption"),
        (
            lambda: report().replace("</body>", "<script>lost()</script></body>"),
            "console: ",
        ),
        (lambda: report().replace('id="chi2"', 'id="x"'), "link #chi2 leads nowhere"),
        (lambda: "", "no title"),
    ],
    ids=["picture", "caption", "script", "anchor", "empty"],
)
def test_problems_of_a_page_are_found(chromium, tmp_path, spoil, problem):
    page = tmp_path / "report.html"
    page.write_text(spoil())
    found = problems_of(chromium, page, files=False)
    assert any(line.startswith(problem) for line in found), found


def test_links_to_files_that_are_not_there_are_found(chromium, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(report())
    assert "link summary.json leads nowhere" in problems_of(chromium, page)


def test_a_run_without_sources_says_so():
    assert "No source was found." in report(rows=())


def test_the_table_has_the_brightest_of_all_fields():
    fluxes = {"a": [5.0, np.nan, 1.0], "b": [], "c": [4.0, 9.0]}
    zeros = ("x", "y", "flux_err_i", "mag_i", "mag_err_i", "size", "e1", "e2")
    catalogs = {}
    for field, flux in fluxes.items():
        columns = {name: np.zeros(len(flux)) for name in (*zeros, "blendedness_i")}
        columns |= {"id": np.arange(len(flux)), "flux_i": np.array(flux)}
        columns |= {"type": np.full(len(flux), "galaxy"), "flags": columns["id"]}
        catalogs[field] = Table(columns, units={"flux_i": "nJy"})
    names, rows = brightest_sources(catalogs, "i", 3)
    assert names[:2] == ["field", "id"] and "flux_i [nJy]" in names
    assert [row[:2] for row in rows] == [["c", 1], ["a", 0], ["c", 0]]
    faintest = brightest_sources(catalogs, "i", 99)[1][-1]
    assert faintest[:2] == ["a", 1]
    assert '<td class="n">-</td>' in report(rows=[faintest])


def test_numbers_that_are_none_are_dashes():
    assert [format_number(v) for v in (None, np.nan, np.inf, 3.0, 0.12344)] == [
        *("-", "-", "-", "3", "0.1234")
    ]
