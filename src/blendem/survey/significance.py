"""The detection image: how significant a point source is at each pixel."""

import numpy as np
from jaxtyping import Float
from scipy.signal import fftconvolve

# Level of a detection [sigma].
THRESHOLD = 5.0


def detection_image(
    image: Float[np.ndarray, "band height width"],
    variance: Float[np.ndarray, "band height width"],
    psf: Float[np.ndarray, "band size size"],
) -> Float[np.ndarray, "height width"]:
    """Significance [sigma] of a point source of flat f_nu at each pixel.

    The inverse-variance weighted sum of all bands, each correlated with its PSF P:

        S = sum_b P_b * (image_b / var_b) / sqrt( sum_b P_b^2 * (1 / var_b) )

    which has unit variance in pure noise. It is the optimal detector of such a source
    (Szalay et al. 1999, AJ 117, 68; Bosch et al. 2018, PASJ 70, S5, section 4.7).

    Args:
        image: Sky-subtracted image, any unit.
        variance: Its variance; infinite where masked. Masked pixels may hold NaN.
        psf: Effective PSFs of sum 1.

    Raises:
        ValueError: If shapes disagree, a variance is not positive, or an unmasked pixel is
            not finite.
    """
    image, variance, psf = (np.asarray(x, float) for x in (image, variance, psf))
    if image.ndim != 3 or image.shape != variance.shape or len(psf) != len(image):
        raise ValueError(
            "image and variance must be (band, height, width) with one PSF per band; got"
            f" {image.shape}, {variance.shape} and PSFs {psf.shape}."
        )
    masked = np.isinf(variance)
    if not np.all(variance > 0):
        raise ValueError(
            f"{int(np.sum(~(variance > 0)))} pixels have a variance that is not positive;"
            " mask them with infinite variance."
        )
    if not np.all(np.isfinite(image[~masked])):
        raise ValueError(
            f"{int(np.sum(~np.isfinite(image[~masked])))} unmasked pixels are not finite;"
            " give them infinite variance."
        )
    weight = np.where(masked, 0.0, 1 / np.where(masked, 1.0, variance))
    weighted = np.where(masked, 0.0, image) * weight
    signal, power = np.zeros(image.shape[1:]), np.zeros(image.shape[1:])
    for b in range(len(image)):
        # A correlation is a convolution with the flipped PSF.
        flipped = psf[b, ::-1, ::-1]
        signal += fftconvolve(weighted[b], flipped, mode="same")
        power += fftconvolve(weight[b], flipped**2, mode="same")
    # Deep inside a mask less than a thousandth of the PSF's weight is left, below what
    # FFT rounding allows to normalise.
    usable = power > 1e-3 * power.max(initial=0.0)
    return np.where(usable, signal / np.sqrt(np.where(usable, power, 1.0)), 0.0)
