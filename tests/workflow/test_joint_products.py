"""Two observations of one field, from files to products: both are shown, scored and drawn."""

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from blendem.config import (
    BlendsConfig,
    DetectConfig,
    FrameConfig,
    InferConfig,
    NoiseConfig,
    PlotConfig,
)
from blendem.io.fields import write_field
from blendem.io.priors import write_prior
from blendem.io.products import read_models, read_views
from blendem.io.table import FieldRow
from blendem.plot.inputs import read_field
from blendem.prior.gaussian import Basis, GaussianPrior
from blendem.survey.layout import tangent_wcs

META = {"METHOD": "test", "CONFIG": "test", "VERSION": "test"}
SIGMA_MODEL, SIGMA_GALAXY, STAMP, SCALE = 0.7, 2.0, 31, 0.168
# Of the second image: side, pixel ["], PSF and its WCS, which is wrong by this (y, x) [its pixel].
SIDE, PIXEL, SEEING, WRONG = 61, 0.21, 1.6, np.array([0.5, -0.3])
FLUX = {"g": 3000.0, "i": 2000.0}


def gaussian(side, center, sigma, scale=1.0):
    """Of unit flux, sampled on pixels of `scale` of its own; the closed form of what is rendered."""
    y, x = (np.arange(side) - c for c in center)
    r2 = (y[:, None] ** 2 + x[None] ** 2) * scale**2
    return scale**2 * np.exp(-0.5 * r2 / sigma**2) / (2 * np.pi * sigma**2)


