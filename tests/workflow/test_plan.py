"""What Snakemake plans, without running it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def plan(folder: Path, *config: str, target: str) -> str:
    """Output of a dry run of the smallest run with EM."""
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "snakemake"),
            *("--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)),
            *("--cores", "2", "--configfile", str(ROOT / "config/smoke_em.yaml")),
            *("--dry-run", "--config", "run=plan", *config, "--", target),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_only_some_laps_are_looked_at(tmp_path):
    """Every second one, and the last."""
    table = "results/plan/em/laps.csv"
    text = plan(tmp_path, "em={laps: 3, watch_every: 2}", target=table)
    looked = [lap for lap in range(4) if f"em/watch/{lap:02d}.csv" in text]
    assert looked == [0, 2, 3]
    jobs = [line.split() for line in text.splitlines()]
    # All laps are computed.
    assert ["em_maximization", "3"] in jobs and ["em_watch", "3"] in jobs
