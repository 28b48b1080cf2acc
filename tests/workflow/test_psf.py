"""A field whose table names the PSF models of its bands."""

import subprocess

import numpy as np
import pytest
import yaml
from tests.psfex import psf_at_x, write_psfex
from tests.workflow.command import ROOT, snakemake

from blendem.config import FrameConfig, SimulateConfig
from blendem.io.bands import ModelBands
from blendem.io.blends import read_blends
from blendem.io.products import read_table
from blendem.io.table import InputError

SHAPE = (96, 200)
BANDS = "grizy"


@pytest.fixture
def command(tmp_path, script):
    """A field of three blends, its table, and the run that it is for."""
    script("simulate_field").main(
        tmp_path / "a.fits",
        [],
        tmp_path / "truth.h5",
        SimulateConfig(shape=SHAPE, mode="blends", n_blends=3, mag_limit=23.0),
        FrameConfig(stamp=25),
        np.random.default_rng(3),
    )
    models = [write_psfex(tmp_path / f"{band}.psf", SHAPE) for band in BANDS]
    names = ",".join(path.name for path in models)
    table = tmp_path / "fields.tsv"
    table.write_text(f"field\tinstrument\tpath\tpsf\na\thsc_deep\ta.fits\t{names}\n")
    settings = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text())
    settings |= {"run": "psf", "fields": str(table), "frame": {"stamp": 25}}
    settings["prior"] = {"tier": "gaussian", "modes": 8}
    settings["stamps"]["n"] = 50
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(settings))
    return snakemake(tmp_path, config)


def run(command, *options) -> tuple[int, str]:
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_plan_has_the_models_and_names_one_that_is_missing(command, tmp_path):
    code, plan = run(command, "--dry-run")
    assert code == 0, plan[-3000:]
    for rule in ("check_inputs", "extract_blends"):
        inputs = plan.split(f"rule {rule}:")[1].split("input:")[1].splitlines()[0]
        assert all(f"{tmp_path}/{band}.psf" in inputs for band in BANDS)
    (tmp_path / "r.psf").unlink()
    code, message = run(command, "--dry-run")
    assert code != 0
    assert f"field a: PSF model {tmp_path / 'r.psf'} does not exist" in message


def test_a_bad_model_is_found_before_anything_runs(command, script, tmp_path):
    write_psfex(tmp_path / "z.psf", SHAPE, mask=np.nan)
    with pytest.raises(InputError, match=r"field a.*z\.psf \(band z\): holds NaN"):
        script("check_inputs").main(
            str(tmp_path / "fields.tsv"),
            tmp_path / "c.json",
            ModelBands(tuple(BANDS), "frame.bands", (), "i"),
        )
    assert not (tmp_path / "c.json").exists()


@pytest.mark.slow
def test_the_whole_workflow_with_a_psf_that_varies(command, tmp_path):
    code, text = run(command)
    assert code == 0, text[-3000:]
    out = tmp_path / "results" / "psf"
    data = read_blends(out / "blends" / "0.h5")
    x = data.blends["corner_x"] + (data.blends["width"] - 1) / 2
    assert np.ptp(x) > 100
    for row, middle in enumerate(x):
        psf = data.blend(row).observations[0].psf
        expected = psf_at_x(middle, SHAPE, 31)
        np.testing.assert_allclose(psf, np.stack([expected] * 5), atol=1e-6)
    catalog, _ = read_table(out / "catalog" / "a.fits")
    assert np.isfinite(catalog["flux_i"]).all() and len(catalog) >= 3
    assert (out / "report.html").exists()
    # A model that changes makes the blends anew.
    write_psfex(tmp_path / "i.psf", SHAPE, side=41)
    code, plan = run(command, "--dry-run")
    assert code == 0, plan[-3000:]
    assert "rule check_inputs:" in plan and "rule extract_blends:" in plan
