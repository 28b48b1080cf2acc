"""Transients on galaxies: their fluxes, and the fluxes and shapes of their hosts and of other galaxies.

    make multi

Reads `scores/` of the run `transient` and writes `results/multi/transients.json`, records with `name`, `value`, `unit`,
`n`, `expected` and `command`.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from records import Report

from blendem.config import load_config
from blendem.survey.instruments import INSTRUMENTS, light_inside

BANDS = ("g", "i")
CONFIG = Path("config/transient.yaml")
KEYS = ["field", "id"]


def read_fluxes(run: Path) -> pd.DataFrame:
    """Measured and true fluxes of transients, with the flux of the host in the same band."""
    light = pd.read_csv(run / "scores" / "light_curves.csv")
    hosts = pd.read_csv(run / "scores" / "sources.csv")
    parts = []
    for band in BANDS:
        of = hosts[[*KEYS, f"flux_true_{band}", "flags"]]
        of = of.rename(columns={"id": "host", f"flux_true_{band}": "flux_host"})
        parts.append(light[light["band"] == band].merge(of, on=["field", "host"]))
    both = pd.concat(parts, ignore_index=True)
    return both[both["flags"] == 0]


def inside(rows: pd.DataFrame, config: Path) -> pd.DataFrame:
    """The same with true fluxes inside the PSF images, which are normalised to 1."""
    simulate = load_config(config).simulate
    eyes = INSTRUMENTS[simulate.instrument].only(BANDS)
    share = {
        (number, band): value
        for number, epoch in enumerate(simulate.epochs)
        for band, value in zip(
            eyes.bands, light_inside(eyes.under(epoch.seeing)), strict=True
        )
    }
    factor = [share[key] for key in zip(rows["epoch"], rows["band"], strict=True)]
    true = rows["flux_true"] * factor
    low, high = rows["flux_q16"], rows["flux_q84"]
    return rows.assign(
        flux_true=true,
        pull=(rows["flux"] - true) / rows["flux_err"],
        within68=((low <= true) & (true <= high)).astype(float),
    )


def say_pulls(say, name: str, rows: pd.DataFrame) -> None:
    """Bias and calibration of fluxes; an error of a mean is that of independent fluxes."""
    pull = rows["pull"].dropna()
    n = len(pull)
    say(f"{name}: mean pull", pull.mean(), n, "-0.1 to 0.1")
    say(f"{name}: sd of pulls", pull.std(), n, "0.9 to 1.1")
    robust = 1.4826 * np.median(np.abs(pull - pull.median()))
    say(f"{name}: the same from the median absolute deviation", robust, n)
    say(f"{name}: 68 % intervals hold", rows["within68"].mean(), n, "0.68")


def main(run: Path, out: Path) -> None:
    """Print and write the numbers."""
    report = Report("make multi")

    def say(name, value, n, expected="") -> None:
        report.say(name, value, n=n, expected=expected)

    fluxes = read_fluxes(run)
    say("transients", fluxes.groupby(["field", "id"]).ngroups, 1, ">= 200")
    for band in BANDS:
        rows = fluxes[fluxes["band"] == band]
        say_pulls(say, f"transient fluxes, {band}", rows)
        within = inside(rows, CONFIG)
        say_pulls(say, f"transient fluxes inside the PSF images, {band}", within)
        faint = within[within["flux_host"] > within["flux_true"]]
        say_pulls(say, f"the same, fainter than their hosts, {band}", faint)
        ratio = rows["flux"] / rows["flux_true"]
        say(f"median flux over truth, {band}", ratio.median(), len(ratio), "1")
        error = (rows["flux_err"] / rows["flux_true"]).median()
        say(f"median relative error, {band}", error, len(ratio))
    hosts = fluxes[["field", "host"]].drop_duplicates().rename(columns={"host": "id"})
    galaxies = pd.read_csv(run / "scores" / "sources.csv")
    galaxies = galaxies.merge(hosts.assign(host=True), on=KEYS, how="left")
    galaxies = galaxies[galaxies["flags"] == 0]
    for who, chosen in (("hosts", True), ("other galaxies", False)):
        group = galaxies[galaxies["host"].notna() == chosen]
        for name in ("size", "e1", "e2", *(f"flux_{band}" for band in BANDS)):
            kind, _, band = name.partition("_")
            residual, pull, within = (
                group["_".join(filter(None, (kind, part, band)))].dropna()
                for part in ("residual", "pull", "within68")
            )
            n = len(residual)
            say(f"{who}: mean residual of {name}", residual.mean(), n, "0")
            say(f"{who}: its error, {name}", residual.std() / np.sqrt(n), n)
            say(f"{who}: mean pull of {name}", pull.mean(), n, "-0.1 to 0.1")
            say(f"{who}: sd of pulls of {name}", pull.std(), n, "0.9 to 1.1")
            say(f"{who}: 68 % intervals of {name} hold", within.mean(), n, "0.68")
    report.write(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("results/transient"))
    parser.add_argument(
        "--out", type=Path, default=Path("results/multi/transients.json")
    )
    arguments = parser.parse_args()
    main(arguments.run, arguments.out)
