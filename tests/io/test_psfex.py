"""PSFEx files of the table of fields: what comes back, and each way to be wrong."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from tests.psfex import psf_at_x, write_psfex

from blendem.io.fields import InputError, read_observation, validate_fields
from blendem.io.table import FieldRow, check_files, read_fields_table

SHAPE = (16, 20)  # of the image of `parts`


@pytest.fixture
def row(observation, tmp_path):
    """A row with a file of every band; `spoil` is of the second one."""

    def make(**spoil) -> FieldRow:
        paths = [write_psfex(tmp_path / f"{band}.psf", SHAPE) for band in "gri"]
        write_psfex(paths[1], SHAPE, **spoil)
        return replace(observation.npz(drop=["psfs"]), psf=tuple(paths))

    return make


def complain(row: FieldRow, *words: str) -> None:
    """The message names the field, the file of r and `words`."""
    with pytest.raises(InputError) as caught:
        read_observation(row)
    message = str(caught.value)
    words = ("field cosmos", "r.psf", "band r", *words)
    assert [word for word in words if word not in message] == [], message


def test_the_column_psf_goes_before_the_file(row, observation):
    for plain in (
        observation.npz(drop=["psfs"]),
        observation.npz(),
        observation.fits(),
    ):
        observed = read_observation(replace(plain, psf=row().psf))
        assert observed.psf.shape == (3, 31, 31)
        # In the middle of the image.
        np.testing.assert_allclose(observed.psf[2], psf_at_x(9.5, SHAPE, 31), atol=1e-6)
        for x in (1.0, 18.0):
            psf = observed.psf_model.at((3.0, x))
            np.testing.assert_allclose(psf[2], psf_at_x(x, SHAPE, 31), atol=1e-6)
    assert read_observation(observation.fits()).psf_model is None


def test_without_the_column_the_file_needs_a_psf(observation):
    with pytest.raises(InputError, match="lacks key `psfs` or `psf`"):
        read_observation(observation.npz(drop=["psfs"]))


def test_bands_of_different_sampling_have_one_size(row):
    for side, step, expected in ((41, 0.5, 31), (81, 0.5, 41)):
        observed = read_observation(row(side=side, step=step))
        assert observed.psf.shape == (3, expected, expected)


def test_the_table_lists_files_by_commas(tmp_path):
    table = tmp_path / "fields.tsv"
    table.write_text(
        "field\tinstrument\tpath\tpsf\na\thsc_deep\ta.npz\tg.psf, /abs/r.psf\n"
        "b\thsc_deep\tb.npz\n"
    )
    first, second = read_fields_table(table)
    assert [str(p) for p in first.psf] == [str(tmp_path / "g.psf"), "/abs/r.psf"]
    assert second.psf == ()
    for r in (first, second):
        assert FieldRow.of(r.plain()) == r
    (tmp_path / "a.npz").touch()
    with pytest.raises(InputError, match=r"2 problems") as caught:
        check_files([first])
    assert "field a: PSF model /abs/r.psf does not exist" in str(caught.value)


def test_one_file_per_band(row):
    row = row()
    with pytest.raises(InputError, match=r"2 files for 3 bands .* one per band"):
        read_observation(replace(row, psf=row.psf[:2]))


def test_files_that_are_not_of_psfex(row):
    good = row()
    good.psf[1].unlink()
    complain(good, "no such file", "correct the table")
    good.psf[1].write_text("PSF")
    complain(good, "not a FITS file")
    fits.PrimaryHDU(np.zeros((2, 2))).writeto(good.psf[1], overwrite=True)
    complain(good, "column PSF_MASK", "that PSFEx writes")
    write_psfex(good.psf[1], SHAPE)
    with fits.open(good.psf[1], memmap=False) as hdus:
        hdus.append(hdus[1].copy())
        hdus.writeto(good.psf[1], overwrite=True)
    complain(good, "holds 2 models", "give the file of one")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"PSF_SAMP": None}, ["lacks a card", "PSF_SAMP"]),
        ({"PSF_SAMP": 0.0}, ["PSF_SAMP", "must be positive"]),
        ({"POLDEG1": 3}, ["do not fit together"]),
        ({"POLNAME1": "MAG_AUTO"}, ["X_IMAGE and Y_IMAGE"]),
        ({"mask": np.nan}, ["NaN", "(x, y) = (0.0, 0.0)", "fit the model again"]),
        ({"mask": -1.0}, ["no positive sum", "(x, y) = (0.0, 0.0)"]),
        (
            {"POLZERO1": 900.0},
            ["do not reach (x, y) = (0.0, 0.0)", "x = 889.0 to 909.0"],
        ),
        # The image is larger than the model says: its right edge is beyond.
        ({"POLZERO2": 3.0, "POLSCAL2": 6.0}, ["do not reach (x, y) = (0.0, 7.5)"]),
    ],
)
def test_models_that_are_no_psf(row, spoil, words):
    complain(row(**spoil), *words)


def test_a_model_off_its_centre(row):
    mask = np.zeros((31, 31))
    mask[:, 17:] = 1.0
    complain(row(mask=mask), "off centre by", "at (x, y) = (0.0, 0.0)")


def test_all_problems_are_listed_at_once(row, parts):
    image = parts["image"].copy()
    image[0, 0, 0] = np.nan
    good = row(mask=np.nan)
    with np.load(good.path) as file:
        np.savez(good.path, **(dict(file) | {"images": image}))
    with pytest.raises(InputError, match="2 problems"):
        validate_fields([good])
