"""Boxes, buckets and padding by hand."""

import numpy as np
import pytest

from blendem.blend import (
    Bucket,
    bounding_box,
    choose_bucket,
    pad_observation,
    pad_sources,
    stack,
)

BUCKETS = (Bucket(2, 64), Bucket(8, 32), Bucket(8, 64))


@pytest.mark.parametrize(
    ("n", "shape", "expected"),
    [
        (2, (60, 20), Bucket(2, 64)),
        (2, (32, 32), Bucket(2, 64)),  # 2 * 64^2 = 8 * 32^2: the first of equals
        (3, (32, 32), Bucket(8, 32)),
        (3, (20, 33), Bucket(8, 64)),
        (9, (10, 10), None),
        (1, (10, 65), None),
    ],
)
def test_smallest_bucket_that_holds_the_blend(n, shape, expected):
    assert choose_bucket(n, shape, BUCKETS) == expected


def test_bounding_box_holds_footprint_sources_and_margin_inside_the_image():
    region, shape = (slice(5, 8), slice(10, 12)), (20, 30)
    inside = np.array([[6.0, 10.5]])
    assert bounding_box(region, shape, inside, 2) == (3, 10, 8, 14)
    # A source outside of the footprint widens the box; the image cuts it.
    assert bounding_box(region, shape, np.array([[6.0, 27.4]]), 2) == (3, 10, 8, 30)
    assert bounding_box(region, shape, inside, 6) == (0, 14, 4, 18)
    # Without a footprint the sources alone make the box.
    assert bounding_box(None, shape, np.array([[9.2, 9.7]]), 1) == (8, 12, 8, 12)


def cut(rng, shape=(2, 5, 6)):
    image, variance = rng.normal(size=shape), rng.uniform(1, 2, shape)
    image[0, 1, 2], variance[0, 1, 2] = np.nan, np.nan
    return image, variance


def padded(image, variance, size=8):
    return pad_observation(
        image,
        variance,
        np.full((len(image), 3, 3), 1 / 9),
        size=size,
        jacobian=np.eye(2),
        offset=np.array([1.0, 2.0]),
        band_index=tuple(range(len(image))),
        same_grid=True,
    )


def test_padding_is_masked_and_masked_values_are_zero(rng):
    image, variance = cut(rng)
    result = padded(image, variance)
    assert result.image.shape == result.variance.shape == (2, 8, 8)
    good = np.zeros((2, 8, 8), bool)
    good[:, :5, :6] = np.isfinite(variance)
    np.testing.assert_array_equal(np.isfinite(result.variance), good)
    assert np.all(result.image[~good] == 0.0)
    kept = np.isfinite(variance)
    np.testing.assert_allclose(result.image[good], image[kept], rtol=1e-6)
    np.testing.assert_allclose(result.variance[good], variance[kept], rtol=1e-6)
    np.testing.assert_array_equal(result.offset, [1.0, 2.0])  # pads at the far edges


def test_padded_sources_are_absent_galaxies_at_the_first_source(rng):
    centers = np.array([[1.0, 2.0], [3.0, 4.0]])
    blend = pad_sources((padded(*cut(rng)),), centers, np.array([False, True]), 4)
    np.testing.assert_array_equal(blend.centers, [[1, 2], [3, 4], [1, 2], [1, 2]])
    np.testing.assert_array_equal(blend.is_star, [False, True, False, False])
    np.testing.assert_array_equal(blend.present, [True, True, False, False])


def test_stack_fills_the_batch_with_the_last_blend(rng):
    blends = [
        pad_sources(
            (padded(*cut(rng)),), np.full((1, 2), float(i)), np.array([False]), 2
        )
        for i in range(2)
    ]
    batch = stack(blends, 3)
    assert batch.observations[0].image.shape == (3, 2, 8, 8)
    for row, blend in enumerate([blends[0], blends[1], blends[1]]):
        np.testing.assert_array_equal(batch.centers[row], blend.centers)
        np.testing.assert_array_equal(
            batch.observations[0].image[row], blend.observations[0].image
        )
