"""Simulated galaxies behind dust: what the dust takes, against the renderer and by hand."""

import numpy as np
import pytest

from blendem.prior.dust import attenuation_law, calzetti, dim, greatest_redshift
from blendem.survey.dusty import band_wavelengths, dim_field, draw_dusty_galaxies
from blendem.survey.instruments import INSTRUMENTS
from blendem.survey.simulate import simulate_field

HSC = INSTRUMENTS["hsc_wide"]
STAMP, PSF_SIGMA = 31, 0.7


@pytest.fixture(scope="module")
def field():
    return simulate_field(
        HSC,
        (80, 90),
        rng=np.random.default_rng(8),
        density=20.0,
        mag_bright=21.0,
        mag_limit=23.0,
        star_density=80.0,
        stamp=STAMP,
        psf_sigma=PSF_SIGMA,
        psf_size=25,
    )


def test_dimming_is_the_formula_and_the_law_follows_the_redshift(rng):
    x, A = rng.uniform(size=(2, 3, 4, 4)), rng.uniform(0, 2, (2, 4, 4))
    wave, z = np.array([480.0, 620.0, 770.0]), np.array([0.2, 0.9])
    law, tilt = attenuation_law(wave, z)
    np.testing.assert_allclose(law[1], calzetti(wave / 1.9))
    np.testing.assert_allclose(tilt[0], np.log(wave / 1.2 / 550))
    expected = x * 10 ** (-0.4 * law[:, :, None, None] * A[:, None])
    np.testing.assert_allclose(dim(x, A, law), expected)
    limit = greatest_redshift(wave)
    attenuation_law(wave, np.array([limit - 1e-9]))
    with pytest.raises(ValueError, match="Calzetti"):
        attenuation_law(wave, np.array([limit + 1e-3]))


def test_galaxies_have_the_dust_of_others_or_their_own():
    settings = dict(stamp=STAMP, psf_sigma=PSF_SIGMA, mag_bright=21.0, mag_limit=23.0)
    own, other = (
        draw_dusty_galaxies(
            40, np.random.default_rng(2), HSC, aligned=aligned, **settings
        )
        for aligned in (True, False)
    )
    np.testing.assert_array_equal(own.galaxy, other.galaxy)
    line = np.arange(STAMP) - STAMP // 2
    y, x = np.meshgrid(line, line, indexing="ij")

    def spin(images):  # second moments: along x minus along y, and 45 degrees
        total = images.sum((-2, -1))
        return [
            (images * m).sum((-2, -1)) / total for m in (x * x - y * y, 2.0 * x * y)
        ]

    light = spin(own.galaxy[:, 2].astype(float))
    same, mixed = (
        sum(np.corrcoef(a, b)[0, 1] for a, b in zip(light, spin(g.dust), strict=True))
        for g in (own, other)
    )
    # Discs and their dust lie alike: correlations of 40 galaxies have errors of 0.16.
    assert same > 0.8 and abs(mixed) < 0.7 and mixed < same
    assert (own.dimmed <= own.galaxy + 1e-6 * own.galaxy.max()).all()


def test_a_field_loses_what_the_dust_takes(field):
    dimmed, maps = dim_field(field, np.random.default_rng(1), psf_sigma=PSF_SIGMA)
    star = np.asarray(field.truth["type"]) == "star"
    assert star.any() and (~star).sum() >= 4
    assert (maps[star] == 0).all() and (maps[~star].max(axis=(1, 2)) > 0.05).all()
    np.testing.assert_array_equal(dimmed.observed[star], field.observed[star])
    z = np.asarray(dimmed.catalog["redshift"], float)
    np.testing.assert_array_equal(np.isnan(z), star)
    np.testing.assert_allclose(z[~star], field.truth["z"][~star])
    law, _ = attenuation_law(band_wavelengths(HSC.bands), z[~star])
    lost = (field.model[~star] - dim(field.model[~star], maps[~star], law)).sum((2, 3))
    seen = (field.observed - dimmed.observed)[~star].sum((2, 3), dtype=float)
    # The PSF is cut at 25 pixels and normalised: its light is all there.
    np.testing.assert_allclose(seen, lost, rtol=2e-3)
    # The same noise; less light, pixel by pixel the sum of what all sources lose.
    canvas = np.zeros(field.image.shape)
    for image, (y, x) in zip(
        field.observed - dimmed.observed, field.corner, strict=True
    ):
        side = image.shape[-1]
        padded = np.pad(canvas, [(0, 0), (side, side), (side, side)])
        padded[:, y + side : y + 2 * side, x + side : x + 2 * side] += image
        canvas = padded[:, side:-side, side:-side]
    np.testing.assert_allclose(dimmed.image, field.image - canvas, atol=1e-4)
    for band in HSC.bands:
        assert (dimmed.truth[f"snr_{band}"] <= field.truth[f"snr_{band}"]).all()
        np.testing.assert_array_equal(
            dimmed.truth[f"flux_model_{band}"], field.truth[f"flux_model_{band}"]
        )


def test_unknown_bands_are_refused():
    with pytest.raises(ValueError, match="no wavelength of bands"):
        band_wavelengths(("g", "narrow"))
