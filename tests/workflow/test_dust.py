"""Galaxies behind dust through the scripts of their rules, and what Snakemake plans."""

import json
import subprocess

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from tests.workflow.command import ROOT
from tests.workflow.test_interrupt import command

from blendem.config import (
    BlendsConfig,
    DetectConfig,
    DustConfig,
    FrameConfig,
    NoiseConfig,
    PlotConfig,
    SimulateConfig,
    StampsConfig,
    load_config,
)
from blendem.io.bands import ModelBands
from blendem.io.blends import read_blends
from blendem.io.products import read_h5, read_models, read_table
from blendem.io.table import FieldRow, InputError
from blendem.io.truth import read_truth
from blendem.measure.dusty import dusty_quantities
from blendem.rng import stage_rng

FRAME = FrameConfig(stamp=25)
DUST = DustConfig(modes=12, dust_modes=6, components=2, rank=12, steps=4, corrections=1)
BLENDS = BlendsConfig(buckets=({"sources": 4, "size": 80},), batch=1)
DRAWS = 8
MAGNITUDES = {"mag_bright": 21.0, "mag_limit": 23.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory, script):
    """Two pairs of galaxies and a star alone, through all scripts."""
    folder = tmp_path_factory.mktemp("run")
    simulate = SimulateConfig(
        instrument="hsc_wide",
        shape=(80, 80),
        density=6.0,
        star_density=10.0,
        **MAGNITUDES,
    )
    script("simulate_field").main(
        folder / "a.fits",
        [],
        folder / "truth.h5",
        simulate,
        FRAME,
        stage_rng(88, "field"),
        DUST,
    )
    stamps = StampsConfig(n=60, chunks=2, **MAGNITUDES)
    for chunk in range(2):
        script("simulate_dust").main(
            folder / f"{chunk}.h5",
            chunk,
            "hsc_wide",
            stamps,
            FRAME,
            stage_rng(5, "stamps", chunk),
        )
    priors = folder / "galaxy.eqx", folder / "maps.eqx"
    script("fit_dust").main(
        [folder / "0.h5", folder / "1.h5"],
        *priors,
        folder / "span.h5",
        DUST,
        FRAME,
        "hsc_wide",
        "i",
        stage_rng(5, "fit"),
    )
    rows = [FieldRow("a", "hsc_wide", folder / "a.fits")]
    script("extract_blends").main(
        rows,
        priors[0],
        folder / "blends.h5",
        BLENDS,
        DetectConfig(max_sources=4),
        FRAME,
        NoiseConfig(),
    )
    script("sample_dust").main(
        rows,
        folder / "blends.h5",
        priors,
        folder / "span.h5",
        folder / "posterior.h5",
        DUST,
        DRAWS,
        5,
    )
    script("measure_dust").main(
        rows,
        folder / "blends.h5",
        folder / "posterior.h5",
        priors,
        [folder / "catalog" / "a.fits"],
        [folder / "models" / "a.fits"],
        [folder / "samples" / "a.h5"],
        DUST,
        "i",
        1,
        {"METHOD": "test", "CONFIG": "0", "VERSION": "0"},
    )
    return folder, rows, priors


def test_every_galaxy_has_fluxes_and_attenuation(run):
    folder, _, _ = run
    table, cards = read_table(folder / "catalog" / "a.fits")
    assert cards["METHOD"] == "test" and len(cards["PRIOR"]) == 64
    assert len(fits.getheader(folder / "catalog" / "a.fits", 1)["DUST"]) == 64
    star = np.asarray(table["type"]) == "star"
    assert star.sum() == 1
    _, members = np.unique(table["blend"], return_counts=True)
    assert sorted(members) == [1, 2, 2]
    assert table["A_V_q16"].unit == "mag"
    drawn, attrs = read_h5(folder / "samples" / "a.h5")
    assert attrs["format"] == "blendem-dust-1"
    for k in np.flatnonzero(~star):
        assert table["A_V"][k] == pytest.approx(drawn["A_V"][:, k].mean())
        assert table["flux_i"][k] == pytest.approx(drawn["flux"][:, k, 2].mean())
        assert table["A_V_q16"][k] <= table["A_V_median"][k] <= table["A_V_q84"][k]
        assert table["n_samples"][k] == DRAWS
    assert np.isnan(np.asarray(table["A_V"])[star]).all()
    assert (np.asarray(table["n_samples"])[star] == 0).all()
    # Neither a star nor a galaxy with a result has failed.
    assert (np.asarray(table["flags"]) & 16 == 0).all()
    truth = read_truth(folder / "truth.h5")
    true = truth.table["redshift"].to_numpy()[truth.rows(table["id"].tolist())]
    np.testing.assert_allclose(table["redshift"], true)


