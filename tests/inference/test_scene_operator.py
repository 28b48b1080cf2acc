"""Sources that are added up first against sources that are rendered one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blendem.inference.scene_operator import SceneOperator, shift_matrices
from blendem.observation import Observation, Sampling
from blendem.renderer import Renderer

STAMP, SIGMA, BANDS = 21, 0.7, 3
CENTERS = np.array([[14.3, 20.8], [30.9, 12.2], [25.5, 33.6]])


def gaussian(side, sigma):
    r = np.arange(side) - side // 2
    image = np.exp(-(r[:, None] ** 2 + r[None] ** 2) / (2 * sigma**2))
    return image / image.sum()


def turned(scale, degrees):
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return scale * np.array([[cos, sin], [-sin, cos]])


def observe(jacobian, offset, shape, index, same=False):
    return Observation(
        jnp.zeros((len(index), *shape)),
        jnp.ones((len(index), *shape)),
        jnp.stack([jnp.asarray(gaussian(15, 1.5 + 0.2 * i)) for i in index]),
        jnp.asarray(jacobian),
        jnp.asarray(offset, float),
        index,
        same,
        Sampling() if same else Sampling.of(jacobian),
    )


OBSERVATIONS = (
    observe(np.eye(2), (0.0, 0.0), (45, 47), (2,), same=True),
    observe(np.eye(2), (3.25, -2.5), (38, 44), (0, 2), same=True),
    observe(np.diag([2.8, 2.8]), (-1.7, 2.4), (16, 15), (0, 1)),
    observe(turned(2.8, 25), (6.0, -9.0), (15, 14), (1,)),
)


def stamps(rng):
    """Smooth light that ends inside the stamp."""
    r = np.arange(STAMP) - STAMP // 2
    out = np.zeros((len(CENTERS), BANDS, STAMP, STAMP))
    for k in range(len(CENTERS)):
        for b in range(BANDS):
            y, x = rng.normal(size=2)
            out[k, b] = np.exp(
                -((r[:, None] - y) ** 2 + (r[None] - x) ** 2) / (2 * 1.8**2)
            )
    return jnp.asarray(out)


def test_images_are_those_of_single_sources(rng):
    x = stamps(rng)
    operator = SceneOperator.of(OBSERVATIONS, STAMP, SIGMA, CENTERS)
    found = jax.jit(lambda x: operator(x))(x)
    for image, o in zip(found, OBSERVATIONS, strict=True):
        renderer = Renderer.of(o, STAMP, jnp.array(SIGMA))
        index = jnp.asarray(o.band_index)
        one = jax.vmap(renderer.render_stamps)(x[:, index], jnp.asarray(CENTERS))
        expected = np.asarray(one.sum(axis=0))
        assert image.shape == expected.shape and expected.max() > 0.3
        # Interpolation of the turned one is right to 1e-5; patches end at different places.
        np.testing.assert_allclose(image, expected, rtol=0, atol=5e-4 * expected.max())


def test_adjoint(rng):
    operator = SceneOperator.of(OBSERVATIONS, STAMP, SIGMA, CENTERS)
    x = jnp.asarray(rng.normal(size=(3, BANDS, STAMP, STAMP)))
    y = operator(x)
    w = tuple(jnp.asarray(rng.normal(size=image.shape)) for image in y)
    (back,) = jax.linear_transpose(operator, x)(w)
    left = sum(float(jnp.vdot(a, b)) for a, b in zip(y, w, strict=True))
    np.testing.assert_allclose(left, float(jnp.vdot(x, back)), rtol=1e-10)


@pytest.mark.parametrize("shift", [0.0, 0.37, -0.5])
def test_a_stamp_is_moved_by_part_of_a_pixel(shift):
    patch = 54
    y, x = shift_matrices(patch, STAMP, 16, np.array([[shift, -shift]]))
    r = np.arange(STAMP) - STAMP // 2
    at = np.arange(patch) - patch // 2
    for matrix, sign in ((y, 1), (x, -1)):
        moved = matrix[0] @ np.exp(-(r**2) / 8.0)
        expected = np.exp(-((at - sign * shift) ** 2) / 8.0)
        # The window lets 1e-4 pass.
        np.testing.assert_allclose(moved, expected, atol=3e-4)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
