"""HDF5 round trips and bad files."""

import os

import numpy as np
import pytest
from astropy.table import Table

from blendem.io.h5 import open_h5, read_h5, write_h5
from blendem.io.table import InputError


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(5, 40, 40)).astype(np.float32),
        "variance": np.array([1.0, np.inf, np.nan]),
        "ids": np.array([3, 2**40]),
        "flag": np.array([True, False]),
        "number": 2.5,
        "names": ["hsc_1", "", "Sérsic"],
        "empty": np.zeros((0, 3)),
        "table": Table({"id": [1, 2], "flux": [1.0, 2.0], "type": ["star", "galaxy"]}),
        "deep": {"er": {"x": np.arange(3)}},
    }


def test_everything_comes_back_with_its_type(tmp_path, arrays):
    arrays["table"]["flux"].unit = "nJy"
    attrs = {"config": "abc", "seed": 7, "jitter": 0.6, "ok": True, "bands": ["g", "r"]}
    attrs |= {"nested": {"a": [1, None]}}
    write_h5(tmp_path / "a.h5", arrays, attrs)
    back, back_attrs = read_h5(tmp_path / "a.h5")
    assert back_attrs == attrs
    assert back.keys() == arrays.keys()
    for key in ("image", "variance", "ids", "flag", "empty"):
        np.testing.assert_array_equal(back[key], arrays[key])
        assert back[key].dtype == arrays[key].dtype
    assert back["number"] == 2.5
    assert back["names"].tolist() == arrays["names"]
    assert back["table"]["type"].tolist() == ["star", "galaxy"]
    assert Table(back["table"])["id"].tolist() == [1, 2]
    np.testing.assert_array_equal(back["deep"]["er"]["x"], [0, 1, 2])


def test_only_what_is_asked_for_is_read(tmp_path, arrays):
    write_h5(tmp_path / "a.h5", arrays)
    assert list(read_h5(tmp_path / "a.h5", only=["ids"])[0]) == ["ids"]
    with pytest.raises(InputError, match=r"a\.h5: lacks z, it has .*run again"):
        read_h5(tmp_path / "a.h5", only=["z"])


def test_the_same_content_gives_the_same_bytes(tmp_path, arrays):
    for name in ("a.h5", "b.h5"):
        write_h5(tmp_path / name, arrays, {"seed": 1})
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_smooth_images_shrink(tmp_path):
    image = np.zeros((5, 200, 200), np.float32)
    write_h5(tmp_path / "a.h5", {"image": image})
    assert (tmp_path / "a.h5").stat().st_size < image.nbytes / 10


def test_bad_values_leave_no_file(tmp_path):
    for arrays, error in (
        ({"a/b": 1.0}, ValueError),
        ({"deep": {"": 1.0}}, ValueError),
        ({"a": np.array([object()])}, TypeError),
    ):
        with pytest.raises(error):
            write_h5(tmp_path / "a.h5", arrays)
    assert os.listdir(tmp_path) == []


def test_missing_and_damaged_files(tmp_path, arrays):
    path = tmp_path / "a.h5"
    with pytest.raises(InputError, match=r"a\.h5: no such file; run the rule"):
        read_h5(path)
    write_h5(path, arrays)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"a\.h5: damaged.*run again"):
        read_h5(path)


def test_large_rows_are_stored_apart(tmp_path):
    """Reading one blend of a stack must not read the others."""
    image = np.random.default_rng(1).normal(size=(3, 200, 200))
    write_h5(tmp_path / "a.h5", {"stack": {"image": image, "small": np.zeros((9, 90))}})
    with open_h5(tmp_path / "a.h5") as file:
        assert file["stack/image"].chunks == (1, 200, 200)
        assert file["stack/small"].chunks == (9, 90)
        np.testing.assert_array_equal(file["stack"]["image"][1], image[1])
