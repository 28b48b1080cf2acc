"""Principal components against dense eigenvalues of all symmetric copies."""

import numpy as np
import pytest

from blendem.prior.pca import (
    Metric,
    fit_basis,
    fit_moments,
    normalise_stamps,
    with_fluxes,
)
from blendem.prior.symmetry import latent_symmetries, symmetries

RANK, BANDS, SIDE, N = 3, 2, 9, 60


@pytest.fixture
def stamps(rng):
    """A few smooth directions of falling variance, and faint noise."""
    y, x = np.mgrid[-4:5, -4:5] / 2.0
    light = np.exp(-(x**2 + y**2) / 2)
    shapes = np.stack([light * f for f in (1 + 0 * x, x, y, x * x - y * y)])
    colour = np.array([[1.0, 0.8], [0.5, 0.6], [0.5, 0.6], [0.3, -0.2]])
    modes = shapes[:, None] * colour[:, :, None, None]
    z = rng.normal(size=(N, 4)) * [3.0, 2.0, 2.0, 1.0]
    noise = 1e-3 * rng.normal(size=(N, BANDS, SIDE, SIDE))
    return np.einsum("ni,ibyx->nbyx", z, modes) + light + noise


def fit(stamps, modes, rng):
    return fit_basis(
        stamps, modes, bands=("g", "r"), psf_sigma=0.7, pixel_scale=0.2, rng=rng
    )


def dense(stamps):
    copies = np.concatenate([np.reshape(t, (N, -1)) for t in symmetries(stamps)])
    mean = copies.mean(0)
    values, vectors = np.linalg.eigh(np.cov(copies.T, bias=True))
    return mean, values[::-1], vectors[:, ::-1]


def test_low_rank_gaussian_is_recovered(stamps, rng):
    basis = fit(stamps, 4, rng)
    mean, values, vectors = dense(stamps)
    assert len(basis.modes) == 4
    # float32 results of float64 arithmetic
    np.testing.assert_allclose(basis.mean.ravel(), mean, atol=1e-6)
    np.testing.assert_allclose(basis.eigenvalues, values[:4], rtol=1e-5)
    flat = basis.modes.reshape(4, -1)
    np.testing.assert_allclose(flat @ flat.T, np.diag(values[:4]), atol=1e-4)
    span = flat.T / np.sqrt(basis.eigenvalues)
    np.testing.assert_allclose(
        span @ span.T, vectors[:, :4] @ vectors[:, :4].T, atol=1e-5
    )
    # Noise of 1e-3 in 162 pixels, less what the modes hold of it.
    assert values[4:].sum() == pytest.approx(1.6e-4, rel=0.1)


def test_span_is_invariant_and_a_degenerate_pair_is_not_cut(stamps, rng):
    values = dense(stamps)[1]
    pair = int(np.argmin(np.diff(-values[:4]) / values[:3]))  # of equal eigenvalues
    basis = fit(stamps, pair + 1, rng)  # the cut is in the middle of the pair
    assert len(basis.modes) == max(pair, 1)
    basis = fit(stamps, 4, rng)
    for r in latent_symmetries(basis.modes, basis.dual):
        np.testing.assert_allclose(r @ r.T, np.eye(4), atol=1e-4)


def test_variance_outside_of_the_modes_is_kept_on_record(stamps, rng):
    basis = fit(stamps, 4, rng)
    copies = np.concatenate([np.asarray(t) for t in symmetries(stamps)])
    rest = copies - basis.decode(basis.encode(copies))
    outside = np.mean(np.sum(rest**2, axis=(1, 2, 3)))
    # A difference of float64 sums: rounding of the float32 modes is 1e-7 of the total.
    assert float(basis.residual) == pytest.approx(outside, rel=0.02)


def test_training_moments_are_standard(stamps, rng):
    mean, covariance = fit_moments(fit(stamps, 4, rng), stamps)
    np.testing.assert_allclose(mean, 0.0, atol=1e-5)
    np.testing.assert_allclose(covariance, np.eye(4), atol=1e-4)


def test_too_few_stamps_are_an_error(stamps, rng):
    with pytest.raises(ValueError, match="2 training stamps"):
        fit(stamps[:2], 4, rng)


