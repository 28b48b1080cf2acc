"""What EM repairs, and whether it leaves a right prior alone: from finished runs.

    make em

Reads `em/laps.csv` of the runs `em_oracle` (prior of the true galaxies), `em_repair` (a wrong start),
`em_map` and `em_gaussian` (starts from the blends alone), `em_idempotence`, `em_oracle_<seed>` and
`em_repair_<seed>`, `em_other_basis`, `em_clean`, `em_contaminated` and `em_contaminated_sky`, says
which are missing, and writes `results/em/summary.json`, a list of records with `name`, `value`,
`unit`, `n`, `expected` and `command`.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from records import Report

from blendem.measure.em import BLENDED

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
BOOTSTRAP = 2000
ALSO = ("open_variance", "sliced_wasserstein", "two_sample_chi2", "energy_outside")


def read_laps(run: Path) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    """The table of a run and the scores of its blends, lap by lap."""
    laps = pd.read_csv(run / "em" / "laps.csv")
    watch = run / "em" / "watch"
    return laps, [pd.read_csv(watch / f"{n:02d}_blends.csv") for n in laps["lap"]]


def read_galaxies(run: Path, lap: int) -> pd.DataFrame:
    """Errors of the posteriors of the galaxies that watched a lap."""
    return pd.read_csv(run / "em" / "watch" / f"{lap:02d}_sources.csv")


def report_pairs(report: Report, label: str, repair: Path, oracle: Path) -> None:
    """Errors of what compares flux residuals and coverage: blends drawn again, the same of all priors."""
    laps, _ = read_laps(repair)
    last = int(laps["lap"].iloc[-1])
    tables = {
        "start": read_galaxies(repair, 0),
        "end": read_galaxies(repair, last),
        "oracle": read_galaxies(oracle, 0),
    }
    keys = ["blend", "id"]
    common = set.intersection(
        *({*zip(*(t[k] for k in keys), strict=True)} for t in tables.values())
    )
    tables = {
        name: t.set_index(keys).loc[sorted(common)].reset_index()
        for name, t in tables.items()
    }
    blends = tables["end"]["blend"].to_numpy()
    names, number = np.unique(blends, return_inverse=True)
    blendedness = tables["end"].filter(like="blendedness_").iloc[:, 0].to_numpy()
    ratio = {n: t.filter(like="flux_residual_").to_numpy() for n, t in tables.items()}
    inside = {n: t.filter(like="flux_within68_").to_numpy() for n, t in tables.items()}
    good = np.isfinite(np.stack([*ratio.values()])).all(axis=(0, 2))
    blended = good & (blendedness > BLENDED)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), BOOTSTRAP)
    weights = np.concatenate([np.ones((1, len(names))), counts])[:, number]

    def means(values: dict, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Weighted means: as measured, then of every bootstrap sample."""
        w = weights[:, rows]
        return {n: w @ v[rows].mean(axis=1) / w.sum(axis=1) for n, v in values.items()}

    residual = means({n: np.abs(v) for n, v in ratio.items()}, blended)
    closed = residual["start"] - residual["end"]
    closed = closed / (residual["start"] - residual["oracle"])
    cover = means(inside, good)
    for name, values, n in (
        ("part of the gap closed, flux_residual_blended", closed, blended.sum()),
        (
            "flux_residual_blended, end minus oracle",
            residual["end"] - residual["oracle"],
            blended.sum(),
        ),
        ("68 % coverage, end minus oracle", cover["end"] - cover["oracle"], good.sum()),
    ):
        report.say(f"{label}: {name}, same galaxies", values[0], n=n)
        report.say(f"{label}: {name}, error by bootstrap of blends", values[1:].std())


def report_repair(report: Report, label: str, repair: Path, oracle: Path) -> None:
    """Of the gap between start and oracle, what is closed lap by lap."""
    goal = pd.read_csv(oracle / "em" / "laps.csv").iloc[0]
    laps, _ = read_laps(repair)
    first, last = laps.iloc[0], laps.iloc[-1]
    report.say(f"{label}: galaxies that taught", last["galaxies"])
    for name, part in GOALS.items():
        gap = first[name] - goal[name]
        for _, lap in laps.iloc[1:].iterrows():
            final = lap["lap"] == last["lap"]
            report.say(
                f"{label}: part of the gap closed, {name}, lap {lap['lap']:.0f}",
                (first[name] - lap[name]) / gap,
                n=lap["watched"],
                expected=f">= {part}" if final and part else "",
            )
    report_steps(report, label, laps)
    rows = (("start", first), ("last lap", last), ("oracle", goal))
    for name in (*GOALS, *ALSO):
        for which, row in rows:
            report.say(f"{label}: {name}, {which}", row[name], n=row["watched"])
    report.say(
        f"{label}: 68 % coverage, last lap minus oracle",
        last["flux_within68"] - goal["flux_within68"],
        n=last["sources"],
        expected="-0.02 to 0.02",
    )
    report_pairs(report, label, repair, oracle)
    steps = (("E", "expectation_seconds"), ("M", "maximization_seconds"))
    for name, column in steps:  # of the laps that were watched
        seconds = laps[column].dropna()
        report.say(
            f"{label}: seconds of an {name} step", seconds.mean(), "s", len(seconds)
        )


