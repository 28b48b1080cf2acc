"""Time and memory of fields by their number of sources.

    python benchmarks/scaling.py results/field results/field_100 results/field_1000 results/field

The first folder gets `scaling.csv` and `scaling.png`; the others are runs of `make field`.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from blendem import plot
from blendem.io.atomic import atomic_path
from blendem.plot.inputs import save

KINDS = {"map": "MAP", "posterior": "32 draws"}


def main() -> None:
    """Read the summaries, write a table and a figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    given = parser.parse_args()
    table = pd.DataFrame([read(run) for run in given.runs]).sort_values("sources")
    with atomic_path(given.out / "scaling.csv") as temporary:
        table.to_csv(temporary, index=False)
    print(table.round(3).to_string(index=False))
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(plot.TWO_COLUMNS, 2.6))
        time, memory = figure.subplots(1, 2)
        for (kind, label), mark in zip(KINDS.items(), "os", strict=True):
            per_source = 1e3 * table[f"s_{kind}"] / table["sources"]
            time.loglog(table["sources"], per_source, f"{mark}-", ms=4, label=label)
            memory.semilogx(
                table["sources"], table[f"gib_{kind}"], f"{mark}-", ms=4, label=label
            )
        time.set(xlabel="sources", ylabel="wall time per source [ms], two cores")
        memory.set(xlabel="sources", ylabel="largest job [GiB]", ylim=(0, None))
        time.legend()
        save(figure, given.out / "scaling.png", 200)


def read(run: Path) -> dict:
    """Numbers of a run: seconds from images to catalogs, and the largest job."""
    summary = json.loads((run / "summary.json").read_text())
    seconds, name = summary["seconds"], run.name
    return {
        "sources": summary[name]["in_catalog"],
        "s_map": seconds["shared"] + seconds["map"],
        "s_posterior": seconds["shared"] + seconds["posterior"],
        "gib_map": summary[f"{name}_map"]["peak_gib_of_a_job"],
        "gib_posterior": summary[name]["peak_gib_of_a_job"],
    }


if __name__ == "__main__":
    main()
