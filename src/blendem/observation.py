"""What was observed of a blend, and how likely a model makes it."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blendem.noise import Whitening

STEPS = 16  # of the band limit, so that blends of a field share a program
ALIGNED = 1e-4  # rotation that counts as none [model pixel per observed pixel]


class Sampling(NamedTuple):
    """What is known of an observation's grid when its program is compiled.

    Attributes:
        aligned: Rows and columns are those of the model but for their scale.
        band_limit: Highest frequency that the PSF image holds, along the axes of the model
            [Nyquist frequency of the model].
        oversampling: Pixels of the PSF image per observed pixel, along an axis.
    """

    aligned: bool = False
    band_limit: float = 1.0
    oversampling: int = 1

    @classmethod
    def of(
        cls, jacobian: Float[np.ndarray, "2 2"], oversampling: int = 1
    ) -> "Sampling":
        """Of an observation with this map to model pixels."""
        jacobian = np.asarray(jacobian, float)
        rotation = np.abs([jacobian[0, 1], jacobian[1, 0]]).max()
        # Corners of the Nyquist square of the PSF image, in model frequencies.
        corner = np.abs(np.linalg.inv(jacobian)).sum(axis=0).max() * oversampling
        limit = min(np.ceil(STEPS * corner - 1e-6) / STEPS, 1.0)
        return cls(bool(rotation <= ALIGNED), float(limit), int(oversampling))


class Observation(eqx.Module):
    """One image of a blend: an instrument or an epoch, in one or more bands.

    Attributes:
        image: Pixel values [flux unit], shape `(band, height, width)`.
        variance: Noise variance [flux unit^2], same shape; `inf` where masked.
        psf: Effective PSF (pixel response included), centred, odd sides, sum 1, on the
            observation's own grid, or one that is finer by `sampling.oversampling`, shape
            `(band, size, size)`.
        jacobian: d(model pixel)/d(observed pixel), both (y, x), shape `(2, 2)`.
        offset: Model pixel (y, x) of observed pixel (0, 0), shape `(2,)`.
        band_index: Index of each observed band among the bands of the frame. Static.
        same_grid: True where the jacobian is the identity. Static: another program.
        sampling: More about a grid of its own. Static.
        correlation: Correlation of the noise of two pixels by their distance (y, x), of odd side,
            1 at the centre, `(band, lag, lag)`; None: pixels are independent.

    Raises:
        ValueError: If shapes disagree or the PSF has even sides.
    """

    image: Float[Array | np.ndarray, "band height width"]
    variance: Float[Array | np.ndarray, "band height width"]
    psf: Float[Array | np.ndarray, "band size size"]
    jacobian: Float[Array | np.ndarray, "2 2"]
    offset: Float[Array | np.ndarray, " 2"]
    band_index: tuple[int, ...] = eqx.field(static=True)
    same_grid: bool = eqx.field(static=True)
    sampling: Sampling = eqx.field(static=True, default=Sampling())
    correlation: Float[Array | np.ndarray, "band lag lag"] | None = None

    def __check_init__(self):
        image, variance, psf = self.image, self.variance, self.psf
        if not hasattr(image, "shape"):  # inside tree transformations
            return
        if image.shape != variance.shape:
            raise ValueError(
                f"`image` {image.shape} and `variance` {variance.shape} must have the"
                " same shape."
            )
        if image.ndim == 3 and len(self.band_index) != len(image):
            raise ValueError(
                f"`band_index` names {len(self.band_index)} bands, `image` has"
                f" {len(image)}."
            )
        if psf.shape[-1] % 2 == 0 or psf.shape[-2] % 2 == 0:
            raise ValueError(
                f"`psf` must have odd sides so that it has a central pixel; got"
                f" {psf.shape}. Pad or crop by one pixel."
            )
        if self.same_grid and self.sampling.oversampling != 1:
            raise ValueError(
                f"a PSF image of {self.sampling.oversampling} pixels per observed pixel holds"
                " more than model pixels of that size can: use a finer model grid."
            )

    @property
    def weight(self) -> Float[Array, "band height width"]:
        """Inverse variance, 0 where masked."""
        return jnp.where(jnp.isinf(self.variance), 0.0, 1.0 / self.variance)

    @property
    def whitening(self) -> Whitening:
        """Map from images to ones whose noise is white and of variance 1."""
        return Whitening.of(self.weight, self.correlation)

    def to_observed(
        self, position: Float[Array | np.ndarray, " 2"]
    ) -> Float[Array | np.ndarray, " 2"]:
        """Observed pixel (y, x) of a model pixel (y, x)."""
        if self.same_grid:
            return position - self.offset
        return jnp.linalg.solve(self.jacobian, position - self.offset)


def log_likelihood(
    model: Float[Array | np.ndarray, "band height width"], observation: Observation
) -> Float[Array, ""]:
    """Gaussian log-likelihood of `observation` given a rendered `model`.

    The normalization is included, so values compare across noise levels. Masked pixels
    (infinite variance) contribute nothing, whatever their image value.
    """
    masked = jnp.isinf(observation.variance)
    # Mask the residual, not its square: 0 * NaN would still reach the gradient.
    residual = jnp.where(masked, 0.0, observation.image - model)
    whitening = observation.whitening
    log_norm = jnp.sum(whitening.log_determinant())
    log_norm = log_norm + jnp.sum(~masked) * jnp.log(2 * jnp.pi)
    return -0.5 * (jnp.sum(whitening(residual) ** 2) + log_norm)


def chi2_per_band(
    model: Float[Array | np.ndarray, "band height width"], observation: Observation
) -> tuple[Float[Array, " band"], Float[Array, " band"]]:
    """Sum of squares of whitened residuals, and number of pixels, per band."""
    masked = jnp.isinf(observation.variance)
    residual = jnp.where(masked, 0.0, observation.image - model)
    chi2 = jnp.sum(observation.whitening(residual) ** 2, axis=(-2, -1))
    return chi2, jnp.sum(~masked, axis=(-2, -1)).astype(model.dtype)
