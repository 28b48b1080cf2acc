"""From a blend of galaxies behind dust, and stars, to its likelihood."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from blendem.blend import Blend
from blendem.inference.dust_model import DustLikelihood, compress, see, whitened

# Prior deviation of the flux of a star in every band, over its error were it alone: it is
# free, for any other prior of it would have to know the stars.
FREE = 1e4


class DustBlend(NamedTuple):
    """A blend, ready for `inference.dust.sample`.

    Attributes:
        likelihood: Of its galaxies, in their order.
        galaxies: Which of its sources are galaxies.
        n_data: Numbers that its pixels were compressed to.
    """

    likelihood: DustLikelihood
    galaxies: Bool[np.ndarray, " member"]
    n_data: int


def dust_blend(
    blend: Blend,
    span: Float[np.ndarray, "n band stamp stamp"],
    law: Float[np.ndarray, "member band"],
    tilt: Float[np.ndarray, "member band"],
    scale: float,
    *,
    psf_sigma: float,
    rank: int,
    point: Float[np.ndarray, "stamp stamp"],
) -> DustBlend:
    """Compress a blend to what its galaxies span; fluxes of stars are marginalised.

    Args:
        blend: Padded, with one observation that has all bands of the model, in order.
        span: Attenuated stamps of unit amplitude which set what is kept (`spanning`).
        law, tilt: Of all sources, as `attenuation_law`; those of stars are not used.
        scale: Amplitude of all galaxies [flux unit].
        psf_sigma: Sigma of the model PSF [model pixel].
        rank: Numbers kept per band and galaxy.
        point: Stamp of a star of unit flux.

    Raises:
        ValueError: If the blend has no galaxy, or the bands are others.
    """
    observation, bands = blend.observations[0], span.shape[1]
    if tuple(observation.band_index) != tuple(range(bands)):
        raise ValueError(
            f"`blend` has the bands {observation.band_index} of the model; dust needs all"
            f" {bands}, in order"
        )
    n = int(np.sum(blend.present))
    stars = np.asarray(blend.is_star)[:n].astype(bool)
    galaxies, centers = ~stars, np.asarray(blend.centers, float)[:n]
    if not galaxies.any():
        raise ValueError("`blend` has no galaxy, so that nothing is behind dust")
    k = int(galaxies.sum())
    operator, projection = compress(
        observation, centers[galaxies], scale * span, psf_sigma, rank * k
    )
    data = np.einsum("brp,bp->br", projection, whitened(observation))
    whiten = None
    if stars.any():
        both = np.broadcast_to(point, (1, bands, *point.shape))
        seen = [see(observation, c, both, psf_sigma)[0] for c in centers[stars]]
        whiten = _free_fluxes(np.einsum("brp,kbp->kbr", projection, seen))
        data = (whiten @ data.ravel()).reshape(data.shape)
    likelihood = DustLikelihood(
        operator, data, np.full(k, scale), law[galaxies], tilt[galaxies], whiten
    )
    return DustBlend(likelihood, galaxies, data.size)


def _free_fluxes(
    stars: Float[np.ndarray, "star band rank"],
) -> Float[np.ndarray, "datum datum"]:
    """Whitening of data with noise 1 and stars of any flux in every band."""
    _, bands, rank = stars.shape
    whiten = np.zeros((bands, rank, bands, rank))
    for b in range(bands):
        size = np.linalg.norm(stars[:, b], axis=1)
        unit = stars[:, b][size > 0] / size[size > 0, None]
        values, vectors = np.linalg.eigh(np.eye(rank) + FREE**2 * unit.T @ unit)
        whiten[b, :, b] = (vectors / np.sqrt(values)).T
    return whiten.reshape(bands * rank, bands * rank)
