"""Sets of blends on disk."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from blendem.blend import pad_observation, pad_sources, stack
from blendem.io.blends import BlendSet, read_blends, signature, write_blends
from blendem.io.table import InputError


def make(rng, size, sources, band_index=(0, 1), same_grid=True):
    shape = (len(band_index), size - 2, size - 1)
    variance = rng.uniform(1, 2, shape)
    variance[0, 0, 0] = np.inf
    observation = pad_observation(
        rng.normal(size=shape),
        variance,
        rng.random((len(band_index), 3, 3)),
        size=size,
        jacobian=rng.normal(size=(2, 2)),
        offset=rng.normal(size=2),
        band_index=band_index,
        same_grid=same_grid,
    )
    centers = rng.uniform(0, size, (1, 2))
    return pad_sources((observation,), centers, np.array([True]), sources)


def grow(blend):
    """Its first source takes stamps that are magnified twice."""
    zoom = np.array([1] + [0] * (len(blend.present) - 1), np.int32)
    return replace(blend, zoom=zoom)


@pytest.fixture
def blends(rng):
    small = [make(rng, 8, 2) for _ in range(2)]
    other = [grow(make(rng, 10, 3, (1,), False))]
    table = {
        "stack": np.array([1, 0, -1, 0]),
        "index": np.array([0, 1, 0, 0]),
        "field": np.array(["a", "a", "b", "b"]),
    }
    rows = [other[0], small[1], None, small[0]]
    saved = BlendSet(
        [stack(small, 2), stack(other, 1)],
        {
            "id": np.array([7, 8, 9]),
            "field": np.array(["a", "b", "b"]),
            "blend": np.array([0, 1, 2]),
            "slot": np.array([0, 0, 0]),
        },
        table,
        {"a": {"magzero": 27.0, "bands": ["g", "i"], "wcs": ""}},
        {"bands": ["g", "i"], "psf_sigma": 0.7},
    )
    return saved, rows


def test_blends_come_back_row_by_row(blends, tmp_path):
    saved, rows = blends
    write_blends(tmp_path / "0.h5", saved)
    read = read_blends(tmp_path / "0.h5")
    for number, expected in enumerate(rows):
        blend = read.blend(number)
        if expected is None:
            assert blend is None
            continue
        # The static fields are part of the structure: bands and grid come back, too.
        assert jax.tree.structure(blend) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(blend), jax.tree.leaves(expected), strict=True):
            assert np.asarray(a).dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(read.zoom, [1, 0, 0])
    assert read.fields == saved.fields and read.attrs == saved.attrs
    for name in ("sources", "blends"):
        for column, values in getattr(saved, name).items():
            np.testing.assert_array_equal(getattr(read, name)[column], values)


def test_signature_tells_programs_apart(rng):
    base = signature(make(rng, 8, 2))
    assert base == signature(make(rng, 8, 2))
    assert base != signature(grow(make(rng, 8, 2)))
    others = [(10, 2), (8, 3), (8, 2, (0,)), (8, 2, (0, 2)), (8, 2, (0, 1), False)]
    found = {signature(make(rng, *arguments)) for arguments in others}
    assert len(found) == len(others) and base not in found


def test_missing_and_damaged_files_are_named(blends, tmp_path):
    path = tmp_path / "0.h5"
    with pytest.raises(InputError, match=r"0\.h5: no such file"):
        read_blends(path)
    write_blends(path, blends[0])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"0\.h5: damaged"):
        read_blends(path)
