"""Provenance against repositories made here and sums known in advance."""

import json
import subprocess
from datetime import UTC, datetime, timedelta, timezone

import jax
import numpy as np
import pytest

from blendem.config import RunConfig, config_hash
from blendem.provenance import collect_provenance, describe_git, file_sha256

TIME = datetime(2026, 3, 1, 0, 30, tzinfo=timezone(timedelta(hours=2)))
# FIPS 180-2, appendix B.1: SHA-256 of "abc".
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def git(root, *arguments) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    command = ["git", *name, "-C", str(root), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with one committed module and one lock file."""
    root = tmp_path / "repository"
    for name in ("src/module.py", "envs/requirements.txt", "config/run.yaml"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("abc")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "start")
    return root


def test_commit_and_changed_code_are_seen(repository):
    commit = (repository / ".git" / git(repository, "symbolic-ref", "HEAD")).read_text()
    clean = {"commit": commit.strip(), "dirty": False}
    assert describe_git(repository) == clean

    # Settings and results are not code.
    (repository / "config/run.yaml").write_text("changed")
    (repository / "results").mkdir()
    (repository / "results/catalog.fits").write_text("new")
    assert describe_git(repository) == clean

    (repository / "src/module.py").write_text("changed")
    assert describe_git(repository) == clean | {"dirty": True}
    (repository / "src/module.py").write_text("abc")
    (repository / "src/new.py").write_text("new")
    assert describe_git(repository) == clean | {"dirty": True}


def test_no_commit_is_borrowed_from_an_outer_repository(repository, tmp_path):
    unknown = {"commit": None, "dirty": None}
    assert describe_git(repository / "src") == unknown
    assert describe_git(tmp_path) == unknown
    assert describe_git(tmp_path / "missing") == unknown


def test_nothing_is_known_without_git(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert describe_git(repository) == {"commit": None, "dirty": None}


def test_everything_is_collected_as_json(repository):
    config = RunConfig(run="test", seed=7)
    record = collect_provenance(config, root=repository, time=TIME)
    assert json.loads(json.dumps(record)) == record
    assert record["time"] == "2026-02-28T22:30:00+00:00"
    assert (record["run"], record["seed"]) == ("test", 7)
    assert record["config_hash"] == config_hash(config)
    assert record["config_hash"] != config_hash(RunConfig(run="test", seed=8))
    assert record["lock"] == {"path": "envs/requirements.txt", "sha256": ABC}
    assert record["git"]["commit"] == git(repository, "rev-parse", "HEAD")
    assert record["packages"]["numpy"] == np.__version__
    assert record["packages"]["jax"] == jax.__version__
    assert record["device"]["platform"] == jax.default_backend()
    assert record["device"]["x64"] is True  # conftest.py turns it on


def test_a_missing_package_is_recorded_as_such(repository, monkeypatch):
    monkeypatch.setattr("blendem.provenance.PACKAGES", ("no-such-package-",))
    record = collect_provenance(RunConfig(), root=repository, time=TIME)
    assert record["packages"] == {"no-such-package-": None}


def test_a_naive_time_and_a_missing_lock_are_refused(repository, tmp_path):
    with pytest.raises(
        ValueError, match=r"`time` must have a time zone; got 2026-03-01"
    ):
        collect_provenance(RunConfig(), root=repository, time=TIME.replace(tzinfo=None))
    with pytest.raises(FileNotFoundError, match=r"other\.txt: no such file"):
        collect_provenance(
            RunConfig(), root=repository, time=datetime.now(UTC), lock="other.txt"
        )
    with pytest.raises(FileNotFoundError, match="missing: no such file"):
        file_sha256(tmp_path / "missing")
