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


def planned(folder, *settings):
    """Number of jobs of each rule of smoke_field."""
    whole = [*command(folder, "smoke_field"), *settings, "--dry-run"]
    done = subprocess.run(whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    words = [line.split() for line in (done.stdout + done.stderr).splitlines()]
    return {w[0]: int(w[1]) for w in words if len(w) == 2 and w[1].isdigit()}


def test_a_large_field_is_cut_into_tiles(tmp_path):
    """A job per tile, or as many as `chunks` says; what fits stays whole."""
    jobs = planned(tmp_path, "chunks=null")
    assert jobs["tile_sim_000"] == jobs["gather_sim_000"] == 1
    assert jobs["extract_blends"] == 4
    jobs = planned(tmp_path, "tiles={size: 200}")
    assert jobs["extract_blends"] == 1
    assert not [name for name in jobs if "tile" in name or "gather" in name]
