"""Parts of an observation, and large ones that are read in strips."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from tests.psfex import psf_at_x, write_psfex

from blendem.io import fields
from blendem.io.fields import (
    InputError,
    read_observation,
    read_sources,
    strips,
    validate_fields,
    write_field,
)
from blendem.io.readers import image_shape
from blendem.io.tiling import rows_in_tiles

WINDOW = (5, 14, 3, 17)


def test_a_window_is_a_part_of_the_whole(observation):
    row = observation.fits()
    whole, part = read_observation(row), read_observation(row, window=WINDOW)
    box = np.s_[:, 5:14, 3:17]
    np.testing.assert_array_equal(part.image, whole.image[box])
    np.testing.assert_array_equal(part.variance, whole.variance[box])
    np.testing.assert_array_equal(part.psf, whole.psf)
    # The same sky at the same pixel.
    here = part.wcs.all_pix2world(2.0, 1.0, 0)
    np.testing.assert_allclose(here, whole.wcs.all_pix2world(5.0, 6.0, 0), atol=1e-12)
    assert part.catalog is None
    assert image_shape(row.path) == (16, 20)
    found = read_sources(row)
    for name in ("id", "x", "y", "ra", "dec", "type"):
        assert (found[name] == whole.catalog[name]).all()


def test_a_psf_model_stays_where_it_is(observation, tmp_path):
    shape = (16, 20)
    paths = tuple(write_psfex(tmp_path / f"{band}.psf", shape) for band in "gri")
    row = replace(observation.fits(), psf=paths)
    part = read_observation(row, window=WINDOW)
    psf = part.psf_model.at((1.0, 2.0))
    np.testing.assert_allclose(psf[1], psf_at_x(5.0, shape, 31), atol=1e-6)
    # A tile is a file of its own and says where it begins.
    tile = tmp_path / "tile.fits"
    write_field(
        tile,
        image=part.image,
        variance=part.variance,
        psf=part.psf,
        bands=part.bands,
        magzero=27.0,
        wcs=part.wcs,
        cards={"TILE_X": 3, "TILE_Y": 5},
    )
    again = read_observation(replace(row, path=tile))
    np.testing.assert_array_equal(again.psf_model.at((1.0, 2.0)), psf)


def test_groups_of_pixels_come_with_columns_of_the_catalog(observation, parts):
    catalog = parts["catalog"].copy()
    groups = np.zeros((16, 20), int)
    with pytest.raises(InputError, match="lacks column group"):
        read_observation(observation.fits(segmentation=groups, catalog=catalog))
    catalog["group"], catalog["split"] = [1, 2], [0, 1]
    observed = read_observation(observation.fits(segmentation=groups, catalog=catalog))
    assert observed.catalog["group"].tolist() == [1, 2]
    assert observed.segmentation.shape == (16, 20)
    # Nothing may be in a tile.
    empty = observation.fits(segmentation=groups, catalog=catalog[:0])
    assert len(read_observation(empty).catalog) == 0

    def cut(hdus):
        hdus["SEGMENT"].data = groups[1:].astype(np.int32)

    wrong = observation.fits(cut, segmentation=groups, catalog=catalog)
    with pytest.raises(InputError, match=r"HDU SEGMENT: holds >i4 of shape \(15, 20\)"):
        read_observation(wrong)


def test_large_images_are_checked_in_strips(observation, monkeypatch):
    assert list(strips((16, 20), 100)) == [(0, 5), (5, 10), (10, 15), (15, 16)]
    assert list(strips((3, 20), 1)) == [(0, 1), (1, 2), (2, 3)]
    monkeypatch.setattr(fields, "STRIP", 100)

    def spoil(hdus):
        hdus["SCI"].data[1, 12, 7] = np.nan

    assert validate_fields([observation.fits()]) == []
    with pytest.raises(InputError, match=r"band r at \(x, y\) = \(7, 12\) with nan"):
        validate_fields([observation.fits(spoil)])

    def mask(hdus):
        hdus["MASK"].data[2] = 1

    with pytest.raises(InputError, match="band i: every pixel is masked"):
        validate_fields([observation.fits(mask)])

    def move(hdus):
        hdus["CATALOG"].data["x"][0] = 30

    with pytest.raises(InputError, match="positions outside the image"):
        validate_fields([observation.fits(move)])


def test_a_part_of_a_damaged_file_is_not_read(observation):
    row = observation.fits()
    data = row.path.read_bytes()
    for kept in (len(data) - 2880, 100):
        row.path.write_bytes(data[:kept])
        with pytest.raises(InputError, match=r"field.fits: truncated or damaged"):
            read_observation(row, window=WINDOW)
    row.path.write_text("no image")
    with pytest.raises(InputError, match="not a FITS file"):
        read_observation(row, window=WINDOW)
    assert image_shape(row.path) is None


def test_scaled_and_packed_images_have_windows(observation, tmp_path):
    row = observation.fits()
    whole = read_observation(row)
    with fits.open(row.path) as hdus:
        packed = fits.HDUList(
            [
                fits.CompImageHDU(
                    hdu.data,
                    hdu.header,
                    name=hdu.name,
                    compression_type="GZIP_1",
                    quantize_level=0.0,
                )
                if hdu.name == "SCI"
                else hdu
                for hdu in hdus
            ]
        )
        path = tmp_path / "packed.fits"
        packed.writeto(path)
    part = read_observation(replace(row, path=path), window=WINDOW)
    np.testing.assert_array_equal(part.image, whole.image[:, 5:14, 3:17])


def test_large_fields_of_one_observation_have_a_row_per_tile(observation, tmp_path):
    large = replace(observation.fits(), magzero=27.0, stars=(11,), survey="deep")
    cut, tiled = rows_in_tiles([large], 10, 4, tmp_path)
    names = [f"cosmos.t{i:02d}_{j:02d}" for i in range(2) for j in range(2)]
    assert tiled == {"cosmos": names}
    assert [row.field for row in cut] == names
    assert [row.path for row in cut] == [tmp_path / f"{name}.fits" for name in names]
    assert {(row.magzero, row.stars, row.survey) for row in cut} == {(None, (), "deep")}
    # What fits, is observed twice or does not tell its size stays whole.
    other = replace(large, instrument="hst_f814w")
    for rows in ([large], [large, other], [observation.npz()]):
        size = 20 if len(rows) == 1 and rows[0] is large else 10
        assert rows_in_tiles(rows, size, 4, tmp_path) == (rows, {})
    # Fields that are simulated have no file yet.
    future = replace(large, path=tmp_path / "none.fits")
    assert len(rows_in_tiles([future], 10, 4, tmp_path, (25, 10))[0]) == 3
    clash = replace(observation.npz(), field=names[2])
    with pytest.raises(InputError, match="t01_00: has the name of a tile"):
        rows_in_tiles([large, clash], 10, 4, tmp_path)
