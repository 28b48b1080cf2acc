"""Downloads are verified before they appear; being offline is said plainly."""

import hashlib
import os

import pytest

from blendem.io.fetch import DATA_SETS, FetchError, fetch, sha256_of

CONTENT = b"galaxies" * 1000


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.npz"
    path.write_bytes(CONTENT)
    return path


def test_the_sum_of_a_file_is_that_of_its_content(source):
    assert sha256_of(source) == hashlib.sha256(CONTENT).hexdigest()


def test_a_right_file_is_fetched_once(source, tmp_path):
    target, sha256 = tmp_path / "data" / "a.npz", sha256_of(source)
    assert fetch(source.as_uri(), target, sha256)
    assert target.read_bytes() == CONTENT
    source.unlink()
    assert not fetch(source.as_uri(), target, sha256)


def test_a_wrong_sum_leaves_nothing(source, tmp_path):
    target = tmp_path / "data" / "a.npz"
    with pytest.raises(FetchError, match=r"expected 0000.*not used"):
        fetch(source.as_uri(), target, "0" * 64)
    assert os.listdir(target.parent) == []


def test_a_damaged_copy_is_replaced(source, tmp_path):
    target = tmp_path / "a.npz"
    target.write_bytes(CONTENT[:-1])
    assert fetch(source.as_uri(), target, sha256_of(source))
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "url",
    [
        "file:///nowhere/a.npz",
        "http://127.0.0.1:1/a.npz",  # no server listens on port 1: refused, without network
        "strange://a",
    ],
)
def test_an_address_that_cannot_be_reached_says_what_to_do(url, tmp_path):
    target = tmp_path / "a.npz"
    with pytest.raises(FetchError) as caught:
        fetch(url, target, "0" * 64, timeout=5)
    text = str(caught.value)
    assert url in text and "offline" in text and f"copy the file to {target}" in text


def test_the_real_file_has_the_sum_that_we_expect(data_dir):
    path = data_dir / "hsc_cosmos_35" / "hsc_cosmos_35.npz"
    assert sha256_of(path) == DATA_SETS["hsc_cosmos_35"].sha256