@pytest.fixture(scope="module")
def run(tmp_path_factory, script):
    """A galaxy in g as the first sees it and in i as a second one does, on other pixels."""
    folder = tmp_path_factory.mktemp("joint")
    width = np.hypot(SIGMA_GALAXY, SIGMA_MODEL)
    mean = gaussian(STAMP, (STAMP // 2, STAMP // 2), width)
    modes = np.zeros((2, 2, STAMP, STAMP), np.float32)
    modes[0, 0] = modes[1, 1] = 0.7 * mean  # the flux of either band
    basis = Basis(
        np.stack([mean, mean]).astype(np.float32),
        modes,
        np.sum(modes**2, axis=(1, 2, 3)),
        np.array(1e-6, np.float32),
        np.array(SIGMA_MODEL, np.float32),
        np.array(SCALE, np.float32),
        ("g", "i"),
    )
    write_prior(folder / "basis.eqx", GaussianPrior.standard(basis), {})
    rng = np.random.default_rng(8)
    zoom = PIXEL / SCALE
    looks = {
        "a": ("g", 81, (40.0, 40.0), 1.5, 1.0, 1.0, 27.0),
        # Same sky, 2.5 mag shallower counts; its own pixels hold the galaxy off the WCS.
        "b": ("i", SIDE, (30.0 + WRONG[0], 30.0 + WRONG[1]), SEEING, zoom, 10.0, 29.5),
    }
    rows = []
    for name, (band, side, center, seeing, scale, gain, magzero) in looks.items():
        sigma = np.hypot(SIGMA_GALAXY, seeing * scale)
        image = FLUX[band] * gaussian(side, center, sigma, scale)
        image = gain * (image + rng.standard_normal(image.shape))
        write_field(
            folder / f"{name}.fits",
            image=image[None],
            variance=np.full((1, side, side), gain**2),
            psf=gaussian(31, (15, 15), seeing)[None],
            bands=(band,),
            magzero=magzero,
            wcs=tangent_wcs((side, side), SCALE * scale, (150.0, 2.0)),
        )
        rows.append(FieldRow("f", f"camera_{name}", folder / f"{name}.fits"))
    blends = BlendsConfig(buckets=({"sources": 1, "size": 81},), group="field", batch=1)
    infer = InferConfig(samples=16, reference_band="g", offset_sigma=2.0)
    paths = [folder / name for name in ("blends.h5", "statistics.h5", "posterior.h5")]
    script("extract_blends").main(
        rows,
        folder / "basis.eqx",
        paths[0],
        blends,
        DetectConfig(max_sources=1),
        FrameConfig(stamp=STAMP),
        NoiseConfig(),
    )
    script("compute_statistics").main(
        paths[0], folder / "basis.eqx", paths[1], infer, blends, 1e9
    )
    script("sample_posterior").main(
        paths[0], paths[1], folder / "basis.eqx", paths[2], infer, 1, 1
    )
    products = [folder / kind / "f" for kind in ("catalog", "models", "samples")]
    products = [
        path.with_suffix(suffix)
        for path, suffix in zip(products, (".fits", ".fits", ".h5"), strict=True)
    ]
    script("measure").main(
        rows,
        *paths,
        folder / "basis.eqx",
        *([path] for path in products),
        folder / "measured.h5",
        infer,
        blends,
        META,
    )
    scores = [folder / f"{name}.csv" for name in ("sources", "blends", "seen", "laps")]
    script("score").main(
        [products[0]],
        [products[1]],
        [products[2]],
        [],
        folder / "basis.eqx",
        [folder / "measured.h5"],
        [],
        "g",
        0,
        *scores,
        None,
    )
    return folder, products, scores


def test_the_second_observation_is_in_the_products(run):
    """In the units of the first, on its own pixels, where the galaxy really is."""
    _, (_, models, _), _ = run
    arrays, (view,) = read_models(models), read_views(models)
    assert view.instrument == "camera_b" and view.bands == ("i",)
    np.testing.assert_allclose(view.image - view.model, arrays["RESIDUAL_1"], atol=1e-5)
    np.testing.assert_allclose(arrays["VAR_1"], 1.0, rtol=1e-6)
    assert fits.getheader(models, "SCI_1")["BANDS"] == "i"
    sigma = np.hypot(SIGMA_GALAXY, SEEING * PIXEL / SCALE)
    truth = FLUX["i"] * gaussian(SIDE, 30.0 + WRONG, sigma, PIXEL / SCALE)
    # S/N is 150 for the flux and 0.02 pixel for the centre: 1 % of the peak allows for both.
    np.testing.assert_allclose(view.model[0], truth, atol=0.012 * truth.max())
    assert np.abs(view.model).max() > 10
    # Where the first observation is shown nothing has changed: it has no i.
    assert np.isinf(arrays["VAR"][1]).all() and not arrays["MODEL"][1].any()


def test_scores_are_those_of_the_images(run):
    _, (_, models, _), (_, blends, observations, _) = run
    table, arrays = pd.read_csv(observations), read_models(models)
    assert list(table["instrument"]) == ["camera_a", "camera_b"]
    assert list(table["band"]) == ["g", "i"] and list(table["observation"]) == [0, 1]
    for row, pull in zip(
        table.itertuples(),
        (arrays["RESIDUAL"][0], arrays["RESIDUAL_1"][0]),
        strict=True,
    ):
        assert row.n_data == pull.size
        np.testing.assert_allclose(row.chi2, np.sum(pull**2), rtol=1e-5)
        # White noise: four standard errors.
        assert abs(row.chi2 / row.n_data - 1) < 4 * np.sqrt(2 / row.n_data)
        assert abs(row.autocorrelation) < 4 / np.sqrt(row.n_data)
        assert (
            row.white_chi2 == pytest.approx(row.chi2) and not row.noise_autocorrelation
        )
    first = pd.read_csv(blends).iloc[0]
    assert first["chi2_g"] == table["chi2"][0] and np.isnan(first["chi2_i"])
    offset = np.array([first["offset_y_1"], first["offset_x_1"]])
    error = np.array([first["offset_y_1_err"], first["offset_x_1_err"]])
    assert np.all(np.abs(offset - WRONG * PIXEL / SCALE) < 4 * error)


def test_figures_show_both(run, script, monkeypatch):
    folder, (catalog, models, _), (_, blends, observations, _) = run
    field = read_field(catalog, models)
    assert [seen.bands for seen in field.seen] == [("g",), ("i",)]
    # Marks are where the WCS puts the source.
    np.testing.assert_allclose(field.seen[1].positions, [[30, 30]], atol=0.05)
    config = PlotConfig(rgb=("g",))
    plot_blends, figures = script("plot_blends"), []
    monkeypatch.setattr(plot_blends, "save", lambda figure, *_: figures.append(figure))
    plot_blends.main(
        blends, [catalog], [models], folder / "basis.eqx", None, "g", config
    )
    panels = [ax for ax in figures[0].axes if ax.images]
    data = panels[4].images[0].get_array(), panels[9].images[0].get_array()
    for pull, seen in zip(data, field.seen, strict=True):
        assert pull.shape == seen.pull[0].shape or np.isin(pull, seen.pull[0]).all()
    assert "camera_b" in panels[5].get_ylabel()
    groups = script("plot_chi2").per_band(pd.read_csv(observations), ["g", "i"])
    assert list(groups) == ["g", "i\n(2)"]
