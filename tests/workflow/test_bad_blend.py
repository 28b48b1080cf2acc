"""One blend that cannot be computed is flagged and does not stop the others."""

import numpy as np
import pytest

from blendem.config import (
    BlendsConfig,
    DetectConfig,
    FrameConfig,
    InferConfig,
    NoiseConfig,
    PriorConfig,
    SimulateConfig,
    StampsConfig,
)
from blendem.io.blends import read_blends, write_blends
from blendem.io.products import read_h5, read_table, write_h5
from blendem.io.table import FieldRow
from blendem.survey.extract import SourceFlag


@pytest.fixture(scope="module")
def run(tmp_path_factory, script):
    """A small field with two blends, through the scripts up to the statistics."""

    folder = tmp_path_factory.mktemp("run")
    frame = FrameConfig(stamp=25)
    buckets = ({"sources": 8, "size": 64},)
    blends = BlendsConfig(buckets=buckets, batch=1)
    infer = InferConfig(samples=4, recentre_iterations=1, steps=4)
    script("simulate_field").main(
        folder / "a.fits",
        [],
        folder / "truth.h5",
        SimulateConfig(shape=(96, 96), mode="blends", n_blends=2, mag_limit=23.0),
        frame,
        np.random.default_rng(3),
    )
    script("simulate_stamps").main(
        folder / "0.npy",
        0,
        "hsc_deep",
        StampsConfig(n=30, chunks=1, mag_limit=23.0),
        frame,
        np.random.default_rng(4),
    )
    prior = PriorConfig(
        modes=8,
        network={"width": 16, "blocks": 1},
        train={"steps": 4, "batch": 16, "evaluate": 2},
    )
    script("fit_basis").main(
        [folder / "0.npy"],
        folder / "basis.eqx",
        prior,
        frame,
        ["hsc_deep"],
        "i",
        np.random.default_rng(5),
    )
    script("train_prior").main(
        folder / "basis.eqx",
        [folder / "0.npy"],
        folder / "latent.eqx",
        folder / "latent.csv",
        folder / "latent.ckpt",
        prior,
        "i",
        6,
    )
    script("train_prior").main(
        folder / "basis.eqx",
        [folder / "0.npy"],
        folder / "unet.eqx",
        folder / "unet.csv",
        folder / "unet.ckpt",
        PriorConfig(
            tier="unet",
            modes=8,
            unet={"channels": (4,), "steps": 4, "batch": 8, "evaluate": 2},
        ),
        "i",
        6,
    )
    rows = [FieldRow("a", "hsc_deep", folder / "a.fits")]

    script("extract_blends").main(
        rows,
        folder / "basis.eqx",
        folder / "blends.h5",
        blends,
        DetectConfig(),
        frame,
        NoiseConfig(),
    )
    script("compute_statistics").main(
        folder / "blends.h5",
        folder / "basis.eqx",
        folder / "statistics.h5",
        infer,
        blends,
        1e9,
    )
    return folder, rows, infer, blends


def measure(script, run, *inputs):
    """Path of the catalog from blends, statistics, posterior and prior."""
    folder, rows, infer, blends = run
    catalog = folder / "catalog" / "a.fits"
    script("measure").main(
        rows,
        *inputs,
        [catalog],
        [folder / "models" / "a.fits"],
        [folder / "samples" / "a.h5"],
        folder / "measured.h5",
        infer,
        blends,
        {"METHOD": "test", "CONFIG": "0", "VERSION": "0"},
    )
    return catalog


