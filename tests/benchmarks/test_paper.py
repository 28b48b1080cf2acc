"""The index of figures and tables."""

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """Call the script in a folder with two files and their list."""
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "b.csv").write_text("x\n1\n")
    rows = [("figure", "a.png", "make a", "A."), ("table", "b.csv", "make b", "B.")]
    lines = ["# a comment", "name\tpath\tcommand\tcaption"]
    lines += ["\t".join(row) for row in rows]
    (tmp_path / "list.tsv").write_text("\n".join(lines) + "\n")

    def call(*options):
        words = [sys.executable, ROOT / "benchmarks/paper.py", "list.tsv", "out"]
        return subprocess.run(
            [*map(str, words), *options], cwd=tmp_path, capture_output=True, text=True
        )

    return call


def test_the_index_has_the_sums_of_what_is_there(run, tmp_path):
    assert run().returncode == 0
    index = (tmp_path / "out/index.csv").read_text()
    rows = list(csv.DictReader(index.splitlines()))
    assert [row["file"] for row in rows] == ["figure.png", "table.csv"]
    assert rows[0]["sha256"] == hashlib.sha256(b"picture").hexdigest()
    assert (tmp_path / "out/figure.png").read_bytes() == b"picture"
    assert "![figure.png](figure.png)" in (tmp_path / "out/index.md").read_text()
    assert "have the sums of the run before" in run("--check").stdout


def test_what_differs_or_is_missing_is_named(run, tmp_path):
    done = run("--check")
    assert done.returncode == 1 and "no index to compare with" in done.stderr
    run()
    (tmp_path / "b.csv").write_text("x\n2\n")
    done = run("--check")
    assert done.returncode == 1 and "1 differ from the run before: table" in done.stderr
    # The index is still that of the run before.
    assert run("--check").returncode == 1
    (tmp_path / "a.png").unlink()
    done = run()
    assert done.returncode == 1 and "a.png (make a)" in done.stderr


@pytest.mark.parametrize("name", ["paper", "paper_smoke"])
def test_lists_name_targets_that_exist(name):
    lines = (ROOT / f"config/{name}.tsv").read_text().splitlines()
    rows = list(csv.DictReader([x for x in lines if x[:1] != "#"], delimiter="\t"))
    makefile = (ROOT / "Makefile").read_text()
    assert len(rows) > 10
    for row in rows:
        target = row["command"].removeprefix("make ")
        assert f"\n{target}:" in makefile or f"\n{target} " in makefile, row
        assert all(row.values())
