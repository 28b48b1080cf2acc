"""Correlated noise of coadds and drizzled images: whitened, drawn, estimated.

Noise of pixel p has standard deviation sigma_p, and that of two pixels the correlation
`rho(p - q)`: one image per band, as resampling leaves it. A white residual follows if every pixel
is predicted from the ones before it, row by row (Vecchia 1988, J. R. Stat. Soc. B 50, 297): with
as many neighbours as the correlation has lags it is exact to better than a percent, masked pixels
are left out as if they had not been observed, and no matrix of all pixels is needed.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

FLOOR = 1e-3  # smallest power of a correlation over its mean: drizzling leaves some near zero


class Whitening(eqx.Module):
    """Linear map W of images with `W S W^T = 1`, S the covariance of the noise.

    Attributes:
        root: 1 / sigma, 0 where masked, `(band, height, width)`.
        weights: Of earlier neighbours in the prediction of a pixel, in units of sigma, `(band,
            neighbour, height, width)`; None where noise is not correlated.
        gain: 1 / standard deviation of what is not predicted [sigma], `(band, height, width)`.
    """

    root: Float[Array, "band height width"]
    weights: Float[Array, "band neighbour height width"] | None
    gain: Float[Array, "band height width"]

    @classmethod
    def of(
        cls,
        weight: Float[Array, "band height width"],
        correlation: Float[Array | np.ndarray, "band lag lag"] | None,
    ) -> "Whitening":
        """Of noise with this inverse variance (0: masked) and correlation."""
        root = jnp.sqrt(weight)
        if correlation is None:
            return cls(root, None, (root > 0).astype(root.dtype))
        weights, gain = jax.vmap(neighbour_weights)(
            jnp.asarray(correlation, root.dtype), root > 0
        )
        return cls(root, weights, gain)

    def __call__(
        self, image: Float[Array, "*batch band height width"]
    ) -> Float[Array, "*batch band height width"]:
        """Whiten images; masked pixels become 0."""
        lead = (None,) * (image.ndim - 3)
        scaled = image * self.root[lead]
        if self.weights is None:
            return scaled
        white = scaled
        for j, (dy, dx) in enumerate(earlier(_reach(self.weights.shape[1]))):
            white = white - self.weights[:, j][lead] * _shift(scaled, dy, dx)
        return white * self.gain[lead]

    def transpose(
        self, white: Float[Array, "band height width"]
    ) -> Float[Array, "band height width"]:
        """The adjoint of the map."""
        (image,) = jax.linear_transpose(self, white)(white)
        return image

    def log_determinant(self) -> Float[Array, " band"]:
        """Log determinant of the covariance of the unmasked pixels, per band."""
        whole = self.root * self.gain
        used = whole > 0
        return -2 * jnp.sum(
            jnp.where(used, jnp.log(jnp.where(used, whole, 1.0)), 0.0), axis=(-2, -1)
        )


def earlier(reach: int) -> Int[np.ndarray, "neighbour 2"]:
    """Steps (y, x) to the neighbours that come before a pixel, row by row."""
    steps = np.arange(-reach, reach + 1)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    before = (y < 0) | ((y == 0) & (x < 0))
    return np.stack([y[before], x[before]], axis=-1)


def _reach(neighbours: int) -> int:
    """Inverse of `len(earlier(reach))`."""
    return (round((2 * neighbours + 1) ** 0.5) - 1) // 2


def _shift(image, dy, dx):
    """Value of the neighbour at (dy, dx) of every pixel; 0 beyond the image."""
    height, width = image.shape[-2:]
    reach = max(abs(dy), abs(dx))
    pad = [(0, 0)] * (image.ndim - 2) + [(reach, reach)] * 2
    padded = jnp.pad(image, pad)
    return padded[
        ..., reach + dy : reach + dy + height, reach + dx : reach + dx + width
    ]


def neighbour_weights(
    correlation: Float[Array, "lag lag"], used: Bool[Array, "height width"]
) -> tuple[Float[Array, "neighbour height width"], Float[Array, "height width"]]:
    """Best linear prediction of every pixel from its earlier neighbours, of one band.

    Args:
        correlation: rho, of odd side, 1 at its centre.
        used: False where a pixel is masked.

    Returns:
        Weights of the neighbours, 0 for masked ones, and 1 / standard deviation of what is left,
        0 where the pixel itself is masked.
    """
    reach = correlation.shape[-1] // 2
    steps = earlier(reach)
    between = steps[:, None] - steps[None]
    # Beyond the lags that are known pixels are uncorrelated.
    known = (np.abs(between) <= reach).all(axis=-1)
    lag = np.where(known[..., None], between, 0) + reach
    gram = jnp.where(known, correlation[lag[..., 0], lag[..., 1]], 0.0)
    with_pixel = correlation[steps[:, 0] + reach, steps[:, 1] + reach]
    near = jnp.stack([_shift(used, dy, dx) for dy, dx in steps], axis=-1)
    near = near.reshape(-1, len(steps))
    eye = jnp.eye(len(steps), dtype=gram.dtype)

    def one(near):
        both = near[:, None] & near[None]
        rhs = jnp.where(near, with_pixel, 0.0)
        weights = solve_positive(jnp.where(both, gram, eye), rhs)
        return weights, 1 - weights @ rhs

    weights, left = jax.lax.map(one, near, batch_size=1024)
    gain = jnp.where(used.ravel(), 1 / jnp.sqrt(jnp.maximum(left, FLOOR)), 0.0)
    shape = used.shape
    return weights.T.reshape(-1, *shape), gain.reshape(shape)


def solve_positive(
    matrix: Float[Array, "n n"], rhs: Float[Array, " n"]
) -> Float[Array, " n"]:
    """Solve a small positive definite system by Gauss-Jordan elimination, without pivots.

    Thousands of them at once are faster so than one call of LAPACK each, and batched calls of LAPACK in
    one program can wait for each other forever (jaxlib 0.10 on a CPU).
    """
    n = len(rhs)
    both = jnp.concatenate([matrix, rhs[:, None]], axis=1)

    def eliminate(j, both):
        row = both[j] / both[j, j]
        factor = jnp.where(jnp.arange(n) == j, 0.0, both[:, j])
        return (both - factor[:, None] * row[None]).at[j].set(row)

    return jax.lax.fori_loop(0, n, eliminate, both)[:, -1]


def whiten_rows(
    rows: Float[Array, "pixel column"],
    pixels: Int[Array, " pixel"],
    counts: Bool[Array, " pixel"],
    weights: Float[Array, "neighbour height width"],
    gain: Float[Array, "height width"],
) -> Float[Array, "pixel column"]:
    """Whiten the columns of a matrix whose rows are chosen pixels of one band.

    Args:
        rows: In units of sigma; 0 where a row does not count.
        pixels: Number of each row's pixel, row by row of the image.
        counts: False for rows that fill up the list.
        weights, gain: Of `neighbour_weights`.
    """
    height, width = gain.shape
    n = len(pixels)
    known = jnp.where(counts, pixels, height * width)
    place = jnp.full(height * width, n).at[known].set(jnp.arange(n), mode="drop")
    padded = jnp.concatenate([rows, jnp.zeros((1, rows.shape[1]), rows.dtype)])
    y, x = pixels // width, pixels % width
    white = rows
    for j, (dy, dx) in enumerate(earlier(_reach(len(weights)))):
        inside = (y + dy >= 0) & (x + dx >= 0) & (x + dx < width)
        number = jnp.where(inside, (y + dy) * width + x + dx, 0)
        row = jnp.where(inside, place[number], n)
        white = white - weights[j].ravel()[pixels][:, None] * padded[row]
    return white * gain.ravel()[pixels][:, None]


def draw_noise(
    correlation: Float[np.ndarray, "lag lag"],
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> Float[np.ndarray, "height width"]:
    """Stationary Gaussian noise of unit variance with this correlation.

    It is drawn on a periodic grid that is larger by the lags, so that opposite edges are not
    correlated.
    """
    side = correlation.shape[-1]
    padded = tuple(n + side for n in shape)
    power = _power(correlation, padded)
    white = np.fft.rfft2(rng.standard_normal(padded))
    return np.fft.irfft2(np.sqrt(power) * white, padded)[: shape[0], : shape[1]]


def _power(correlation, shape):
    """Power spectrum on a periodic grid, not negative, of mean 1."""
    side = correlation.shape[-1]
    image = np.zeros(shape)
    image[:side, :side] = correlation
    image = np.roll(image, (-(side // 2), -(side // 2)), (0, 1))
    power = np.maximum(np.fft.rfft2(image).real, FLOOR)
    return power / np.fft.irfft2(power, shape)[0, 0]


def estimate_correlation(
    pulls: Float[np.ndarray, "height width"],
    used: Bool[np.ndarray, "height width"],
    reach: int,
) -> tuple[Float[np.ndarray, "lag lag"], float]:
    """Correlation of noise from pixels without sources.

    Args:
        pulls: Image over the standard deviation of its noise.
        used: True for pixels without sources.
        reach: Largest lag along an axis [pixel].

    Returns:
        Correlation, of side `2 reach + 1`, 1 at its centre and with a power that is nowhere
        negative; and the variance of the pulls, 1 if the standard deviations are right.

    Raises:
        ValueError: If there are too few pixels for a lag.
    """
    if not used.any():
        raise ValueError("no pixel is free of sources: the noise cannot be estimated")
    x = np.where(used, pulls - np.median(pulls[used]), 0.0)
    shape = tuple(n + reach for n in x.shape)
    steps = np.arange(-reach, reach + 1)

    def middle(periodic):
        return periodic[np.ix_(steps, steps)]

    def lags(a):
        transform = np.fft.rfft2(a, shape)
        return middle(np.fft.irfft2(np.abs(transform) ** 2, shape))

    pairs = np.round(lags(used.astype(float)))
    if pairs.min() < 10 * (2 * reach + 1) ** 2:
        raise ValueError(
            f"only {pairs.min():.0f} pairs of pixels without sources at a lag of up to {reach};"
            " use a larger image or a smaller reach"
        )
    covariance = lags(x) / pairs
    variance = covariance[reach, reach]
    correlation = covariance / variance
    grid = (8 * reach + 8,) * 2
    return middle(np.fft.irfft2(_power(correlation, grid), grid)), float(variance)
