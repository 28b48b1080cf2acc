"""The parts of `make benchmark`: matching, counted failures, metrics with known values, the page."""

import argparse
import json

import numpy as np
import pandas as pd
import pytest

from blendem.measure.shapes import measure_shapes

BANDS, SIDE, SCALE = ("g", "i"), 33, 0.2


def point(center, shape, sigma=2.0):
    """Gaussian of sum 1 around `center` (y, x)."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.exp(-((y - center[0]) ** 2 + (x - center[1]) ** 2) / (2 * sigma**2))
    return image / image.sum()


def test_matches_are_one_to_one_and_as_many_as_can_be(load):
    match = load("peer_pixels").match
    catalog = np.array([[0.4, 0.0], [-0.5, 0.0], [20.0, 0.0]])
    found = np.array([[0.0, 0.0], [1.0, 0.0], [20.0, 0.8]])
    # The first is nearest to 0.0, which the second alone can have.
    assert match(catalog, found, 0.7).tolist() == [1, 0, -1]
    # Two sources, one detection: the nearer one has it.
    assert match(catalog[:2], found[:1], 0.7).tolist() == [0, -1]
    assert match(catalog, np.zeros((0, 2)), 0.7).tolist() == [-1, -1, -1]


@pytest.fixture
def pixels(load):
    """Two stars apart, and a pair that no threshold tells apart; noise of a thousandth of a peak."""
    positions = np.array([[30.0, 30.0], [30.0, 90.0], [90.0, 60.0], [91.0, 61.0]])
    flux = np.array([[10.0, 20.0], [20.0, 30.0], [10.0, 10.0], [8.0, 12.0]])
    shape = (120, 120)
    light = np.stack([point(p, shape) for p in positions])
    image = np.einsum("nb,nyx->byx", flux, light)
    sigma = 1e-3 * image.max()
    rng = np.random.default_rng(5)
    image = image + sigma * rng.standard_normal(image.shape)
    psf = np.stack([point((20, 20), (41, 41))] * 2)
    module = load("peer_pixels")
    options = argparse.Namespace(threshold=1.5, match=0.3, aperture=1.0)
    results = module.field_results(
        (image, np.full_like(image, sigma**2), psf),
        positions,
        options,
        SCALE,
        SIDE,
        {"sep": module.run_sep},
    )
    return results, flux, light


def test_fluxes_of_isolated_stars(pixels):
    results, flux, _ = pixels
    # Noise of 80 pixels is 0.5 % of the flux; apertures are corrected for what lies outside.
    for name in ("none", "sep_aperture"):
        np.testing.assert_allclose(results[name][0][:2], flux[:2], rtol=0.015)
    # Kron ellipses hold 94 % or more of a Gaussian (Bertin & Arnouts 1996), segments of 3 sigma nearly all.
    ratio = results["sep_auto"][0][:2] / flux[:2]
    assert np.all((ratio > 0.93) & (ratio < 1.02))
    # What a segment lacks is light below 1.5 sigma in each pixel of its rim.
    ratio = results["sep"][0][:2] / flux[:2]
    assert np.all((ratio > 0.95) & (ratio < 1.01))


def test_a_source_that_is_not_detected_has_no_result(pixels):
    results, _, _ = pixels
    for name in ("sep", "sep_auto"):
        lost = np.isnan(results[name][0]).all(axis=1)
        assert lost[:2].tolist() == [False, False] and lost[2:].sum() == 1
        assert np.isnan(results[name][1][lost]).all()
    # Nobody deblends: either of the pair has what both have in its circle.
    pair = results["none"][0][2:]
    np.testing.assert_allclose(pair, [[18.0, 22.0]] * 2, rtol=0.04)
    # With segments masked it is the same: the pair is one segment.
    np.testing.assert_allclose(results["sep_aperture"][0][2:], pair, rtol=0.02)


@pytest.fixture
def scene(load):
    """Three sources in two blends, in cut-outs that hold their windows."""
    results = load("method_results")
    rows = pd.DataFrame(
        {
            "field": "a",
            "id": [0, 1, 2],
            "blend": [0, 0, 1],
            "type": "galaxy",
            "y": [30.0, 30.25, 30.0],
            "x": [30.0, 34.0, 90.0],
            "corner_y": 0,
            "corner_x": [0, 0, 60],
            "height": 60,
            "width": 60,
            "blendedness": [0.3, 0.6, 0.1],
            "mag": [22.5, 22.8, 24.5],
            "snr": [60.0, 60.0, 10.0],
        }
    )
    for b, flux in zip(BANDS, (10.0, 20.0), strict=True):
        rows[f"flux_model_{b}"], rows[f"flux_{b}"] = flux, flux
    corner = results.window_corner(rows[["y", "x"]].to_numpy(), SIDE)
    place = rows[["y", "x"]].to_numpy() - corner
    light = [point(c, (SIDE, SIDE), 2.5) for c in place]
    images = np.stack([[10 * p, 20 * p] for p in light]).astype(np.float32)
    return results, rows, images, corner


def scored(load, scene, table, images):
    results, rows, true, corner = scene
    compare = load("compare_methods")
    result = results.MethodResult(table, images, corner, {})
    shapes = measure_shapes(true[:, 1], SCALE)
    return compare, compare.score(
        result, rows, BANDS, true, shapes, 1, SCALE, (1.0, 0.6)
    )


def test_apertures_colours_and_sizes_have_their_known_values(load, scene):
    _, rows, images, _ = scene
    # One tenth brighter in g alone: g - i becomes bluer.
    table = rows[["field", "id"]].assign(flux_g=11.0, flux_i=20.0)
    _, s = scored(load, scene, table, images * np.array([1.1, 1.0])[:, None, None])
    np.testing.assert_allclose(s["aperture_g"], 0.1, rtol=1e-5)
    np.testing.assert_allclose(s["aperture_i"], 0.0, atol=1e-6)
    np.testing.assert_allclose(s["aperture@0.6"], 0.0, atol=1e-6)
    np.testing.assert_allclose(s["colour_g-i"], -2.5 * np.log10(1.1), rtol=1e-6)
    np.testing.assert_allclose(s["size"], 0.0, atol=1e-5)

    # Gaussians of twice the width: a circle of 5 pixels holds 1 - exp(-1/2) instead of 1 - exp(-2).
    place = rows[["y", "x"]].to_numpy() - scene[3]
    wide = np.stack([point(c, (SIDE, SIDE), 5.0) for c in place])
    wide = np.stack([10 * wide, 20 * wide], axis=1).astype(np.float32)
    table = rows[["field", "id"]].assign(flux_g=10.0, flux_i=20.0)
    _, s = scored(load, scene, table, wide)
    expected = (1 - np.exp(-0.5)) / (1 - np.exp(-2.0)) - 1
    # 0.5 % of the wide Gaussian is outside of its window, and pixels are not integrated over.
    np.testing.assert_allclose(s["aperture_i"], expected, atol=0.01)
    assert np.all(s["size"] > 0.9)
    # A circle of 3 pixels.
    expected = (1 - np.exp(-0.18)) / (1 - np.exp(-0.72)) - 1
    np.testing.assert_allclose(s["aperture@0.6"], expected, atol=0.01)


def test_failures_are_in_every_average_and_bin(load, scene):
    _, rows, images, _ = scene
    table = rows[["field", "id"]].assign(flux_g=10.0, flux_i=20.0)
    table.loc[1, "flux_g"] = np.nan
    compare, s = scored(load, scene, table, images)
    summary, _ = compare.summarise({"one": s}, BANDS, 1)
    keyed = summary.set_index(["bin", "quantity", "band"])
    assert keyed.loc[(">0.2", "mean_aperture", "mean"), "value"] == pytest.approx(0.5)
    assert keyed.loc[("all", "no_colour", "mean"), "value"] == pytest.approx(1 / 3)
    row = keyed.loc[("mag 22 to 23", "mean_flux", "mean")]
    assert row["n"] == 2 and row["n_failed"] == 1 and row["value"] == pytest.approx(0.5)
    assert keyed.loc[("snr -inf to 20", "mean_flux", "mean"), "n"] == 1
    # Bias and scatter are of what has a flux.
    row = keyed.loc[(">0.2", "bias_flux", "mean")]
    assert row["n"] == 1 and row["value"] == pytest.approx(0.0)


def test_scatter_is_half_of_the_central_68_per_cent(load, scene):
    _, rows, images, _ = scene
    table = rows[["field", "id"]].assign(flux_g=10.0, flux_i=[16.0, 20.0, 26.0])
    compare, s = scored(load, scene, table, images)
    keyed = compare.summarise({"one": s}, BANDS, 1)[0].set_index(
        ["bin", "quantity", "band"]
    )
    # From -0.2 to 0.3 in i.
    row = keyed.loc[("all", "scatter_flux", "i")]
    assert row["value"] == pytest.approx(0.25)


def test_parts_of_a_method_are_joined(load, scene, tmp_path):
    results, rows, images, corner = scene
    for k, (part, seconds) in enumerate(((slice(0, 2), 1.0), (slice(2, 3), 4.0))):
        blends = pd.DataFrame({"field": "a", "number": np.arange(2 - k)})
        one = results.MethodResult(
            rows[["field", "id"]][part].assign(flux_g=1.0, flux_i=1.0),
            images[part],
            corner[part],
            {"fit": seconds},
            float(k),
        )
        results.write_method(tmp_path / f"m_{k}.h5", one, blends, {"method": "m"})
    both = results.read_parts(tmp_path / "m_*.h5")
    assert both.table["id"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(both.observed, images)
    # Two blends of 1 s and one of 4 s.
    assert both.seconds == {"fit": 2.0} and both.peak_gib == 1.0


def test_magnitudes_of_another_pipeline(load):
    module = load("lsst_sim_scores")
    matched = pd.DataFrame(
        {"field": ["a", "b", "c", "d"], "id": 0, **{f"mag_{b}": 22.0 for b in "grizy"}}
    )
    flux = 10 ** (-0.4 * (np.array([22.1, 22.3, 22.5]) - 27.0))
    table = pd.DataFrame(
        {"field": ["a", "b", "c"], "id": 0, **{f"flux_{b}": flux for b in "grizy"}}
    )
    found = module.differences(table, matched)
    np.testing.assert_allclose(found[:3, 0], [0.1, 0.3, 0.5], rtol=1e-6)
    assert np.isnan(found[3]).all()
    other = found.copy()
    other[2, 1] = np.nan
    rows = module.statistics(
        {"one": found, "two": other}, matched["field"].to_numpy(), 1
    )
    keyed = rows.set_index(["method", "subset", "band", "quantity"])
    row = keyed.loc[("one", "own", "mean", "bias")]
    assert row["value"] == pytest.approx(0.3) and row["n"] == 3 and row["n_failed"] == 1
    # The third is missing in one band of the other: left out of what both have.
    row = keyed.loc[("one", "common", "i", "scatter")]
    assert row["n"] == 2 and row["value"] == pytest.approx(0.1)


def test_only_the_numbers_of_the_page_change(load, tmp_path):
    report = load("benchmark_report")
    page = tmp_path / "benchmark.md"
    page.write_text("before\n" + "old\n".join(report.MARKS) + "\nafter\n")
    report.replace_numbers(page, ["new"])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "new" in text and "old" not in text
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="lacks the lines"):
        report.replace_numbers(page, ["new"])


def test_a_method_has_the_definition_that_serves_it_best(load):
    report = load("benchmark_report")
    rows = [
        ("latent", "mean_flux", 0.2),
        ("latent", "mean_flux_total", 0.1),
        ("peer", "mean_flux", 0.4),
        ("peer", "mean_flux_total", 0.3),
    ]
    table = pd.DataFrame(rows, columns=["method", "quantity", "value"]).assign(
        bin=">0.2",
        band="mean",
        subset="common",
        variable="blendedness",
        error=0.01,
        n=5,
        n_failed=0,
    )
    best = report.with_best(table).query("quantity == 'best_flux'").set_index("method")
    assert best["value"].to_dict() == {"latent": 0.2, "peer": 0.3}


def test_the_summary_says_what_is_not_met(load):
    report = load("benchmark_report")
    summary = report.Summary("command")
    summary.target("a", "below 1", 2.0, 5, False, 0.1)
    summary.target("b", "below 1", np.nan, 0, True)
    assert [r["met"] for r in summary.records] == [False, None]
    assert summary.rows[1][-1] == "**no**" and summary.rows[2][2] == "not measured"
    json.dumps(summary.records, allow_nan=False)


def test_the_footprint_is_where_the_peaks_are(load):
    inside = load("lsst_sim_fields").inside
    footprint = np.zeros((5, 6), bool)
    footprint[1:3, 2:5] = True
    centers = np.array([[1.0, 2.0], [2.0, 4.0]])
    np.testing.assert_array_equal(inside(footprint, centers), footprint)
    np.testing.assert_array_equal(inside(~footprint, centers), footprint)
