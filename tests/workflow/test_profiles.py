"""Profiles for clusters, as far as they can be checked without one; `make slurm` does the rest."""

import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yte
from tests.workflow.command import ROOT, snakemake

PROFILES = ROOT / "workflow" / "profiles"
CLUSTERS = ["slurm", "slurm-generic"]
VARIABLES = ["ACCOUNT", "PARTITION", "GPU", "GPU_PARTITION"]
# One chunk of the smallest run: named after a number, and so in no profile.
PER_CHUNK = re.compile(r"(measure|measure_dust|fit_map)_\d+")


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    """What the user's environment says about a cluster does not count."""
    for name in VARIABLES:
        monkeypatch.delenv(f"BLENDEM_SLURM_{name}", raising=False)


def read(name: str) -> dict:
    """A profile as Snakemake sees it."""
    with (PROFILES / name / "config.yaml").open() as file:
        return yte.process_yaml(file, require_use_yte=True)


def rules_of_the_workflow() -> set[str]:
    """Names of all rules, whichever run has them."""
    text = "".join(p.read_text() for p in (ROOT / "workflow/rules").glob("*.smk"))
    return set(re.findall(r"^ *rule (\w+):", text, flags=re.M))


def plan(folder: Path, run: str, name: str) -> str:
    """What a dry run prints."""
    configfile = ROOT / f"config/{run}.yaml"
    options = ("--workflow-profile", str(PROFILES / name), "--dry-run")
    # A dry run without cores counts one, and grants no job more.
    words = snakemake(folder, configfile, *options, cores=64)
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def resources_of(text: str) -> dict[str, dict[str, str]]:
    """Resources of every job in a plan, by rule, and its threads."""
    found = {}
    for block in re.split(r"^ *\[.*\]$", text, flags=re.M)[1:]:
        rule = re.search(r"^ *(?:rule|localrule) (\w+):", block, flags=re.M)
        line = re.search(r"^ *resources: (.*)$", block, flags=re.M)
        if rule and line:
            found[rule[1]] = dict(
                item.split("=", 1) for item in line[1].split(", ") if "=" in item
            )
            threads = re.search(r"^ *threads: (\d+)$", block, flags=re.M)
            found[rule[1]]["threads"] = threads[1] if threads else "1"
    return found


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_profile_names_rules_that_exist_and_all_of_them(name):
    profile, rules = read(name), rules_of_the_workflow()
    assert {"train_prior", "plot_field", "em_watch"} <= rules
    assert profile["set-resources"].keys() == rules
    assert profile["set-threads"].keys() <= rules
    assert profile["groups"].keys() <= rules
    for rule, asked in profile["set-resources"].items():
        for resource in ("mem_mb", "runtime"):
            # The second attempt gets more.
            one, two = (eval(asked[resource], {"attempt": n}) for n in (1, 2))
            assert 0 < one < two, f"{rule}: {resource}: {asked[resource]}"
    assert profile["retries"] >= 1
    assert set(profile["groups"].values()) >= profile["group-components"].keys()


def test_both_profiles_ask_for_the_same():
    one, two = map(read, CLUSTERS)
    assert one.pop("executor") != two.pop("executor")
    own = re.compile("slurm-|cluster-generic-|seconds-between-status-checks")
    common = [{k: v for k, v in p.items() if not own.match(k)} for p in (one, two)]
    assert len(common[0]) > 10
    assert common[0] == common[1]


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_gpu_is_asked_for_only_where_there_is_one(name, monkeypatch):
    asked = [
        *read(name)["set-resources"].values(),
        read(name)["default-resources"],
    ]
    assert all(eval(a.get("gres", "''")) == "" for a in asked)
    assert all(eval(a.get("slurm_partition", "''")) == "" for a in asked)
    monkeypatch.setenv("BLENDEM_SLURM_GPU", "gpu:a100:1")
    monkeypatch.setenv("BLENDEM_SLURM_PARTITION", "all")  # a function of Python's
    monkeypatch.setenv("BLENDEM_SLURM_GPU_PARTITION", "fast")
    monkeypatch.setenv("BLENDEM_SLURM_ACCOUNT", "astro")
    profile = read(name)
    default, rules = profile["default-resources"], profile["set-resources"]
    assert eval(default["slurm_account"]) == "astro"
    assert eval(default["slurm_partition"]) == "all"
    assert eval(default["gres"]) == ""
    for rule in ("train_prior", "sample_posterior", "em_expectation"):
        assert eval(rules[rule]["gres"]) == "gpu:a100:1"
        assert eval(rules[rule]["slurm_partition"]) == "fast"
    assert "gres" not in rules["plot_field"] and "gres" not in rules["score"]
    # The usual partition has GPUs where no other is named.
    monkeypatch.delenv("BLENDEM_SLURM_GPU_PARTITION")
    assert eval(read(name)["set-resources"]["em_split"]["slurm_partition"]) == "all"


