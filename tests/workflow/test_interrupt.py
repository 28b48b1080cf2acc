"""The whole workflow, killed at random moments and started again."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table
from tests.workflow.command import ROOT, snakemake

KILLS = 3
# Without the cache of compiled programs, or the second run would be faster than the first.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}


def command(folder: Path, run: str, *options: str) -> list[str]:
    config = ROOT / f"config/{run}.yaml"
    more = ("--rerun-incomplete", *options, "--config", f"run={run}")
    return snakemake(folder, config, *more)


def finish(folder: Path, run: str) -> float:
    """Run to the end; seconds it took."""
    subprocess.run(
        command(folder, run, "--unlock"),
        check=True,
        capture_output=True,
        env=ENVIRONMENT,
    )
    start = time.monotonic()
    done = subprocess.run(
        command(folder, run), capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return time.monotonic() - start


def assert_same(one: Path, two: Path, run: str) -> None:
    """Same catalogs and, with EM, same numbers lap by lap."""
    catalogs = sorted((one / "results" / run / "catalog").glob("*.fits"))
    assert catalogs
    for path in catalogs:
        expected = Table.read(path, hdu=1)
        got = Table.read(two / path.relative_to(one), hdu=1)
        assert expected.colnames == got.colnames
        for name in expected.colnames:
            np.testing.assert_array_equal(expected[name], got[name], err_msg=name)
    laps = [folder / "results" / run / "em" / "laps.csv" for folder in (one, two)]
    if laps[0].exists():
        expected, got = (
            table.drop(columns=[c for c in table if c.endswith("_seconds")])
            for table in map(pd.read_csv, laps)
        )
        pd.testing.assert_frame_equal(expected, got)


def assert_complete(folder: Path, run: str) -> None:
    """Every file that stands under its final name can be read."""
    results = folder / "results" / run
    for path in results.rglob("*.fits"):
        if not path.name.startswith("."):
            with fits.open(path) as hdus:
                hdus.verify("exception")
                for hdu in hdus:
                    assert hdu.data is not None or hdu.name == "PRIMARY"
    for path in results.glob("*.json"):
        json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("run", ["smoke", "smoke_em", "smoke_unet"])
def test_a_killed_run_ends_with_the_same_catalog(tmp_path, rng, run):
    """SIGKILL to the process group at three random moments of a run."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    seconds = finish(whole, run)
    kills = 0
    for moment in np.sort(rng.uniform(0.05, 0.8, KILLS)):
        process = subprocess.Popen(
            command(killed, run),
            start_new_session=True,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Later starts have less to do: the moment is a part of what is left.
        time.sleep(max(5.0, moment * seconds * 0.35))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        assert_complete(killed, run)
        lock = killed / ".snakemake" / "locks"
        shutil.rmtree(lock, ignore_errors=True)
    assert kills == KILLS, f"only {kills} kills hit a running workflow"
    finish(killed, run)
    assert_same(whole, killed, run)
    if run == "smoke_em":
        more = [*command(whole, run), "em={laps: 3}", "--dry-run"]
        plan = subprocess.run(more, capture_output=True, text=True, env=ENVIRONMENT)
        text = plan.stdout + plan.stderr
        # Two chunks of the new lap, and nothing of the old ones.
        jobs = [line.split() for line in text.splitlines()]
        assert ["em_expectation", "2"] in jobs and ["em_maximization", "1"] in jobs
        assert not any(job[:1] == ["compute_statistics"] for job in jobs)
