"""Numbers of several benchmarks in one summary."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "collect.py"


def collect(*paths):
    command = [sys.executable, SCRIPT, *paths]
    return subprocess.run(command, capture_output=True, text=True)


def write(path, **values):
    path.write_text(json.dumps([{"name": k, "value": v} for k, v in values.items()]))
    return path


def test_records_are_added_and_replaced(tmp_path):
    summary = write(tmp_path / "summary.json", old=1, again=2)
    other = write(tmp_path / "other.json", again=3, new=4)
    done = collect(summary, other)
    assert done.returncode == 0, done.stderr
    found = {row["name"]: row["value"] for row in json.loads(summary.read_text())}
    assert found == {"old": 1, "again": 3, "new": 4}


def test_what_is_no_list_of_records_changes_nothing(tmp_path):
    summary = write(tmp_path / "summary.json", old=1)
    before = summary.read_text()
    (tmp_path / "table.json").write_text('[{"value": 3}]')
    for name, reason in (
        ("table.json", "not a list of records"),
        ("none.json", "no such file"),
    ):
        done = collect(summary, tmp_path / name)
        assert done.returncode == 1
        assert name in done.stderr and reason in done.stderr
    assert summary.read_text() == before
