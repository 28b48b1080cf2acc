"""Detection and grouping on scenes with known answers."""

import numpy as np
import pytest

from blendem.survey.detect import detect, detection_image, group_footprints

AXIS = np.arange(31) - 15
PSF = np.exp(-(AXIS[:, None] ** 2 + AXIS[None, :] ** 2) / (2 * 2.0**2))
PSF = np.stack([PSF / PSF.sum()] * 2)


def scene(sources, shape=(100, 120), noise=0.0, rng=None):
    """Gaussian point sources (y, x, flux) of sigma 2 pixels in two bands, variance 1."""
    y, x = np.indices(shape)
    image = np.zeros(shape)
    for y0, x0, flux in sources:
        r2 = (y - y0) ** 2 + (x - x0) ** 2
        image += flux * np.exp(-r2 / (2 * 2.0**2)) / (2 * np.pi * 2.0**2)
    image = np.stack([image, image])
    if rng is not None:
        image = image + noise * rng.standard_normal(image.shape)
    return image, np.ones_like(image)


def test_detection_image_is_the_signal_to_noise_of_a_point_source():
    """S/N of a source of flux F in two bands: F sqrt(2 sum P^2) / sigma."""
    image, variance = scene([(50, 60, 100.0)])
    significance = detection_image(image, variance, PSF)
    # sum P^2 of a Gaussian is 1 / (4 pi sigma^2).
    expected = 100 * np.sqrt(2 / (4 * np.pi * 4))
    assert np.isclose(significance[50, 60], expected, rtol=1e-3)
    # A band of four times the variance counts a quarter.
    variance[1] *= 4
    lower = detection_image(image, variance, PSF)[50, 60]
    assert np.isclose(lower, expected * np.sqrt(1.25 / 2), rtol=1e-3)


def test_detection_image_of_a_lopsided_psf_peaks_at_the_source():
    """Correlated with its own PSF, a source peaks where it is, not twice its skewness away."""
    psf = 0.7 * PSF + 0.3 * np.roll(PSF, (3, 5), axis=(1, 2))
    image = np.zeros((2, 61, 61))
    image[:, 15:46, 15:46] = psf
    significance = detection_image(image, np.ones_like(image), psf)
    assert np.unravel_index(significance.argmax(), (61, 61)) == (30, 30)
    # At the source: sum P^2 over its root, for two bands.
    expected = np.sqrt(2 * np.sum(psf[0] ** 2))
    assert np.isclose(significance[30, 30], expected, rtol=1e-9)


def test_detection_image_has_unit_variance_in_noise_also_near_masks(rng):
    image = 3.0 * rng.standard_normal((2, 300, 300))
    variance = np.full_like(image, 9.0)
    variance[:, 100:140, 100:200] = np.inf
    image[:, 100:140, 100:200] = np.nan
    significance = detection_image(image, variance, PSF)
    assert np.all(np.isfinite(significance))
    # The filter correlates about 4 pi sigma^2 = 50 pixels: 1800 independent values.
    assert abs(np.std(significance) - 1) < 4 / np.sqrt(2 * 1800)
    # In the mask's corners information is left; ten pixels inside there is none.
    assert np.all(significance[115:125, 115:185] == 0)


def test_bright_isolated_sources_are_all_found_once(rng):
    grid = [(y, x) for y in range(20, 181, 40) for x in range(20, 181, 40)]
    truth = np.array(grid) + rng.uniform(-0.5, 0.5, (len(grid), 2))
    sources = [(y, x, 150.0) for y, x in truth]  # S/N 30
    image, variance = scene(sources, shape=(200, 200), noise=1.0, rng=rng)
    found = detect(detection_image(image, variance, PSF))
    assert len(found) == len(truth)
    position = np.stack([found["y"], found["x"]], axis=1)
    distance = np.hypot(*(position[:, None] - truth[None]).transpose(2, 0, 1))
    assert set(distance.argmin(axis=1)) == set(range(len(truth)))
    # sigma of a centroid is about sqrt(2) sigma_psf / (S/N) = 0.1 pixel: five of them.
    assert distance.min(axis=1).max() < 0.5
    assert np.all(np.diff(found["snr"]) <= 0)


def test_pure_noise_gives_no_detection_and_masked_sources_are_not_seen(rng):
    image, variance = scene([(50, 60, 500.0)], noise=1.0, rng=rng)
    assert len(detect(detection_image(image, variance, PSF))) == 1
    variance[:, 35:66, 45:76] = np.inf
    assert len(detect(detection_image(image, variance, PSF))) == 0


def test_two_close_sources_are_told_apart():
    """Separated by 9 pixels, 3.2 sigma of the matched-filtered profile."""
    image, variance = scene([(50, 50, 300.0), (50, 59, 300.0)])
    found = detect(detection_image(image, variance, PSF))
    np.testing.assert_allclose(sorted(found["x"]), [50, 59], atol=1.0)


