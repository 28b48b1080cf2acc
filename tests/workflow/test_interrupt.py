"""The whole workflow, killed at random moments and started again."""

import json
import os
import re
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
SHARE = 0.22  # largest part of the jobs that one start may finish


def command(folder: Path, run: str, *options: str) -> list[str]:
    config = ROOT / f"config/{run}.yaml"
    more = ("--rerun-incomplete", *options, "--config", f"run={run}")
    return snakemake(folder, config, *more)


def finish(folder: Path, run: str) -> int:
    """Run to the end; number of jobs."""
    subprocess.run(command(folder, run, "--unlock"), check=True, capture_output=True)
    done = subprocess.run(command(folder, run), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = re.findall(r"(\d+) of (\d+) steps", done.stdout + done.stderr)
    assert steps and steps[-1][0] == steps[-1][1]
    return int(steps[-1][1])


def kill(folder: Path, run: str, jobs: int, delay: float) -> bool:
    """SIGKILL to the process group `delay` seconds after `jobs` jobs; whether it was running."""
    process = subprocess.Popen(
        command(folder, run),
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    done, lines = 0, []
    while done < jobs and (line := process.stdout.readline()):
        lines.append(line)
        if step := re.match(r"(\d+) of \d+ steps", line):
            done = int(step[1])
    time.sleep(delay)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()
    assert done == jobs, "".join(lines)[-3000:]
    return running


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
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("run", ["smoke", "smoke_em", "smoke_unet"])
def test_a_killed_run_ends_with_the_same_catalog(tmp_path, rng, run):
    """SIGKILL to the process group at three random moments of a run, in the middle of a job."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    jobs = finish(whole, run)
    kills = 0
    for _ in range(KILLS):
        few = int(rng.integers(1, SHARE * jobs))
        kills += kill(killed, run, few, rng.uniform(0, 4))
        assert_complete(killed, run)
        lock = killed / ".snakemake" / "locks"
        shutil.rmtree(lock, ignore_errors=True)
    assert kills == KILLS, f"only {kills} kills hit a running workflow"
    finish(killed, run)
    assert_same(whole, killed, run)
    if run == "smoke_em":
        more = [*command(whole, run), "em={laps: 3}", "--dry-run"]
        plan = subprocess.run(more, capture_output=True, text=True)
        text = plan.stdout + plan.stderr
        # Two chunks of the new lap, and nothing of the old ones.
        jobs = [line.split() for line in text.splitlines()]
        assert ["em_expectation", "2"] in jobs and ["em_maximization", "1"] in jobs
        assert not any(job[:1] == ["compute_statistics"] for job in jobs)
