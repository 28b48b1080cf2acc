"""Metrics against closed forms and plain loops."""

import numpy as np
import pytest

from blendem.measure.metrics import (
    binned_statistics,
    blendedness,
    cosine_similarity,
    ellipticity_residual,
    flux_residual,
    residual_autocorrelation,
    sed_correlation,
    segmentation_iou,
)


def gaussian(x_0, sigma, flux=1.0, side=61):
    y, x = np.mgrid[:side, :side] - side // 2
    density = np.exp(-((x - x_0) ** 2 + y**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    return flux * density


def test_blendedness_of_two_gaussians():
    """<t_1, t_2> of Gaussians d apart is F_1 F_2 exp(-d^2 / 4 s^2) / (4 pi s^2)."""
    sigma, distance, ratio = 2.0, 5.0, 3.0
    faint, bright = gaussian(0, sigma), gaussian(distance, sigma, ratio)
    overlap = ratio * np.exp(-(distance**2) / (4 * sigma**2))
    expected = [1 - 1 / (1 + overlap), 1 - ratio**2 / (ratio**2 + overlap), 0.0]
    # Sampling of a Gaussian of 2 pixels is exact to 1e-30; the third source is padding.
    got = blendedness(np.stack([faint, bright, np.zeros_like(faint)]))
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_blendedness_alone_is_zero_and_twice_the_same_is_half():
    image = gaussian(0, 3.0)
    np.testing.assert_allclose(blendedness(image[None]), 0.0, atol=1e-15)
    np.testing.assert_allclose(blendedness(np.stack([image, image])), 0.5)
    assert np.isnan(blendedness(np.stack([image, -2 * image]))[0])


def test_residuals_of_fluxes_and_shapes():
    got = flux_residual(np.array([1.1, 0.5, 1.0]), np.array([1.0, 2.0, 0.0]))
    np.testing.assert_allclose(got, [0.1, -0.75, np.nan])
    got = ellipticity_residual(np.array([[0.3, -0.1]]), np.array([[0.1, 0.1]]))
    np.testing.assert_allclose(got, [[0.2, -0.2]])


def test_cosine_of_two_gaussians():
    """exp(-d^2 / 4 s^2), whatever the fluxes."""
    truth = gaussian(0, 2.0)
    model = np.stack([5 * gaussian(3.0, 2.0), -truth, 0 * truth])
    got = cosine_similarity(model, np.stack([truth] * 3))
    np.testing.assert_allclose(got, [np.exp(-9 / 16), -1.0, 0.0], atol=1e-12)


def test_sed_correlation_is_the_cosine_of_the_angle():
    truth = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    model = np.array([[1.0, 1.0], [7.0, 7.0], [0.0, 0.0]])
    np.testing.assert_allclose(sed_correlation(model, truth), [np.sqrt(0.5), 1.0, 0.0])


def test_segmentation_iou_counts_pixels():
    truth, model = np.zeros((2, 3, 8, 8))
    truth[0, :4, :4] = 2.0  # 16 pixels
    model[0, 2:6, 2:6] = 2.0  # 16, of which 4 are shared
    model[1, 0, 0] = 0.5  # below the threshold
    truth[2, 0, :2] = 2.0
    np.testing.assert_allclose(
        segmentation_iou(model, truth, 1.0), [4 / 28, np.nan, 0.0]
    )
    limits = np.array([1.0, 0.1, 3.0])
    np.testing.assert_allclose(
        segmentation_iou(model, truth, limits), [4 / 28, 0.0, np.nan]
    )


def test_autocorrelation_of_a_moving_average(rng):
    """u_i + a u_(i+1) along x has correlation a / (1 + a^2) at lag 1 and none elsewhere."""
    a, side = 0.5, 400
    white = rng.normal(size=(side, side + 1))
    pull = white[:, :-1] + a * white[:, 1:]
    mask = np.zeros((side, side), bool)
    mask[50:80, 20:300] = True
    pull[mask] = 1e6  # must not be seen
    lags = [(0, 0), (0, 1), (0, -1), (1, 0), (0, 2), (3, -1)]
    got, error = residual_autocorrelation(pull, mask, lags)
    expected = [1, a / (1 + a**2), a / (1 + a**2), 0, 0, 0]
    # The noise is not white, so that the error is up to sqrt(1 + 2 * 0.4^2) = 1.15 times larger.
    assert np.all(np.abs(got - expected) < 5 * 1.15 * error + 1e-12)
    np.testing.assert_allclose(error[0], 1 / np.sqrt((~mask).sum()))
    assert got[1] > 50 * error[1]


def test_autocorrelation_matches_a_loop(rng):
    pull, mask = rng.normal(size=(2, 5, 6)), rng.random((2, 5, 6)) < 0.3
    for dy, dx in [(2, -1), (-1, -3), (0, 4)]:
        products = [
            pull[n, y, x] * pull[n, y + dy, x + dx]
            for n, y, x in np.ndindex(pull.shape)
            if 0 <= y + dy < 5 and 0 <= x + dx < 6
            if not mask[n, y, x] and not mask[n, y + dy, x + dx]
        ]
        got, error = residual_autocorrelation(pull, mask, [(dy, dx)])
        assert got[0] == pytest.approx(
            np.mean(products) / np.mean(pull[~mask] ** 2), rel=1e-12
        )
        assert error[0] == pytest.approx(len(products) ** -0.5)
    with pytest.raises(ValueError, match="shorter lags"):
        residual_autocorrelation(pull, mask, [(5, 0)])


def test_binned_statistics_of_a_gaussian(rng):
    n, offset, sigma = 4000, 0.3, 2.0
    x = np.concatenate([rng.uniform(0, 1, n), rng.uniform(1, 2, n), [2.0, 5.0, 0.5]])
    values = np.concatenate(
        [np.zeros(n), offset + sigma * rng.normal(size=n), [0.0, 99, np.nan]]
    )
    table = binned_statistics(x, values, np.array([0.0, 1.0, 2.0]), rng=rng)
    # The last bin is closed (2.0 counts); 5.0 is outside, the NaN is left out.
    assert list(table["n"]) == [n, n + 1]
    assert table.loc[0, ["median", "mean_abs", "scatter", "median_err"]].eq(0).all()
    row = table.iloc[1]
    # Errors of the median, sqrt(pi/2) s/sqrt(n), and of 1.4826 MAD, 1.17 s/sqrt(n).
    assert abs(row["median"] - offset) < 5 * 1.2533 * sigma / np.sqrt(n)
    assert abs(row["scatter"] - sigma) < 5 * 1.17 * sigma / np.sqrt(n)
    assert row["mean_abs"] == pytest.approx(np.abs(values[n : 2 * n + 1]).mean())
    # The bootstrap error of a mean is s/sqrt(n); 200 draws give it to 5 %, five times that is 25 %.
    spread = np.abs(values[n : 2 * n]).std() / np.sqrt(n)
    assert row["mean_abs_err"] == pytest.approx(spread, rel=0.25)
    assert row["scatter_err"] == pytest.approx(1.17 * sigma / np.sqrt(n), rel=0.35)


def test_empty_bins_are_nan_and_bad_edges_are_refused(rng):
    table = binned_statistics(
        np.ones(1), np.ones(1), np.array([0.0, 0.5, 1.0]), rng=rng
    )
    assert list(table["n"]) == [0, 1]
    assert np.isnan(table.loc[0, "median"]) and table.loc[1, "median"] == 1
    assert np.isnan(table.loc[1, "median_err"])  # one value has no spread
    with pytest.raises(ValueError, match="edges"):
        binned_statistics(np.ones(1), np.ones(1), np.array([1.0, 0.5]), rng=rng)
