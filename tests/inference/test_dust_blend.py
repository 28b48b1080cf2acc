"""Blends of galaxies behind dust: compression from few stamps, stars of any flux, noise."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blendem.blend import pad_observation, pad_sources
from blendem.inference.dust_blend import dust_blend
from blendem.inference.dust_model import see, spanning, whitened
from blendem.measure.sources import point_image
from blendem.noise import Whitening

SIDE, BANDS, SIGMA, SIZE = 9, 2, 0.7, 24


def psf():
    line = np.arange(13) - 6
    image = np.exp(-0.5 * np.hypot(line[:, None], line[None]) ** 2 / 1.4**2)
    return np.repeat((image / image.sum())[None], BANDS, axis=0)


def stamps(rng, n=40):
    line = np.arange(SIDE) - SIDE // 2
    r = np.hypot(line[:, None], line[None])
    return np.exp(-r / rng.uniform(0.8, 2.5, (n, BANDS, 1, 1)))


def blend(rng, *, stars, image=None, correlation=None, band_index=(0, 1)):
    """Sources on a diagonal, in a masked frame."""
    variance = rng.uniform(0.5, 2.0, (BANDS, 18, 20))
    if image is None:
        image = rng.normal(size=variance.shape)
    observation = pad_observation(
        image,
        variance,
        psf(),
        size=SIZE,
        jacobian=np.eye(2),
        offset=np.zeros(2),
        band_index=band_index,
        same_grid=True,
        correlation=correlation,
    )
    centers = np.array([[6.3, 5.6], [9.7, 12.2], [13.1, 6.9]])[: len(stars)]
    return pad_sources((observation,), centers, np.array(stars), 4)


def ready(one, rng, **changes):
    n = int(one.present.sum())
    law = np.linspace(0.6, 1.4, n * BANDS).reshape(n, BANDS)
    settings = {"psf_sigma": SIGMA, "rank": 12, "point": point_image(SIDE, SIGMA)}
    span = spanning(stamps(rng), 12)
    return dust_blend(one, span, law, law - 1, 3.0, **settings | changes)


def test_few_stamps_have_the_moments_of_many(rng):
    many = stamps(rng, 200)
    few = spanning(many, 10)
    assert len(few) == 30
    for b in range(BANDS):
        a, c = (x[:, b].reshape(len(x), -1) for x in (many, few))
        np.testing.assert_allclose(c.T @ c, a.T @ a, atol=1e-6 * len(many))


def test_operator_is_that_of_the_images(rng):
    """What the likelihood predicts for stamps is what pixels of them are compressed to."""
    one = blend(rng, stars=[False, False])
    x = stamps(rng, 2)
    seen = sum(
        see(one.observations[0], c, x[k : k + 1], SIGMA)[0]
        for k, c in enumerate(one.centers[:2])
    )
    image = seen.reshape(BANDS, SIZE, SIZE)[:, :18, :20]
    image = image * np.sqrt(one.observations[0].variance[:, :18, :20])
    clean = eqx.tree_at(
        lambda b: b.observations[0].image,
        one,
        np.pad(image, [(0, 0), (0, SIZE - 18), (0, SIZE - 20)]).astype(np.float32),
    )
    found = ready(clean, np.random.default_rng(0))
    flat = x.reshape(2, BANDS, -1)
    expected = np.einsum("kbrp,kbp->br", found.likelihood.operator, flat)
    np.testing.assert_allclose(found.likelihood.data, expected, atol=2e-4)
    assert np.abs(expected).max() > 1
    # Twelve numbers per band and galaxy.
    assert found.n_data == 2 * 12 * BANDS and found.likelihood.whiten is None


def test_light_of_a_star_changes_nothing_and_galaxies_keep_their_order(rng):
    """Its flux is free: a bright one leaves the data as they were."""
    one = blend(rng, stars=[False, True, False])
    point = np.broadcast_to(point_image(SIDE, SIGMA), (1, BANDS, SIDE, SIDE))
    observation = one.observations[0]
    seen = see(observation, one.centers[1], 2000 * point, SIGMA)[0]
    root = np.where(np.isfinite(observation.variance), observation.variance, 0) ** 0.5
    more = observation.image + root * seen.reshape(BANDS, SIZE, SIZE)
    bright = eqx.tree_at(
        lambda b: b.observations[0].image, one, more.astype(np.float32)
    )
    a, b = (ready(x, np.random.default_rng(0)) for x in (one, bright))
    np.testing.assert_array_equal(a.galaxies, [True, False, True])
    law = np.linspace(0.6, 1.4, 3 * BANDS).reshape(3, BANDS)
    np.testing.assert_allclose(a.likelihood.law, law[[0, 2]])
    moved = np.abs(a.likelihood.data - b.likelihood.data)
    # In units of the noise, from a star with a signal to noise of hundreds.
    assert np.linalg.norm(seen) > 300 and moved.max() < 0.1
    # Noise stays white where the star is not: one direction per band is lost.
    gram = a.likelihood.whiten @ a.likelihood.whiten.T
    values = np.linalg.eigvalsh(gram)
    assert np.sum(values < 1e-6) == BANDS
    np.testing.assert_allclose(values[BANDS:], 1.0, atol=1e-8)


def test_correlated_noise_is_whitened(rng):
    """Masked pixels are 0, the others those of `Whitening`."""
    lag = np.array([[0.1, 0.3, 0.1], [0.3, 1.0, 0.3], [0.1, 0.3, 0.1]])
    one = blend(rng, stars=[False], correlation=np.repeat(lag[None], BANDS, axis=0))
    o = jax.tree.map(jnp.asarray, one.observations[0])
    expected = Whitening.of(o.weight, o.correlation)(o.image)
    found = whitened(one.observations[0]).reshape(BANDS, SIZE, SIZE)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found[:, 18:] == 0).all() and (found[:, :18, :20] != 0).all()
    plain = whitened(replace(one.observations[0], correlation=None))
    assert np.abs(plain - found.reshape(BANDS, -1)).max() > 0.3


def test_wrong_bands_and_no_galaxy_are_refused(rng):
    with pytest.raises(ValueError, match="needs all 2, in order"):
        ready(blend(rng, stars=[False], band_index=(1, 0)), rng)
    with pytest.raises(ValueError, match="no galaxy"):
        ready(blend(rng, stars=[True]), rng)
