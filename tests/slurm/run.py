"""The workflow on a real Slurm, disturbed as clusters disturb it: `make slurm`.

    python -m tests.slurm.run [--out results/slurm] [--config smoke] [--only 0 1 2]

A Slurm of one node is started (`cluster.sh`), and every catalog is compared with that of a run
without it. Both profiles of the workflow are used as they are, but for cores, waiting times and,
where said so, too little memory for one rule.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from astropy.table import Table
from tests.workflow.command import ROOT, snakemake
from tests.workflow.test_interrupt import assert_complete, assert_same

CLUSTER = Path(__file__).parent / "cluster.sh"
PROFILES = ROOT / "workflow" / "profiles"
CORES = 2
# Of the node, for the profiles.
ENVIRONMENT = {
    "BLENDEM_SLURM_PARTITION": "cpu",
    "BLENDEM_SLURM_GPU": "gpu:1",
    "BLENDEM_SLURM_GPU_PARTITION": "gpu",
}
# Asks for a GPU; gets too little memory at first where jobs are disturbed.
JAX_RULE = "compute_statistics"
TOO_LITTLE, ENOUGH = 200, 4000  # MB; importing JAX takes more than the first
CANCELLED_RULE = "fit_basis"
# The process that submits jobs ends while this one runs.
LAST_RULE = "sample_posterior"
SCORES = "results/{run}/scores/sources.csv"
PATIENCE = 1800  # seconds for a job to start, and for a run to end
POLL = 0.2


def call(*words: object) -> str:
    """What a command prints; its complaint if it fails."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A Slurm that ends with the block."""
    try:
        call(CLUSTER, "start", folder)
        yield
    finally:
        call(CLUSTER, "stop", folder)


def jobs() -> list[dict[str, str]]:
    """All jobs that Slurm knows, oldest first, as `scontrol show job` describes them."""
    lines = call("scontrol", "show", "job", "--oneliner").splitlines()
    found = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]
    return sorted((j for j in found if "JobId" in j), key=lambda job: int(job["JobId"]))


def of_rule(found: list[dict[str, str]], rule: str) -> list[dict[str, str]]:
    """Jobs of a rule. Both profiles put its name into the comment, one of them with more."""
    name = re.compile(rf"(rule_)?{rule}(_wildcards_.*)?")
    return [job for job in found if name.fullmatch(job.get("Comment", ""))]


def profile(name: str, folder: Path, memory: Mapping[str, str]) -> Path:
    """Profile `name` for the small node; `memory` (`mem_mb`) is another one for some rules."""
    path = PROFILES / name / "config.yaml"
    # Expressions of the profile stay what they are: strings with a question mark.
    settings = yaml.safe_load(path.read_text())
    settings["max-threads"] = CORES
    settings["latency-wait"] = 10
    settings["seconds-between-status-checks"] = 3
    if name == "slurm":
        settings["slurm-init-seconds-before-status-checks"] = 3
        settings["slurm-keep-successful-logs"] = True
    for rule, mem_mb in memory.items():
        settings["set-resources"][rule] |= {"mem_mb": mem_mb}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder


