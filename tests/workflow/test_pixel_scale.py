"""Side of the pixels of fields with and without a WCS."""

from types import SimpleNamespace

import pytest

from blendem.config import FrameConfig
from blendem.io.table import InputError


@pytest.mark.parametrize(
    ("instrument", "frame", "expected"),
    [
        ("hst_f814w", FrameConfig(), 0.05),
        ("hst_f814w", FrameConfig(pixel_scale=0.03), 0.05),
        # Nobody knows this camera: its images are taken to have the pixels of the model.
        ("my_camera", FrameConfig(pixel_scale=0.03), 0.03),
    ],
)
def test_images_without_wcs(script, instrument, frame, expected):
    observed = SimpleNamespace(instrument=instrument, wcs=None)
    assert script("extract_blends")._scale(observed, frame) == pytest.approx(expected)


def test_a_camera_that_nobody_knows_needs_a_scale(script):
    observed = SimpleNamespace(
        instrument="my_camera", wcs=None, path="a.npz", field="a"
    )
    with pytest.raises(
        InputError, match=r"a\.npz \(field a\): no WCS.*frame\.pixel_scale"
    ):
        script("extract_blends")._scale(observed, FrameConfig())
