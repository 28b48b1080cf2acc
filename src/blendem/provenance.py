"""Where a result comes from: code, settings, environment, device. Used by scripts only."""

import hashlib
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from blendem.config import RunConfig, config_hash

# What decides the values of a result; the lock file names all others.
PACKAGES = (
    "blendem",
    "astropy",
    "equinox",
    "galsim",
    "h5py",
    "jax",
    "jaxlib",
    "numpy",
    "optax",
    "pandas",
    "scipy",
    "sep",
    "snakemake",
)
# A change here changes results; settings are covered by the hash of the configuration.
CODE = ("Snakefile", "envs", "src", "workflow")
LOCK = Path("envs/requirements.txt")


def collect_provenance(
    config: RunConfig, *, root: str | Path, time: datetime, lock: str | Path = LOCK
) -> dict[str, Any]:
    """Describe what makes a result: plain values, ready for JSON.

    Args:
        config: Settings of the run.
        root: Folder of the repository, the one that holds `Snakefile`.
        time: Moment of the run, with a time zone; only the caller reads the clock.
        lock: Lock file of the environment, relative to `root`.

    Returns:
        `run`, `seed`, `time` (UTC, ISO 8601), `config_hash`, `git` (`commit`, `dirty`:
        null outside a repository), `lock` (`path`, `sha256`), `packages`, `python`,
        `platform`, `device`.

    Raises:
        ValueError: If `time` has no time zone.
        FileNotFoundError: If there is no lock file.
    """
    if time.tzinfo is None:
        raise ValueError(
            f"`time` must have a time zone; got {time}. Use datetime.now(UTC)."
        )
    root = Path(root)
    return {
        "run": config.run,
        "seed": config.seed,
        "time": time.astimezone(UTC).isoformat(timespec="seconds"),
        "config_hash": config_hash(config),
        "git": describe_git(root),
        "lock": {"path": str(lock), "sha256": file_sha256(root / lock)},
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": {"system": platform.system(), "machine": platform.machine()},
        "device": describe_device(),
    }


def describe_git(root: str | Path) -> dict[str, str | bool | None]:
    """Commit of the repository `root`, and whether its code differs from it.

    Untracked files of the code count as a difference. Both values are None where `root` is
    not the top of a repository, for example in an unpacked archive, or git is missing.
    """
    root = Path(root)
    top = _git(root, "rev-parse", "--show-toplevel")
    # An archive unpacked inside another repository must not report that one's commit.
    if not top or Path(top).resolve() != root.resolve():
        return {"commit": None, "dirty": None}
    status = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *CODE)
    return {
        "commit": _git(root, "rev-parse", "--verify", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


def describe_device() -> dict[str, str | int | bool]:
    """The device that JAX computes on by default, and its precision."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": jax.device_count(),
        "x64": bool(jax.config.jax_enable_x64),
    }


def file_sha256(path: str | Path) -> str:
    """SHA-256 of the content of a file, hexadecimal.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file, so its sum cannot be recorded; check the path."
        ) from None


def _git(root: Path, *arguments: str) -> str | None:
    """Output of git, or None where it fails or does not exist."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
