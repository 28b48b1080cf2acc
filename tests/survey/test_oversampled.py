"""An undersampled image as a space telescope takes it, from the cut-out to chi2."""

import galsim
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blendem.blend import Bucket
from blendem.inference.statistics import render_sources
from blendem.noise import draw_noise
from blendem.survey.detect import detect, detection_image
from blendem.survey.extract import Plane, extract_blends
from blendem.survey.psf_model import at_pixels, nyquist_amplitude

PIXEL, FINE, MODEL = 0.1, 5, 0.1 / 3  # [arcsec], PSF pixels per pixel, [arcsec]
SHAPE, STAMP, SIGMA = (61, 57), 121, 0.7
PARAMS = galsim.GSParams(folding_threshold=1e-3, maximum_fft_size=16384)
OPTICS = galsim.Airy(lam=814, diam=2.4, obscuration=0.33, gsparams=PARAMS)
AT = np.array([[24.3, 22.6], [36.8, 34.4], [34.4, 19.1]])  # (y, x) [pixel]
# [sigma of the noise of a pixel]: peaks of 250 to 400.
FLUX = np.array([4000.0, 4000.0, 1000.0])


def effective_psf():
    """The PSF with the response of the pixels, on finer ones."""
    seen = galsim.Convolve(OPTICS, galsim.Pixel(PIXEL), gsparams=PARAMS)
    image = seen.drawImage(
        nx=165, ny=165, scale=PIXEL / FINE, method="no_pixel", dtype=float
    ).array
    return (image / image.sum())[None]


def sky(k):
    """Two inclined disks and a star."""
    if k == 2:
        return galsim.DeltaFunction(flux=FLUX[k], gsparams=PARAMS)
    disk = galsim.Exponential(half_light_radius=0.25, gsparams=PARAMS)
    return disk.shear(g1=0.2, g2=(-1) ** k * 0.2).withFlux(FLUX[k])


def picture():
    """Noise of variance 1 and three sources, pixels integrated by GalSim."""
    image = galsim.ImageD(np.zeros(SHAPE), xmin=0, ymin=0, scale=PIXEL)
    for k, (y, x) in enumerate(AT):
        one = galsim.Convolve(sky(k), OPTICS, gsparams=PARAMS)
        one.drawImage(image, center=galsim.PositionD(x, y), add_to_image=True)
    noise = draw_noise(np.ones((1, 1)), SHAPE, np.random.default_rng(2))
    return image.array + noise


def model_images():
    images = []
    for k in range(len(AT)):
        one = galsim.Convolve(sky(k), galsim.Gaussian(sigma=SIGMA * MODEL))
        images.append(
            one.drawImage(
                nx=STAMP, ny=STAMP, scale=MODEL, method="no_pixel", dtype=float
            ).array[None]
        )
    return np.stack(images)


@pytest.fixture(scope="module")
def image():
    return picture()[None]


def chi2(image, psf, oversampling):
    """chi2 per pixel of the true sources, through `extract_blends` and the operator."""
    plane = Plane(
        image,
        np.ones((1, *SHAPE)),
        psf,
        None,
        (0,),
        PIXEL,
        oversampling=oversampling,
    )
    (cut,) = extract_blends(
        [plane],
        AT,
        np.zeros(3, bool),
        [Bucket(3, 64)],
        group="field",
        threshold=5.0,
        max_sources=3,
        margin=4,
        pixel_scale=MODEL,
        stamp=STAMP,
    )
    assert cut.flags == 0
    blend = jax.tree.map(jnp.asarray, cut.blend)
    assert blend.observations[0].sampling.oversampling == oversampling
    (seen,) = render_sources(
        jnp.asarray(model_images(), jnp.float32),
        blend.centers,
        blend,
        jnp.float32(SIGMA),
    )
    o = blend.observations[0]
    used = np.isfinite(o.variance)
    return np.mean((o.image - np.asarray(seen).sum(axis=0))[used] ** 2)


def test_chi2_needs_the_finer_psf(image):
    psf = effective_psf()
    # 3500 pixels: chi2 per pixel is known to 0.024.
    assert abs(chi2(image, psf, FINE) - 1) < 0.1
    side = psf.shape[-1] // FINE
    binned = psf.reshape(1, side, FINE, side, FINE).sum((2, 4))
    for coarse in (at_pixels(psf, FINE), binned):
        assert chi2(image, coarse, 1) > 1.5


def test_a_psf_at_the_pixels_of_its_image():
    """GalSim samples it there by itself; its sum stays."""
    psf = effective_psf()
    seen = galsim.Convolve(OPTICS, galsim.Pixel(PIXEL), gsparams=PARAMS)
    coarse = at_pixels(psf, FINE)
    side = coarse.shape[-1]
    expected = seen.drawImage(
        nx=side, ny=side, scale=PIXEL, method="no_pixel", dtype=float
    ).array
    assert side == 33 and np.unravel_index(coarse[0].argmax(), (side, side)) == (16, 16)
    np.testing.assert_allclose(coarse[0], expected / expected.sum(), atol=1e-6)
    assert at_pixels(psf, 1) is psf
    # The side need not be a multiple of the sampling.
    cut = at_pixels(psf[:, 3:-3, 3:-3], FINE)
    np.testing.assert_allclose(cut[0], coarse[0, 1:-1, 1:-1], rtol=0.01)


def test_how_much_a_psf_is_aliased():
    """A Gaussian has exp(-pi^2 sigma^2 / 2) at the Nyquist frequency, and its copy as much."""
    for sigma in (0.5, 0.7, 1.0):
        r = np.arange(31) - 15
        one = np.exp(-0.5 * (r / sigma) ** 2)
        psf = np.outer(one, one)[None] / one.sum() ** 2
        expected = 2 * np.exp(-0.5 * (np.pi * sigma) ** 2)
        np.testing.assert_allclose(nyquist_amplitude(psf)[0], expected, rtol=0.06)
    assert nyquist_amplitude(effective_psf())[0] < 0.01


def test_detection_takes_the_psf_of_the_pixels(image):
    found = detect(
        detection_image(image, np.ones_like(image), at_pixels(effective_psf(), FINE))
    )
    found = np.stack([found["y"], found["x"]], axis=-1)
    assert len(found) == len(AT)
    apart = np.linalg.norm(found[:, None] - AT, axis=-1).min(axis=0)
    assert np.all(apart < 0.6)
