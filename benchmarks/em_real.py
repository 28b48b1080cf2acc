"""What EM does on real blends: those held out, before and after.

    make em-real

Reads the runs `hsc_cosmos` (first prior), `em_hsc` (the same blends after EM) and `em_hst`, and writes
`results/em_real/summary.json`, a list of records with `name`, `value`, `error`, `unit`, `n` and
`command`. Errors are bootstrap standard deviations over blends of the mean of paired differences.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.table import Table
from em import read_laps

from blendem.io.products import read_h5

COMMAND = "make em-real"
BOOTSTRAP = 2000


def read_blends(run: Path) -> pd.DataFrame:
    """Measured numbers of all blends of a run, by name."""
    parts = [
        Table(read_h5(path, only=("blends",))[0]["blends"]).to_pandas()
        for path in sorted((run / "measured").glob("*.h5"))
    ]
    table = pd.concat(parts, ignore_index=True)
    names = [f"{f}/{n}" for f, n in zip(table["field"], table["number"], strict=True)]
    return table.set_index(pd.Index(names, name="blend"))


def read_watch(run: Path) -> dict[int, pd.DataFrame]:
    """Numbers of the held-out blends, by lap."""
    laps, scores = read_laps(run)
    tables = (table.set_index("blend") for table in scores)
    return dict(zip(laps["lap"], tables, strict=True))


def bootstrap(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Mean and its error."""
    rows = rng.integers(0, len(values), (BOOTSTRAP, len(values)))
    return float(values.mean()), float(values[rows].mean(axis=1).std())


def main(before: Path, after: Path, hst: Path, out: Path) -> None:
    """Print and write all numbers."""
    rng, rows = np.random.default_rng(0), []

    def say(name, value, error=None, unit="1", n=1):
        rows.append(
            dict(name=name, value=value, error=error, unit=unit, n=n, command=COMMAND)
        )
        known = "" if error is None else f" +- {error:.3g}"
        print(f"{name}: {value:.4g}{known} {unit} (n = {n})")

    for label, run in (("HSC", after), ("HST", hst)):
        watch = read_watch(run)
        for number, lap in list(watch.items())[1:]:
            pair = watch[0].join(lap, rsuffix="_lap").dropna()
            change = (pair["log_score_lap"] - pair["log_score"]).to_numpy()
            value, error = bootstrap(change, rng)
            name = f"{label}: gain in log score per blend, lap {number}"
            say(name, value, error, "nat", len(pair))
    first, last = (read_blends(run) for run in (before, after))
    pair = first.join(last, rsuffix="_em")
    held_out = read_watch(after)[0].index
    for label, part in (
        ("held-out", pair.loc[pair.index.isin(held_out)]),
        ("other", pair.loc[~pair.index.isin(held_out)]),
    ):
        bands = [c[-1] for c in first if c.startswith("autocorrelation_")]
        for band in ["all", *sorted(bands, key="ugrizy".index)]:
            columns = [f"autocorrelation_{b}" for b in bands if band in ("all", b)]
            old = part[columns].mean(axis=1)
            new = part[[f"{c}_em" for c in columns]].mean(axis=1)
            good = (old.notna() & new.notna()).to_numpy()
            n = int(good.sum())
            name = f"{label} blends: correlation of neighbouring residuals, {band}"
            say(f"{name}, before", float(old[good].mean()), n=n)
            say(f"{name}, after", float(new[good].mean()), n=n)
            say(f"{name}, change", *bootstrap((new - old).to_numpy()[good], rng), n=n)
        for name in ("chi2", "predictive_chi2"):
            n_data = part["n_data"].to_numpy()
            for text, column in (("before", name), ("after", f"{name}_em")):
                good = np.isfinite(part[column].to_numpy())
                value = part[column].to_numpy()[good].sum() / n_data[good].sum()
                say(
                    f"{label} blends: {name} per pixel, {text}",
                    value,
                    n=int(good.sum()),
                )
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, default=Path("results/hsc_cosmos"))
    parser.add_argument("--after", type=Path, default=Path("results/em_hsc"))
    parser.add_argument("--hst", type=Path, default=Path("results/em_hst"))
    parser.add_argument("--out", type=Path, default=Path("results/em_real"))
    arguments = parser.parse_args()
    main(arguments.before, arguments.after, arguments.hst, arguments.out)
