"""The model grid: its bands, stamp, resolution and local world coordinates."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from jaxtyping import Array, Float


class Frame(eqx.Module):
    """The pixel grid and resolution on which sources are modelled.

    Attributes:
        bands: Names of the model bands, in order. Static.
        stamp: Side of the square stamp of one source [model pixel], odd. Static.
        psf_sigma: Sigma of the Gaussian model PSF [model pixel], shape `()`. It is an
            *effective* PSF: the pixel response is part of it.
        cd: Offset on the tangent plane (north, east) [arcsec] per model pixel (y, x),
            shape `(2, 2)`.

    Raises:
        ValueError: If `stamp` is even, which leaves no central pixel, if a band is
            named twice, or if there is no band.
    """

    bands: tuple[str, ...] = eqx.field(static=True)
    stamp: int = eqx.field(static=True)
    psf_sigma: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float))
    cd: Float[Array, "2 2"] = eqx.field(converter=lambda x: jnp.asarray(x, float))

    def __check_init__(self):
        if self.stamp % 2 == 0:
            raise ValueError(
                f"`stamp` must be odd so that it has a central pixel; got {self.stamp}."
                " Add or remove one pixel."
            )
        if not self.bands or len(set(self.bands)) != len(self.bands):
            raise ValueError(
                f"`bands` must name each model band once; got {self.bands}."
            )

    @property
    def pixel_scale(self) -> Float[Array, ""]:
        """Geometric-mean side of a model pixel [arcsec], shape `()`."""
        return jnp.sqrt(jnp.abs(jnp.linalg.det(self.cd)))


def local_cd(wcs: WCS, position: tuple[float, float]) -> np.ndarray:
    """Linearise a world coordinate system at a pixel.

    Distortions (SIP and others) are followed by finite differences over one pixel.

    Args:
        wcs: Celestial WCS of an image, as astropy reads it.
        position: Pixel (y, x), 0-based, where the derivative is taken.

    Returns:
        Offset on the tangent plane (north, east) [arcsec] per pixel (y, x), `(2, 2)`.

    Raises:
        ValueError: If the WCS has no celestial axes.
    """
    if not wcs.has_celestial:
        raise ValueError(
            "the WCS has no celestial axes; give the image CTYPE, CRVAL, CRPIX and CD"
            " keywords, or leave the WCS out altogether."
        )
    wcs = wcs.celestial
    y, x = position
    xs = np.array([x, x, x, x + 0.5, x - 0.5])
    ys = np.array([y, y + 0.5, y - 0.5, y, y])
    sky = wcs.all_pix2world(np.stack([xs, ys], axis=-1), 0)
    sky = SkyCoord(sky[:, 0], sky[:, 1], unit="deg")
    east, north = sky[0].spherical_offsets_to(sky)
    offset = np.stack([north.arcsec, east.arcsec])
    return np.stack([offset[:, 1] - offset[:, 2], offset[:, 3] - offset[:, 4]], axis=1)


def affine_between(
    observed: WCS | None, model: WCS | None, position: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Affine map from observed to model pixels, linearised at `position`.

    Args:
        observed: WCS of the observation; `None` means that both grids are the same.
        model: WCS of the model grid; `None` likewise.
        position: Observed pixel (y, x), 0-based, where the map is exact.

    Returns:
        `jacobian` (2, 2) and `offset` (2,) such that, in (y, x),
        `model = jacobian @ observed + offset`.

    Raises:
        ValueError: If only one of the two has a WCS: the grids cannot be related.
    """
    if (observed is None) != (model is None):
        raise ValueError(
            "one observation of the field has a WCS and another has none; give every"
            " observation of a jointly fitted field a WCS, or none of them."
        )
    position = np.asarray(position, float)
    if observed is None or observed is model:
        return np.eye(2), np.zeros(2)
    sky = observed.celestial.all_pix2world([position[::-1]], 0)
    target = model.celestial.all_world2pix(sky, 0)[0][::-1]
    jacobian = np.linalg.solve(
        local_cd(model, tuple(target)), local_cd(observed, tuple(position))
    )
    return jacobian, target - jacobian @ position
