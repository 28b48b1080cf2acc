"""Panels: what the artists hold is what the data say."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

matplotlib.use("Agg")
from matplotlib.figure import Figure  # (after the choice of the backend)

from blendem import plot
from blendem.plot.inputs import cutout, shown_side

BANDS = ("g", "r", "i")


def axes(n):
    return Figure(figsize=(plot.TWO_COLUMNS, 2)).subplots(1, n, squeeze=False)[0]


def test_lupton_puts_the_reddest_band_into_red():
    image = np.zeros((3, 4, 5))
    image[2, 1, 2] = 10.0  # i only
    image[0, 3, 0] = 10.0  # g only
    rgb = plot.lupton(image, BANDS, stretch=1.0)
    assert rgb.shape == (4, 5, 3) and rgb.dtype == np.uint8
    assert rgb[1, 2, 0] > 200 and rgb[1, 2, 1] == rgb[1, 2, 2] == 0
    assert rgb[3, 0, 2] > 200 and rgb[3, 0, 0] == rgb[3, 0, 1] == 0
    swapped = plot.lupton(image, BANDS, rgb=("g", "r", "i"), stretch=1.0)
    np.testing.assert_array_equal(swapped, rgb[..., ::-1])
    with pytest.raises(ValueError, match="'y'"):
        plot.lupton(image, BANDS, rgb=("y", "i", "g"))


def test_field_marks_are_at_x_and_y():
    (ax,) = axes(1)
    positions = np.array([[1.0, 7.0], [3.0, 2.0]])  # (y, x)
    rgb = np.zeros((10, 20, 3), np.uint8)
    _, marks = plot.plot_field(ax, rgb, positions, labels=["a", "b"])
    np.testing.assert_array_equal(marks.get_offsets(), positions[:, ::-1])
    assert [text.xy[0] for text in ax.texts] == [7.0, 2.0]
    # y grows upwards, as in FITS viewers.
    assert ax.get_ylim() == (-0.5, 9.5) and ax.get_xlim() == (-0.5, 19.5)


def test_pull_is_symmetric_about_white(rng):
    (ax,) = axes(1)
    pull = rng.normal(size=(6, 7))
    image = plot.plot_pull(ax, pull, limit=4.0)
    np.testing.assert_array_equal(image.get_array(), pull)
    assert image.get_clim() == (-4.0, 4.0)
    low, middle, high = image.to_rgba(np.array([-4.0, 0.0, 4.0]))
    assert low[2] > low[0] and high[0] > high[2]  # negative is blue, positive red
    np.testing.assert_allclose(middle[:3], 1.0, atol=0.05)
    assert r"\sigma" in ax.figure.axes[1].get_ylabel()


def test_blend_row_has_its_pictures_in_order(rng):
    row = axes(5)
    pictures = rng.integers(0, 255, size=(4, 10, 10, 3), dtype=np.uint8)
    pull = rng.normal(size=(10, 10))
    positions = np.array([[1.0, 7.0]])
    artists = plot.plot_blend_row(
        row, *pictures, pull, positions=positions, pixel_scale=0.2
    )
    for artist, picture in zip(artists, [*pictures, pull], strict=True):
        np.testing.assert_array_equal(artist.get_array(), picture)
    assert [ax.get_title() for ax in row[1:3]] == ["rendered model", "observation"]
    marks, bar = row[2].lines
    np.testing.assert_array_equal(marks.get_xydata(), [[7.0, 1.0]])
    # 10 pixels of 0.2" are 2"; 40 % is 0.8", so the bar is 0.5" = 2.5 pixels.
    assert np.ptp(bar.get_xdata()) == pytest.approx(2.5)
    assert row[2].texts[0].get_text() == '0.5"'


def test_source_row_shares_the_scale_of_the_mean(rng):
    row = axes(7)
    mean = rng.random((5, 5)) + 0.1
    std, samples = 0.1 * mean, mean + rng.normal(size=(3, 5, 5))
    observed, pull = mean + 1, rng.normal(size=(5, 5))
    options = {"truth": mean - 0.01, "unit": "nJy"}
    artists = plot.plot_source_row(row, observed, mean, std, samples, pull, **options)
    shown = [observed, mean - 0.01, mean, std, samples[0], samples[1], pull]
    for artist, picture in zip(artists, shown, strict=True):
        np.testing.assert_array_equal(artist.get_array(), picture)
    assert artists[2].get_clim()[1] == mean.max()
    for i in (0, 1, 4, 5):
        assert artists[i].get_clim() == artists[2].get_clim()
    assert artists[3].get_clim() == (0, std.max())
    assert artists[6].get_clim() == (-5, 5)
    bars = [ax.get_ylabel() for ax in row[0].figure.axes[7:]]
    assert bars == ["[nJy]", "[nJy]", r"[$\sigma$]"]
    names = [
        "observation",
        "truth",
        "mean",
        "st. deviation",
        "draw 1",
        "draw 2",
        "pull",
    ]
    assert [ax.get_title() for ax in row] == names
    # Without a truth its axis holds another draw.
    plot.plot_source_row(axes(7), observed, mean, std, samples, pull)
    with pytest.raises(ValueError, match="2 draws"):
        plot.plot_source_row(row, observed, mean, std, samples[:1], pull, **options)


def test_cutouts_are_centred_and_grey_outside():
    image = np.arange(100.0).reshape(10, 10)
    cut = cutout(image, np.array([4.2, 6.6]), 5)
    np.testing.assert_array_equal(cut, image[2:7, 5:10])
    cut = cutout(image, np.array([0.0, 9.0]), 3)
    np.testing.assert_array_equal(np.isnan(cut).sum(axis=1), [3, 1, 1])
    assert cut[1, 1] == image[0, 9]


def test_large_sources_are_shown_whole_and_small_ones_closer():
    r = np.arange(49) - 24
    r2 = r[:, None] ** 2 + r**2
    assert shown_side(np.exp(-0.5 * r2 / 2.0**2)) == 25
    # 99 % of a Gaussian is within 2.81 sigma on both axes.
    assert shown_side(np.exp(-0.5 * r2 / 6.0**2)) == 35
    assert shown_side(np.ones((49, 49))) == 49
    assert shown_side(np.ones((15, 15))) == 15


def test_training_curves_show_the_history_and_the_best():
    curve = pd.DataFrame(
        {
            "kind": "network",
            "step": [1000, 2000, 3000],
            "train_loss": [0.9, 0.7, 0.6],
            "held_out": [0.8, 0.5, 0.55],
            "ratio_0.1": [0.9, 0.6, 0.7],
            "ratio_3": [0.7, 0.4, 0.4],
        }
    )
    pair = axes(2)
    trained, held, *levels = plot.plot_training(pair, curve)
    np.testing.assert_array_equal(trained.get_ydata(), curve["train_loss"])
    np.testing.assert_array_equal(held.get_xydata().T, [[1, 2, 3], [0.8, 0.5, 0.55]])
    assert [line.get_label() for line in levels] == [
        r"$\sigma$ = 0.1",
        r"$\sigma$ = 3",
    ]
    np.testing.assert_array_equal(levels[1].get_ydata(), curve["ratio_3"])
    note = pair[0].figure.axes[2].texts[0]
    assert note.get_text() == "kept: 0.500 (step 2000)"
    circle = pair[0].figure.axes[2].lines[1]
    np.testing.assert_array_equal(circle.get_xydata(), [[2, 0.5]])


def test_flux_error_draws_the_binned_medians(rng):
    scores = pd.DataFrame(
        {
            "blendedness_r": [-1e-12, 0.01, 0.02, 0.3, 0.3, 0.3],
            "mag_r": [19.0, 19.0, 19.0, 24.5, 24.5, 24.5],
            "flux_residual_r": [0.0, 0.1, 0.3, -0.2, -0.1, 3.0],
        }
    )
    pair = axes(2)
    bars = plot.plot_flux_error(pair, scores, "r", rng=rng, label="mean", limit=0.5)
    # The bins 0.05-0.2 and 0.5-1 are empty and left out; rounding below 0 is not lost.
    np.testing.assert_allclose(
        bars[0].lines[0].get_xydata(), [[0.01, 0.1], [0.3, -0.1]]
    )
    np.testing.assert_allclose(bars[1].lines[0].get_xydata(), [[19, 0.1], [24.5, -0.1]])
    points = pair[0].lines[1].get_ydata()
    assert points.max() == 0.5  # the outlier is seen at the edge
    # Half height of the band: 1.4826 * median(|0 - .1|, 0, .2) = 0.148.
    band = pair[0].collections[0].get_paths()[0].vertices
    assert np.ptp(band[np.isclose(band[:, 0], 0.01), 1]) == pytest.approx(2 * 0.14826)
    assert pair[0].get_legend().get_texts()[0].get_text() == "mean"


def test_coverage_curves_share_one_diagonal():
    (ax,) = axes(1)
    levels, errors = np.array([0.2, 0.5, 0.9]), np.full(3, 0.05)
    for color, shift in ((plot.BLUE, 0.0), (plot.ORANGE, -0.1)):
        line = plot.plot_coverage(
            ax, levels, levels + shift, errors, label="flux", color=color
        )
    assert len(ax.lines) == 3
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_allclose(line.get_ydata(), levels - 0.1)
    vertices = ax.collections[1].get_paths()[0].vertices
    assert vertices[:, 1].min() == pytest.approx(0.05) and vertices[
        :, 1
    ].max() == pytest.approx(0.85)
    np.testing.assert_allclose(
        ax.collections[1].get_facecolor()[0, :3], to_rgba(plot.ORANGE)[:3]
    )


def test_ranks_and_evidence():
    rank_ax, evidence_ax = axes(2)
    histogram = {
        "edges": np.array([-0.5, 1.5, 3.5]), "counts": np.array([3, 7]), "p_chi2": 0.2057,
        "expected": np.array([5.0, 5.0]), "p_ks": 0.5,
    }  # fmt: skip
    line = plot.plot_ranks(rank_ax, histogram)
    np.testing.assert_array_equal(line.get_ydata(), [3, 7, 7])
    band = rank_ax.collections[0].get_paths()[0].vertices[:, 1]
    # Binomial: 10 sources, probability 1/2: 5 +- 2 sqrt(2.5).
    assert band.max() == pytest.approx(5 + 2 * np.sqrt(2.5))
    assert "0.21" in rank_ax.get_title()

    laps, evidence = np.arange(4.0), np.array([-9.0, -4.0, -2.0, -1.0])
    bars = plot.plot_evidence(
        evidence_ax, laps, evidence, np.full(4, 0.5), reference=-0.5
    )
    np.testing.assert_array_equal(bars.lines[0].get_ydata(), evidence)
    assert evidence_ax.lines[0].get_ydata()[0] == -0.5
    assert bars.has_yerr
    # Laps are whole numbers.
    ticks = evidence_ax.get_xticks()
    np.testing.assert_array_equal(ticks, np.round(ticks))


def test_prior_samples_one_per_axis(rng):
    row = axes(3)
    images = rng.integers(0, 255, size=(3, 4, 4, 3), dtype=np.uint8)
    artists = plot.plot_prior_samples(row, list(images), title="lap 0")
    np.testing.assert_array_equal(artists[2].get_array(), images[2])
    assert row[0].get_title(loc="left") == "lap 0" and len(row[1].get_xticks()) == 0
    with pytest.raises(ValueError):
        plot.plot_prior_samples(row, list(images[:2]))
