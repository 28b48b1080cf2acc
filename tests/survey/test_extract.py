"""Cutting a field: which pixels and which sky end up in a blend."""

import numpy as np
import pytest
from astropy.wcs import WCS

from blendem.blend import Bucket
from blendem.survey.extract import Plane, SourceFlag, extract_blends

SIGMA = 1.5  # PSF [pixel]


def psf_image(side=13):
    r = np.arange(side) - side // 2
    image = np.exp(-0.5 * (r[:, None] ** 2 + r**2) / SIGMA**2)
    return (image / image.sum())[None]


def tan(degrees=0.0, scale=0.2, crpix=(30.0, 30.0)):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    wcs = WCS(naxis=2)
    wcs.wcs.crpix, wcs.wcs.crval = crpix, [150.0, 2.0]
    wcs.wcs.cd = scale / 3600 * np.array([[-c, s], [s, c]])
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.set()
    return wcs


def plane(positions, shape=(64, 64), flux=200.0, wcs=None):
    """A noise-free field of point sources with unit variance."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = sum(
        flux
        / (2 * np.pi * SIGMA**2)
        * np.exp(-0.5 * ((y - p[0]) ** 2 + (x - p[1]) ** 2) / SIGMA**2)
        for p in positions
    )
    return Plane(image[None], np.ones((1, *shape)), psf_image(), wcs, (0,), 0.2)


def extract(planes, positions, buckets, **changes):
    options = {"group": "footprint", "threshold": 3.0, "max_sources": 4, "margin": 6}
    star = np.zeros(len(positions), bool)
    return extract_blends(planes, positions, star, buckets, **options | changes)


def test_separate_sources_become_two_blends_that_mask_each_other():
    # The pair overlaps; the third is nearby, within the margin, but on its own.
    positions = np.array([[30.0, 20.0], [31.0, 24.0], [30.0, 40.0]])
    field = plane(positions)
    cuts = extract([field], positions, [Bucket(4, 40)])
    members = sorted(tuple(c.members) for c in cuts)
    assert members == [(0, 1), (2,)]
    pair = next(c for c in cuts if len(c.members) == 2)
    assert pair.flags == 0 and pair.bucket == Bucket(4, 40)
    y0, x0 = pair.corner
    np.testing.assert_allclose(pair.blend.centers[:2], positions[:2] - [y0, x0])
    observation = pair.blend.observations[0]
    height, width = pair.shape
    np.testing.assert_allclose(
        observation.image[0, :height, :width],
        field.image[0, y0 : y0 + height, x0 : x0 + width],
        rtol=1e-6,
    )
    wide = extract([field], positions, [Bucket(4, 64)], margin=20)
    pair = next(c for c in wide if len(c.members) == 2)
    y0, x0 = pair.corner
    variance = pair.blend.observations[0].variance[0]
    assert np.isinf(variance[30 - y0, 40 - x0])  # the middle of the foreign source
    for y, x in positions[:2].astype(int):
        assert variance[y - y0, x - x0] == 1.0
    assert variance[0, 0] == 1.0  # sky belongs to nobody


def test_one_blend_per_field_on_request():
    positions = np.array([[15.0, 15.0], [45.0, 45.0]])
    (cut,) = extract([plane(positions)], positions, [Bucket(2, 64)], group="field")
    assert cut.corner == (0, 0) and cut.shape == (64, 64)
    assert np.isfinite(cut.blend.observations[0].variance).all()


def test_blends_that_do_not_fit_are_flagged_with_the_reason():
    positions = np.array([[30.0, 26.0], [31.0, 30.0]])
    field = plane(positions)
    (large,) = extract([field], positions, [Bucket(1, 64)])
    assert large.blend is None and large.bucket is None
    assert large.flags & SourceFlag.TOO_LARGE
    (clipped,) = extract([field], positions, [Bucket(2, 12)])
    assert clipped.flags == SourceFlag.CLIPPED and clipped.bucket == Bucket(2, 12)
    assert clipped.shape == (12, 12)
    centers = clipped.blend.centers
    assert np.all((centers > 0) & (centers < 11))
    np.testing.assert_allclose(centers + np.array(clipped.corner), positions, atol=1e-5)


def test_second_observation_sees_the_same_sky():
    positions = np.array([[30.0, 26.0], [31.0, 30.0]])
    first = plane(positions, wcs=tan())
    other = tan(20.0, 0.3, (25.0, 28.0))
    second = plane(np.array([[28.0, 25.0]]), (50, 56), wcs=other)
    (cut,) = extract([first, second], positions, [Bucket(2, 40)])
    a, b = cut.blend.observations
    assert a.same_grid and not b.same_grid
    assert abs(np.linalg.det(b.jacobian)) ** 0.5 == np.float32(1.5).round(
        4
    ) or np.isclose(abs(np.linalg.det(b.jacobian)) ** 0.5, 1.5, rtol=1e-4)
    # Where in its own plane does the cut-out start? At the pixel that holds its values.
    values = b.image[0, :3, :3]
    windows = np.lib.stride_tricks.sliding_window_view(second.image[0], (3, 3))
    low = np.argwhere(np.isclose(windows, values, rtol=1e-5, atol=0).all((2, 3)))
    assert len(low) == 1
    for position, center in zip(positions, cut.blend.centers, strict=True):
        sky = first.wcs.all_pix2world([position[::-1]], 0)
        pixel = other.all_world2pix(sky, 0)[0][::-1] - low[0]
        np.testing.assert_allclose(b.jacobian @ pixel + b.offset, center, atol=1e-3)


def blob(positions, sigma, shape=(96, 96), flux=3e4):
    """A noise-free field of round galaxies of different sizes and unit variance."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros(shape)
    for p, s in zip(positions, sigma, strict=True):
        r2 = (y - p[0]) ** 2 + (x - p[1]) ** 2
        image += flux / (2 * np.pi * s**2) * np.exp(-0.5 * r2 / s**2)
    return Plane(image[None], np.ones((1, *shape)), psf_image(), None, (0,), 0.2)


