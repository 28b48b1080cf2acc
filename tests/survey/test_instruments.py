"""Instruments: the noise means the stated depth, PSFs have the stated width."""

import dataclasses

import galcheat
import galsim
import numpy as np
import pytest
from galcheat.utilities import mean_sky_level

from blendem.survey.instruments import (
    INSTRUMENTS,
    MAGZERO,
    depth_to_sigma,
    effective_psf,
)


def test_depth_is_the_magnitude_of_a_five_sigma_point_source(rng):
    """PSF photometry of 4000 noise fields scatters by a fifth of the limiting flux."""
    depth, fwhm, scale, beta = 25.0, 0.7, 0.168, 3.0
    sigma = depth_to_sigma(depth, fwhm, scale, beta)
    psf = galsim.Moffat(beta=beta, fwhm=fwhm).drawImage(nx=31, ny=31, scale=scale).array
    noise = sigma * rng.standard_normal((4000, psf.size))
    flux = noise @ psf.ravel() / np.sum(psf.astype(float) ** 2)
    limit = 10 ** (-0.4 * (depth - MAGZERO))
    # The standard error of a standard deviation from 4000 draws is 1.1 %: four of them.
    assert np.isclose(np.std(flux), limit / 5, rtol=0.045)


def test_deep_noise_is_that_of_hsc_cosmos_coadds():
    """Pixel noise of the HSC COSMOS coadds, grizy, within a factor of two."""
    measured = np.array([0.0127, 0.0141, 0.020, 0.033, 0.067])
    ratio = np.array(INSTRUMENTS["hsc_deep"].sky_sigma) / measured
    assert np.all((ratio > 0.5) & (ratio < 2.0))


def test_lsst_noise_is_that_of_galcheat():
    """sqrt(sky electrons) in units of a source of magnitude 27."""
    survey = galcheat.get_survey("LSST")
    expected = []
    for band in INSTRUMENTS["lsst_10yr"].bands:
        settings = survey.get_filter(band)
        sky = mean_sky_level(survey, settings).value
        seconds = settings.full_exposure_time.value
        unit = seconds * 10 ** (-0.4 * (MAGZERO - settings.zeropoint.value))
        expected.append(np.sqrt(sky) / unit)
    # The table holds four digits.
    np.testing.assert_allclose(
        INSTRUMENTS["lsst_10yr"].sky_sigma, expected, rtol=0, atol=6e-6
    )


@pytest.mark.parametrize("name", sorted(INSTRUMENTS))
def test_psf_is_centred_and_as_wide_as_stated(name):
    instrument = INSTRUMENTS[name]
    psf = effective_psf(instrument, 41)
    np.testing.assert_allclose(psf.sum(axis=(1, 2)), 1, rtol=1e-12)
    np.testing.assert_allclose(psf, psf[:, ::-1, ::-1], rtol=0, atol=1e-6)
    for image, fwhm in zip(psf, instrument.psf_fwhm, strict=True):
        measured = galsim.Image(image, scale=instrument.pixel_scale).calculateFWHM()
        # In quadrature: the FWHM of a Gaussian with the variance scale^2/12 of a pixel.
        expected = np.hypot(fwhm, 2.355 * instrument.pixel_scale / np.sqrt(12))
        # A Moffat is not Gaussian and `calculateFWHM` interpolates between pixels.
        assert np.isclose(measured, expected, rtol=0.06)


def test_errors_name_what_is_wrong():
    hsc = INSTRUMENTS["hsc_deep"]
    with pytest.raises(ValueError, match=r"odd.*got 40"):
        effective_psf(hsc, 40)
    with pytest.raises(ValueError, match=r"hsc_deep: `sky_sigma`.*one positive number"):
        dataclasses.replace(hsc, sky_sigma=(1.0,))
    with pytest.raises(ValueError, match="no band 'u'"):
        hsc.index("u")
