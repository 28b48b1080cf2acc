"""Several observations of one field: brought together, or refused with the reason."""

import numpy as np
import pytest
from tests.workflow.test_prior_fits import prior  # noqa: F401

from blendem.config import BlendsConfig, DetectConfig, FrameConfig, NoiseConfig
from blendem.io.blends import read_blends
from blendem.io.fields import write_field
from blendem.io.table import FieldRow, InputError
from blendem.noise import draw_noise
from blendem.survey.layout import tangent_wcs

RHO = np.array([[0.1, 0.3, 0.1], [0.3, 1.0, 0.3], [0.1, 0.3, 0.1]])


def gaussian(width, oversampling=1):
    """A PSF of 41 pixels."""
    r = (np.arange(41 * oversampling) - 41 * oversampling // 2) / oversampling
    psf = np.exp(-0.5 * (r[:, None] ** 2 + r**2) / width**2)
    return psf / psf.sum()


def write(
    folder,
    name,
    *,
    width=1.5,
    magzero=27.0,
    center=(150.0, 2.0),
    correlation=None,
    scale=0.168,
    oversampling=1,
):
    """A bright source in the middle of 81 pixels with correlated noise."""
    psf = gaussian(width)
    noise = draw_noise(RHO, (81, 81), np.random.default_rng(5))
    image = np.pad(3000 * psf, 20) + noise
    gain = 10 ** (0.4 * (magzero - 27.0))
    path = folder / f"{name}.fits"
    write_field(
        path,
        image=gain * image[None],
        variance=np.full((1, 81, 81), gain**2),
        psf=gaussian(width, oversampling)[None],
        bands=("g",),
        magzero=magzero,
        wcs=tangent_wcs((81, 81), scale, center),
        correlation=correlation,
        oversampling=oversampling,
    )
    return FieldRow("f", name, path)


def extract(script, folder, prior, rows, correlation="given"):  # noqa: F811
    output = folder / "blends.h5"
    script("extract_blends").main(
        rows,
        prior,
        output,
        BlendsConfig(buckets=({"sources": 1, "size": 81},)),
        DetectConfig(max_sources=1),
        FrameConfig(stamp=15),
        NoiseConfig(correlation=correlation, reach=1),
    )
    return read_blends(output).blend(0).observations


def test_units_are_those_of_the_first(script, tmp_path, prior):  # noqa: F811
    rows = [write(tmp_path, "a"), write(tmp_path, "b", magzero=30.0)]
    first, second = extract(script, tmp_path, prior, rows)
    np.testing.assert_allclose(second.image, first.image, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(second.variance, first.variance, rtol=1e-5)
    assert first.same_grid and second.same_grid


def test_correlation_is_given_or_estimated(script, tmp_path, prior):  # noqa: F811
    rows = [write(tmp_path, "a", correlation=RHO[None]), write(tmp_path, "b")]
    first, second = extract(script, tmp_path, prior, rows)
    np.testing.assert_allclose(first.correlation, RHO[None], rtol=1e-6)
    assert second.correlation is None
    for one in extract(script, tmp_path, prior, rows, "estimate"):
        # About 5000 pixels, correlated: 0.02.
        np.testing.assert_allclose(one.correlation, RHO[None], atol=0.1)
    assert extract(script, tmp_path, prior, rows, "none")[0].correlation is None


def test_an_observation_of_another_place(script, tmp_path, prior):  # noqa: F811
    rows = [write(tmp_path, "a"), write(tmp_path, "b", center=(150.1, 2.0))]
    with pytest.raises(InputError) as caught:
        extract(script, tmp_path, prior, rows)
    text = str(caught.value)
    assert "b.fits (field f)" in text and "a.fits" in text and "WCS" in text


def test_a_finer_psf_is_carried_to_the_blend(script, tmp_path, prior):  # noqa: F811
    """On pixels of the model the PSF is that of these, on larger ones it stays fine."""
    rows = [
        write(tmp_path, "a", oversampling=3),
        write(tmp_path, "b", scale=0.336, width=0.6, oversampling=5),
    ]
    first, second = extract(script, tmp_path, prior, rows)
    assert first.sampling.oversampling == 1 and first.same_grid
    np.testing.assert_allclose(first.psf[0], gaussian(1.5), atol=1e-7)
    assert second.sampling.oversampling == 5 and not second.same_grid
    np.testing.assert_allclose(second.psf[0], gaussian(0.6, 5), atol=1e-7)


def test_a_psf_image_that_is_too_coarse(script, tmp_path, prior):  # noqa: F811
    """0.5 of its pixels of 0.336 arcsec; the model has pixels of 0.168."""
    rows = [write(tmp_path, "a"), write(tmp_path, "b", scale=0.336, width=0.5)]
    with pytest.raises(InputError) as caught:
        extract(script, tmp_path, prior, rows)
    text = str(caught.value)
    for word in ("b.fits (field f)", "band g", "PSF_SAMP", "0.57", "too coarse"):
        assert word in text


def test_a_psf_that_is_sharper_than_the_model(script, tmp_path, prior):  # noqa: F811
    """0.6 pixels; the model has 0.7."""
    with pytest.raises(InputError) as caught:
        extract(script, tmp_path, prior, [write(tmp_path, "a", width=0.6)])
    text = str(caught.value)
    assert "a.fits (field f)" in text and "frame.pixel_scale" in text


@pytest.mark.parametrize(
    ("correlation", "words"),
    [
        (RHO[None, :2, :2], "odd number of lags"),
        (2 * RHO[None], "divide by it"),
        (np.triu(RHO)[None] + 0.2 * np.tri(3).T[None], "at lag 0"),
        (
            np.where(RHO == 0.1, [[0.1, 0, 0.1], [0, 1, 0], [0.1, 0, 0.4]], RHO)[None],
            "opposite",
        ),
    ],
)
def test_what_is_no_correlation(script, tmp_path, prior, correlation, words):  # noqa: F811
    with pytest.raises(InputError) as caught:
        extract(
            script, tmp_path, prior, [write(tmp_path, "a", correlation=correlation)]
        )
    assert "a.fits" in str(caught.value) and "NOISECORR" in str(caught.value)
    assert words in str(caught.value)
