"""The real pair of HST and HSC as a field: noise, sources, zero points, and the files that come out."""

import numpy as np
import pytest

from blendem.io.fields import read_observation, validate_fields
from blendem.io.table import read_fields_table
from blendem.noise import draw_noise
from blendem.survey.population import draw_galaxies, total_flux

RHO = np.array([[0.2, 0.45, 0.2], [0.45, 1.0, 0.45], [0.2, 0.45, 0.2]])


@pytest.fixture
def pair(load):
    """The script as a module."""
    return load("hst_hsc_fields")


def gaussian(side, center, sigma):
    y, x = (np.arange(side) - c for c in center)
    image = np.exp(-0.5 * (y[:, None] ** 2 + x[None] ** 2) / sigma**2)
    return image / image.sum()


@pytest.fixture
def scene():
    """Two sources on a sky of 3 counts, noise of sigma 2 that is correlated."""
    noise = draw_noise(RHO, (150, 150), np.random.default_rng(4))
    image = 3.0 + 2.0 * noise
    for center, flux in (((50.0, 60.0), 2000.0), ((90.0, 62.0), 600.0)):
        image = image + flux * gaussian(150, center, 2.5)
    return image[None], gaussian(21, (10.0, 10.0), 2.0)[None]


def test_sky_noise_and_sources_under_correlated_noise(pair, scene):
    image, psf = scene
    sky = pair.measure_sky(image, psf, 4.0, 5)
    # 20000 pixels of which about one in four is independent.
    assert abs(sky.level[0] - 3.0) < 0.12 and abs(sky.sigma[0] - 2.0) < 0.06
    # White noise through the filter has 1; here sqrt(P rho P / P P).
    kernel = psf[0] / np.sqrt(np.sum(psf[0] ** 2))
    shifted = sum(
        RHO[i, j] * np.sum(kernel * np.roll(kernel, (i - 1, j - 1), (0, 1)))
        for i in range(3)
        for j in range(3)
    )
    assert sky.spread == pytest.approx(np.sqrt(shifted), rel=0.06)
    found = pair.find(image, psf, sky)
    assert len(found) == 2
    np.testing.assert_allclose(found["y"], [50, 90], atol=0.5)
    rho = pair.correlation_of(image, sky, 1)
    np.testing.assert_allclose(rho[0], RHO, atol=0.06)


def test_what_hst_does_not_show_is_masked(pair, scene):
    image, psf = scene
    sky = pair.measure_sky(image, psf, 4.0, 5)
    masked = pair.unmodelled(sky, np.array([[50.0, 60.0]]), 10.0)
    assert masked[90, 62] and not masked[50, 60]
    assert not pair.unmodelled(sky, np.array([[50.0, 60.0], [90, 62]]), 10.0).any()


def test_segments_go_to_the_nearest_source(pair, scene):
    image, psf = scene
    sky = pair.measure_sky(image, psf, 4.0, 5)
    positions = np.array([[50.0, 60.0], [90.0, 62.0]])
    parts = pair.segments(sky, positions)
    assert parts[50, 60] == 1 and parts[90, 62] == 2 and parts[20, 20] == 0
    flux = (image[0] - sky.level[0])[parts == 1].sum()
    # 98 % of the light and the noise of some 300 correlated pixels.
    assert flux == pytest.approx(2000, rel=0.08)


def test_zero_points_are_those_that_the_colours_had(pair, monkeypatch):
    """Galaxies of the population with other zero points."""
    monkeypatch.setattr(pair, "GALAXIES", 3000)
    zero = np.array([-2.0, -3.0, 0.5, 1.0, -4.0])
    galaxies = draw_galaxies(12, np.random.default_rng(9), mag_limit=24.0)
    flux = {b: total_flux(galaxies, b) for b in pair.HSC + pair.HST}
    sharp = flux["f814w"]
    counts = np.stack([flux[b] for b in pair.HSC], axis=1) * 10 ** (0.4 * zero)
    found = pair.zero_points(sharp, counts, np.random.default_rng(1))
    # The kernel has 0.1 mag, colours among 12 galaxies scatter more than that in g and r only.
    np.testing.assert_allclose(found, zero, atol=0.15)


def test_without_the_data(pair, tmp_path):
    with pytest.raises(SystemExit, match=r"Cut_HST\.fits.*BLENDEM_DATA"):
        pair.read_pair(tmp_path)


def test_the_real_pair_becomes_a_field(pair, data_dir, tmp_path):
    pair.main(data_dir / "hst_hsc_pair", tmp_path, 1)
    validate_fields(tmp_path / "joint.tsv")
    hst, hsc = (read_observation(r) for r in read_fields_table(tmp_path / "joint.tsv"))
    (alone,) = read_fields_table(tmp_path / "alone.tsv")
    assert alone.path == hsc.path
    assert hst.bands == ("f814w",) and hsc.bands == tuple("grizy")
    assert hst.image.shape == (1, 250, 250) and hsc.image.shape == (5, 50, 50)
    # What HST shows is more than HSC alone does: one of its blobs is three galaxies.
    assert len(hst.catalog) > len(hsc.catalog) >= 2
    # Noise has the given variance where it was measured, the lowest 20 rows being free of light.
    corner = hst.image[0, :60] / np.sqrt(hst.variance[0, :60])
    assert np.std(corner) == pytest.approx(1.0, abs=0.05)
    assert np.isinf(hsc.variance).any() and hst.correlation.shape == (1, 5, 5)
