"""The whole workflow, killed at random moments and started again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

ROOT = Path(__file__).parents[2]
KILLS = 3
# Without the cache of compiled programs, or the second run would be faster than the first.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}


def command(folder: Path, run: str) -> list[str]:
    return [
        str(Path(sys.executable).parent / "snakemake"),
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--directory",
        str(folder),
        "--cores",
        "2",
        "--rerun-incomplete",
        "--configfile",
        str(ROOT / "config/smoke.yaml"),
        "--config",
        f"run={run}",
    ]


def finish(folder: Path, run: str) -> float:
    """Run to the end; seconds it took."""
    subprocess.run(
        [*command(folder, run)[:-2], "--unlock", *command(folder, run)[-2:]],
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


def read(folder: Path, run: str) -> Table:
    (path,) = (folder / "results" / run / "catalog").glob("*.fits")
    return Table.read(path, hdu=1)


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
def test_a_killed_run_ends_with_the_same_catalog(tmp_path, rng):
    """SIGKILL to the process group at three random moments of a run."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    seconds = finish(whole, "smoke")
    kills = 0
    for moment in np.sort(rng.uniform(0.05, 0.8, KILLS)):
        process = subprocess.Popen(
            command(killed, "smoke"),
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
        assert_complete(killed, "smoke")
        lock = killed / ".snakemake" / "locks"
        shutil.rmtree(lock, ignore_errors=True)
    assert kills == KILLS, f"only {kills} kills hit a running workflow"
    finish(killed, "smoke")
    expected, got = read(whole, "smoke"), read(killed, "smoke")
    assert expected.colnames == got.colnames
    for name in expected.colnames:
        np.testing.assert_array_equal(expected[name], got[name], err_msg=name)
