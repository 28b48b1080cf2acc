"""The truth of a simulated field."""

import numpy as np
import pytest

from blendem.io.products import write_h5
from blendem.io.truth import read_truth


def test_sources_are_found_by_id(tmp_path, rng):
    path = tmp_path / "field.h5"
    images = rng.normal(size=(3, 2, 5, 5)).astype(np.float32)
    table = {"id": np.array([7, 3, 5]), "flux_g": np.array([1.0, 2.0, 3.0])}
    write_h5(
        path, {"table": table, "model": images}, {"bands": ["g", "r"], "magzero": 27.0}
    )
    truth = read_truth(path)
    assert truth.bands == ("g", "r") and truth.magzero == 27
    assert list(truth.table.iloc[truth.rows([5, 7])]["flux_g"]) == [3, 1]
    np.testing.assert_array_equal(truth.images[truth.rows([3])[0]], images[1])
    with pytest.raises(KeyError):
        truth.rows([4])
