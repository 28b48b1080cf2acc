"""Transforms of PSF images against sums over pixels."""

import jax.numpy as jnp
import numpy as np
import pytest

from blendem.psf import (
    difference_kernel,
    fast_length,
    frequencies,
    gaussian_transform,
    image_transform,
    image_transform_at,
)


def dft(psf, ky, kx):
    """Sum of pixels times exp(-i k r), r from the central pixel."""
    r = np.arange(psf.shape[-1]) - psf.shape[-1] // 2
    phase = np.exp(-1j * (ky * r[:, None] + kx * r[None, :]))
    return (psf * phase).sum((-2, -1))


def test_transform_on_and_off_the_grid_is_the_sum_over_pixels(rng):
    psf = rng.random((2, 5, 5))  # no symmetry: a wrong sign or axis is seen
    n = 12
    ky, kx = (np.asarray(k) for k in frequencies(n, jnp.float64))
    on_grid = np.asarray(image_transform(jnp.asarray(psf), n))
    for i, j in [(0, 0), (1, 3), (7, 2), (11, 6)]:
        np.testing.assert_allclose(
            on_grid[:, i, j], dft(psf, ky[i, j], kx[i, j]), atol=1e-12
        )
    ky, kx = rng.uniform(-np.pi, np.pi, (2, 4, 3))
    ky[0, 0], kx[1, 1] = 3.2, -3.3  # outside the Nyquist square
    value = np.asarray(
        image_transform_at(jnp.asarray(psf), jnp.asarray(ky), jnp.asarray(kx))
    )
    for i, j in np.ndindex(4, 3):
        inside = max(abs(ky[i, j]), abs(kx[i, j])) <= np.pi
        expected = dft(psf, ky[i, j], kx[i, j]) if inside else np.zeros(2)
        np.testing.assert_allclose(value[:, i, j], expected, atol=1e-12)
    assert np.all(value[:, 0, 0] == 0) and np.all(value[:, 1, 1] == 0)


def test_psf_larger_than_the_grid_is_an_error():
    with pytest.raises(ValueError, match=r"PSF image \(9 pixels\)"):
        image_transform(jnp.ones((1, 9, 9)), 8)


def test_gaussian_transform_is_that_of_a_sampled_gaussian():
    r = np.arange(41) - 20
    image = np.exp(-0.5 * (r[:, None] ** 2 + r**2) / 1.5**2)
    ky, kx = frequencies(48, jnp.float64)
    expected = image_transform(jnp.asarray(image / image.sum())[None], 48)[0]
    # Aliasing of a sigma of 1.5 pixel: exp(-1.5^2 pi^2 / 2) = 1.5e-5, twice on an edge.
    np.testing.assert_allclose(
        gaussian_transform(ky, kx, jnp.array(1.5)), expected, atol=5e-5
    )


def test_difference_kernel_keeps_flux_and_takes_one_gaussian_to_another():
    ky, kx = frequencies(32, jnp.float64)
    model = gaussian_transform(ky, kx, jnp.array(0.7))
    wide = gaussian_transform(ky, kx, jnp.array(1.5))[None].astype(complex)
    kernel = np.asarray(difference_kernel(2.5 * wide, model))
    assert kernel[0, 0, 0] == pytest.approx(2.5, rel=1e-12)
    truth = 2.5 * np.exp(-0.5 * np.asarray(ky**2 + kx**2) * (1.5**2 - 0.7**2))
    # On the axes damping is below (1e-3 / model)^2 = 1.3e-4; corners have no power left.
    np.testing.assert_allclose(kernel[0], truth, atol=1e-6)
    # Where the model has no power, noise is damped and not amplified.
    blind = difference_kernel(jnp.ones((1, 1, 1), complex), jnp.full((1, 1), 1e-9))
    assert abs(blind[0, 0, 0]) < 1e-2


@pytest.mark.parametrize(("n", "expected"), [(1, 2), (7, 8), (11, 12), (13, 16)])
def test_fast_length_is_the_next_even_number_with_small_factors(n, expected):
    assert fast_length(n) == expected


def test_fast_lengths_have_no_other_factors_than_2_3_5():
    for n in range(2, 300):
        found = fast_length(n)
        smooth = [
            m
            for m in range(n, 2 * n + 2)
            if m % 2 == 0 and 30 ** int(np.ceil(np.log2(m))) % m == 0
        ]
        assert found == smooth[0]
