"""Put the numbers of other benchmarks into a summary.

    python benchmarks/collect.py results/calibration/summary.json results/calibration/mixture.json

All files are lists of records with `name`, `value`, `unit`, `n` and `command`; a record that the summary
has by that name already is replaced.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path


def read_records(path: Path) -> dict[str, dict]:
    """Records by name."""
    try:
        rows = json.loads(path.read_text())
        return {row["name"]: row for row in rows}
    except FileNotFoundError:
        raise SystemExit(
            f"{path}: no such file; run the benchmark that writes it"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"{path}: not a list of records: {error!r}") from None


def collect(summary: Path, others: Sequence[Path]) -> None:
    """Add the records of `others` to `summary`, which is replaced at once or not at all."""
    records = read_records(summary)
    for path in others:
        records |= read_records(path)
    partial = summary.with_suffix(".partial")
    partial.write_text(json.dumps(list(records.values()), indent=1) + "\n")
    os.replace(partial, summary)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("summary", type=Path)
    parser.add_argument("others", type=Path, nargs="+")
    given = parser.parse_args()
    collect(given.summary, given.others)