def test_images_are_those_of_the_draws(run):
    """Means of all draws; the model of the field is their sum as it is seen."""
    folder, _, _ = run
    images = read_models(folder / "models" / "a.fits")
    drawn, _ = read_h5(folder / "samples" / "a.h5")
    good = np.isfinite(drawn["A_V"]).all(axis=0)
    total = images["GALAXY_MEAN"][good].sum((-2, -1))
    np.testing.assert_allclose(total, drawn["flux"][:, good].mean(axis=0), rtol=1e-4)
    assert (images["DIMMED_MEAN"][good].sum((1, 2, 3)) < total.sum(axis=1)).all()
    assert (images["A_V_MEAN"][good] > 0).all()
    # Light of galaxies far inside the field is all there.
    light = images["MODEL"].sum((-2, -1)) / images["DIMMED_MEAN"][good].sum((0, 2, 3))
    assert (light > 0.7).all() and (light < 1.02).all()
    np.testing.assert_allclose(
        images["RESIDUAL"], images["SCI"] - images["MODEL"], atol=1e-4
    )


def test_draws_do_not_depend_on_the_other_blends(run, script, tmp_path):
    """Seeds follow from the name of a blend: the same draws without the others."""
    folder, rows, priors = run
    data = read_blends(folder / "blends.h5")
    first = read_h5(folder / "posterior.h5")[0]["e"]
    module = script("sample_dust")
    whole = module.read_blends
    keep = data.sources["blend"][data.sources["type"] == "galaxy"].max()

    def only_one(path):
        found = whole(path)
        found.blends["stack"][np.arange(len(found.names)) != keep] = -1
        return found

    module.read_blends = only_one
    output = tmp_path / "again.h5"
    module.main(
        rows,
        folder / "blends.h5",
        priors,
        folder / "span.h5",
        output,
        DUST,
        DRAWS,
        5,
    )
    again, mine = read_h5(output)[0]["e"], data.sources["blend"] == keep
    assert np.isfinite(again[:, mine]).all()
    np.testing.assert_array_equal(again[:, mine], first[:, mine])
    assert np.isnan(again[:, ~mine]).all()


def test_scores_are_those_of_draws_and_truth(run, script):
    folder, _, _ = run
    outputs = [folder / name for name in ("sources.csv", "summary.json", "made.json")]
    config = {"dust": DUST.model_dump(), "infer": {"samples": DRAWS}}
    script("score_dust").main(
        [folder / "catalog" / "a.fits"],
        [folder / "samples" / "a.h5"],
        [folder / "truth.h5"],
        [folder / "posterior.h5"],
        *outputs,
        load_config(config).model_dump(),
        "test",
        ROOT,
    )
    scores = Table.read(outputs[0])
    truth, _ = read_h5(folder / "truth.h5")
    galaxy = read_truth(folder / "truth.h5").rows(scores["id"].tolist())
    expected = dusty_quantities(truth["model"][galaxy], truth["dust"][galaxy], 2)
    np.testing.assert_allclose(scores["A_V_true"], expected[:, -1], rtol=1e-6)
    np.testing.assert_allclose(scores["flux_i_true"], expected[:, 2], rtol=1e-6)
    pull = (scores["A_V"] - scores["A_V_true"]) / scores["A_V_err"]
    np.testing.assert_allclose(scores["A_V_pull"], pull, rtol=1e-6)
    numbers = json.loads(outputs[1].read_text())["numbers"]
    assert numbers["galaxies"]["value"] == len(galaxy)
    assert numbers["A_V_pull_mean"]["value"] == pytest.approx(np.mean(pull))
    script("plot_dust").main(
        [folder / "catalog" / "a.fits"],
        [folder / "models" / "a.fits"],
        [folder / "truth.h5"],
        outputs[0],
        folder / "galaxy.eqx",
        folder / "dust.png",
        "i",
        DRAWS,
        PlotConfig(max_sources=2, dpi=40),
    )
    assert (folder / "dust.png").read_bytes()[:4] == b"\x89PNG"


def test_a_table_of_fields_needs_redshifts(run, script, tmp_path):
    """Said when a run starts, with the column that the settings name."""
    folder, _, _ = run
    table = tmp_path / "fields.tsv"
    table.write_text(f"field\tinstrument\tpath\na\thsc_wide\t{folder / 'a.fits'}\n")
    main = script("check_inputs").main
    bands = ModelBands(tuple("grizy"), "simulate.instrument: hsc_wide", (), "i")
    main(str(table), tmp_path / "checked.json", bands, "redshift")
    assert (tmp_path / "checked.json").is_file()
    with pytest.raises(InputError, match=r"field a.*lacks column z_phot"):
        main(str(table), tmp_path / "no.json", bands, "z_phot")
    assert not (tmp_path / "no.json").exists()


def test_a_run_with_dust_plans_its_rules_only(tmp_path):
    done = subprocess.run(
        [*command(tmp_path, "smoke_dust"), "--dry-run"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    jobs = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert {"simulate_dust", "fit_dust", "sample_dust", "plot_dust"} <= jobs
    assert not {"fit_basis", "train_prior", "compute_statistics", "fit_map_0"} & jobs
