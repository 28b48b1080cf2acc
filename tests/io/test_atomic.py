"""Half a file never looks whole."""

import os

import pytest

from blendem.io.atomic import PREFIX, atomic_path


def test_a_file_appears_when_complete_and_not_before(tmp_path):
    target = tmp_path / "deep" / "catalog.fits"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.suffix == ".fits"
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["catalog.fits"]


def test_a_failure_leaves_the_former_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.h5"
    target.write_text("former")
    with pytest.raises(RuntimeError, match="stop"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert target.read_text() == "former"
    assert os.listdir(tmp_path) == ["a.h5"]


def test_a_stale_temporary_matches_no_pattern_of_results(tmp_path):
    with atomic_path(tmp_path / "a.fits") as temporary:
        temporary.write_text("killed here")
        assert temporary.name.startswith(PREFIX) and PREFIX.startswith(".")
        # `*` of shells and of Path.glob's callers (glob.glob) skips dotted names.
        import glob

        assert glob.glob(str(tmp_path / "*.fits")) == []


def test_writing_nothing_is_an_error(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"a\.fits"),
        atomic_path(tmp_path / "a.fits"),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("x")
    with atomic_path(tmp_path / "atomic") as temporary:
        temporary.write_text("x")
    modes = [(tmp_path / n).stat().st_mode for n in ("plain", "atomic")]
    assert modes[0] == modes[1]
