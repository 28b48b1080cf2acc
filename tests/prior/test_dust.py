"""The law against published numbers, maps and their prior against what they promise."""

import numpy as np
import pytest

from blendem.prior.dust import (
    A_MIN,
    A_RANGE,
    DustPrior,
    calzetti,
    draw_dust_maps,
    fit_dust_prior,
)
from blendem.prior.symmetry import symmetries

STAMP, SCALE = 21, 0.2


def maps(n, rng, **changes):
    shape = dict(
        half_light_radius=np.full(n, 0.7),
        axis_ratio=rng.uniform(0.3, 0.9, n),
        angle=rng.uniform(0, np.pi, n),
    )
    settings = dict(stamp=STAMP, pixel_scale=SCALE, psf_sigma=0.7)
    return draw_dust_maps(**(shape | changes), rng=rng, **settings)


def test_law_has_the_published_values():
    """In common use: k(160 nm) = 9.97, k(Halpha) = 3.33, k(Hbeta) = 4.60.

    The first e.g. in Calzetti 2001, PASP 113, 1449, the lines in Dominguez et al. 2013, ApJ 763, 145.
    """
    k = 4.05 * calzetti(np.array([160.0, 656.3, 486.1]))
    np.testing.assert_allclose(k, [9.97, 3.33, 4.60], atol=0.01)
    blue, visual = 4.05 * calzetti(np.array([440.0, 550.0]))
    # The polynomial meets its own normalisation to a few per cent.
    assert blue - visual == pytest.approx(1.0, abs=0.1)
    assert visual == pytest.approx(4.05, abs=0.01)


def test_the_branches_of_the_law_meet_as_published():
    """By hand at 630 nm: -0.5734 and -0.5483 beside R_V, a step of 0.6 %."""
    below, above = 4.05 * (calzetti(np.array([629.999, 630.001])) - 1)
    assert below == pytest.approx(-0.5734, abs=1e-3)
    assert above == pytest.approx(-0.5483, abs=1e-3)
    # It falls everywhere else.
    assert (np.diff(calzetti(np.linspace(121, 629, 500))) < 0).all()
    assert (np.diff(calzetti(np.linspace(631, 2199, 500))) < 0).all()


def test_law_is_that_of_the_rest_frame():
    wave = np.array([500.0, 900.0])
    np.testing.assert_allclose(calzetti(wave, 0.7), calzetti(wave / 1.7), rtol=1e-12)
    assert (calzetti(wave, 0.7) > calzetti(wave)).all()


@pytest.mark.parametrize("wavelength", [119.0, 2201.0])
def test_law_ends_where_it_was_measured(wavelength):
    with pytest.raises(ValueError, match="120 to 2200 nm"):
        calzetti(np.array([500.0, wavelength]))


def test_maps_are_positive_and_have_the_promised_mean(rng):
    """Round discs of known radius: the mean inside it is log-uniform, but for the smoothing."""
    A = maps(400, rng, axis_ratio=np.ones(400))
    assert (A > 0).all()
    line = SCALE * (np.arange(STAMP) - STAMP // 2)
    inside = np.hypot(line[:, None], line[None]) <= 0.7
    mean = A[:, inside].mean(axis=1)
    low, high = A_RANGE
    np.testing.assert_allclose([mean.min(), mean.max()], [low, high], rtol=0.05)
    # Mean and its error of a uniform variable.
    ln = np.log(mean)
    expected, error = np.log(low * high) / 2, np.log(high / low) / np.sqrt(12 * 400)
    assert abs(ln.mean() - expected) < 5 * error


def test_maps_lie_along_the_disc(rng):
    """Second moments: long axis at the given angle from +x towards +y."""
    angle = np.full(100, 0.6)
    A = maps(100, rng, angle=angle, axis_ratio=np.full(100, 0.3)).mean(axis=0)
    line = np.arange(STAMP) - STAMP // 2
    y, x = np.meshgrid(line, line, indexing="ij")
    moments = [(A * m).sum() for m in (x * x - y * y, 2 * x * y)]
    assert 0.5 * np.arctan2(moments[1], moments[0]) == pytest.approx(0.6, abs=0.05)


def test_a_map_does_not_depend_on_those_after_it():
    shape = (np.array([0.5, 0.6]), np.array([0.4, 0.8]), np.array([0.1, 0.2]))
    settings = dict(stamp=STAMP, pixel_scale=SCALE, psf_sigma=0.7)
    both = draw_dust_maps(*shape, np.random.default_rng(1), **settings)
    one = draw_dust_maps(*(x[:1] for x in shape), np.random.default_rng(1), **settings)
    np.testing.assert_array_equal(one[0], both[0])


@pytest.fixture(scope="module", params=["softplus", "linear"])
def fitted(request):
    rng = np.random.default_rng(3)
    A = maps(300, rng)
    line = np.arange(STAMP) - STAMP // 2
    light = np.exp(-np.hypot(line[:, None], line[None]) / 3)
    prior = fit_dust_prior(
        A[:240],
        light,
        24,
        pixel_scale=SCALE,
        psf_sigma=0.7,
        rng=rng,
        link=request.param,
        components=4,
        iterations=5,
    )
    return prior, A[240:], light / light.sum()


def encode(prior, A):
    field = A if prior.link == "linear" else np.log(np.expm1(np.maximum(A, A_MIN)))
    return prior.latent.basis.encode(field[:, None].astype(np.float32))


def test_basis_holds_unseen_maps(fitted):
    prior, A, weight = fitted
    error = np.asarray(prior.attenuation(encode(prior, A))) - A
    # Where the light is, four fifths of the scatter between maps.
    left = np.sum(weight * error**2) / np.sum(weight * (A - A.mean(axis=0)) ** 2)
    assert left < 0.2


def test_coordinates_are_those_of_the_basis(fitted):
    """Encoding and decoding in weighted pixels: a round trip in the span of the modes."""
    prior, _, _ = fitted
    z = np.random.default_rng(5).normal(size=(3, len(prior.latent.mean)))
    z = z.astype(np.float32)
    stamps = np.asarray(prior.latent.basis.decode(z))
    np.testing.assert_allclose(prior.latent.basis.encode(stamps), z, atol=2e-3)


def test_softplus_maps_are_positive_and_prior_means_are_right(fitted, key):
    prior, A, weight = fitted
    e = np.asarray(prior.latent.mixture.sample(4000, key=key))
    z = np.asarray(prior.latent.mean) + e @ np.asarray(prior.latent.cholesky).T
    drawn = np.asarray(prior.attenuation(z))
    if prior.link == "softplus":
        assert (drawn > 0).all()
    mean = np.median((drawn * weight).sum((1, 2)))
    truth = (A * weight).sum((1, 2))
    # Median of 60 maps: its error is 1.25 sd / sqrt(60).
    assert abs(mean - np.median(truth)) < 5 * 1.25 * truth.std() / np.sqrt(60)


def test_mean_field_has_the_symmetries_of_the_square(fitted):
    mean = np.asarray(fitted[0].latent.basis.mean)
    for turned in symmetries(mean):
        np.testing.assert_allclose(turned, mean, atol=1e-3)


def test_unknown_link_is_refused(fitted):
    with pytest.raises(ValueError, match="softplus"):
        DustPrior(fitted[0].latent, "exp")
