"""What HST adds to HSC: fluxes of simulated blends fitted with both and with HSC alone.

    make multi

Reads `scores/sources.csv` and catalogs of the runs `hst_hsc` and `hsc_alone` (the same HSC images and the same
prior) and writes pulls of fluxes and the ratio of their errors to `results/multi/pairs.json`, records with
`name`, `value`, `unit`, `n`, `expected` and `command`.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.table import Table
from records import Report

BANDS = ("g", "r", "i", "z", "y")
BLENDED = 0.2


def read_run(run: Path) -> pd.DataFrame:
    """Scores and flux errors of the galaxies of a run that have no flag."""
    scores = pd.read_csv(run / "scores" / "sources.csv")
    tables = [
        Table.read(path)[["id", *(f"flux_err_{b}" for b in BANDS)]]
        .to_pandas()
        .assign(field=path.stem)
        for path in sorted((run / "catalog").glob("*.fits"))
    ]
    both = scores.merge(pd.concat(tables), on=["field", "id"])
    return both[both["flags"] == 0]


def main(joint: Path, alone: Path, out: Path) -> None:
    """Print and write the numbers."""
    report = Report("make multi")

    def say(name, value, n, expected="") -> None:
        report.say(name, value, n=n, expected=expected)

    runs = {"HST and HSC": read_run(joint)}
    if (alone / "scores" / "sources.csv").exists():
        runs["HSC alone"] = read_run(alone)
    for name, run in runs.items():
        first = name == "HST and HSC"
        for b in BANDS:
            pull = run[f"flux_pull_{b}"].dropna()
            sd, expected = pull.std(), "0.9 to 1.1" if first else ""
            say(
                f"{name}: mean pull of {b} fluxes",
                pull.mean(),
                len(pull),
                "-0.1 to 0.1",
            )
            say(f"{name}: sd of pulls of {b} fluxes", sd, len(pull), expected)
            robust = 1.4826 * np.median(np.abs(pull - pull.median()))
            say(
                f"{name}: the same from the median absolute deviation",
                robust,
                len(pull),
            )
            inside = run[f"flux_within68_{b}"]
            say(f"{name}: 68 % intervals of {b} hold", inside.mean(), len(pull), "0.68")
    if len(runs) == 2:
        pair = runs["HST and HSC"].merge(
            runs["HSC alone"], on=["field", "id"], suffixes=("", "_alone")
        )
        pair = pair[pair["blendedness_i"] > BLENDED]
        for b in BANDS:
            ratio = (pair[f"flux_err_{b}_alone"] / pair[f"flux_err_{b}"]).median()
            say(
                f"errors of {b} fluxes, HSC alone over both, blended",
                ratio,
                len(pair),
                "> 1",
            )
            size = [pair[f"flux_residual_{b}{x}"].abs().mean() for x in ("_alone", "")]
            say(
                f"mean abs residual of {b}, HSC alone over both, blended",
                size[0] / size[1],
                len(pair),
                "> 1",
            )
    report.write(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--joint", type=Path, default=Path("results/hst_hsc"))
    parser.add_argument("--alone", type=Path, default=Path("results/hsc_alone"))
    parser.add_argument("--out", type=Path, default=Path("results/multi/pairs.json"))
    arguments = parser.parse_args()
    main(arguments.joint, arguments.alone, arguments.out)
