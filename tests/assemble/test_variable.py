"""Sources that vary in products: each observation shows them as bright as they were."""

import numpy as np
from tests.inference.test_variable import FLUX, SHINES, observe

from blendem.assemble.observed import _shine, _star_flux
from blendem.assemble.sources import Measured
from blendem.blend import stack
from blendem.measure.light_curves import LightCurve
from blendem.measure.sources import point_image

N_PLANES, STAMP = len(FLUX), 9


def test_each_observation_shows_its_own_flux(rng):
    """Beside a source of another blend, which has one observation only."""
    point = point_image(STAMP, 0.7)
    draws = FLUX * (1 + 0.1 * rng.normal(size=(200, N_PLANES)))
    few = np.ones(1, bool)
    sources = Measured(
        columns={},
        mean=[],
        std=[],
        scale=np.zeros(0),
        center=np.zeros((0, 2)),
        flux=np.zeros((0, 0, 2)),
        is_star=np.zeros(0, bool),
        zoom=np.zeros(0, int),
        kinds=[],
        curves={
            1: LightCurve(FLUX, draws, SHINES),
            7: LightCurve(np.ones(1), np.ones((200, 1)), few),
        },
    )
    blends, members = stack([observe()], 1), [np.array([0, 1])]
    for observation in (2, 0, 1):
        images = np.ones((1, 3, 2, STAMP, STAMP), np.float32)
        _shine(images, members, sources, blends, observation, point)
        here = slice(2 * observation, 2 * observation + 2)
        seen = images[0, 1].sum((-2, -1))
        np.testing.assert_allclose(seen, FLUX[here], rtol=1e-5, atol=1e-6)
        assert (images[0, [0, 2]] == 1).all()
        value, error = _star_flux(sources, 1, blends, observation)
        np.testing.assert_array_equal(value, FLUX[here])
        np.testing.assert_allclose(error, 0.1 * FLUX[here], rtol=0.2)