def test_stamps_are_normalised_in_the_reference_band_with_jitter(rng):
    stamps = rng.uniform(0.5, 1.5, (4000, 2, 3, 3))
    plain = normalise_stamps(stamps, 1, 0.0, rng)
    np.testing.assert_allclose(plain[:, 1].sum((1, 2)), 1.0, rtol=1e-5)
    ratio = stamps[:, 0].sum((1, 2)) / stamps[:, 1].sum((1, 2))
    np.testing.assert_allclose(plain[:, 0].sum((1, 2)), ratio, rtol=1e-5)
    log = np.log(normalise_stamps(stamps, 1, 0.3, rng)[:, 1].sum((1, 2)))
    # Five standard errors.
    assert abs(log.mean()) < 5 * 0.3 / np.sqrt(4000)
    assert abs(log.std() - 0.3) < 5 * 0.3 / np.sqrt(8000)
    stamps[3, 1] = -1.0
    with pytest.raises(ValueError, match="1 of 4000"):
        normalise_stamps(stamps, 1, 0.0, rng)


@pytest.fixture
def seen(stamps):
    return Metric(0.8, np.array([2.0, 0.5]), np.ones(len(stamps)))


def test_metric_is_symmetric_and_blurs(stamps, seen, rng):
    a, b = stamps[:1], stamps[1:2]
    one, two = np.sum(a * seen.apply(b)), np.sum(seen.apply(a) * b)
    assert one == pytest.approx(two, rel=1e-6)
    point = np.zeros((1, *stamps.shape[1:]))
    middle = stamps.shape[-1] // 2
    point[0, :, middle, middle] = 1.0
    image = seen.apply(point)[0]
    assert image[0].max() < 0.5 * seen.band_weight[0]
    np.testing.assert_allclose(image[0] / 2.0, image[1] / 0.5, rtol=1e-6)


def test_observed_basis_holds_the_mean_and_scaled_galaxies(stamps, seen, rng):
    basis = fit_basis(
        stamps,
        4,
        bands=("g", "r"),
        psf_sigma=0.7,
        pixel_scale=0.2,
        rng=rng,
        metric=seen,
    )
    d = len(basis.modes)
    product = basis.dual.reshape(d, -1) @ basis.modes.reshape(d, -1).T
    np.testing.assert_allclose(product, np.eye(d), atol=1e-3)
    dark = basis.encode(np.zeros_like(stamps[:1]))
    np.testing.assert_allclose(basis.decode(dark), 0.0, atol=1e-4)
    z = basis.encode(stamps[:1])
    scaled = basis.encode(3 * basis.decode(z))
    np.testing.assert_allclose(scaled, dark + 3 * (z - dark), rtol=2e-3, atol=2e-3)
    for r in latent_symmetries(basis.modes, basis.dual):
        np.testing.assert_allclose(r @ r.T, np.eye(d), atol=2e-2)


@pytest.mark.parametrize("observed", [True, False])
def test_flux_modes_make_every_flux_exact(stamps, seen, rng, observed):
    """Two modes leave errors of fluxes; one more per band leaves none and adds nothing else."""
    metric = seen if observed else None
    # Faint light everywhere, of its own in every band.
    stamps = stamps + rng.normal(0, 0.01, (N, BANDS, 1, 1))
    basis = fit_basis(
        stamps,
        2,
        bands=("g", "r"),
        psf_sigma=0.7,
        pixel_scale=0.2,
        rng=rng,
        metric=metric,
    )
    both, d = with_fluxes(basis, stamps, metric), len(basis.modes)
    assert both.modes.shape == both.dual.shape == (d + 2, *stamps.shape[1:])
    new = np.random.default_rng(5).normal(size=(3, *stamps.shape[1:]))
    for u in (stamps, np.rot90(stamps, 1, (-2, -1)), new):
        lost = [b.decode(b.encode(u)) - u for b in (basis, both)]
        errors = [np.abs(x.sum((-2, -1))).max(0) for x in lost]
        assert (errors[0] > 0.5).all()
        # float32 sums over pixels and stamps
        assert (errors[1] < 1e-3 * errors[0]).all()
    z = both.encode(stamps)
    np.testing.assert_allclose(z[:, :d], basis.encode(stamps), rtol=1e-4, atol=1e-5)
    covariance = fit_moments(both, stamps)[1]
    np.testing.assert_allclose(covariance[d:, d:], np.eye(2), atol=1e-3)
    product = both.dual.reshape(d + 2, -1) @ both.modes.reshape(d + 2, -1).T
    np.testing.assert_allclose(product[d:, :], np.eye(d + 2)[d:], atol=1e-3)
    # Light that the modes leave over, less what the new ones take.
    left = basis.residual - both.residual
    assert left == pytest.approx(both.eigenvalues[d:].sum(), rel=1e-4)
    again = with_fluxes(both, stamps, metric)
    assert len(again.modes) == d + 2
