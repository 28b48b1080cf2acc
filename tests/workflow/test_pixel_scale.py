"""Side of the pixels of fields with and without a WCS."""

from types import SimpleNamespace

import pytest

from blendem.config import FrameConfig


@pytest.mark.parametrize(
    ("instrument", "frame", "expected"),
    [
        ("hst_f814w", FrameConfig(), 0.05),
        ("hst_f814w", FrameConfig(pixel_scale=0.03), 0.05),
        # Nobody knows this camera: its images are taken to have the pixels of the model.
        ("my_camera", FrameConfig(pixel_scale=0.03), 0.03),
        ("my_camera", FrameConfig(), 0.168),
    ],
)
def test_images_without_wcs(script, instrument, frame, expected):
    observed = SimpleNamespace(instrument=instrument, wcs=None)
    assert script("extract_blends")._scale(observed, frame) == pytest.approx(expected)
