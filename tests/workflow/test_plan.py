"""What Snakemake plans, without running it."""

import subprocess

from tests.workflow.test_interrupt import command


def test_only_some_laps_are_looked_at(tmp_path):
    """Every second one, and the last."""
    whole = [*command(tmp_path, "smoke_em"), "em={laps: 3, watch_every: 2}"]
    whole += ["--dry-run", "--", "results/smoke_em/em/laps.csv"]
    done = subprocess.run(whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    text = done.stdout + done.stderr
    looked = [lap for lap in range(4) if f"em/watch/{lap:02d}.csv" in text]
    assert looked == [0, 2, 3]
    jobs = [line.split() for line in text.splitlines()]
    # All laps are computed.
    assert ["em_maximization", "3"] in jobs and ["em_watch", "3"] in jobs
