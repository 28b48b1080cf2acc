"""A field that was simulated, detected, deblended and gathered, against its truth.

    python benchmarks/field.py results/field results/field_map

The first folder is the run with posteriors, the others are compared with it. Writes `summary.json`
and `field.csv` into the first one, and prints both.

- A detection is matched to the brightest true source (i) within 3 pixels; of several detections of
  one source the nearest counts.
- Flux residual: F / F_true - 1 of matched galaxies with a result, total flux, all bands. Sources
  with another one within 3 pixels that detection did not tell apart are left in.
- Seconds are those of `seconds.tsv` in the first folder (a line for each call of Snakemake: name,
  seconds; the longest of a name counts, so that nothing may have been interrupted), memory and CPU seconds those that Snakemake measured for every job.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.table import Table
from scipy.spatial import cKDTree

from blendem.io.atomic import atomic_path
from blendem.io.products import read_models, read_table

RADIUS = 3.0  # of a match [pixel]
MAG_BINS = (18, 21, 22, 23, 24, 25, 26.2)
BLENDED = 0.2
BANDS = "grizy"
MAGZERO = 27.0
FAINT = 25.0  # galaxies whose fluxes are compared


def main() -> None:
    """Read both folders, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--truth", type=Path, default="results/field_images/truth.csv")
    parser.add_argument("--field", default="patch")
    given = parser.parse_args()
    truth = pd.read_csv(given.truth)
    summary, rows = {}, []
    for run in given.runs:
        table = read_table(run / f"catalog/{given.field}.fits")[0].to_pandas()
        match = match_sources(table, truth)
        summary[run.name] = describe(run, given.field, table, truth, match)
        rows += [{"run": run.name} | row for row in by_magnitude(table, truth, match)]
    out = given.runs[0]
    times = Table.read(out / "seconds.tsv", format="ascii.no_header").to_pandas()
    times = times.groupby("col1")["col2"].max()
    summary["seconds"] = {name: float(value) for name, value in times.items()}
    summary["minutes_to_map_catalog"] = float(times["shared"] + times["map"]) / 60
    summary["minutes_to_posterior_catalog"] = (
        float(times["shared"] + times["posterior"]) / 60
    )
    with atomic_path(out / "field.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    with atomic_path(out / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n")
    print(pd.DataFrame(rows).round(4).to_string(index=False))
    print(json.dumps(summary, indent=1))


def match_sources(table: pd.DataFrame, truth: pd.DataFrame) -> np.ndarray:
    """Row of the true source of every detection, -1 where there is none."""
    tree = cKDTree(truth[["x", "y"]])
    near = tree.query_ball_point(table[["x", "y"]], RADIUS)
    flux = truth["flux_i"].to_numpy()
    match = np.array([max(rows, key=lambda r: flux[r], default=-1) for rows in near])
    apart = np.hypot(
        *(table[["x", "y"]] - truth[["x", "y"]].to_numpy()[match]).T.values
    )
    order = np.lexsort((apart, match))
    again = np.zeros(len(match), bool)
    again[order[1:]] = match[order[1:]] == match[order[:-1]]
    return np.where(again, -1, match)


def describe(
    run: Path, field: str, table: pd.DataFrame, truth: pd.DataFrame, match: np.ndarray
) -> dict:
    """Headline numbers of a run."""
    done = table["n_samples"].to_numpy() > 0
    sources = run / f"tiles/{field}.fits"  # of a field that was cut into tiles
    detected = len(read_models(sources)["IDS"]) if sources.is_file() else len(table)
    jobs = [pd.read_csv(path, sep="\t") for path in run.glob("benchmarks/**/*.tsv")]
    jobs = pd.concat(jobs)
    bright = truth["mag_i"] < FAINT if "mag_i" in truth else truth_mag(truth) < FAINT
    found = np.isin(np.arange(len(truth)), match[match >= 0])
    return {
        "detected": detected,
        "in_catalog": len(table),
        "with_result": float(done.mean()),
        "flagged_of_others": float((table["flags"][~done] > 0).mean())
        if (~done).any()
        else 1.0,
        "completeness_to_25": float(found[bright].mean()),
        "purity": float((match >= 0).mean()),
        "cpu_seconds": float(jobs["cpu_time"].sum()),
        "peak_gib_of_a_job": float(jobs["max_rss"].max() / 1024),
    } | residuals(table, truth, match)


def truth_mag(truth: pd.DataFrame) -> pd.Series:
    """AB magnitude in i."""
    return MAGZERO - 2.5 * np.log10(truth["flux_i"])


def compared(
    table: pd.DataFrame, truth: pd.DataFrame, match: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Matched galaxies with a result, and their truths, row by row."""
    use = (match >= 0) & (table["n_samples"].to_numpy() > 0)
    true = truth.iloc[match[use]].reset_index(drop=True)
    measured = table[use].reset_index(drop=True)
    keep = (true["type"] == "galaxy").to_numpy()
    return measured[keep], true[keep]


def residuals(table: pd.DataFrame, truth: pd.DataFrame, match: np.ndarray) -> dict:
    """Flux residuals and coverage of galaxies down to i = 25."""
    measured, true = compared(table, truth, match)
    out = {}
    bright = (truth_mag(true) < FAINT).to_numpy()
    blended = true["blendedness_i"].to_numpy() > BLENDED
    for name, chosen in (("blended", bright & blended), ("other", bright & ~blended)):
        m, t = measured[chosen], true[chosen]
        residual = np.stack(
            [m[f"flux_{b}"] / t[f"flux_{b}"].to_numpy() - 1 for b in BANDS]
        )
        within = np.stack(
            [
                (m[f"flux_q16_{b}"] <= t[f"flux_{b}"].to_numpy())
                & (t[f"flux_{b}"].to_numpy() <= m[f"flux_q84_{b}"])
                for b in BANDS
            ]
        )
        out[name] = {
            "n": int(chosen.sum()),
            "median_residual": float(np.nanmedian(residual)),
            "median_abs_residual": float(np.nanmedian(np.abs(residual))),
            "mean_abs_residual": float(np.nanmean(np.abs(residual))),
            "within_68": float(within.mean()),
        }
    return out


def by_magnitude(
    table: pd.DataFrame, truth: pd.DataFrame, match: np.ndarray
) -> list[dict]:
    """Completeness and flux residuals in bins of the true magnitude."""
    measured, true = compared(table, truth, match)
    found = np.isin(np.arange(len(truth)), match[match >= 0])
    everyone, mags = truth_mag(truth).to_numpy(), truth_mag(true).to_numpy()
    rows = []
    for low, high in zip(MAG_BINS[:-1], MAG_BINS[1:], strict=True):
        here = (everyone >= low) & (everyone < high)
        inside = (mags >= low) & (mags < high)
        residual = (measured["flux_i"] / true["flux_i"] - 1)[inside]
        rows.append(
            {
                "mag": f"{low:g}-{high:g}",
                "n": int(here.sum()),
                "completeness": float(found[here].mean()),
                "n_compared": int(inside.sum()),
                "median_residual_i": float(residual.median()),
                "median_abs_residual_i": float(residual.abs().median()),
            }
        )
    return rows


if __name__ == "__main__":
    main()
