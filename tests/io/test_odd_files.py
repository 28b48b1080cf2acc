"""Files as surveys and users have them: distorted, unsigned, in nJy, with their WCS elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table
from astropy.wcs import WCS, Sip

from blendem.io.fields import (
    InputError,
    read_observation,
    read_sources,
    validate_fields,
    write_field,
)
from blendem.io.products import read_table, write_catalog, write_images

META = {"METHOD": "test", "PRIOR": "none", "CONFIG": "0", "VERSION": "0"}


@pytest.fixture
def distorted(wcs):
    """The WCS with a SIP distortion of a tenth of a pixel at the corners."""
    a = np.zeros((3, 3))
    a[2, 0] = a[0, 2] = 1e-3
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.sip = Sip(a, a, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def corners(wcs, shift=(0, 0)):
    """Sky of the corners, and of the middle, of an image of 16 x 20 pixels."""
    y, x = np.array([[0, 0, 15, 15, 8], [0, 19, 0, 19, 10]]) - np.array(shift)[:, None]
    return np.stack(wcs.all_pix2world(x, y, 0))


def test_distortion_survives_reading_windows_and_writing(
    observation, distorted, tmp_path
):
    expected = corners(distorted)
    row = observation.fits(wcs=distorted)
    np.testing.assert_allclose(corners(read_observation(row).wcs), expected, atol=1e-10)
    # It is no plain tangent plane: 1e-6 deg is 0.02 pixel.
    flat = distorted.deepcopy()
    flat.sip, flat.wcs.ctype = None, ["RA---TAN", "DEC--TAN"]
    assert np.abs(corners(flat) - expected).max() > 1e-6
    part = read_observation(row, window=(5, 14, 3, 17))
    np.testing.assert_allclose(corners(part.wcs, (5, 3)), expected, atol=1e-10)
    tile = tmp_path / "tile.fits"
    fields = ("image", "variance", "psf", "bands", "magzero", "wcs")
    write_field(tile, **{name: getattr(part, name) for name in fields})
    again = read_observation(replace(row, path=tile))
    np.testing.assert_allclose(corners(again.wcs, (5, 3)), expected, atol=1e-10)
    product = tmp_path / "mosaic.fits"
    images = {"MODEL": (part.image, "ct", part.bands)}
    write_images(product, images, sources=Table({"id": [1]}), meta=META, wcs=part.wcs)
    written = WCS(fits.getheader(product, "MODEL"), naxis=2)
    np.testing.assert_allclose(corners(written, (5, 3)), expected, atol=1e-10)


@pytest.mark.parametrize("kind", ["u2", "u4", "i4"])
def test_masks_of_unsigned_integers_are_read_in_parts(observation, kind):
    def unsigned(hdus):
        mask = (hdus["MASK"].data > 0).astype(kind)
        mask[:, 7, 9] = 4
        hdus["MASK"] = fits.ImageHDU(mask, name="MASK")

    row = observation.fits(unsigned)
    whole = read_observation(row)
    assert np.isinf(whole.variance[:, 7, 9]).all() and np.isinf(whole.variance[1, 2, 3])
    part = read_observation(row, window=(5, 14, 3, 17))
    np.testing.assert_array_equal(part.variance, whole.variance[:, 5:14, 3:17])


def test_scaled_images_are_read_in_parts(observation):
    def scaled(hdus):
        for name in ("SCI", "VAR"):
            hdus[name].data = np.where(np.isinf(hdus[name].data), 1, hdus[name].data)
            hdus[name].scale("int16", bzero=1.0, bscale=0.001)

    row = observation.fits(scaled)
    whole, part = read_observation(row), read_observation(row, window=(5, 14, 3, 17))
    np.testing.assert_array_equal(part.image, whole.image[:, 5:14, 3:17])


@pytest.mark.parametrize(
    ("unit", "expected"), [("nJy", 31.4), ("3.631 uJy", 22.5), ("nanomaggy", 22.5)]
)
def test_a_physical_unit_is_a_zero_point(observation, unit, expected):
    def silent(hdus):
        del hdus["SCI"].header["MAGZERO"]

    assert read_observation(observation.fits(silent, unit=unit)).magzero == expected
    right = observation.fits(unit=unit, magzero=expected)
    assert read_observation(right).magzero == expected
    with pytest.raises(InputError, match=f"it is 27.0, but pixels in {unit} have"):
        read_observation(observation.fits(unit=unit))
    row = replace(observation.fits(silent, unit=unit), magzero=27.0)
    with pytest.raises(InputError, match="correct BUNIT or the zero point"):
        read_observation(row)


@pytest.mark.parametrize("unit", ["", "ct", "adu", "DN", "electron/s", "AB", "e-"])
def test_counts_have_the_zero_point_that_is_given(observation, unit):
    assert read_observation(observation.fits(unit=unit)).magzero == 27.0


def test_a_wcs_in_the_primary_header_counts_too(observation, wcs):
    def move(hdus):
        for key in wcs.to_header():
            hdus[0].header[key] = wcs.to_header()[key]
            hdus["SCI"].header.remove(key, ignore_missing=True)

    observed = read_observation(observation.fits(move))
    np.testing.assert_allclose(corners(observed.wcs), corners(wcs), atol=1e-10)

    def other(hdus):
        hdus[0].header.update(wcs.to_header())
        hdus[0].header["CRVAL1"] = 10.0

    # That of SCI goes first.
    observed = read_observation(observation.fits(other))
    np.testing.assert_allclose(corners(observed.wcs), corners(wcs), atol=1e-10)


def test_an_hdu_per_band_is_refused(observation):
    def split(hdus):
        cube = hdus["SCI"].data
        hdus["SCI"].data = cube[:1]
        hdus.append(fits.ImageHDU(cube[1:], name="SCI"))

    with pytest.raises(InputError, match="more than one HDU SCI; stack the bands"):
        read_observation(observation.fits(split))


def test_ids_are_never_invented(observation, parts):
    catalog = parts["catalog"].copy()
    catalog["id"] = MaskedColumn([11, 12], mask=[False, True])
    with pytest.raises(InputError, match="column id has empty rows"):
        read_observation(observation.fits(catalog=catalog))
    catalog["id"] = np.array([11, 2**63 + 5], np.uint64)
    with pytest.raises(InputError, match=r"9223372036854775813, more than a signed"):
        read_observation(observation.fits(catalog=catalog))


def test_sources_under_the_mask_are_said(observation, parts, tmp_path):
    def detected(hdus):
        # DETECTED of an HSC mask whose cards were lost.
        for x, y in ((4, 3), (15, 12)):
            hdus["MASK"].data[:, y - 1 : y + 2, x - 1 : x + 2] = 32

    row = observation.fits(detected)
    assert validate_fields([row]) == [
        f"{row.path} (field cosmos): 2 of 2 sources lie on pixels that are masked in all bands;"
        " does the mask hold flags that do not spoil a pixel, such as DETECTED? Cards MP_* name"
        " its bits (docs/formats.md)"
    ]
    assert validate_fields([observation.fits()]) == []


def test_groups_are_numbers_from_one_on(observation, parts):
    catalog = parts["catalog"].copy()
    catalog["split"], groups = [0, 0], np.ones((16, 20), int)
    for group in ([1, 0], [1, 1.5], [-1, 1]):
        catalog["group"] = group
        row = observation.fits(segmentation=groups, catalog=catalog)
        for read in (read_observation, read_sources):
            with pytest.raises(
                InputError, match="column group must hold whole numbers"
            ):
                read(row)


def test_units_that_no_header_holds_are_refused(observation):
    row = observation.npz(unit="\u00b5Jy", magzero=23.9)
    with pytest.raises(InputError, match="FITS headers hold ASCII alone: write `uJy`"):
        read_observation(row)


@pytest.mark.parametrize("unit", ["3.631e-06 Jy", "nanomaggy", "DN", "electron/s", ""])
def test_units_of_the_image_are_those_of_fluxes(tmp_path, unit):
    path = tmp_path / "catalog.fits"
    write_catalog(path, Table({"id": [1], "flux_i": [2.0]}), META, flux_unit=unit)
    header = fits.getheader(path, "CATALOG")
    assert header.get("TUNIT2", "") == unit
    assert read_table(path)[0]["flux_i"][0] == 2.0
