"""Observations: round trips, and each bad input by its file, part and remedy."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from blendem.io.fields import (
    FieldRow,
    InputError,
    read_observation,
    validate_fields,
    write_field,
)


def complain(row: FieldRow) -> str:
    """The message about a bad input; it must name the file and the field."""
    with pytest.raises(InputError) as caught:
        read_observation(row)
    message = str(caught.value)
    assert str(row.path) in message or str(row.catalog) in message
    return message


def assert_words(message: str, *words: str) -> None:
    assert [word for word in words if word not in message] == [], message


# ---------------------------------------------------------------- what must come back


def test_fits_round_trip(observation, parts):
    observed = read_observation(observation.fits())
    assert (observed.bands, observed.magzero, observed.unit) == (
        ("g", "r", "i"),
        27,
        "ct",
    )
    masked = np.isinf(parts["variance"])
    np.testing.assert_array_equal(observed.variance, parts["variance"])
    np.testing.assert_array_equal(observed.image[~masked], parts["image"][~masked])
    assert (observed.image[masked] == 0).all()
    # float32 division by a float64 sum that is 1 to rounding.
    np.testing.assert_allclose(observed.psf, parts["psf"], rtol=1e-6)
    assert observed.image.dtype == observed.variance.dtype == np.dtype("=f4")
    assert observed.catalog["id"].tolist() == [11, 12]
    assert observed.catalog["type"].tolist() == ["star", "galaxy"]
    sky = parts["wcs"].pixel_to_world(4.25, 3.0)
    # 1e-9 deg is 4 micro-arcsec: rounding of the header's cards.
    assert abs(observed.catalog["ra"][0] - sky.ra.deg) < 1e-9
    assert abs(observed.catalog["dec"][0] - sky.dec.deg) < 1e-9


def test_the_wcs_survives_a_cube_header(observation, parts):
    observed = read_observation(observation.fits())
    assert observed.wcs.naxis == 2
    expected = parts["wcs"].pixel_to_world_values(2.0, 7.0)
    np.testing.assert_allclose(observed.wcs.pixel_to_world_values(2.0, 7.0), expected)


def test_npz_round_trip_and_weights(observation, parts):
    observed = read_observation(observation.npz())
    np.testing.assert_array_equal(observed.variance, parts["variance"])
    assert observed.magzero == 27.0  # that of the instrument
    assert observed.wcs is None
    assert np.isnan(observed.catalog["ra"]).all()
    weights = 1 / parts["variance"].astype(np.float64)  # 0 where the variance is inf
    by_weight = read_observation(observation.npz(drop=["variance"], weights=weights))
    np.testing.assert_allclose(by_weight.variance, observed.variance, rtol=1e-6)
    assert np.isinf(by_weight.variance[1, 2, 3])


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("peaks", np.array([[4, 3], [15, 12]])),
        ("catalog", np.array([(4.0, 3.0), (15.0, 12.0)], [("x", float), ("y", float)])),
        ("centers", np.array([[3, 4], [12, 15]])),  # (y, x)
    ],
)
def test_npz_positions_come_back_as_x_y(observation, key, values):
    drop = ["catalog"] if key != "catalog" else []
    observed = read_observation(observation.npz(drop=drop, **{key: values}))
    assert observed.catalog["x"].tolist() == [4, 15]
    assert observed.catalog["y"].tolist() == [3, 12]


def test_masks_booleans_bits_and_footprints(observation, parts):
    shape = parts["image"].shape
    mask = np.zeros(shape[1:], bool)
    mask[0, 0] = True
    masked = read_observation(observation.npz(mask=mask))
    assert np.isinf(masked.variance[:, 0, 0]).all()
    assert np.isinf(masked.variance).sum() == 3 + 1
    # LSST planes: SAT is bit 1 and is masked, DETECTED is bit 5 and is not.
    bits = np.zeros(shape, np.int32)
    bits[:, 0, 0], bits[:, 5, 5] = 1 << 1, 1 << 5
    masked = read_observation(observation.npz(mask=bits))
    assert np.isinf(masked.variance[:, 0, 0]).all()
    assert np.isfinite(masked.variance[:, 5, 5]).all()
    inside = np.ones(shape[1:], bool)
    inside[:, :2] = False
    masked = read_observation(observation.npz(footprint=inside))
    assert np.isinf(masked.variance[:, :, :2]).all()
    assert np.isfinite(masked.variance[0, :, 2:]).all()


def test_fits_mask_planes_are_named_by_their_cards(observation):
    def spoil(hdus):
        mask = np.zeros(hdus["SCI"].shape, np.int32)
        mask[:, 0, 0], mask[:, 5, 5] = 1 << 3, 1 << 5
        hdus["MASK"].data = mask
        hdus["MASK"].header["MP_BAD"] = 3
        hdus["MASK"].header["MP_DETEC"] = 5

    observed = read_observation(observation.fits(spoil))
    assert np.isinf(observed.variance[:, 0, 0]).all()
    assert np.isfinite(observed.variance[:, 5, 5]).all()


def test_a_nan_under_the_mask_does_no_harm(observation, parts):
    image = parts["image"].copy()
    image[1, 2, 3] = np.nan  # where the variance is inf
    assert read_observation(observation.fits(image=image)).image[1, 2, 3] == 0


def test_real_psfs_are_normalised_squared_and_may_be_slightly_negative(
    observation, parts
):
    psf = parts["psf"][:, 1:-1] * 3.0  # (3, 5, 7)
    psf[:, 0, 0] = -1e-4
    observed = read_observation(observation.npz(psfs=psf))
    assert observed.psf.shape == (3, 7, 7)
    np.testing.assert_allclose(observed.psf.sum((1, 2)), 1, rtol=1e-6)
    expected = psf / psf.sum((1, 2), keepdims=True, dtype=float)
    np.testing.assert_allclose(observed.psf[:, 1:-1], expected, rtol=1e-6)
    assert (observed.psf[:, [0, -1]] == 0).all()


def test_one_source_no_catalog_and_a_single_plane_are_fine(observation, parts):
    assert (
        len(read_observation(observation.npz(catalog=np.array([[3.0, 4.0]]))).catalog)
        == 1
    )
    assert read_observation(observation.npz(drop=["catalog"])).catalog is None
    single = observation.npz(
        images=parts["image"][0],
        variance=parts["variance"][0],
        psfs=parts["psf"][0],
        filters=np.array(["g"]),
    )
    assert read_observation(single).image.shape == (1, 16, 20)


def test_a_separate_catalog_goes_first(observation, tmp_path, wcs):
    ra, dec = wcs.pixel_to_world_values([3.0, 6.5], [2.0, 9.0])
    for name in ("c.csv", "c.ecsv", "c.fits"):
        table = Table({"ID": [5, 6], "RA": ra, "DEC": dec})
        table.write(tmp_path / name, format="ascii.csv" if name == "c.csv" else None)
        row = replace(observation.fits(), catalog=tmp_path / name)
        catalog = read_observation(row).catalog
        assert catalog["id"].tolist() == [5, 6]
        # 1e-6 pixel: sky positions in degrees carry 1e-13 relative rounding at most.
        np.testing.assert_allclose(catalog["x"], [3.0, 6.5], atol=1e-6)
        np.testing.assert_allclose(catalog["y"], [2.0, 9.0], atol=1e-6)


def test_unknown_instruments_need_bands_and_zero_point(observation):
    row = replace(observation.npz(drop=["filters"]), instrument="mine")
    assert_words(
        complain(row), "bands", "'mine'", "column `bands`", "zero point", "MAGZERO"
    )
    row = replace(row, bands=("a", "b", "c"), magzero=25.0)
    observed = read_observation(row)
    assert (observed.bands, observed.magzero) == (("a", "b", "c"), 25.0)


# ------------------------------------------------------------------- missing and damaged


def test_missing_file(tmp_path):
    row = FieldRow("cosmos", "hsc_deep", tmp_path / "none.fits")
    assert_words(complain(row), "no such file", "BLENDEM_DATA")


@pytest.mark.parametrize("name", ["SCI", "VAR", "PSF"])
def test_missing_hdu(observation, name):
    message = complain(observation.fits(lambda hdus: hdus.pop(name)))
    assert_words(message, f"lacks the image HDU {name}", "docs/formats.md")


@pytest.mark.parametrize("key", ["images", "variance", "psfs"])
def test_missing_key(observation, key):
    assert_words(complain(observation.npz(drop=[key])), f"`{key}`", "docs/formats.md")


def test_missing_cards(observation):
    def spoil(hdus):
        del hdus["SCI"].header["BANDS"], hdus["SCI"].header["MAGZERO"]

    row = replace(observation.fits(spoil), instrument="mine")
    assert_words(complain(row), "card BANDS", "card MAGZERO")


def test_not_fits_not_npz_and_unknown_kind(tmp_path):
    for name, words in {
        "a.fits": ["not a FITS file", "copy it again"],
        "a.npz": ["not an npz archive", "numpy.savez"],
        "a.tiff": ["unknown kind", "FITS"],
    }.items():
        (tmp_path / name).write_text("<html>404</html>" * 300)
        row = FieldRow("cosmos", "hsc_deep", tmp_path / name)
        assert_words(complain(row), *words)


@pytest.mark.parametrize("fraction", [0.02, 0.2, 0.5, 0.8, 0.9, 0.99])
def test_truncated_fits(observation, fraction):
    row = observation.fits(
        image=np.ones((3, 64, 64), "f4"), variance=np.ones((3, 64, 64))
    )
    data = row.path.read_bytes()
    row.path.write_bytes(data[: int(len(data) * fraction)])
    assert_words(complain(row), "truncated", "copy it again")


@pytest.mark.parametrize("fraction", [0.2, 0.9])
def test_truncated_npz(observation, fraction):
    row = observation.npz()
    data = row.path.read_bytes()
    row.path.write_bytes(data[: int(len(data) * fraction)])
    assert_words(complain(row), "truncated", "copy it again")


def test_pickled_objects_are_refused(observation):
    row = observation.npz(images=np.array([{"a": 1}], dtype=object))
    assert_words(complain(row), "pickled objects", "plain arrays")


# --------------------------------------------------------------------- arrays and bands


def test_wrong_shapes(observation, parts):
    message = complain(observation.npz(variance=parts["variance"][:, 1:]))
    assert_words(
        message, "key `variance`", "(3, 15, 20)", "(3, 16, 20)", "one variance per"
    )
    message = complain(observation.npz(psfs=parts["psf"][:2]))
    assert_words(message, "key `psfs`", "2 PSFs for 3 bands")
    message = complain(observation.npz(mask=np.zeros((2, 2), int)))
    assert_words(message, "key `mask`", "(2, 2)", "give (band, y, x)")
    message = complain(observation.npz(images=np.zeros(5)))
    assert_words(message, "key `images`", "(5,)", "give (band, y, x)")


def test_bands_that_disagree(observation):
    message = complain(observation.npz(filters=np.array(["g", "r"])))
    assert_words(message, "2 names", "3 planes", "one band per plane")
    message = complain(observation.npz(filters=np.array(["g", "r", "H"])))
    assert_words(message, "instrument hsc_deep", "rename")
    message = complain(observation.npz(filters=np.array(["g", "r", "r"])))
    assert_words(message, "twice", "own row")
    row = replace(observation.fits(), bands=("i", "r", "g"))
    assert_words(complain(row), "column `bands`", "correct one")
    row = replace(observation.npz(drop=["filters"]), instrument="lsst_10yr")
    assert_words(complain(row), "the 3 planes", "lsst_10yr", "add card BANDS")


def test_zero_points_that_disagree(observation):
    row = replace(observation.fits(), magzero=25.0)
    assert_words(complain(row), "zero point", "27.0", "25.0", "correct one")
    row = observation.npz(magzero=np.array(np.inf))
    assert_words(complain(row), "zero point: got inf")
    row = observation.npz(magzero=np.array("bright"))
    assert_words(complain(row), "key `magzero`", "AB zero point")


def test_psf_of_even_size(observation, parts):
    message = complain(observation.npz(psfs=parts["psf"][:, :-1, :-1]))
    assert_words(message, "key `psfs`", "even sides (6, 6)", "pad or crop")


def test_psf_sum_nan_and_centre(observation, parts):
    psf = parts["psf"].copy()
    psf[1] *= -1
    assert_words(
        complain(observation.npz(psfs=psf)), "sums to -1 in band r", "positive"
    )
    psf[1, 0, 0] = np.nan
    assert_words(complain(observation.npz(psfs=psf)), "key `psfs`: holds NaN", "repair")
    wide = np.pad(parts["psf"], [(0, 0), (4, 4), (4, 4)])
    shifted = np.roll(wide, 2, axis=2)
    message = complain(observation.fits(psf=shifted))
    assert_words(
        message, "HDU PSF", "centre by (x, y) = (2.00, 0.00)", "central pixel (7, 7)"
    )


def test_a_psf_between_two_pixels_is_accepted(observation):
    """Half a pixel per axis, 0.71 in all: LSST draws PSFs at sub-pixel positions."""
    y, x = np.mgrid[-5:6, -5:6]
    psf = np.exp(-0.5 * ((x - 0.5) ** 2 + (y + 0.5) ** 2) / 1.2**2)
    assert (
        read_observation(observation.npz(psfs=np.stack([psf] * 3))).psf.shape[1] == 11
    )


def test_a_band_without_a_usable_pixel(observation, parts):
    variance = parts["variance"].copy()
    variance[2] = np.inf
    message = complain(observation.fits(variance=variance))
    assert_words(message, "band i: every pixel is masked", "drop the band", "HDU MASK")


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_zero_or_negative_variance(observation, parts, value):
    variance = parts["variance"].copy()
    variance[0, 4, 6] = value
    message = complain(observation.fits(variance=variance))
    assert_words(
        message, "HDU VAR: 1 unmasked", "(x, y) = (6, 4)", "band g", "mask the pix"
    )
    mask = np.zeros(variance.shape, bool)
    mask[0, 4, 6] = True
    observed = read_observation(observation.fits(variance=variance, mask=mask))
    assert np.isinf(observed.variance[0, 4, 6])


def test_nan_pixels(observation, parts):
    image = parts["image"].copy()
    image[1, 3, 5:7] = np.nan
    message = complain(observation.fits(image=image))
    assert_words(
        message, "HDU SCI: 2 unmasked", "(x, y) = (5, 3)", "band r", "HDU MASK"
    )
    variance = parts["variance"].copy()
    variance[1, 3, 5] = np.nan
    assert_words(
        complain(observation.npz(variance=variance)), "`variance`: 1 unmasked", "NaN"
    )


def test_units_that_float32_cannot_hold(observation, parts):
    """Fluxes in erg/s/cm2/Hz: a variance of 1e-60 would silently become zero."""
    variance = parts["variance"].astype(np.float64) * 1e-60
    assert_words(
        complain(observation.npz(variance=variance)), "float32", "smaller unit"
    )


def test_all_problems_of_a_file_are_listed_at_once(observation, parts):
    image, psf = parts["image"].copy(), parts["psf"] * -1
    image[0, 0, 0] = np.nan
    message = complain(
        observation.npz(images=image, psfs=psf, catalog=np.zeros((0, 2)))
    )
    assert_words(
        message, "field cosmos", "5 problems", "key `images`", "key `psfs`", "no source"
    )


# -------------------------------------------------------------------------------- catalog


def test_no_source(observation, parts):
    message = complain(observation.fits(catalog=parts["catalog"][:0]))
    assert_words(message, "HDU CATALOG: no source", "leave the catalog out")
    message = complain(observation.npz(catalog=np.zeros((0, 2))))
    assert_words(message, "key `catalog`: no source")


def test_positions_outside_the_image(observation, parts):
    catalog = parts["catalog"].copy()
    catalog["x"][1] = 19.6  # the last pixel ends at 19.5
    message = complain(observation.fits(catalog=catalog))
    assert_words(
        message, "HDU CATALOG: 1 of 2", "id 12", "(19.6, 12.5)", "20 x 16", "0-based"
    )
    catalog["x"][1] = 19.4
    assert len(read_observation(observation.fits(catalog=catalog)).catalog) == 2
    # x and y swapped: x = 12 fits a width of 20, y = 18 does not fit a height of 16.
    assert_words(complain(observation.npz(catalog=np.array([[12.0, 18.0]]))), "swapped")


def test_bad_catalog_columns(observation, parts):
    catalog = parts["catalog"]

    def message(**changes):
        spoiled = catalog.copy()
        for name, values in changes.items():
            spoiled[name] = values
        return complain(observation.fits(catalog=spoiled))

    assert_words(message(id=[7, 7]), "duplicate id 7", "unique")
    assert_words(message(id=["a", "b"]), "column id must hold integers")
    assert_words(message(x=[np.nan, 1.0]), "no position for id 11", "give x, y")
    assert_words(
        message(type=["quasar", "star"]), "['quasar']", "`galaxy`, `star` or `variable`"
    )
    assert_words(
        message(ra=[150.1] * 2, dec=[2.2] * 2), "pixel apart", "0-based", "correct"
    )
    bare = Table({"number": [1]})
    assert_words(
        complain(observation.fits(catalog=bare)), "lacks column id", "number the"
    )
    assert_words(
        complain(observation.fits(catalog=Table({"id": [1]}))),
        "lacks columns x, y",
        "add",
    )
    sky = Table({"id": [1], "ra": [150.1], "dec": [2.2]})
    assert_words(
        complain(observation.fits(catalog=sky, wcs=None)), "no WCS", "add columns"
    )


def test_bad_catalog_files(observation, tmp_path):
    row = replace(observation.fits(), catalog=tmp_path / "none.csv")
    assert_words(
        complain(row), "none.csv: no such file", "column `catalog`", "field cosmos"
    )
    (tmp_path / "c.txt").write_text("x")
    row = replace(row, catalog=tmp_path / "c.txt")
    assert_words(complain(row), "unknown kind of file", "CSV")
    (tmp_path / "c.ecsv").write_text("x,y\n1,2\n")
    row = replace(row, catalog=tmp_path / "c.ecsv")
    assert_words(complain(row), "cannot be read as ECSV", "write it again")
    fits.PrimaryHDU(np.zeros((2, 2))).writeto(tmp_path / "c.fits")
    row = replace(row, catalog=tmp_path / "c.fits")
    assert_words(complain(row), "holds no table", "write the sources")


# ----------------------------------------------------------------------- the whole table


def test_validation_reports_all_files_at_once(observation, parts, tmp_path):
    good = observation.fits()
    bad = replace(observation.npz(psfs=-parts["psf"]), field="b")
    missing = FieldRow("c", "hsc_deep", tmp_path / "none.fits")
    validate_fields([good])
    table = tmp_path / "fields.tsv"
    table.write_text(
        "field\tinstrument\tpath\n"
        + "".join(f"{r.field}\thsc_deep\t{r.path.name}\n" for r in (good, bad, missing))
    )
    with pytest.raises(InputError, match="2 problems") as caught:
        validate_fields(table)
    assert_words(str(caught.value), str(table), "field.npz", "field b", "none.fits")
    assert "field.fits" not in str(caught.value)


def test_observations_of_one_field_all_have_a_wcs_or_none(observation):
    rows = [observation.fits(), observation.npz()]
    with pytest.raises(InputError, match=r"field\.npz.*no WCS.*or none"):
        validate_fields(rows)
    validate_fields([rows[0], replace(rows[1], field="other")])


def test_write_field_refuses_what_it_could_not_read_back(parts, tmp_path):
    path = tmp_path / "a.fits"
    with pytest.raises(ValueError, match="2 names"):
        write_field(path, **(parts | {"bands": ("g", "r")}))
    assert not path.exists()


# --------------------------------------------------------------------------- real files


def test_every_real_file_is_read(data_dir):
    rows = [
        FieldRow(path.stem, "hsc_deep", path)
        for folder in ("hsc_blends", "hsc_cosmos_35")
        for path in sorted((data_dir / folder).glob("*.npz"))
    ] + [
        FieldRow(path.stem, "lsst_sim", path, bands=tuple("grizy"), magzero=27.0)
        for path in sorted((data_dir / "lsst_sim_blends").glob("*.npz"))
    ]
    assert len(rows) == 103 + 1 + 100  # README of the data
    validate_fields(rows)
    cosmos = read_observation(rows[103])
    assert (len(cosmos.catalog), cosmos.bands) == (7, tuple("grizy"))
    # The mask of this file has DETECTED, INTRP, CR and others, and no pixel to be left out.
    assert np.isfinite(cosmos.variance).all()
    # 632 peaks in all (README of the data); weights are 0 outside the footprints, 36 %.
    blends = [read_observation(row) for row in rows[:103]]
    assert sum(len(b.catalog) for b in blends) == 632
    masked = np.mean([np.isinf(b.variance).mean() for b in blends])
    assert 0.30 < masked < 0.42


@pytest.mark.parametrize("kind", ["fits", "npz"])
def test_psf_images_that_are_finer_than_the_image(observation, kind):
    def make(samp):
        if kind == "npz":
            return observation.npz(psf_samp=samp)
        return observation.fits(lambda h: h["PSF"].header.set("PSF_SAMP", samp))

    for samp in (1, 3, 3.0):
        assert read_observation(make(samp)).oversampling == samp
    for samp in (2.5, 0.0, -2, "fine"):
        with pytest.raises(InputError, match=rf"(?i)psf_samp.* is {samp}; .*whole"):
            read_observation(make(samp))
    # As PSFEx means it.
    with pytest.raises(InputError, match=r"(?i)psf_samp.* is 0\.25; .*: 4, if"):
        read_observation(make(0.25))


def test_a_finer_psf_is_written_and_may_be_off_by_more_of_its_pixels(observation):
    r = np.arange(15) - 7
    psf = np.exp(-0.5 * (r[:, None] ** 2 + (r - 2) ** 2) / 2.0**2)
    psf = np.stack([psf / psf.sum()] * 3)
    observed = read_observation(observation.fits(psf=psf, oversampling=3))
    assert observed.oversampling == 3
    np.testing.assert_allclose(observed.psf, psf, rtol=1e-6)
    with pytest.raises(InputError, match="off centre by"):
        read_observation(observation.fits(psf=psf))


def test_a_footprint_without_sources_is_true_outside(observation):
    inside = np.zeros((16, 20), bool)
    inside[2:14, 2:18] = True
    expected = read_observation(observation.npz(footprint=inside)).variance
    assert np.isinf(expected[:, 0]).all() and np.isfinite(expected[:, 3, 4]).all()
    found = read_observation(observation.npz(footprint=~inside)).variance
    np.testing.assert_array_equal(found, expected)
    # With a source inside it is what it says.
    inside[:8] = False
    part = read_observation(observation.npz(footprint=inside)).variance
    assert np.isinf(part[:, :8]).all() and np.isfinite(part[:, 12, 15]).all()
