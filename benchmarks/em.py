"""What EM repairs, and whether it leaves a right prior alone: from finished runs.

    make em

Reads `em/laps.csv` of the runs `em_oracle` (prior of the true galaxies), `em_repair` (a wrong start),
`em_map` and `em_gaussian` (starts from the blends alone) and `em_idempotence` and writes `results/em/summary.json`, a list of records with `name`, `value`,
`unit`, `n`, `expected` and `command`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

COMMAND = "make em"
# Part of the gap between start and oracle that should be closed.
GOALS = {
    "loss_0.05": 0.95,
    "loss_0.1": 0.95,
    "loss_0.3": 0.87,
    "loss_1": 0.65,
    "loss_3": None,
    "log_score": 0.90,
    "flux_residual_blended": 0.95,
}


def read_laps(run: Path) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    """The table of a run and the scores of its blends, lap by lap."""
    laps = pd.read_csv(run / "em" / "laps.csv")
    paths = sorted((run / "em" / "watch").glob("*_blends.csv"))
    return laps, [pd.read_csv(path) for path in paths][: len(laps)]


def main(
    repair: Path,
    oracle: Path,
    idempotence: Path,
    starts: dict[str, Path],
    out: Path,
) -> None:
    """Print and write all numbers."""
    rows = []

    def say(name, value, unit="1", n=1, expected=""):
        row = dict(name=name, value=float(value), unit=unit, n=int(n))
        rows.append(row | dict(expected=expected, command=COMMAND))
        print(f"{name}: {value:.4g} {unit} (n = {n})", flush=True)

    goal = pd.read_csv(oracle / "em" / "laps.csv").iloc[0]
    laps, scores = read_laps(repair)
    first, last = laps.iloc[0], laps.iloc[-1]
    say("repair: laps", last["lap"])
    for name, part in GOALS.items():
        gap = first[name] - goal[name]
        for _, lap in laps.iloc[1:].iterrows():
            final = lap["lap"] == last["lap"]
            say(
                f"repair: part of the gap closed, {name}, lap {lap['lap']:.0f}",
                (first[name] - lap[name]) / gap,
                n=lap["watched"],
                expected=f">= {part}" if final and part else "",
            )
        for label, row in (("start", first), ("last lap", last), ("oracle", goal)):
            say(f"{label}: {name}", row[name], n=row["watched"])
    say(
        "repair: 68 % coverage, last lap minus oracle",
        last["flux_within68"] - goal["flux_within68"],
        n=last["sources"],
        expected="-0.02 to 0.02",
    )
    for label, row in (("start", first), ("last lap", last), ("oracle", goal)):
        say(f"{label}: 68 % intervals of flux", row["flux_within68"], n=row["sources"])
    seconds = laps[["expectation_seconds", "maximization_seconds"]].sum()
    say("repair: seconds of all E steps, jobs added up", seconds.iloc[0], "s")
    say("repair: seconds of all M steps", seconds.iloc[1], "s")
    if (idempotence / "em" / "laps.csv").exists():
        laps, scores = read_laps(idempotence)
        change = laps["open_variance"].to_numpy()
        say(
            "idempotence: largest change per lap of the variance that the data leave open",
            np.abs(change[1:] / change[:-1] - 1).max(),
            n=len(change) - 1,
            expected="<= 0.05",
        )
        for name in GOALS:
            say(
                f"idempotence: {name}, last lap over lap 0",
                laps[name].iloc[-1] / laps[name].iloc[0],
                n=laps["watched"].iloc[0],
            )
        pair = scores[0].merge(scores[-1], on="blend")
        gain = (pair["log_score_y"] - pair["log_score_x"]).dropna()
        say(
            "idempotence: gain in log score per blend",
            gain.mean(),
            "nat",
            len(gain),
            f"within its error, {gain.std() / len(gain) ** 0.5:.2f}",
        )
    for name, run in starts.items():
        if not (run / "em" / "laps.csv").exists():
            print(f"{run}: not run")
            continue
        end = read_laps(run)[0].iloc[-1]
        for column in (*GOALS, "flux_within68"):
            gap = first[column] - goal[column]
            say(
                f"start {name}: difference to repair after lap {end['lap']:.0f}, part of the"
                f" gap, {column}",
                (end[column] - last[column]) / gap,
                n=end["watched"],
                expected="-0.1 to 0.1",
            )
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repair", type=Path, default=Path("results/em_repair"))
    parser.add_argument("--oracle", type=Path, default=Path("results/em_oracle"))
    parser.add_argument(
        "--idempotence", type=Path, default=Path("results/em_idempotence")
    )
    parser.add_argument("--map", type=Path, default=Path("results/em_map"))
    parser.add_argument("--gaussian", type=Path, default=Path("results/em_gaussian"))
    parser.add_argument("--out", type=Path, default=Path("results/em"))
    arguments = parser.parse_args()
    main(
        arguments.repair,
        arguments.oracle,
        arguments.idempotence,
        {"map": arguments.map, "gaussian": arguments.gaussian},
        arguments.out,
    )
