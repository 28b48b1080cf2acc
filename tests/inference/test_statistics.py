"""Sufficient statistics against a dense operator, column by column."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blendem.blend import Blend
from blendem.inference import batch, statistics
from blendem.inference.amplitude import Amplitudes
from blendem.inference.statistics import (
    STAR_SPREAD,
    Settings,
    compute_statistics,
    transform_basis,
)
from blendem.observation import Observation, Sampling
from blendem.prior.gaussian import Basis
from blendem.psf import gaussian_transform
from blendem.renderer import Renderer

STAMP, SIGMA, N_BANDS = 9, jnp.array(0.7), 2
ANGLE = np.deg2rad(17)
TURNED = 1.2 * np.array(
    [[np.cos(ANGLE), np.sin(ANGLE)], [-np.sin(ANGLE), np.cos(ANGLE)]]
)


def gaussian(side, sigma, y=0.0, x=0.0):
    r = np.arange(side) - side // 2
    image = np.exp(-((r[:, None] - y) ** 2 + (r[None] - x) ** 2) / (2 * sigma**2))
    return image / image.sum()


def make_basis():
    """A mean and three modes that are smooth, so that grids can be changed."""
    mean = np.stack([0.8 * gaussian(STAMP, 1.3), 1.0 * gaussian(STAMP, 1.4)])
    modes = np.stack(
        [
            np.stack([a * gaussian(STAMP, 1.2, y, x), b * gaussian(STAMP, 1.3, x, y)])
            for a, b, y, x in [
                (0.3, 0.2, 0.0, 0.5),
                (-0.2, 0.3, 0.6, 0.0),
                (0.1, 0.2, -0.5, 0.3),
            ]
        ]
    )
    values = np.sum(modes**2, axis=(1, 2, 3))
    return Basis(
        mean, modes, values, np.array(0.0), SIGMA, jnp.array(0.168), ("g", "i")
    )


def make_blend(rng):
    """A galaxy, a star, a galaxy and padding, seen by two instruments."""
    centers = jnp.array([[9.3, 8.6], [12.2, 12.9], [7.8, 13.1], [9.3, 8.6]])
    present = np.array([True, True, True, False])
    observations = []
    for shape, jacobian, offset, index, same in [
        ((19, 21), np.eye(2), np.zeros(2), (0, 1), True),
        ((17, 17), TURNED, np.array([-3.0, 4.0]), (1,), False),
        ((11, 12), np.diag([1.9, 2.17]), np.array([-2.0, -1.0]), (0,), False),
    ]:
        variance = 0.02 + 0.02 * rng.random((len(index), *shape))
        variance[:, 4:6, 5:9] = np.inf
        empty = Observation(
            jnp.zeros(variance.shape),
            jnp.asarray(variance),
            jnp.stack([jnp.asarray(gaussian(11, 1.6 + 0.1 * i)) for i in index]),
            jnp.asarray(jacobian),
            jnp.asarray(offset),
            index,
            same,
            Sampling() if same else Sampling.of(jacobian),
        )
        renderer = Renderer.of(empty, STAMP, SIGMA)
        light = np.asarray(make_basis().mean)[list(index)]
        draw = eqx.filter_jit(renderer.render_stamps)
        image = sum(
            f * np.asarray(draw(jnp.asarray(light), c))
            for f, c in zip((20.0, 12.0, 15.0), centers, strict=False)
        )
        noise = np.where(np.isinf(variance), 0.0, np.sqrt(variance))
        image = image + noise * rng.normal(size=image.shape)
        observations.append(eqx.tree_at(lambda o: o.image, empty, jnp.asarray(image)))
    star = np.array([False, True, False, False])
    return Blend(tuple(observations), centers + 0.05, star, present)


def dense(blend, basis, result, settings):
    """A and y - m of all unmasked pixels, each column rendered on its own."""
    n, modes = len(blend.present), len(basis.modes)
    sky = sum(len(o.band_index) for o in blend.observations)
    columns, residual, first = [], [], 0
    for number, observation in enumerate(blend.observations):
        index = list(observation.band_index)
        offset = result.offsets[number]
        renderer = Renderer.of(observation, STAMP, SIGMA).moved(offset)
        stamp = eqx.filter_jit(renderer.render_stamps)
        ky, kx = renderer.stamp_frequencies()
        point = gaussian_transform(ky, kx, SIGMA)[None].astype(complex)
        point = jnp.repeat(point, len(index), axis=0)
        psf = jax.jit(lambda c, r=renderer, p=point: r.render_transform(p, c))
        offsets = 2 * (len(blend.observations) - 1)
        A = np.zeros((n * modes + 2 * n + sky + offsets, *observation.image.shape))
        whole = np.zeros((2, *observation.image.shape))
        y = np.asarray(observation.image).copy()
        mean = np.asarray(basis.mean)[index]
        unit = jnp.asarray(mean / mean.sum((1, 2), keepdims=True))
        for k in np.flatnonzero(blend.present):
            s, c = float(result.scale[k]), result.centers[k]
            flux = np.asarray(result.flux)[k][:, index, None, None]
            for i in range(modes):
                if not blend.is_star[k]:
                    mode = jnp.asarray(np.asarray(basis.modes)[i][index])
                    A[k * modes + i] = s * stamp(mode, c)
                elif i in index:
                    b = index.index(i)
                    A[k * modes + i, b] = STAR_SPREAD * s * psf(c)[b]
            y -= s * np.asarray(
                psf(c) if blend.is_star[k] else stamp(jnp.asarray(mean), c)
            )
            for axis in range(2):
                eps = 1e-4 * np.eye(2)[axis]
                up, down = (
                    flux[0] * np.asarray(stamp(unit, c + e))
                    + flux[1] * np.asarray(psf(c + e))
                    for e in (eps, -eps)
                )
                row, slope = n * modes + 2 * k + axis, (up - down) / 2e-4
                A[row] = settings.centroid_sigma * slope
                whole[axis] += slope
        if number:
            row = n * modes + 2 * n + sky + 2 * (number - 1)
            A[row : row + 2] = settings.offset_sigma * whole
            # Linear about the fitted offset.
            y += np.tensordot(np.asarray(offset), whole, 1)
        good = np.isfinite(np.asarray(observation.variance))
        weight = np.where(good, 1 / np.asarray(observation.variance), 0)
        for b in range(len(index)):
            noise = np.sqrt(good[b].sum() / weight[b].sum())
            A[n * modes + 2 * n + first + b, b] = settings.sky_sigma * noise
        first += len(index)
        sigma = np.sqrt(np.asarray(observation.variance)[good])
        columns.append(A[:, good] / sigma)
        residual.append(y[good] / sigma)
    return np.concatenate(columns, axis=1), np.concatenate(residual)


@pytest.fixture(scope="module")
def solved():
    blend, basis = make_blend(np.random.default_rng(7)), make_basis()
    settings = Settings(0, STAMP, iterations=2, sky_sigma=0.3, offset_sigma=0.4)
    transforms = [
        transform_basis(basis, Renderer.of(o, STAMP, SIGMA)) for o in blend.observations
    ]
    run = eqx.filter_jit(compute_statistics)
    result = run(blend, transforms, N_BANDS, SIGMA, settings)
    return blend, basis, settings, result, transforms


def test_statistics_match_a_dense_operator(solved):
    blend, basis, settings, result, _ = solved
    A, r = dense(blend, basis, result, settings)
    H, b = A @ A.T, A @ r
    size = np.sqrt(np.diag(H))
    scale = np.where(size > 0, size, 1.0)
    # The transforms of the basis are complex64: 1e-7, times sqrt of the number of pixels. A
    # patch ends half an FFT grid from its source, here at whole pixels: 1e-5 of light beyond.
    np.testing.assert_allclose(
        np.asarray(result.H) / np.outer(scale, scale),
        H / np.outer(scale, scale),
        atol=1.5e-5,
    )
    assert np.abs(b / scale).max() > 1
    np.testing.assert_allclose(
        np.asarray(result.b) / scale, b / scale, atol=1e-5 * np.linalg.norm(r)
    )
    np.testing.assert_allclose(result.r2, r @ r, rtol=1e-5)
    assert result.n_data == r.size
    variance = np.concatenate([np.ravel(o.variance) for o in blend.observations])
    good = variance[np.isfinite(variance)]
    np.testing.assert_allclose(result.log_norm, np.log(2 * np.pi * good).sum())
    # Padding has no light; every other unknown has some.
    n, d = len(blend.present), len(basis.modes)
    dark = np.concatenate(
        [np.repeat(blend.present, d), np.repeat(blend.present, 2), np.ones(8, bool)]
    )
    dark[d + 2] = False  # the star has two fluxes, the third unknown has no band
    np.testing.assert_array_equal(size > 0, dark)
    assert len(size) == n * d + 2 * n + 4 + 4
    assert np.abs(result.offsets[1:]).min() > 0 and (result.offsets[0] == 0).all()


def test_amplitudes_and_centres_are_those_of_the_light(solved):
    blend, _, _, result, _ = solved
    # In band 0 the mean galaxy holds 0.8 of its amplitude.
    error = np.asarray(result.flux_error)[:3, 0]
    expected = 0.8 * np.array([20.0, 12.0, 15.0])
    # Blended amplitudes are noisier than the isolated errors; two templates share the flux.
    assert np.all(np.abs(np.asarray(result.scale)[:3] - expected) < 8 * error)
    assert np.all(error < 0.1 * expected)
    moved = np.asarray(result.centers)[:3] - np.asarray(blend.centers)[:3]
    # Started 0.05 off on both axes. The standard error is 2 pixels over a S/N of 13.
    left = np.abs(moved + 0.05)
    assert left.mean() < 0.15
    assert np.abs(moved).min() > 1e-4


def test_data_under_the_mask_do_not_matter(solved):
    blend, _, settings, result, transforms = solved
    seen = eqx.tree_at(
        lambda b: [o.image for o in b.observations],
        blend,
        [jnp.where(jnp.isinf(o.variance), 1e6, o.image) for o in blend.observations],
    )
    again = eqx.filter_jit(compute_statistics)(
        seen, transforms, N_BANDS, SIGMA, settings
    )
    np.testing.assert_allclose(again.H, result.H, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(again.b, result.b, rtol=1e-9, atol=1e-9)


def test_many_sources_come_in_blocks(solved, monkeypatch):
    blend, _, settings, result, transforms = solved
    monkeypatch.setattr(statistics, "BLOCKS", 3)  # of 2, 1 and 1 sources
    again = eqx.filter_jit(lambda *given: compute_statistics(*given))(
        blend, transforms, N_BANDS, SIGMA, settings
    )
    for name in ("H", "b", "r2"):
        one, other = np.asarray(getattr(again, name)), np.asarray(getattr(result, name))
        np.testing.assert_allclose(
            one, other, rtol=1e-9, atol=1e-9 * np.abs(other).max()
        )


def test_blends_with_one_psf_share_what_they_see(monkeypatch):
    """Three blends have one PSF, two another; those of a batch with their own share nothing."""
    blends = [make_blend(np.random.default_rng(i)) for i in range(5)]
    wide = jnp.stack([jnp.asarray(gaussian(11, 2.2)), jnp.asarray(gaussian(11, 2.3))])
    for i in (1, 4):
        blends[i] = eqx.tree_at(lambda b: b.observations[0].psf, blends[i], wide)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *blends)
    basis, settings = make_basis(), Settings(0, STAMP, iterations=0)
    seen = []
    one = batch._see
    monkeypatch.setattr(batch, "_see", lambda *given: seen.append(0) or one(*given))
    shared = batch.statistics_of(stacked, basis, settings, 1)
    assert len(seen) == 2
    monkeypatch.setattr(
        batch, "_by_psf", lambda stack: [np.array([i]) for i in range(5)]
    )
    alone = batch.statistics_of(stacked, basis, settings, 1)
    assert len(seen) == 2
    for name in ("H", "b", "r2", "scale"):
        # What is seen is in single precision, here in another order of operations.
        size = 1e-6 * np.abs(alone[name]).max()
        np.testing.assert_allclose(shared[name], alone[name], rtol=0, atol=size)
    # The order is that of the stack, and the PSF matters.
    differ = np.abs(shared["H"] - shared["H"][:1]).max(axis=(1, 2))
    assert np.argsort(differ)[-2:].tolist() in ([1, 4], [4, 1])


def test_padding_is_computed_with_nothing(monkeypatch):
    """Blends of two and three sources in four slots, with every kind of unknown."""
    blends = [make_blend(np.random.default_rng(i)) for i in range(4)]
    for i in (1, 2):
        blends[i] = eqx.tree_at(
            lambda b: b.present, blends[i], np.array([True, True, False, False])
        )
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *blends)
    settings = Settings(0, STAMP, iterations=1, sky_sigma=1.0, offset_sigma=0.3)
    whole = batch.statistics_of(stacked, make_basis(), settings, 1)
    monkeypatch.setattr(batch, "SMALLEST", 1)
    sources = [(list(i), n) for i, n, _ in batch.by_shape(stacked)]
    assert sources == [([1, 2], 2), ([0, 3], 3)]
    few = batch.statistics_of(stacked, make_basis(), settings, 1)
    monkeypatch.setattr(batch, "used_sources", lambda stack: np.full(4, 4))
    padded = batch.statistics_of(stacked, make_basis(), settings, 1)
    for name, value in padded.items():
        size = 1e-6 * np.abs(np.nan_to_num(value, posinf=0)).max(initial=0)
        for other in (few, whole):
            np.testing.assert_allclose(other[name], value, 0, size, err_msg=name)
    # Known amplitudes have padding too.
    given = Amplitudes(**{name: padded[name] for name in Amplitudes._fields})
    monkeypatch.undo()
    monkeypatch.setattr(batch, "SMALLEST", 1)
    again = batch.statistics_of(stacked, make_basis(), settings, 1, given)
    size = 1e-6 * np.abs(padded["H"]).max()
    np.testing.assert_allclose(again["H"], padded["H"], 0, size)
