"""Scores of a catalog whose errors are put in by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from blendem.measure.scores import score_sources, summarise_scores

BANDS = ("g", "r")


def tables(rng, n=2000, bias=0.05, width=1.0):
    """A truth and a catalog with relative flux error 0.1 and bias, in shuffled order."""
    truth = pd.DataFrame({"id": np.arange(n), "size": 0.5, "e1": 0.1, "e2": -0.2})
    catalog = truth.copy()
    for b, flux in zip(BANDS, (50.0, 100.0), strict=True):
        truth[f"flux_{b}"] = flux
        truth[f"mag_{b}"] = rng.uniform(19, 25, n)
        truth[f"blendedness_{b}"] = rng.uniform(0, 1, n)
        catalog[f"flux_{b}"] = flux * (1 + bias + 0.1 * rng.normal(size=n))
        catalog[f"flux_err_{b}"] = error = 0.1 * flux * width
        catalog[f"flux_q16_{b}"] = catalog[f"flux_{b}"] - 0.994458 * error
        catalog[f"flux_q84_{b}"] = catalog[f"flux_{b}"] + 0.994458 * error
    for name, error in (("size", 0.05), ("e1", 0.02), ("e2", 0.03)):
        catalog[name] += error * rng.normal(size=n)
        catalog[f"{name}_err"] = error
    catalog["flags"] = 0
    return catalog.sample(frac=1, random_state=1), truth


def test_rows_are_matched_by_id_and_hold_the_residuals():
    truth = pd.DataFrame(
        {
            "id": [7, 8, 9], "size": [0.5, 1.0, 1.0], "e1": 0.1, "e2": 0.0,
            "flux_g": [10.0, 20.0, 1.0], "flux_r": [10.0, 40.0, 1.0], "mag_g": 24.0,
            "mag_r": [24.5, 23.0, 27.0], "blendedness_g": 0.3, "blendedness_r": 0.2,
        }
    )  # fmt: skip
    catalog = pd.DataFrame(
        {
            "id": [8, 7, 3], "size": [1.1, np.nan, 1], "size_err": [0.05, np.nan, 1],
            "e1": [0.0, 0.2, 0], "e2": 0.0, "e1_err": [0.04, 0.2, 1], "e2_err": 0.1,
            "flux_g": [22.0, 9.0, 1], "flux_r": [40.0, -1.0, 1], "flags": [0, 4, 0],
            "flux_err_g": [4.0, 0.5, 1], "flux_err_r": [1.0, 4.0, 1],
            "flux_q16_g": [18.0, 8.5, 1], "flux_q84_g": [26.0, 9.5, 1],
            "flux_q16_r": [39.0, -5.0, 1], "flux_q84_r": [41.0, 3.0, 1],
        }
    )  # fmt: skip
    scores = score_sources(catalog, truth, BANDS).set_index("id")
    assert list(scores.index) == [8, 7]
    np.testing.assert_allclose(scores["flux_residual_g"], [0.1, -0.1])
    np.testing.assert_allclose(scores["flux_pull_g"], [0.5, -2.0])
    np.testing.assert_allclose(scores["flux_within68_g"], [1, 0])
    np.testing.assert_allclose(scores["flux_within95_g"], [1, 0])
    np.testing.assert_allclose(scores["mag_r"], [23.0, 24.5])
    # Colour g - r: -2.5 log10(22/40) - (-2.5 log10(20/40)); not defined for a negative flux.
    expected = [-2.5 * np.log10(1.1), np.nan]
    np.testing.assert_allclose(scores["color_residual_g_r"], expected)
    np.testing.assert_allclose(scores["size_residual"], [0.1, np.nan])
    np.testing.assert_allclose(scores["size_within68"], [0, np.nan])
    np.testing.assert_allclose(scores["e1_residual"], [-0.1, 0.1])
    np.testing.assert_allclose(scores["e1_pull"], [-2.5, 0.5])
    assert list(scores["flags"]) == [0, 4]


def test_samples_and_images_follow_the_rows_of_their_tables(rng):
    catalog, truth = tables(rng, n=40, width=1.0)
    catalog = catalog.iloc[:25]
    draws = catalog[[f"flux_{b}" for b in BANDS]].to_numpy()
    samples = draws + np.array([5.0, 10.0]) * rng.normal(size=(31, 25, 2))
    true_images = rng.random((40, 2, 5, 5))
    scale = rng.uniform(1, 2, size=(25, 1, 1, 1))
    model_images = scale * true_images[catalog["id"].to_numpy()]
    model_images[:, 1, 0] = 0.0
    scores = score_sources(
        catalog,
        truth,
        BANDS,
        samples=samples,
        model_images=model_images,
        true_images=true_images,
    )
    np.testing.assert_allclose(
        scores["cosine_g"], 1.0
    )  # only if both follow their own order
    row = true_images[scores["id"], 1].reshape(25, -1)
    kept = np.linalg.norm(row[:, 5:], axis=1) / np.linalg.norm(row, axis=1)
    np.testing.assert_allclose(scores["cosine_r"], kept)
    np.testing.assert_array_equal(
        scores["flux_rank_g"], (samples[:, :, 0] < 50).sum(axis=0)
    )
    with pytest.raises(ValueError, match=r"`samples\['flux_g'\]` has 24"):
        score_sources(catalog, truth, BANDS, samples=samples[:, :24])


def test_draws_of_every_quantity_give_ranks_and_intervals(rng):
    """31 draws: 16 % and 84 % lie at 5.12 and 26.88, 2.5 % and 97.5 % at 0.8 and 31.2 of 32."""
    n, n_draws = 6, 31
    catalog, truth = tables(rng, n)
    catalog = catalog.reset_index(drop=True)
    for name, true in (("size", 0.5), ("e1", 0.1), ("e2", -0.2)):
        truth[name] = true
    color = -2.5 * np.log10(50 / 100)
    # The truth lies half way between draws number k and k + 1.
    k = np.array([0, 4, 5, 26, 27, 31])
    ladder = np.arange(n_draws)[:, None] - k + 0.5
    samples = {
        "flux_g": 50 + ladder,
        "color_g_r": color + 0.01 * ladder,
        "size": 0.5 + 0.01 * ladder,
        "e1": 0.1 + 0.01 * ladder,
    }
    # A source that is not in the truth comes first: draws follow the rows of the catalog.
    catalog = pd.concat([catalog.iloc[:1].assign(id=99), catalog], ignore_index=True)
    other = np.full((n_draws, 1), 1e6)
    samples = {k: np.concatenate([other, v], axis=1) for k, v in samples.items()}
    scores = score_sources(catalog, truth, BANDS, samples=samples)
    gaussian = score_sources(catalog, truth, BANDS)
    for name in ("color_{}_g_r", "size_{}", "e1_{}"):
        np.testing.assert_array_equal(scores[name.format("rank")], k)
        np.testing.assert_array_equal(
            scores[name.format("within68")], [0, 0, 1, 1, 0, 0]
        )
        np.testing.assert_array_equal(
            scores[name.format("within95")], [0, 1, 1, 1, 1, 0]
        )
    np.testing.assert_array_equal(scores["flux_rank_g"], k)
    np.testing.assert_array_equal(scores["flux_within95_g"], [0, 1, 1, 1, 1, 0])
    # What has no draws stays Gaussian; 68 % of fluxes stay those of the catalog.
    for name in ("e2_within68", "e2_within95", "flux_within95_r", "flux_within68_g"):
        np.testing.assert_array_equal(scores[name], gaussian[name])
    assert "e2_rank" not in scores and "flux_rank_r" not in scores
    with pytest.raises(ValueError, match="holds \\['flux'\\]"):
        score_sources(catalog, truth, BANDS, samples={"flux": samples["flux_g"]})


def test_sources_without_result_have_no_rank(rng):
    """Not rank 0, and not outside of an interval."""
    catalog, truth = tables(rng, n=5)
    catalog = catalog.sort_values("id")
    failed = np.array([False, True, False, False, False])
    for column in catalog.columns.difference(["id", "flags"]):
        catalog[column] = catalog[column].mask(failed)
    draws = 0.1 + rng.normal(size=(32, 5))
    draws[:, failed] = np.nan
    draws[:29, 2] = np.nan  # 3 of 32 are left: too few
    draws[:16, 3] = np.nan
    truth.loc[4, ["e1", "flux_g"]] = np.nan
    samples = {"flux_g": draws, "flux_r": 100 * draws, "color_g_r": draws, "e1": draws}
    scores = score_sources(catalog, truth, BANDS, samples=samples)
    unknown = [False, True, True, False, True]
    for column in ("flux_rank_g", "flux_within95_g", "e1_rank", "e1_within68"):
        np.testing.assert_array_equal(scores[column].isna(), unknown)
    assert scores["flux_rank_r"].isna().tolist() == [False, True, True, False, False]
    assert scores["flux_within68_r"].isna().tolist() == failed.tolist()
    # 16 draws of 32: rank r is brought to (r + 1/2) 33/17 - 1/2.
    below = (draws[16:, 3] < 0.1).sum()
    assert scores["e1_rank"][3] == pytest.approx((below + 0.5) * 33 / 17 - 0.5)
    assert scores["e1_rank"][0] == (draws[:, 0] < 0.1).sum()


def test_summary_finds_the_bias_and_the_coverage(rng):
    catalog, truth = tables(rng)
    scores = score_sources(catalog, truth, BANDS)
    summary = json.loads(
        json.dumps(summarise_scores(scores, BANDS, rng=rng), allow_nan=False)
    )
    everything = summary["bands"]["r"]["all"]
    assert summary["n_sources"] == everything["n"] == len(truth)
    # A bias of half a sigma, 2000 sources: error of the median 1.25 * 0.1/sqrt(2000) = 0.0028.
    assert everything["median"] == pytest.approx(0.05, abs=5 * 0.0028)
    assert everything["scatter"] == pytest.approx(0.1, abs=5 * 0.0026)
    assert everything["pull_mean"] == pytest.approx(0.5, abs=5 / np.sqrt(2000))
    assert everything["pull_std"] == pytest.approx(1.0, abs=5 / np.sqrt(4000))
    # P(|z + 0.5| < 0.994) and < 1.96, from the normal distribution function.
    assert everything["within68"] == pytest.approx(0.6217, abs=5 * 0.0108)
    assert everything["within95"] == pytest.approx(0.9209, abs=5 * 0.0060)
    by_blendedness = summary["bands"]["r"]["by_blendedness"]
    assert [row["low"] for row in by_blendedness] == [0, 0.05, 0.2, 0.5]
    assert sum(row["n"] for row in by_blendedness) == len(truth)
    assert summary["bands"]["g"]["by_magnitude"][0]["n"] > 0
    assert (
        summary["bands"]["g"]["by_magnitude"][-1]["median"] is None
    )  # nothing beyond 25
    assert summary["shapes"]["e1"]["scatter"] == pytest.approx(0.02, rel=0.15)
    assert summary["shapes"]["size"]["within68"] == pytest.approx(0.68, abs=5 * 0.0105)


def test_ambiguous_or_unrelated_tables_are_refused(rng):
    catalog, truth = tables(rng, n=5)
    with pytest.raises(ValueError, match="repeat the key"):
        score_sources(pd.concat([catalog, catalog]), truth, BANDS)
    with pytest.raises(ValueError, match="No row of the catalog"):
        score_sources(catalog.assign(id=catalog["id"] + 100), truth, BANDS)
    with pytest.raises(ValueError, match="'flux_g' is missing"):
        score_sources(catalog.drop(columns="flux_g"), truth, BANDS)
    both = pd.concat([catalog.assign(field="a"), catalog.assign(field="b")])
    two = pd.concat([truth.assign(field="a"), truth.assign(field="b")])
    assert len(score_sources(both, two, BANDS, keys=("field", "id"))) == 10