# Both ask for the same, see above.
@pytest.mark.parametrize(
    "name, run",
    [("slurm", "smoke"), ("slurm", "smoke_dust"), ("slurm-generic", "smoke_em")],
)
def test_every_job_of_a_plan_has_memory_time_and_cores(tmp_path, name, run):
    text = plan(tmp_path, run, name)
    jobs = resources_of(text)
    assert "extract_blends" in jobs and any(map(PER_CHUNK.fullmatch, jobs))
    assert not any(job["mem_mb"] == "<TBD>" for job in jobs.values())
    profile = read(name)
    for rule, job in jobs.items():
        asked = profile["set-resources"].get(rule, profile["default-resources"])
        assert (
            PER_CHUNK.fullmatch(rule)
            or rule in profile["set-resources"]
            or (rule == "all")
        )
        assert int(job["mem_mb"]) == eval(asked["mem_mb"], {"attempt": 1})
        assert int(job["runtime"]) == eval(asked["runtime"], {"attempt": 1})
        # Not those of the machine that plans.
        assert int(job["threads"]) == profile["set-threads"].get(rule, 1), rule


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Put a program on the path that writes its arguments to `<name>.args`, and then something."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(name: str, says: str = "") -> Path:
        arguments = tmp_path / f"{name}.args"
        program = tmp_path / name
        # Complaints go where those of Slurm go.
        end = ">&2; exit 1" if "error:" in says else ""
        program.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$@\" >{arguments}\n"
            f"if test -n '{says}'; then echo '{says}' {end}; fi\n"
        )
        program.chmod(0o755)
        return arguments

    return make


@pytest.mark.parametrize(
    "squeue, sacct, expected",
    [
        ("RUNNING", "", "running"),
        ("PENDING", "", "running"),
        ("COMPLETING", "", "running"),
        ("COMPLETED", "", "success"),
        ("FAILED", "", "failed"),
        ("OUT_OF_MEMORY", "", "failed"),
        ("CANCELLED", "", "failed"),
        ("TIMEOUT", "", "failed"),
        # The controller does not answer: nothing is known yet.
        ("slurm_load_jobs error: Unable to contact slurm controller", "", "running"),
        # squeue has forgotten it.
        ("slurm_load_jobs error: Invalid job id specified", "COMPLETED", "success"),
        ("slurm_load_jobs error: Invalid job id specified", "CANCELLED by 0", "failed"),
        ("slurm_load_jobs error: Invalid job id specified", "", "failed"),
        ("", "COMPLETED", "success"),
    ],
)
def test_states_of_slurm_are_understood(tool, squeue, sacct, expected):
    arguments = tool("squeue", squeue)
    tool("sacct", sacct)
    command = read("slurm-generic")["cluster-generic-status-cmd"]
    # As the plugin calls it.
    words = f"{command} '17'"
    done = subprocess.run(words, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
    assert "--jobs=17" in arguments.read_text().split()


def test_options_that_are_empty_are_left_out(tool, tmp_path):
    arguments = tool("sbatch", "17")
    command = read("slurm-generic")["cluster-generic-submit-cmd"]

    def submit(**more: str) -> list[str]:
        asked = {"slurm_account": "", "slurm_partition": "", "gres": ""} | more
        text = command.format(
            CONFIG=SimpleNamespace(run="mine"),
            name="score",
            threads=4,
            resources=SimpleNamespace(mem_mb=3000, runtime=20, **asked),
        )
        words = f'{text} "jobscript.sh"'
        done = subprocess.run(
            words, shell=True, capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert done.stdout == "17\n"
        return arguments.read_text().splitlines()

    plain = submit()
    assert {"--cpus-per-task=4", "--mem=3000", "--time=20"} <= set(plain)
    assert plain[-1] == "jobscript.sh"
    asked = submit(slurm_partition="fast", gres="gpu:a100:1")
    assert set(asked) - set(plain) == {"--partition=fast", "--gres=gpu:a100:1"}
    assert (tmp_path / ".snakemake" / "slurm_logs").is_dir()


def test_a_run_on_this_machine_still_divides_its_cores(tmp_path):
    jobs = resources_of(plan(tmp_path, "smoke_em", "default"))
    # Two chunks.
    assert jobs["measure_0"]["threads"] == jobs["em_split"]["threads"] == "32"
    assert jobs["score"]["threads"] == "1"