@pytest.mark.parametrize("group", ["footprint", "field"])
def test_blends_with_a_galaxy_larger_than_its_stamp_are_flagged(group):
    # At 3 sigma the large galaxy is seen to a radius of about 30 pixels.
    positions = np.array([[40.0, 40.0], [40.0, 48.0]])
    field = blob(positions, (9.0, 1.5))

    def flags(**changes):
        options = {"group": group} | changes
        (cut,) = extract([field], positions, [Bucket(2, 96)], **options)
        return cut.flags

    assert flags(stamp=33) == SourceFlag.BEYOND_STAMP
    # Magnified twice it reaches 33 pixels, with the PSF 37.
    assert flags(stamp=33, magnify=2) == 0
    assert flags(stamp=17, magnify=2) == SourceFlag.BEYOND_STAMP
    assert flags(stamp=17, magnify=4) == 0
    assert flags(stamp=71) == 0 and flags() == 0
    # Model pixels half as wide: the stamp covers half as much of the sky.
    assert flags(stamp=71, pixel_scale=0.1) == SourceFlag.BEYOND_STAMP


def test_the_galaxy_that_outgrows_its_stamp_is_the_one_that_is_magnified():
    positions = np.array([[40.0, 40.0], [40.0, 48.0], [66.0, 40.0]])
    field = blob(positions, (9.0, 1.5, 1.5))
    options = {"group": "field", "stamp": 33, "max_sources": 4}
    for magnify, expected in ((1, None), (2, [1, 0, 0, 0]), (4, [1, 0, 0, 0])):
        (cut,) = extract(
            [field], positions, [Bucket(4, 96)], magnify=magnify, **options
        )
        zoom = cut.blend.zoom
        assert (None if zoom is None else list(zoom)) == expected
    # Of what the largest stamp does not hold the neighbours get nothing, and the flag stays.
    options["stamp"] = 17
    (cut,) = extract([field], positions, [Bucket(4, 96)], magnify=2, **options)
    assert list(cut.blend.zoom) == [1, 0, 0, 0]
    assert cut.flags == SourceFlag.BEYOND_STAMP
    small = blob(positions, (2.0, 1.5, 1.5))
    (cut,) = extract([small], positions, [Bucket(4, 96)], magnify=4, **options)
    assert cut.blend.zoom is None and cut.flags == 0


def test_a_star_may_be_seen_beyond_its_stamp():
    positions = np.array([[40.0, 40.0]])
    field = plane(positions, (96, 96), flux=1e6)
    options = {"group": "footprint", "threshold": 3.0, "max_sources": 4, "margin": 6}
    for star, expected in ((True, 0), (False, SourceFlag.BEYOND_STAMP)):
        (cut,) = extract_blends(
            [field], positions, np.array([star]), [Bucket(2, 96)], stamp=3, **options
        )
        assert cut.flags == expected and cut.blend.zoom is None
