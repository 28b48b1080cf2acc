"""Figures and tables of the paper in one folder, with an index of their SHA-256 sums.

    python benchmarks/paper.py config/paper.tsv results/paper

The list has a row per figure or table: `name`, `path`, `command` that makes it, `caption`. Writes
copies under their names, `index.csv` (with sums and sizes), `index.md` and `summary.json`. With
`--check` the sums are compared with those of the index that is there, before it is replaced; a
difference ends with an error that names it.
"""

import argparse
import csv
import hashlib
import json
import shutil
import sys
from pathlib import Path

from blendem.io.atomic import atomic_path

COLUMNS = ("name", "path", "command", "caption")
PICTURES = (".png", ".svg")


def main() -> None:
    """Collect, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="list of figures and tables")
    parser.add_argument("folder", type=Path, help="where they go")
    parser.add_argument("--check", action="store_true", help="sums must be as before")
    given = parser.parse_args()
    rows = read_list(given.table)
    if missing := [row for row in rows if not Path(row["path"]).is_file()]:
        lines = [f"  {row['path']} ({row['command']})" for row in missing]
        sys.exit(
            f"{given.table}: {len(missing)} of {len(rows)} are not there; run the commands"
            " behind them:\n" + "\n".join(lines)
        )
    index = given.folder / "index.csv"
    before = read_sums(index) if given.check else {}
    if given.check and not before:
        sys.exit(f"{index}: no index to compare with; run without --check first")
    for row in rows:
        content = Path(row["path"]).read_bytes()
        row["file"] = row["name"] + Path(row["path"]).suffix
        row["sha256"], row["bytes"] = hashlib.sha256(content).hexdigest(), len(content)
    if given.check:
        sums = {row["name"]: row["sha256"] for row in rows}
        other = [n for n in sorted(sums | before) if sums.get(n) != before.get(n)]
        if other:
            sys.exit(
                f"{index}: {len(other)} differ from the run before: {', '.join(other)}"
            )
        print(f"{len(rows)} figures and tables have the sums of the run before")
    given.folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        with atomic_path(given.folder / row["file"]) as temporary:
            shutil.copyfile(row["path"], temporary)
    write_index(given.folder, rows)
    print(f"{given.folder}: {len(rows)} figures and tables, index.md shows them")


def read_list(path: Path) -> list[dict]:
    """Rows of a list of figures and tables."""
    with open(path, newline="", encoding="utf-8") as file:
        lines = [line for line in file if line.strip() and not line.startswith("#")]
    rows = list(csv.DictReader(lines, delimiter="\t"))
    for number, row in enumerate(rows, 1):
        if tuple(row) != COLUMNS or not all(row.values()):
            sys.exit(f"{path}: row {number} must have {', '.join(COLUMNS)}, got {row}")
    names = [row["name"] for row in rows]
    if twice := {name for name in names if names.count(name) > 1}:
        sys.exit(f"{path}: {', '.join(sorted(twice))} twice; rename one")
    return rows


def read_sums(index: Path) -> dict[str, str]:
    """SHA-256 sums of an index by name; none if there is no index."""
    if not index.is_file():
        return {}
    with open(index, newline="", encoding="utf-8") as file:
        return {row["name"]: row["sha256"] for row in csv.DictReader(file)}


def write_index(folder: Path, rows: list[dict]) -> None:
    """The index as a table, as a page, and as a summary."""
    keys = ("name", "file", "sha256", "bytes", "path", "command", "caption")
    with (
        atomic_path(folder / "index.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["# Figures and tables", ""]
    for row in rows:
        picture = Path(row["file"]).suffix in PICTURES
        lines += [
            f"## {row['name']}",
            "",
            f"{'!' if picture else ''}[{row['file']}]({row['file']})",
            "",
            f"{row['caption']} (`{row['command']}`; SHA-256 `{row['sha256']}`)",
            "",
        ]
    with atomic_path(folder / "index.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    sums = {row["name"]: row["sha256"] for row in rows}
    with atomic_path(folder / "summary.json") as temporary:
        temporary.write_text(
            json.dumps({"n": len(rows), "sha256": sums}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
