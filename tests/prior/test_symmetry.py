"""The eight symmetries in pixels and in latent coordinates."""

import numpy as np
import pytest

from blendem.prior.symmetry import (
    N_SYMMETRIES,
    latent_symmetries,
    symmetries,
    symmetrise_moments,
)


@pytest.fixture
def modes(rng):
    """Six orthogonal modes of one band whose span the symmetries leave invariant.

    Images of 3 x 3: corners in x and y (a pair), edges likewise, their mean and the centre.
    """
    y, x = np.mgrid[-1:2, -1:2].astype(float)
    corner, edge = np.abs(x * y), (np.abs(x) + np.abs(y) == 1).astype(float)
    pairs = [x * corner, y * corner, x * edge, y * edge]
    images = np.stack([*pairs, corner + edge, 1.0 * (x == 0) * (y == 0)])
    images /= np.sqrt((images**2).sum((1, 2), keepdims=True))
    values = np.array([3.0, 3.0, 2.0, 2.0, 1.5, 0.5])
    return (images * np.sqrt(values)[:, None, None])[:, None], values


def test_the_eight_images_are_all_that_keep_the_square():
    image = np.arange(9.0).reshape(3, 3)
    found = {s.tobytes() for s in map(np.ascontiguousarray, symmetries(image))}
    expected = set()
    for base in (image, image.T):
        for a in (base, base[::-1], base[:, ::-1], base[::-1, ::-1]):
            expected.add(np.ascontiguousarray(a).tobytes())
    assert found == expected and len(found) == N_SYMMETRIES


def test_latent_matrices_are_orthogonal_and_turn_decoded_images(modes, rng):
    modes, values = modes
    R = latent_symmetries(modes, modes / values[:, None, None, None])
    for r in R:
        np.testing.assert_allclose(r @ r.T, np.eye(6), atol=1e-12)
    z = rng.normal(size=6)
    image = np.einsum("i,ibyx->byx", z, modes)
    for r, turned in zip(R, symmetries(image), strict=True):
        np.testing.assert_allclose(
            np.einsum("i,ibyx->byx", r @ z, modes), turned, atol=1e-12
        )


def test_symmetrised_moments_are_idempotent_invariant_and_those_of_all_copies(
    modes, rng
):
    images, values = modes
    R = latent_symmetries(images, images / values[:, None, None, None])
    z = rng.normal(size=(40, 6)) + 1.0
    mean, covariance = symmetrise_moments(z.mean(0), np.cov(z.T, bias=True), R)
    copies = np.concatenate([z @ r.T for r in R])
    np.testing.assert_allclose(mean, copies.mean(0), atol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(copies.T, bias=True), atol=1e-12)
    assert np.abs(mean - z.mean(0)).max() > 0.1  # the average did something
    for r in R:
        np.testing.assert_allclose(r @ covariance @ r.T, covariance, atol=1e-12)
    again = symmetrise_moments(mean, covariance, R)
    np.testing.assert_allclose(again[0], mean, atol=1e-12)
    np.testing.assert_allclose(again[1], covariance, atol=1e-12)
