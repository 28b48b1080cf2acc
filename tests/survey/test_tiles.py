"""Tiles of large fields."""

import numpy as np
import pytest

from blendem.survey.significance import detection_image
from blendem.survey.tiles import owners, significance_of, tile_grid


@pytest.mark.parametrize("shape", [(100, 100), (101, 250), (64, 999), (7, 3)])
def test_cores_fill_the_field_once_and_windows_hold_their_margin(shape):
    count, tiles = np.zeros(shape, int), tile_grid(shape, 64, 20)
    for tile in tiles:
        y0, y1, x0, x1 = tile.core
        count[y0:y1, x0:x1] += 1
        assert 0 < y1 - y0 <= 64
        assert 0 < x1 - x0 <= 64
        low = (max(0, y0 - 20), max(0, x0 - 20))
        high = (min(shape[0], y1 + 20), min(shape[1], x1 + 20))
        assert tile.window == (low[0], high[0], low[1], high[1])
    assert (count == 1).all()
    assert len({tile.name for tile in tiles}) == len(tiles)


def test_a_blend_is_in_one_tile_that_of_its_brightest_source():
    tiles = tile_grid((100, 100), 50, 10)
    # A blend over a corner of four tiles, a lone source, and a tie.
    pixel = np.array([[49, 49], [50, 50], [50, 49], [99, 0], [0, 49], [0, 50]])
    labels = np.array([3, 3, 3, 1, 2, 2])
    light = np.array([2.0, 1.0, 5.0, 1.0, 7.0, 7.0])
    names = [tiles[k].name for k in owners(tiles, pixel, labels, light)]
    assert names[:3] == ["t01_00"] * 3
    assert names[3] == "t01_00"
    assert names[4] == names[5]
    assert owners(tiles, np.zeros((0, 2), int), labels[:0], light[:0]).shape == (0,)


def test_significance_in_strips_is_that_of_the_whole(rng):
    image = rng.normal(size=(2, 61, 40))
    variance = rng.uniform(1, 2, image.shape)
    variance[0, 20:30, 5:9] = np.inf
    y, x = np.mgrid[-4:5, -4:5]
    psf = np.exp(-(x**2 + y**2) / np.array([4.0, 8.0])[:, None, None])
    psf /= psf.sum(axis=(1, 2), keepdims=True)

    def read(y0, y1):
        return image[:, y0:y1], variance[:, y0:y1]

    strips = [(0, 20), (20, 40), (40, 60), (60, 61)]
    found = significance_of(read, (61, 40), psf, strips)
    np.testing.assert_allclose(found, detection_image(image, variance, psf), atol=1e-5)
    # A strip without its neighbours' rows is wrong at its edge.
    alone = detection_image(*read(0, 20), psf)
    assert np.abs(alone[-1] - found[19]).max() > 0.1
