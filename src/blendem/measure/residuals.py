"""What a fit leaves of every observation: placed in its image, and scored band by band."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from astropy.wcs import WCS
from jaxtyping import Bool, Float, Int

from blendem.observation import Observation


class BandScores(NamedTuple):
    """Residuals of one observation of a blend, per band.

    Attributes:
        chi2: Sum of the squares of residual / sigma.
        n_data: Number of unmasked pixels.
        autocorrelation: Mean product of residual / sigma of neighbours in x; NaN where there are
            none.
        white_chi2: Sum of squares of the whitened residual: `chi2` where noise is not correlated.
        noise_autocorrelation: What noise alone would have.
    """

    chi2: Float[np.ndarray, " band"]
    n_data: Int[np.ndarray, " band"]
    autocorrelation: Float[np.ndarray, " band"]
    white_chi2: Float[np.ndarray, " band"]
    noise_autocorrelation: Float[np.ndarray, " band"]


def score_residual(
    residual: Float[np.ndarray, "band height width"], observation: Observation
) -> BandScores:
    """Compare what is left of an observation with its noise.

    Args:
        residual: Image minus model [unit]; anything where the variance is infinite.
        observation: The observation.
    """
    variance = np.asarray(observation.variance)
    used = np.isfinite(variance)
    pull = np.where(used, residual / np.sqrt(np.where(used, variance, 1)), 0)
    white, noise = pull, np.zeros(len(pull))
    if observation.correlation is not None:
        known = jnp.asarray(np.where(used, residual, 0), jnp.float32)
        white = np.asarray(observation.whitening(known))
        middle = observation.correlation.shape[-1] // 2
        noise = np.asarray(observation.correlation[:, middle, middle + 1], float)
    return BandScores(
        chi2=np.array([np.sum(plane**2) for plane in pull]),
        n_data=used.sum(axis=(-2, -1)),
        autocorrelation=np.array(
            [_neighbours(p, u) for p, u in zip(pull, used, strict=True)]
        ),
        white_chi2=np.array([np.sum(plane**2) for plane in white]),
        noise_autocorrelation=noise,
    )


def _neighbours(
    pull: Float[np.ndarray, "height width"], used: Bool[np.ndarray, "height width"]
) -> float:
    pair = used[:, 1:] & used[:, :-1]
    return np.mean((pull[:, 1:] * pull[:, :-1])[pair]) if pair.any() else np.nan


def corner_of(
    observation: Observation,
    first: Observation,
    corner: Int[np.ndarray, " 2"],
    wcs: WCS | None,
    first_wcs: WCS | None,
) -> Int[np.ndarray, " 2"]:
    """Pixel (y, x) of an image where the cut-out of a blend begins.

    Args:
        observation: The cut-out.
        first: That of the first observation of the blend.
        corner: Where the latter begins in its own image (y, x) [pixel].
        wcs, first_wcs: Of the two whole images; None where they have the same pixels.
    """
    at = np.asarray(first.to_observed(np.asarray(observation.offset))) + corner
    if wcs is not None and first_wcs is not None:
        sky = first_wcs.celestial.all_pix2world([at[::-1]], 0)
        at = wcs.celestial.all_world2pix(sky, 0)[0][::-1]
    return np.round(at).astype(int)
