"""A prior that does not fit the field or the settings is refused with the reason."""

import numpy as np
import pytest

from blendem.config import (
    BlendsConfig,
    DetectConfig,
    FrameConfig,
    NoiseConfig,
    PriorConfig,
)
from blendem.io.blends import read_blends
from blendem.io.priors import write_prior
from blendem.io.table import FieldRow, InputError
from blendem.prior.gaussian import Basis, GaussianPrior


@pytest.fixture
def prior(tmp_path, rng):
    """A prior of g, r, i with stamps of 15 pixels of 0.168 arcsec."""
    modes = rng.normal(size=(3, 3, 15, 15)).astype(np.float32)
    basis = Basis(
        np.abs(rng.normal(size=(3, 15, 15))).astype(np.float32),
        modes,
        np.sum(modes**2, axis=(1, 2, 3)),
        np.array(0.1, np.float32),
        np.array(0.7, np.float32),
        np.array(0.168, np.float32),
        ("g", "r", "i"),
    )
    path = tmp_path / "basis.eqx"
    write_prior(path, GaussianPrior.standard(basis), {})
    return path


def field(folder, bands):
    """One bright source in the middle, without WCS."""
    r = np.arange(41) - 20
    psf = np.exp(-0.5 * (r[:, None] ** 2 + r**2) / 1.5**2)
    path = folder / "field.npz"
    np.savez(
        path,
        images=np.stack([200 * psf] * len(bands)),
        variance=np.ones((len(bands), 41, 41)),
        psfs=np.stack([psf / psf.sum()] * len(bands)),
        filters=np.array(bands),
        peaks=np.array([[20.0, 20.0]]),
    )
    return path


def extract(script, folder, prior, bands=("g", "i"), instrument="hsc_deep", **frame):
    row = FieldRow("f", instrument, field(folder, bands))
    config = BlendsConfig(buckets=({"sources": 1, "size": 41},))
    output = folder / "blends.h5"
    frame = FrameConfig(**{"stamp": 15} | frame)
    detect = DetectConfig(max_sources=1)
    script("extract_blends").main(
        [row], prior, output, config, detect, frame, NoiseConfig()
    )
    return output


def test_a_prior_that_fits_is_used(script, tmp_path, prior):
    data = read_blends(extract(script, tmp_path, prior))
    assert len(data.sources["id"]) == 1
    assert data.stacks[0].observations[0].band_index == (0, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bands": ("g", "y")}, ["has the bands g, r, i", "needs y", "frame.bands"]),
        ({"stamp": 17}, ["stamps are 15 pixels wide", "needs 17", "frame.stamp: 15"]),
        (
            {"instrument": "lsst_10yr"},
            ["pixel_scale is 0.168 arcsec", "has 0.2", "frame.pixel_scale: 0.168"],
        ),
    ],
)
def test_a_prior_that_does_not_fit_the_field(script, tmp_path, prior, changes, words):
    with pytest.raises(InputError) as caught:
        extract(script, tmp_path, prior, **changes)
    text = str(caught.value)
    assert "basis.eqx" in text and "field.npz (field f)" in text
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("frame", "band", "words"),
    [
        ({"stamp": 17}, "i", ["stamps are 15 pixels wide", "needs 17"]),
        ({"stamp": 15, "bands": ("g", "z")}, "g", ["needs z"]),
        ({"stamp": 15}, "y", ["needs y"]),
        ({"stamp": 15, "psf_sigma": 0.9}, "i", ["psf_sigma is 0.7", "has 0.9"]),
        ({"stamp": 15, "pixel_scale": 0.1}, "i", ["pixel_scale is 0.168", "has 0.1"]),
    ],
)
def test_a_given_prior_that_does_not_fit_the_settings(
    script, tmp_path, prior, rng, frame, band, words
):
    settings = PriorConfig(start=str(prior))
    with pytest.raises(InputError) as caught:
        script("fit_basis").main(
            [],
            tmp_path / "out.eqx",
            settings,
            FrameConfig(**frame),
            ["hsc_deep"],
            band,
            rng,
        )
    text = str(caught.value)
    assert "basis.eqx" in text and "the configuration" in text
    assert [word for word in words if word not in text] == []
    assert not (tmp_path / "out.eqx").exists()
