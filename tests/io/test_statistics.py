"""What is read back of the statistics besides the sums."""

import numpy as np
import pytest

from blendem.inference.amplitude import Amplitudes
from blendem.inference.statistics import Settings
from blendem.io.products import write_h5
from blendem.io.statistics import read_amplitudes
from blendem.io.table import InputError


def test_amplitudes_and_settings_come_back_as_computed(tmp_path, rng):
    """Of two stacks of 3 and 1 blends of 4 sources in 2 bands."""
    shapes = {"scale": (4,), "flux": (4, 2, 2), "flux_error": (4, 2), "centers": (4, 2)}
    shapes |= {"offsets": (3, 2), "plane_flux": (4, 6), "plane_error": (4, 6)}
    made = [
        {
            k: rng.normal(size=(n, *shape)).astype(np.float32)
            for k, shape in shapes.items()
        }
        for n in (3, 1)
    ]
    settings = Settings(reference=1, stamp=33, sky_sigma=0.3, pixels=(512,))
    arrays = {f"stack_{i}": a | {"H": np.zeros(2)} for i, a in enumerate(made)}
    arrays["in_em"] = np.ones(4, bool)
    path = tmp_path / "0.h5"
    write_h5(path, arrays, {"settings": settings._asdict(), "seconds": 1.0})
    found, read = read_amplitudes(path)
    assert read == settings and hash(read) == hash(settings)
    for amplitudes, expected in zip(found, made, strict=True):
        assert isinstance(amplitudes, Amplitudes)
        for name, value in expected.items():
            np.testing.assert_array_equal(getattr(amplitudes, name), value)
    with pytest.raises(InputError, match="no such file"):
        read_amplitudes(tmp_path / "1.h5")
