"""The comparison of methods: known residuals, failures, definitions, errors."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

from blendem.inference.likelihood import complete_draws
from blendem.inference.posterior import BlendStatistics, posterior
from blendem.measure.shapes import measure_shapes
from blendem.prior.gaussian import Basis, GaussianPrior

BANDS, SIDE = ("g", "i"), 33


def gaussian(center, axes, shape):
    """Elliptical Gaussian of sum 1 around `center` (y, x)."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.exp(
        -0.5 * (((y - center[0]) / axes[0]) ** 2 + ((x - center[1]) / axes[1]) ** 2)
    )
    return image / image.sum()


@pytest.fixture
def scene(load):
    """Four sources in two blends of one field, all in cut-outs of 60 x 60 pixels."""
    results = load("method_results")
    rows = pd.DataFrame(
        {
            "field": "a",
            "id": [0, 1, 2, 3],
            "blend": [0, 0, 1, 1],
            "type": "galaxy",
            "y": [25.0, 35.0, 30.0, 30.0],
            "x": [25.0, 30.0, 90.0, 100.0],
            "corner_y": 0,
            "corner_x": [0, 0, 60, 60],
            "height": 60,
            "width": 60,
            "blendedness": [0.3, 0.6, 0.1, 0.4],
        }
    )
    for b, flux in zip(BANDS, (10.0, 20.0), strict=True):
        rows[f"flux_model_{b}"], rows[f"flux_{b}"] = flux, 1.25 * flux
    axes = [(2.0, 3.0), (3.0, 2.0), (2.5, 2.5), (2.0, 4.0)]
    corner = results.window_corner(rows[["y", "x"]].to_numpy(), SIDE)
    light = [gaussian((SIDE // 2, SIDE // 2), a, (SIDE, SIDE)) for a in axes]
    images = np.stack([[10 * p, 20 * p] for p in light]).astype(np.float32)
    return results, rows, images, corner


def scores_of(load, scene, result):
    """`compare_methods.score` of a result."""
    _, rows, images, corner = scene
    compare = load("compare_methods")
    true = compare.observed_images(images, corner, rows, SIDE)
    shapes = measure_shapes(true[:, 1], 0.168)
    return compare, compare.score(result, rows, BANDS, true, shapes, 1, 0.168)


def test_a_brighter_model_has_its_residual_and_nothing_else(load, scene):
    results, rows, images, corner = scene
    table = rows[["field", "id"]].copy()
    for b, flux in zip(BANDS, (12.5, 25.0), strict=True):
        table[f"flux_{b}"] = flux
        table[f"flux_q16_{b}"], table[f"flux_q84_{b}"] = 0.9 * flux, 1.1 * flux
    # Rows and corners in another order and with another window.
    order = [2, 0, 3, 1]
    wide = np.pad(1.25 * images, [(0, 0), (0, 0), (3, 3), (3, 3)])[order]
    result = results.MethodResult(table.iloc[order], wide, corner[order] - 3, {})

    _, s = scores_of(load, scene, result)

    s = s.sort_values("id")
    for b in BANDS:
        np.testing.assert_allclose(s[f"flux_{b}"], 0.25, rtol=1e-6)
        # The definition by total flux: 12.5 over 1.25 x 10.
        np.testing.assert_allclose(s[f"flux_total_{b}"], 0.0, atol=1e-12)
        np.testing.assert_allclose(s[f"cosine_{b}"], 1.0, rtol=1e-6)
        # 0.9 x 12.5 = 11.25 is above the truth.
        assert (s[f"within68_{b}"] == 0).all()
    # Float32 moments.
    assert np.abs(s[["e1", "e2"]].to_numpy()).max() < 1e-4
    assert not s["failed"].any()


def test_failures_count_as_no_light(load, scene):
    results, rows, images, corner = scene
    table = rows[["field", "id"]].assign(flux_g=10.0, flux_i=20.0)
    table.loc[1, "flux_g"] = np.nan
    result = results.MethodResult(table, images, corner, {})

    compare, s = scores_of(load, scene, result)
    summary, _ = compare.summarise({"one": s}, BANDS, 1)

    assert s["failed"].tolist() == [False, True, False, False]
    assert s.loc[1, "flux_i"] == -1 and s.loc[1, "cosine_i"] == 0
    keyed = summary.set_index(["bin", "quantity", "band"])
    row = keyed.loc[(">0.2", "mean_flux", "mean")]
    assert row["n"] == 3 and row["n_failed"] == 1
    assert row["value"] == pytest.approx(1 / 3)
    # The shape of the failed source is compared with nothing.
    assert keyed.loc[(">0.2", "rms_e1", "reference"), "n"] == 2


def test_light_outside_the_blend_is_ignored(load, scene):
    results, rows, images, corner = scene
    table = rows[["field", "id"]].assign(flux_g=10.0, flux_i=20.0)
    dirty = images.copy()
    # Near the border of its blend, so that its window reaches out by 12 rows.
    rows.loc[0, ["y", "x"]] = (4.0, 25.0)
    corner[0] = results.window_corner(np.array([4.0, 25.0]), SIDE)
    dirty[0, :, :5] = 100.0
    result = results.MethodResult(table, dirty, corner, {})

    _, s = scores_of(load, scene, result)

    assert s.loc[0, "cosine_i"] == pytest.approx(1.0, abs=1e-6)


def test_weighted_statistics_are_those_of_repeated_values(load, rng):
    compare = load("compare_methods")
    values, weights = rng.normal(size=11), rng.integers(0, 4, size=(5, 11))
    for w in weights:
        repeated = np.repeat(values, w)
        assert compare._mean(values, w) == pytest.approx(repeated.mean())
        # The lower median where their number is even.
        lower = np.sort(repeated)[(len(repeated) - 1) // 2]
        assert compare._median(values, w) == lower


def test_the_bootstrap_draws_whole_blends(load):
    compare = load("compare_methods")
    blends = np.repeat(np.arange(40), 5)
    weights = compare.blend_weights(blends, 3)
    assert (weights[0] == 1).all()
    assert (weights.reshape(len(weights), 40, 5).std(axis=2) == 0).all()
    # Sources of a blend are equal: the error of the mean is that of 40, not of 200, values.
    values = np.repeat(np.random.default_rng(0).normal(size=40), 5)
    error = np.std(compare._mean(values, weights[1:]))
    expected = values[::5].std() / np.sqrt(40)
    # The error of a standard deviation from 1000 draws is 2.2 %; five of them.
    assert error == pytest.approx(expected, rel=0.11)


def test_the_rest_follows_from_the_galaxies_as_in_the_exact_posterior(rng):
    """At the galaxies' posterior mean the other unknowns have theirs: all is Gaussian."""
    d = 3
    basis = Basis(
        np.zeros((1, 5, 5), np.float32),
        np.zeros((d, 1, 5, 5), np.float32),
        np.ones(d, np.float32),
        np.asarray(0.1, np.float32),
        np.asarray(0.7, np.float32),
        np.asarray(0.168, np.float32),
        bands=("i",),
    )
    mean, root = rng.normal(size=d), np.tril(rng.normal(size=(d, d))) + 2 * np.eye(d)
    prior = GaussianPrior(basis, mean, root)
    A = rng.normal(size=(30, 3 * d + 4))  # galaxy, star, galaxy; 4 of shift or sky
    A[:, d + 1 : 2 * d] = 0.0  # a star has one flux per band
    y = rng.normal(size=30)
    s = BlendStatistics(
        A.T @ A, A.T @ y, float(y @ y), 0.0, 30.0, np.array([False, True, False]), d
    )
    exact = posterior(s, prior).mean
    galaxies = np.stack([exact[:d], exact[2 * d : 3 * d]])
    e = np.linalg.solve(root, (galaxies - mean).T).T

    np.testing.assert_allclose(
        complete_draws(s, prior, e[None], None)[0], exact, atol=1e-9
    )


def test_fields_with_windows_of_unequal_size_are_one_result(
    load, tmp_path, monkeypatch
):
    """Products have windows as wide as their field needs."""
    results, sides = load("method_results"), {"a": 5, "b": 9}
    (tmp_path / "catalog").mkdir()
    for name in sides:
        (tmp_path / "catalog" / f"{name}.fits").touch()

    def models(path):
        side = sides[path.stem]
        ids = np.array([(3, 4)], dtype=[("corner_y", ">i4"), ("corner_x", ">i4")])
        return {"OBS_MEAN": np.full((1, 2, side, side), side), "IDS": ids}

    monkeypatch.setattr(results, "read_models", models)
    monkeypatch.setattr(results, "read_table", lambda p: (Table({"id": [7]}), {}))
    nothing = SimpleNamespace(blends=[0, 0])
    monkeypatch.setattr(results, "read_cutouts", lambda run: nothing)
    found = results.read_run(tmp_path)
    assert found.observed.shape == (2, 2, 9, 9)
    assert (found.observed[0, :, :5, :5] == 5).all() and found.observed[0].sum() == 250
    assert (found.observed[1] == 9).all()
    assert found.table["field"].tolist() == ["a", "b"]
    assert found.corner.tolist() == [[3, 4], [3, 4]]