SAMPLED = [
    pytest.param("latent.eqx", marks=pytest.mark.slow),
    pytest.param("unet.eqx", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("prior", ["basis.eqx", *SAMPLED])
def test_a_bad_blend_is_flagged_and_the_others_are_measured(run, script, prior):
    folder, _, infer, _ = run
    data = read_blends(folder / "blends.h5")
    assert len(data.blends["field"]) >= 2
    arrays, attrs = read_h5(folder / "statistics.h5")
    stack, index = int(data.blends["stack"][0]), int(data.blends["index"][0])
    arrays[f"stack_{stack}"]["H"][index] = np.nan
    write_h5(folder / "bad.h5", arrays, attrs)
    script("sample_posterior").main(
        folder / "blends.h5",
        folder / "bad.h5",
        folder / prior,
        folder / "posterior.h5",
        infer,
        1,
        1,
    )
    inputs = (folder / name for name in ("blends.h5", "bad.h5", "posterior.h5", prior))
    table, _ = read_table(measure(script, run, *inputs))
    bad = data.sources["blend"] == 0
    flags = np.asarray(table["flags"])
    assert (flags[bad] & SourceFlag.FAILED > 0).all()
    assert (flags[~bad] & SourceFlag.FAILED == 0).all()
    flux = np.ma.filled(np.ma.asarray(table["flux_i"], float), np.nan)
    assert np.isnan(flux[bad]).all()
    assert np.isfinite(flux[~bad]).all()
    assert (np.asarray(table["n_samples"])[bad] == 0).all()
    rows = read_h5(folder / "measured.h5")[0]["blends"]
    assert np.isnan(rows["chi2"][0]) and np.isfinite(rows["chi2"][1:]).all()
    for name in ("guards", "unconverged", "failed_draws", "negative_flux"):
        assert np.isfinite(rows[name][1:]).all(), name
    # Only draws of stamps have light that the basis does not hold.
    outside = rows["outside_basis"][1:]
    assert ((outside > 0) & (outside < 1)).all() == (prior == "unet.eqx")
    assert ((outside == 0) & (rows["outside_chi2"][1:] == 0)).all() == (
        prior != "unet.eqx"
    )
    evidence = np.isfinite(rows["log_evidence"][1:])
    assert (evidence == (prior == "basis.eqx")).all()


def test_bands_without_data_are_not_measured(run, script):
    """y is masked in the first blend and i, the reference, in the second."""
    folder, _, infer, blends = run
    data = read_blends(folder / "blends.h5")
    dark = {0: "y", 1: "i"}
    for row, band in dark.items():
        stack, index = int(data.blends["stack"][row]), int(data.blends["index"][row])
        variance = data.stacks[stack].observations[0].variance
        variance[index, "grizy".index(band)] = np.inf
    write_blends(folder / "dark.h5", data)
    names = [folder / f"dark_{name}.h5" for name in ("statistics", "posterior")]
    script("compute_statistics").main(
        folder / "dark.h5", folder / "basis.eqx", names[0], infer, blends, 1e9
    )
    script("sample_posterior").main(
        folder / "dark.h5", names[0], folder / "basis.eqx", names[1], infer, 1, 1
    )
    path = measure(script, run, folder / "dark.h5", *names, folder / "basis.eqx")
    table = read_table(path)[0].to_pandas()
    galaxy = table["type"] == "galaxy"
    no_shape = (table["flags"] & int(SourceFlag.NO_SHAPE)) > 0
    for row in range(len(data.blends["field"])):
        of = np.isin(np.arange(len(table)), data.members(row))
        for band in "grizy":
            for kind in ("flux", "flux_err", "flux_q16", "flux_q84", "snr"):
                values = table.loc[of, f"{kind}_{band}"]
                assert (values.isna() == (band == dark.get(row))).all(), (kind, band)
            assert table.loc[of, f"mag_{band}"].isna().all() or band != dark.get(row)
        if dark.get(row) == "i":
            assert table.loc[of, ["size", "e1", "e2"]].isna().all(axis=None)
            assert no_shape[of & galaxy].all() and (of & galaxy).any()
    assert table.loc[galaxy & ~no_shape, "size"].notna().all()


@pytest.mark.parametrize("prior", SAMPLED)
def test_portions_do_not_change_the_draws(run, script, prior):
    folder, _, infer, _ = run
    found = []
    for size in (1, 64):
        module = script("sample_posterior")
        module.portion = lambda size=size: size
        output = folder / f"portion_{size}.h5"
        module.main(
            folder / "blends.h5",
            folder / "statistics.h5",
            folder / prior,
            output,
            infer,
            1,
            1,
        )
        found.append(read_h5(output)[0])
    assert np.isfinite(found[0]["z"]).any()
    np.testing.assert_array_equal(found[0]["z"], found[1]["z"])
    np.testing.assert_array_equal(
        found[0]["blends"]["chi2"], found[1]["blends"]["chi2"]
    )
