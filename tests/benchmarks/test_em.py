"""Errors of what EM closes of a gap."""

import numpy as np
import pandas as pd
import pytest

BLENDS, GALAXIES = 60, 3


@pytest.fixture
def em(load):
    """The script."""
    return load("em")


@pytest.fixture
def runs(tmp_path, rng):
    """Runs whose flux residuals are 0.4 at the start, 0.13 at the end, 0.1 for the oracle."""
    shared = rng.uniform(0.5, 1.5, (BLENDS, 1)) * np.ones((1, GALAXIES))
    sign = rng.choice([-1, 1], (BLENDS, GALAXIES))

    def write(run, lap, residual, inside):
        path = tmp_path / run / "em" / "watch"
        path.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(
            {
                "id": np.tile(np.arange(GALAXIES), BLENDS),
                "blendedness_i": np.tile([0.5, 0.3, 0.0], BLENDS),
                "blend": np.repeat([f"sim_000/{i}" for i in range(BLENDS)], GALAXIES),
                "flux_residual_g": (sign * shared * residual).ravel(),
                "flux_residual_r": (-sign * shared * residual).ravel(),
                "flux_within68_g": np.arange(BLENDS * GALAXIES) < inside,
                "flux_within68_r": np.arange(BLENDS * GALAXIES) < inside,
            }
        )
        table.sample(frac=1, random_state=lap).to_csv(
            path / f"{lap:02d}_sources.csv", index=False
        )
        table[["blend"]].to_csv(path / f"{lap:02d}_blends.csv", index=False)

    write("repair", 0, 0.4, 60)
    write("repair", 2, 0.13, 90)
    write("oracle", 0, 0.1, 108)
    pd.DataFrame({"lap": [0, 2]}).to_csv(tmp_path / "repair/em/laps.csv")
    return tmp_path


def test_errors_are_those_of_pairs(em, runs):
    report = em.Report("make em")
    em.report_pairs(report, "repair", runs / "repair", runs / "oracle")
    value = {row["name"]: row["value"] for row in report.rows}
    n = {row["name"]: row["n"] for row in report.rows}
    closed = "repair: part of the gap closed, flux_residual_blended"
    assert value[f"{closed}, same galaxies"] == pytest.approx(0.9)
    assert (
        n[f"{closed}, same galaxies"] == 2 * BLENDS
    )  # of three galaxies, two are blended
    # All residuals of a blend are larger alike: their ratio has no error, means alone have one.
    assert value[f"{closed}, error by bootstrap of blends"] < 1e-9
    cover = "repair: 68 % coverage, end minus oracle"
    assert value[f"{cover}, same galaxies"] == pytest.approx(-0.1)
    part = 18 / (BLENDS * GALAXIES)  # six whole blends differ
    expected = (part * (1 - part) / BLENDS) ** 0.5
    assert value[f"{cover}, error by bootstrap of blends"] == pytest.approx(
        expected, rel=0.1
    )


def test_galaxies_that_one_run_lacks_are_left_out(em, runs):
    path = runs / "oracle/em/watch/00_sources.csv"
    table = pd.read_csv(path)
    table[table["blend"] != "sim_000/3"].to_csv(path, index=False)
    report = em.Report("make em")
    em.report_pairs(report, "repair", runs / "repair", runs / "oracle")
    assert report.rows[0]["n"] == 2 * (BLENDS - 1)