def report_steps(report: Report, label: str, laps: pd.DataFrame) -> None:
    """How wrong the prior before each lap was, and how far the lap went."""
    for _, lap in laps.dropna(subset=["misfit"]).iterrows():
        name = f"{label}: misfit of the prior before, lap {lap['lap']:.0f}"
        report.say(name, lap["misfit"], "nat per galaxy", lap["galaxies"])
        name = f"{label}: part of the step, lap {lap['lap']:.0f}"
        report.say(name, lap["step"], n=lap["galaxies"])


def report_idempotence(report: Report, run: Path) -> None:
    """What EM makes of a prior that is right."""
    laps, scores = read_laps(run)
    report_steps(report, "idempotence", laps)
    change = laps["open_variance"].to_numpy()
    report.say(
        "idempotence: largest change per lap of the variance that the data leave open",
        np.abs(change[1:] / change[:-1] - 1).max(),
        n=len(change) - 1,
        expected="<= 0.05",
    )
    for name in (*GOALS, *ALSO):
        report.say(
            f"idempotence: {name}, last lap over lap 0",
            laps[name].iloc[-1] / laps[name].iloc[0],
            n=laps["watched"].iloc[0],
        )
    pair = scores[0].merge(scores[-1], on="blend")
    gain = (pair["log_score_y"] - pair["log_score_x"]).dropna()
    report.say(
        "idempotence: gain in log score per blend",
        gain.mean(),
        "nat",
        len(gain),
        f"within its error, {gain.std() / len(gain) ** 0.5:.2f}",
    )


def report_start(report: Report, name: str, run: Path, repair: Path, oracle: Path):
    """How far another start ends from the repaired prior."""
    goal = pd.read_csv(oracle / "em" / "laps.csv").iloc[0]
    laps, _ = read_laps(repair)
    first, last, end = laps.iloc[0], laps.iloc[-1], read_laps(run)[0].iloc[-1]
    for column in (*GOALS, "flux_within68"):
        report.say(
            f"start {name}: difference to repair after lap {end['lap']:.0f}, part of the"
            f" gap, {column}",
            (end[column] - last[column]) / (first[column] - goal[column]),
            n=end["watched"],
            expected="-0.1 to 0.1",
        )


def report_basis(report: Report, other: Path, repair: Path, oracle: Path) -> None:
    """Whether another basis ends at the same place; losses belong to a basis and are left out."""
    goal = pd.read_csv(oracle / "em" / "laps.csv").iloc[0]
    laps, scores = read_laps(repair)
    first, last = laps.iloc[0], laps.iloc[-1]
    others, other_scores = read_laps(other)
    end = others.iloc[-1]
    report_steps(report, "other basis", others)
    for column in ("log_score", "flux_residual_blended", "flux_within68"):
        report.say(f"other basis: {column}, last lap", end[column], n=end["watched"])
        report.say(
            f"other basis: difference to repair, part of the gap, {column}",
            (end[column] - last[column]) / (first[column] - goal[column]),
            n=end["watched"],
            expected="-0.1 to 0.1",
        )
    pair = scores[-1].merge(other_scores[-1], on="blend")
    gain = (pair["log_score_y"] - pair["log_score_x"]).dropna()
    error = gain.std() / len(gain) ** 0.5
    name = "other basis: gain in log score per blend over repair"
    report.say(name, gain.mean(), "nat", len(gain), f"within its error, {error:.2f}")
    for run, row in (("repair", last), ("other basis", end)):
        report.say(f"{run}: energy outside", row["energy_outside"], n=row["watched"])


def report_contamination(report: Report, name: str, run: Path) -> None:
    """What light without a catalog entry does to a right prior."""
    laps, _ = read_laps(run)
    for column in (*GOALS, *ALSO, "flux_within68", "flux_bias"):
        for which in (0, -1):
            report.say(
                f"{name}: {column}, lap {laps['lap'].iloc[which]:.0f}",
                laps[column].iloc[which],
                n=laps["watched"].iloc[which],
            )


def main(results: Path, seeds: list[int], out: Path) -> None:
    """Print and write all numbers of the runs that there are."""
    report = Report(COMMAND)
    repair, oracle = results / "em_repair", results / "em_oracle"

    def found(*runs: Path) -> bool:
        missing = [run for run in runs if not (run / "em" / "laps.csv").exists()]
        for run in missing:
            print(f"{run}: not run")
        return not missing

    if found(repair, oracle):
        report_repair(report, "repair", repair, oracle)
    for seed in seeds:
        pair = [results / f"em_{name}_{seed}" for name in ("repair", "oracle")]
        if found(*pair):
            report_repair(report, f"repair, seed {seed}", *pair)
    if found(results / "em_idempotence"):
        report_idempotence(report, results / "em_idempotence")
    for name in ("map", "gaussian"):
        if found(results / f"em_{name}", repair, oracle):
            report_start(report, name, results / f"em_{name}", repair, oracle)
    if found(results / "em_other_basis", repair, oracle):
        report_basis(report, results / "em_other_basis", repair, oracle)
    for name in ("clean", "contaminated", "contaminated_sky"):
        if found(results / f"em_{name}"):
            report_contamination(report, name, results / f"em_{name}")
    report.write(out / "summary.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[22, 23])
    parser.add_argument("--out", type=Path, default=Path("results/em"))
    arguments = parser.parse_args()
    main(arguments.results, arguments.seeds, arguments.out)
