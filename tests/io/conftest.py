"""A small observation that is right in every way, to be spoiled by the tests."""

from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from blendem.io.fields import FieldRow, write_field


@pytest.fixture
def wcs() -> WCS:
    """A tangent-plane WCS of 0.168 arcsec per pixel, x to the west, y to the north."""
    wcs = WCS(naxis=2)
    wcs.wcs.crpix = [10.5, 8.0]
    wcs.wcs.cd = np.diag([-0.168, 0.168]) / 3600
    wcs.wcs.crval = [150.1, 2.2]
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    return wcs


@pytest.fixture
def parts(wcs):
    """Arguments of `write_field`: 3 bands of 16 x 20 pixels, two sources, one mask."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[-3:4, -3:4]
    psf = np.exp(-0.5 * (x**2 + y**2) / 1.2**2)
    variance = rng.uniform(0.5, 2.0, (3, 16, 20)).astype(np.float32)
    variance[1, 2, 3] = np.inf
    return {
        "image": rng.normal(size=(3, 16, 20)).astype(np.float32),
        "variance": variance,
        "psf": np.stack([psf / psf.sum()] * 3).astype(np.float32),
        "bands": ("g", "r", "i"),
        "magzero": 27.0,
        "unit": "ct",
        "wcs": wcs,
        "catalog": Table(
            {
                "id": [11, 12],
                "x": [4.25, 15.0],
                "y": [3.0, 12.5],
                "type": ["star", "galaxy"],
            }
        ),
    }


@pytest.fixture
def observation(tmp_path, parts):
    """Write the parts, spoiled by `spoil`, as FITS or NPZ, and give the row."""

    def spoil_fits(spoil=None, **changes) -> FieldRow:
        path = tmp_path / "field.fits"
        write_field(path, **(parts | changes))
        if spoil is not None:
            with fits.open(path, memmap=False) as hdus:
                hdus = fits.HDUList([hdu.copy() for hdu in hdus])
            spoil(hdus)
            hdus.writeto(path, overwrite=True)
        return FieldRow("cosmos", "hsc_deep", path)

    def spoil_npz(drop=(), **changes) -> FieldRow:
        path = tmp_path / "field.npz"
        arrays = {
            "images": parts["image"],
            "variance": parts["variance"],
            "psfs": parts["psf"],
            "filters": np.array(parts["bands"]),
            "catalog": np.array([[4.25, 3.0], [15.0, 12.5]]),
        } | changes
        np.savez(path, **{k: v for k, v in arrays.items() if k not in drop})
        return FieldRow("cosmos", "hsc_deep", path)

    return SimpleNamespace(fits=spoil_fits, npz=spoil_npz)
