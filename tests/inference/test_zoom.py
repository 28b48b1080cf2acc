"""Sources with magnified stamps: the same sums as with a basis of larger stamps."""

import equinox as eqx
import jax
import numpy as np
import pytest
from tests.inference.test_statistics import STAMP, make_basis, make_blend

from blendem.blend import largest_zoom, stack
from blendem.inference.amplitude import Amplitudes
from blendem.inference.batch import render_of, statistics_of
from blendem.inference.statistics import Settings
from blendem.prior.magnify import fit_side, kinds_of, magnified_side, magnify

MODES = 3


def as_basis(kind, side):
    """Stamps of one side, as a basis of their own."""
    return eqx.tree_at(
        lambda b: (b.mean, b.modes),
        make_basis(),
        (fit_side(np.asarray(kind.mean), side), fit_side(np.asarray(kind.modes), side)),
    )


@pytest.fixture(scope="module")
def one():
    """A stack of one blend: galaxy, star, galaxy, padding."""
    blend = make_blend(np.random.default_rng(7))
    # The shared grid and the one of another scale.
    blend = eqx.tree_at(lambda b: b.observations, blend, blend.observations[::2])
    return jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float32 if leaf.dtype.kind == "f" else None),
        stack([blend], 1),
    )


def zoomed(blends, zoom):
    zoom = np.array([zoom], np.int32)
    return eqx.tree_at(lambda b: b.zoom, blends, zoom, is_leaf=lambda x: x is None)


def sums(blends, basis, stamp, amplitudes=None, **settings):
    chosen = Settings(0, stamp, sky_sigma=0.3, **settings)
    return statistics_of(blends, basis, chosen, 1, amplitudes)


@pytest.mark.slow
def test_all_galaxies_magnified(one):
    """Amplitudes, centres and sums are those of a basis of the large stamps."""
    side, blends = magnified_side(STAMP, 1), zoomed(one, [1, 0, 1, 0])
    assert largest_zoom(blends) == 1 and largest_zoom(one) == 0
    found = sums(blends, make_basis(), STAMP, iterations=1, offset_sigma=0.4)
    large = as_basis(magnify(make_basis(), 1), side)
    expected = sums(one, large, side, iterations=1, offset_sigma=0.4)
    for name in ("scale", "centers", "offsets", "H", "b", "r2"):
        size = np.abs(expected[name]).max()
        np.testing.assert_allclose(
            found[name], expected[name], atol=2e-4 * size, err_msg=name
        )


def test_each_galaxy_has_its_own_stamps(one):
    """One is magnified, the other is not."""
    side = magnified_side(STAMP, 1)
    blends, basis = zoomed(one, [0, 0, 1, 0]), make_basis()
    start = sums(one, basis, STAMP, iterations=0)
    amplitudes = Amplitudes(*(start[name] for name in Amplitudes._fields))
    found = sums(blends, basis, STAMP, amplitudes)
    # They are other sums than those of the small stamps.
    assert np.abs(start["b"] - found["b"]).max() > 0.05 * np.abs(found["b"]).max()
    kinds = [as_basis(kind, side) for kind in kinds_of(basis, np.array([1]))]
    small, large = (sums(one, kind, side, amplitudes) for kind in kinds)
    H, n = found["H"][0], len(one.present[0]) * MODES
    size = np.abs(H[:n, :n]).max()
    for k, expected in ((0, small), (1, small), (2, large)):
        own = slice(k * MODES, (k + 1) * MODES)
        np.testing.assert_allclose(
            H[own, own], expected["H"][0][own, own], atol=1e-5 * size
        )
        # With the sky, which is linear in the light of a source.
        np.testing.assert_allclose(
            H[own, -3:], expected["H"][0][own, -3:], atol=1e-5 * size
        )


def test_the_residual_is_that_of_the_model(one):
    """r2 by rendering the mean images, the star left to its own template."""
    side = magnified_side(STAMP, 1)
    blends = zoomed(one, [0, 0, 1, 0])
    no_star = eqx.tree_at(
        lambda b: b.present, blends, np.array([[True, False, True, False]])
    )
    found = sums(no_star, make_basis(), STAMP, iterations=0)
    kinds = kinds_of(make_basis(), np.array([1]))
    means = [fit_side(np.asarray(kind.mean), side) for kind in kinds]
    images = np.stack([means[0], 0 * means[0], means[1], 0 * means[0]])[None]
    images = images * found["scale"][0][None, :, None, None, None]
    seen = render_of(no_star, images, found["centers"], 0.7, 1)
    r2 = 0.0
    for observation, image in zip(no_star.observations, seen, strict=True):
        variance = np.asarray(observation.variance)
        used = np.isfinite(variance)
        residual = np.asarray(observation.image) - image.sum(axis=1)
        r2 += np.sum(residual[used] ** 2 / variance[used])
    np.testing.assert_allclose(found["r2"][0], r2, rtol=1e-4)