def test_grouping_known_answer():
    """A pair that touches, a lone bright source, one below the threshold."""
    sources = [(30, 30, 300.0), (30, 39, 300.0), (70, 90, 300.0), (80, 20, 5.0)]
    image, variance = scene(sources)
    positions = np.array(sources)[:, :2]
    blends = group_footprints(detection_image(image, variance, PSF), positions)
    a, b, c, d = blends.labels
    assert a == b
    assert len({a, c, d}) == 3
    assert not blends.split.any()
    # The footprint is where the detection image is above 5 sigma.
    significance = detection_image(image, variance, PSF)
    above = significance > 5
    np.testing.assert_array_equal(
        (blends.segmentation == a) | (blends.segmentation == c), above
    )
    assert blends.segmentation[70, 90] == c
    assert blends.segmentation[30, 34] == a
    # The faint one has a disk of radius 5: 81 pixels have r^2 <= 25.
    assert np.sum(blends.segmentation == d) == 81


def test_large_blends_are_cut_at_a_higher_threshold():
    """Two pairs joined by a bridge: the bridge is what is cut."""
    sources = [(30, 20, 400.0), (30, 26, 400.0), (30, 38, 400.0), (30, 44, 400.0)]
    image, variance = scene(sources)
    positions = np.array(sources)[:, :2]
    whole = group_footprints(detection_image(image, variance, PSF), positions)
    assert len(set(whole.labels)) == 1
    cut = group_footprints(
        detection_image(image, variance, PSF), positions, max_sources=2
    )
    assert cut.labels[0] == cut.labels[1] != cut.labels[2] == cut.labels[3]
    assert cut.split.all()
    # Each pixel goes to the nearest source, so the border lies half-way, at x = 32.
    assert set(np.unique(cut.segmentation[:, :32])) == {0, cut.labels[0]}
    assert set(np.unique(cut.segmentation[:, 33:])) == {0, cut.labels[2]}
    np.testing.assert_array_equal(cut.segmentation > 0, whole.segmentation > 0)


def test_a_cut_follows_the_light_not_the_number_of_sources():
    """Three sources close together and one apart: 3 + 1, where halves would be 2 + 2."""
    positions = np.array([[30.0, 20], [30, 25], [30, 30], [30, 42]])
    image, variance = scene([(y, x, 400.0) for y, x in positions])
    cut = group_footprints(
        detection_image(image, variance, PSF), positions, max_sources=3
    )
    assert cut.labels[0] == cut.labels[1] == cut.labels[2] != cut.labels[3]


def test_inseparable_sources_are_cut_all_the_same():
    """Five catalog positions on one peak cannot fall apart at any threshold."""
    image, variance = scene([(30, 30, 400.0)])
    positions = 30.0 + np.array([[0, 0], [0, 1], [0, -1], [0, 2], [0, -2]])
    blends = group_footprints(
        detection_image(image, variance, PSF), positions, max_sources=2
    )
    counts = np.bincount(blends.labels)[1:]
    assert counts.max() <= 2
    assert counts.sum() == 5
    assert blends.split.all()


def test_positions_outside_and_empty():
    image, variance = scene([(30, 30, 300.0)])
    significance = detection_image(image, variance, PSF)
    blends = group_footprints(significance, np.array([[-4.0, 130.0]]))
    assert blends.labels.tolist() == [1]
    assert blends.segmentation[0, -1] == 1
    empty = group_footprints(significance, np.zeros((0, 2)))
    assert empty.labels.shape == (0,)
    assert not empty.segmentation.any()


def test_errors_name_what_is_wrong():
    image, variance = scene([])
    bad = image.copy()
    bad[0, 3, 3] = np.nan
    with pytest.raises(ValueError, match="1 unmasked pixels are not finite"):
        detection_image(bad, variance, PSF)
    with pytest.raises(ValueError, match="variance that is not positive"):
        detection_image(image, 0 * variance, PSF)
    with pytest.raises(ValueError, match="finite"):
        group_footprints(image[0], np.full((1, 2), np.nan))
    with pytest.raises(ValueError, match="`max_sources` must be at least 1"):
        group_footprints(image[0], np.zeros((1, 2)), max_sources=0)


def test_sources_too_far_apart_for_a_bucket_are_cut():
    """A chain of four that touch: 36 pixels long, no part may be longer than 20."""
    positions = np.array([[30.0, 20], [30, 32], [30, 44], [30, 56]])
    image, variance = scene([(y, x, 400.0) for y, x in positions])
    significance = detection_image(image, variance, PSF)
    whole = group_footprints(significance, positions)
    assert len(set(whole.labels)) == 1
    cut = group_footprints(significance, positions, max_extent=20)
    for label in set(cut.labels):
        assert np.ptp(positions[cut.labels == label], axis=0).max() <= 20
    assert cut.split.all()
    np.testing.assert_array_equal(cut.segmentation > 0, whole.segmentation > 0)