class Run:
    """A run of the workflow in a folder of its own."""

    def __init__(
        self, folder: Path, config: str, profile: Path | None = None, target: str = ""
    ) -> None:
        self.folder, self.config = folder, config
        self.log = folder.with_suffix(".log")
        shutil.rmtree(folder, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        folder.mkdir(parents=True)
        options = ["--workflow-profile", profile or "none"]
        self.words = snakemake(
            folder,
            ROOT / f"config/{config}.yaml",
            *options,
            cores=None if profile else CORES,
        )
        if target:
            self.words += ["--", target]
        self.seconds = 0.0
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Begin, or go on."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.words,
                stdout=log,
                stderr=log,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Stop the test if the run failed."""
        if self.process.poll():
            tail = "\n".join(self.log.read_text().splitlines()[-40:])
            raise SystemExit(f"{self.folder}: the run failed:\n{tail}\nsee {self.log}")

    def finish(self) -> None:
        """Wait until everything is made."""
        begin = time.monotonic()
        self.process.wait(timeout=PATIENCE)
        self.check()
        self.seconds += time.monotonic() - begin

    def running(self, rule: str) -> dict[str, str]:
        """The first job of a rule, as soon as it runs."""
        begin = time.monotonic()
        while time.monotonic() - begin < PATIENCE:
            self.check()
            for job in of_rule(self.jobs(), rule):
                if job["JobState"] == "RUNNING":
                    self.seconds += time.monotonic() - begin
                    return job
            time.sleep(POLL)
        raise SystemExit(f"{self.folder}: no job of {rule} ran within {PATIENCE} s")

    def jobs(self) -> list[dict[str, str]]:
        """Those of this run."""
        return [job for job in jobs() if job.get("WorkDir") == str(self.folder)]

    def names(self) -> set[str]:
        """Job names, by which `scancel` finds those whose submitter is gone."""
        return {job["JobName"] for job in self.jobs()}

    def open_jobs(self) -> list[dict[str, str]]:
        """Those that wait or run."""
        waiting = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}
        return [job for job in self.jobs() if job["JobState"] in waiting]


def expect(condition: object, message: str, found: object = "") -> None:
    """A check of the test."""
    if not condition:
        raise SystemExit(f"FAILED: {message}\n{found}")
    print(f"  {message}", flush=True)


def megabytes(job: dict[str, str]) -> int:
    """Memory that a job asked for."""
    number, unit = re.fullmatch(r"([\d.]+)([MG])", job["MinMemoryNode"]).groups()
    return round(float(number) * {"M": 1, "G": 1024}[unit])


def check_requests(run: Run) -> None:
    """Every job asked for memory and time, JAX for a GPU, groups for one core."""
    done = [job for job in run.jobs() if job["JobState"] == "COMPLETED"]
    for job in done:
        limit = job["TimeLimit"]
        expect(
            megabytes(job) >= 2000 and limit not in ("UNLIMITED", "365-00:00:00"),
            f"{job['Comment']}: {megabytes(job)} MB, {limit}, {job['NumCPUs']} cores",
            job,
        )
    for job in of_rule(done, JAX_RULE):
        asked = job.get("TresPerNode", "") + job.get("TresPerJob", "")
        expect(
            "gpu:1" in asked and job["Partition"] == "gpu",
            f"{JAX_RULE} asked for a GPU: {asked}, partition {job['Partition']}",
            job,
        )
    plain = [job for job in of_rule(done, CANCELLED_RULE) if "TresPerNode" in job]
    expect(not plain, f"{CANCELLED_RULE} asked for none", plain)


def check_cancelled(run: Run, number: str) -> None:
    """A job that was killed by hand was sent again."""
    states = [(j["JobId"], j["JobState"]) for j in of_rule(run.jobs(), CANCELLED_RULE)]
    expect(
        (number, "CANCELLED") in states and states[-1][1] == "COMPLETED",
        f"{CANCELLED_RULE} was cancelled and sent again: {states}",
    )


def check_memory(run: Run) -> None:
    """A job over its memory was killed and asked for more."""
    found = of_rule(run.jobs(), JAX_RULE)
    history = [(megabytes(job), job["JobState"]) for job in found]
    expect(
        history[0][1] in ("FAILED", "OUT_OF_MEMORY")
        and history[-1] == (ENOUGH, "COMPLETED"),
        f"{JAX_RULE} was killed for its memory and sent again: {history}",
    )
    text = Path(found[0]["StdOut"]).read_text(errors="replace")
    expect("memory limit" in text, "Slurm names the reason in the log of the job", text)


def disturb(run: Run, how: signal.Signals) -> str:
    """Cancel a job, run out of memory, end the process that submits; the cancelled job."""
    run.start()
    victim = run.running(CANCELLED_RULE)["JobId"]
    call("scancel", victim)
    run.running(LAST_RULE)
    if how == signal.SIGKILL:
        os.killpg(run.process.pid, how)
        run.process.wait()
        expect(run.open_jobs(), "jobs outlive a process that was killed")
        # As docs/clusters.md says.
        for name in run.names():
            call("scancel", "--name", name)
    else:
        run.process.send_signal(how)
        run.process.wait(timeout=PATIENCE)
    begin = time.monotonic()
    while run.open_jobs() and time.monotonic() - begin < 60:
        time.sleep(POLL)
    expect(not run.open_jobs(), f"no job is left after {how.name}", run.open_jobs())
    assert_complete(run.folder, run.config)
    made = {job["JobId"] for job in run.jobs() if job["JobState"] == "COMPLETED"}
    call(run.words[0], "--unlock", *run.words[1:])
    run.start()
    run.finish()
    again = [job for job in run.jobs() if int(job["JobId"]) > max(map(int, made))]
    repeated = of_rule(again, CANCELLED_RULE) + of_rule(again, JAX_RULE)
    expect(not repeated, "the second start repeats nothing that was finished", repeated)
    return victim


def compare(local: Run, run: Run) -> int:
    """Numbers of the catalogs, which are the same, bit by bit."""
    assert_same(local.folder, run.folder, run.config)
    scores = SCORES.format(run=run.config)
    expect(
        (local.folder / scores).read_bytes() == (run.folder / scores).read_bytes(),
        f"{run.folder.name}: catalogs and scores are those of the local run",
    )
    catalogs = (run.folder / "results" / run.config / "catalog").glob("*.fits")
    tables = [Table.read(path, hdu=1) for path in catalogs]
    return sum(len(t) * len(t.colnames) for t in tables)


def main(
    out: Path, config: str, runs: list[tuple[str, signal.Signals | None, str]]
) -> None:
    """Run everything; `summary.json` says what was checked."""
    # Started in the background, a shell has it ignored, and what is started here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []

    def say(name: str, value: float, unit: str, **more: Any) -> None:
        rows.append(dict(name=name, value=value, unit=unit, **more))
        print(f"{name}: {value:.4g} {unit}", flush=True)

    local = Run(out / "local", config)
    local.start()
    local.finish()
    say("local/time", local.seconds, "s", checks=["reference"])
    with cluster(out / "cluster"):
        for name, how, target in runs:
            kind = how.name if how else "undisturbed"
            print(f"{name}, {kind}", flush=True)
            memory = {JAX_RULE: f"{TOO_LITTLE} if attempt == 1 else {ENOUGH}"}
            given = profile(
                name, out / "profiles" / f"{name}_{kind}", memory if how else {}
            )
            run = Run(out / f"{name}_{kind}", config, given, target.format(run=config))
            checks = ["memory, time, cores and GPU that every job asked for"]
            if how is None:
                run.start()
                run.finish()
            else:
                victim = disturb(run, how)
                check_cancelled(run, victim)
                check_memory(run)
                checks += [
                    "a job cancelled by hand is sent again",
                    "a job over its memory is sent again with more",
                    f"goes on after {how.name} of the submitting process",
                ]
            check_requests(run)
            numbers = compare(local, run)
            checks.append("catalogs and scores equal those of the local run")
            say(f"{name}/{kind}/time", run.seconds, "s", checks=checks)
            say(f"{name}/{kind}/jobs", len(run.jobs()), "1")
            say(f"{name}/{kind}/equal_numbers", numbers, "1")
        slurm = call("sinfo", "--version").split()[-1]
    versions = {
        package: version(package)
        for package in (
            "snakemake",
            "snakemake-executor-plugin-slurm",
            "snakemake-executor-plugin-cluster-generic",
        )
    }
    for row in rows:
        row |= {"command": "make slurm", "versions": versions | {"slurm": slurm}}
    summary = out / "summary.json"
    old = json.loads(summary.read_text()) if summary.exists() else []
    new = {row["name"] for row in rows}
    rows = [row for row in old if row["name"] not in new] + rows
    summary.write_text(json.dumps(rows, indent=1) + "\n")


# Profile, the signal that ends the submitting process, and what is made if not everything.
RUNS = (
    ("slurm", None, ""),
    ("slurm", signal.SIGKILL, SCORES),
    ("slurm-generic", signal.SIGINT, ""),
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "slurm")
    parser.add_argument("--config", default="smoke")
    parser.add_argument(
        "--only",
        type=int,
        nargs="+",
        choices=range(len(RUNS)),
        default=range(len(RUNS)),
        help="numbers of runs; the others' results stay",
    )
    given = parser.parse_args()
    main(given.out.resolve(), given.config, [RUNS[i] for i in given.only])
