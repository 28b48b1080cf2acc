"""Priors that come with the project: sound files, and runs that need no training."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.workflow.command import ROOT, snakemake

from blendem.io.priors import read_prior
from blendem.io.ship import LARGEST, ship
from blendem.io.table import InputError
from blendem.plot.inputs import prior_images

PRIORS = sorted((ROOT / "priors").glob("*.eqx"))


def plan_of(folder: Path, settings: dict) -> str:
    config = folder / "run.yaml"
    config.write_text(json.dumps(settings))
    done = subprocess.run(
        snakemake(folder, config, "--dry-run"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_both_surveys_have_one():
    assert [path.stem for path in PRIORS] == ["hsc_grizy", "hst_f814w"]


@pytest.mark.parametrize("path", PRIORS, ids=lambda p: p.stem)
def test_it_is_small_and_says_how_it_was_made(path):
    assert path.stat().st_size <= LARGEST
    prior, card = read_prior(path)
    assert card["command"] == "make priors"
    assert card["stamps_sha256"] and card["validation"] and card["settings"]
    # It denoises better than the Gaussian of the same moments at every level.
    assert max(card["validation"][-1]["ratio"]) < 0.8
    assert path.stem.split("_")[1] in ("".join(prior.basis.bands), *prior.basis.bands)


@pytest.mark.parametrize("path", PRIORS, ids=lambda p: p.stem)
def test_its_galaxies_look_like_galaxies(path, key):
    """Draws are bright in the middle, and few pixels are darker than the sky."""
    prior, _ = read_prior(path)
    reference = prior_images(prior, 200, key=key)[:, len(prior.basis.bands) // 2]
    middle = reference.shape[-1] // 2
    inner = reference[:, middle - 2 : middle + 3, middle - 2 : middle + 3]
    assert (inner.mean((1, 2)) > 5 * reference.mean((1, 2))).mean() > 0.9
    negative = -np.minimum(reference, 0).sum((1, 2))
    assert np.median(negative / np.abs(reference).sum((1, 2))) < 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"prior": "shipped"},
        {
            "prior": "shipped",
            "simulate": {"instrument": "hst_f814w"},
            "frame": {"stamp": 97},
            "infer": {"reference_band": "f814w"},
            "plot": {"rgb": ["f814w"]},
        },
    ],
    ids=["hsc", "hst"],
)
def test_a_run_with_one_needs_no_training_stamps(tmp_path, settings):
    plan = plan_of(tmp_path, settings)
    assert "rule fit_basis" in plan and "rule sample_posterior" in plan
    assert "rule simulate_stamps" not in plan


def test_what_is_too_large_is_not_shipped(tmp_path, monkeypatch):
    """The file that was there before stays."""
    path = tmp_path / "prior.eqx"
    path.write_bytes(b"before")
    monkeypatch.setattr("blendem.io.ship.LARGEST", 1000)
    with pytest.raises(InputError, match="in compact form"):
        ship(PRIORS[0], path, "make priors")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
