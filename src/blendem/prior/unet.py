"""The pixel-space diffusion prior: a U-Net around the Wiener denoiser of the stamps.

The state is `x = u / unit`, a stamp of unit reference flux over the rms deviation of the
training set's pixels, one number per band, so that the mean variance of a pixel is 1 in every
band. The noise of the diffusion is isotropic in x. (Galaxies of i = 20 / 22 / 24 have the noise of
an HSC deep pixel at sigma = 0.012 / 0.08 / 0.5, in g, r, i and z alike.)

Skip connection (DESIGN section 4): `D = W + e(sigma) F`, where W is the Wiener mean of the
stamps' moments and e its expected error. The core of a galaxy varies 1e3 times more than
the edge of a stamp, so e is kept per pixel here: one number would leave the network a range
of 1e3 to learn.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from blendem.prior.gaussian import Basis, GaussianPrior
from blendem.prior.network import FREQUENCIES, OUTPUT_GAIN, embed_noise
from blendem.prior.symmetry import symmetries

# The network's correction fades above this noise [unit], a third of the deviation of the
# strongest mode: there the Wiener mean is right.
DAMPING = 30.0
# Noise levels at which the posterior variance is calibrated after training.
SPREAD_LEVELS = tuple(np.geomspace(0.01, 300.0, 10).tolist())
VARIANCE_FLOOR = (
    1e-8  # of the remainder of a pixel, in units of the mean pixel variance
)


class PixelMoments(eqx.Module):
    """First and second moments of stamps x: `Q diag(l) Q^T + P diag(rho) P`, P = 1 - Q Q^T.

    Denoising is exact for uniform rho; otherwise the remainder, which holds little, is
    taken pixel by pixel between two projections.

    Attributes:
        unit: Unit of x per band [part of the reference flux], `(band,)`.
        mean: Mean of x, `(band, stamp, stamp)`.
        modes: Orthonormal directions Q, `(mode, band, stamp, stamp)`.
        variance: Variance l along each, `(mode,)`.
        remainder: Variance rho of each pixel outside them, `(band, stamp, stamp)`.
    """

    unit: Float[Array | np.ndarray, " band"]
    mean: Float[Array | np.ndarray, "band stamp stamp"]
    modes: Float[Array | np.ndarray, "mode band stamp stamp"]
    variance: Float[Array | np.ndarray, " mode"]
    remainder: Float[Array | np.ndarray, "band stamp stamp"]

    def project(self, r: Float[Array, "n band stamp stamp"]) -> Float[Array, "n mode"]:
        """Coefficients of stamps along the modes."""
        return r.reshape(len(r), -1) @ self.modes.reshape(len(self.modes), -1).T

    def expand(self, c: Float[Array, "n mode"]) -> Float[Array, "n band stamp stamp"]:
        """Stamps of given coefficients."""
        flat = c @ self.modes.reshape(len(self.modes), -1)
        return flat.reshape(len(c), *self.mean.shape)

    def combine(
        self,
        r: Float[Array, "n band stamp stamp"],
        along: Float[Array, "_ mode"],
        outside: Float[Array, "_ band stamp stamp"],
    ) -> Float[Array, "n band stamp stamp"]:
        """`(Q diag(along) Q^T + P diag(outside) P) r`, a symmetric operator."""
        c = self.project(r)
        rest = (r - self.expand(c)) * outside
        return rest + self.expand(c * along - self.project(rest))

    def wiener(
        self, x_t: Float[Array, "n band stamp stamp"], sigma: Float[Array, " n"]
    ) -> Float[Array, "n band stamp stamp"]:
        """Mean of x given `x_t = x + sigma n`."""
        s2 = sigma[:, None] ** 2
        along = self.variance[None] / (self.variance[None] + s2)
        rho = self.remainder[None]
        outside = rho / (rho + s2[:, :, None, None])
        return self.mean[None] + self.combine(x_t - self.mean[None], along, outside)

    def variances(
        self, sigma: Float[Array, " n"]
    ) -> tuple[Float[Array, "n mode"], Float[Array, "n band stamp stamp"]]:
        """Variance of x given x_t along the modes, and of the pixels outside them."""
        s2 = sigma[:, None] ** 2
        along = self.variance[None] * s2 / (self.variance[None] + s2)
        rho, s2 = self.remainder[None], s2[:, :, None, None]
        return along, rho * s2 / (rho + s2)

    def pixel_errors(
        self, sigma: Float[Array, " n"]
    ) -> Float[Array, "n band stamp stamp"]:
        """Standard deviation of each pixel of x given x_t."""
        along, outside = self.variances(sigma)
        squared = self.modes**2
        inside = jnp.sum(squared, axis=0)[None]
        return jnp.sqrt(
            (along @ squared.reshape(len(squared), -1)).reshape(outside.shape)
            + jnp.maximum(1 - inside, 0) * outside
        )


def fit_pixel_moments(
    basis: Basis, stamps: Float[np.ndarray, "n band y x"], jitter: float
) -> PixelMoments:
    """Moments of stamps with log-normal amplitudes of median 1, under the 8 symmetries.

    The directions are the principal ones within the span of the basis, so that statistics
    computed in that basis and draws of this prior speak of the same space; what lies outside
    is kept as a variance per pixel.

    Args:
        basis: The basis; its span must be invariant under the symmetries.
        stamps: Stamps of unit reference flux without jitter.
        jitter: Standard deviation of ln(amplitude).

    Raises:
        ValueError: If the stamps have other shapes than the basis.
    """
    if stamps.shape[1:] != basis.mean.shape:
        raise ValueError(
            f"the training stamps have shape {stamps.shape[1:]}, the basis"
            f" {basis.mean.shape}; draw them with the bands and stamp side of the basis"
        )
    n = len(stamps)
    mean_a, mean_a2 = np.exp(jitter**2 / 2), np.exp(2 * jitter**2)
    turned = list(symmetries(stamps))
    first = np.mean([np.mean(t, axis=0, dtype=np.float64) for t in turned], axis=0)
    square = np.mean(np.square(stamps), axis=0, dtype=np.float64)
    square = np.mean(list(symmetries(square)), axis=0)
    marginal = mean_a2 * square - (mean_a * first) ** 2
    unit = np.sqrt(marginal.mean((-2, -1)))
    scale = unit[:, None, None]
    mean = mean_a * first / scale
    flat = (np.asarray(basis.modes, np.float64) / scale).reshape(len(basis.modes), -1)
    span = np.linalg.qr(flat.T)[0].astype(np.float32)
    second = np.zeros((span.shape[1], span.shape[1]))
    rest = np.zeros(stamps.shape[1:])
    for t in turned:
        x = np.ascontiguousarray(t).reshape(n, -1) / np.repeat(
            unit, stamps[0, 0].size
        ).astype(np.float32)
        c = x @ span
        second += (c.T @ c).astype(np.float64) / (n * len(turned))
        x -= c @ span.T
        rest += np.mean(np.square(x), axis=0).reshape(rest.shape) / len(turned)
    center = mean.reshape(-1) @ span
    values, vectors = np.linalg.eigh(mean_a2 * second - np.outer(center, center))
    values, vectors = values[::-1], vectors[:, ::-1]
    modes = (span @ vectors.astype(np.float32)).T.reshape(-1, *stamps.shape[1:])
    outside = mean - (span @ center).reshape(mean.shape)
    outside = mean_a2 * rest - outside**2
    # A projection keeps part of a pixel's variance: where the modes see most of the pixel,
    # what is left of it stands for more.
    left = np.maximum(1 - np.sum(modes.astype(np.float64) ** 2, axis=0), 1e-3)
    return PixelMoments(
        unit=unit.astype(np.float32),
        mean=mean.astype(np.float32),
        modes=np.ascontiguousarray(modes),
        variance=np.maximum(values, VARIANCE_FLOOR).astype(np.float32),
        remainder=np.maximum(outside / left, VARIANCE_FLOOR).astype(np.float32),
    )


class Block(eqx.Module):
    """Residual block: two 3x3 convolutions, the noise level shifts and scales between."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    noise: eqx.nn.Linear

    def __init__(self, channels: int, *, key: PRNGKeyArray):
        one, two, three = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(channels, channels, 3, padding=1, key=one)
        second = eqx.nn.Conv2d(channels, channels, 3, padding=1, key=two)
        self.second = eqx.tree_at(lambda c: c.weight, second, second.weight * 0.1)
        self.noise = eqx.nn.Linear(2 * FREQUENCIES + 1, 2 * channels, key=three)

    def __call__(self, h: Array, embedding: Array) -> Array:
        """Apply to `(channel, y, x)`."""
        shift, log_scale = jnp.split(self.noise(embedding), 2)
        y = self.first(jax.nn.silu(_normalise(h)))
        y = _normalise(y) * (1 + log_scale)[:, None, None] + shift[:, None, None]
        return h + self.second(jax.nn.silu(y))


def _normalise(h: Array) -> Array:
    """Unit mean square over the channels of each pixel."""
    return h * jax.lax.rsqrt(jnp.mean(h**2, axis=0, keepdims=True) + 1e-6)


class UNet(eqx.Module):
    """Patchified U-Net with plain, dense 3x3 convolutions.

    Attributes:
        stem: Strided convolution: patches of pixels to channels.
        down, up: Blocks of each level on the way down (the last is the bottom) and up.
        shrink, grow: From one level to the next and back.
        head: Channels to patches of pixels.
        bands, channels, patch, blocks: Sizes. Static.
    """

    stem: eqx.nn.Conv2d
    down: list[list[Block]]
    up: list[list[Block]]
    shrink: list[eqx.nn.Conv2d]
    grow: list[eqx.nn.Conv2d]
    head: eqx.nn.Conv2d
    bands: int = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    blocks: int = eqx.field(static=True)

    def __init__(
        self,
        bands: int,
        channels: tuple[int, ...] = (48, 96),
        patch: int = 4,
        blocks: int = 1,
        *,
        key: PRNGKeyArray,
    ):
        """Draw the weights; the output starts close to zero.

        Args:
            bands: Number of bands.
            channels: Of each level; each has half the side of the one before.
            patch: Side of a patch [pixel].
            blocks: Residual blocks per level, each way.
            key: Random key.

        Raises:
            ValueError: If a size is not positive.
        """
        if min((bands, patch, blocks, len(channels), *channels)) < 1:
            raise ValueError(
                "bands, channels, patch and blocks must be positive; got"
                f" {bands}, {channels}, {patch}, {blocks}"
            )
        levels = len(channels)
        keys = iter(jax.random.split(key, 2 + 2 * levels * (blocks + 1)))

        def group(width):
            return [Block(width, key=next(keys)) for _ in range(blocks)]

        # Inputs: the noisy stamp, the Wiener mean, and the distance from the centre.
        self.stem = eqx.nn.Conv2d(
            2 * bands + 1, channels[0], patch, stride=patch, key=next(keys)
        )
        self.down = [group(c) for c in channels]
        self.up = [group(c) for c in channels[:-1]]
        pairs = list(zip(channels[:-1], channels[1:], strict=True))
        self.shrink = [
            eqx.nn.Conv2d(a, b, 2, stride=2, key=next(keys)) for a, b in pairs
        ]
        self.grow = [eqx.nn.Conv2d(b, a, 1, key=next(keys)) for a, b in pairs]
        head = eqx.nn.Conv2d(channels[0], bands * patch**2, 1, key=next(keys))
        self.head = eqx.tree_at(lambda c: c.weight, head, head.weight * OUTPUT_GAIN)
        self.bands, self.channels = bands, tuple(channels)
        self.patch, self.blocks = patch, blocks

    def __call__(
        self, inputs: Float[Array, "channel y x"], sigma: Float[Array, ""]
    ) -> Float[Array, "band y x"]:
        """Correction in units of the Wiener error, from stretched stamps."""
        side, step = inputs.shape[-1], self.patch * 2 ** (len(self.channels) - 1)
        size = -(-side // step) * step
        low = (size - side) // 2
        pad = (low, size - side - low)
        embedding = embed_noise(sigma).astype(inputs.dtype)
        h = self.stem(jnp.pad(inputs, ((0, 0), pad, pad)))
        kept = []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                h = block(h, embedding)
            if level < len(self.shrink):
                kept.append(h)
                h = self.shrink[level](h)
        for level in reversed(range(len(self.grow))):
            h = self.grow[level](h)
            h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2) + kept[level]
            for block in self.up[level]:
                h = block(h, embedding)
        out = self.head(jax.nn.silu(_normalise(h)))
        p, m = self.patch, size // self.patch
        out = out.reshape(self.bands, p, p, m, m).transpose(0, 3, 1, 4, 2)
        out = out.reshape(self.bands, size, size)
        return out[:, low : low + side, low : low + side]


class UNetPrior(eqx.Module):
    """Diffusion prior on stamps `x = u / unit`.

    Attributes:
        gaussian: Basis and moments of z, for everything that works in the basis.
        moments: Moments of x: the Wiener denoiser.
        network: The correction.
        spread: Logarithm of the variance of x given x_t over Wiener's, at
            `SPREAD_LEVELS`, along each mode and (last) outside, `(level, mode + 1)`.
    """

    gaussian: GaussianPrior
    moments: PixelMoments
    network: UNet
    spread: Float[Array | np.ndarray, "level outcome"]

    @classmethod
    def wiener(
        cls, gaussian: GaussianPrior, moments: PixelMoments, network: UNet
    ) -> "UNetPrior":
        """A prior with Wiener's variance, before it is calibrated."""
        size = (len(SPREAD_LEVELS), len(moments.variance) + 1)
        return cls(gaussian, moments, network, np.zeros(size, np.float32))

    @property
    def basis(self) -> Basis:
        """The PCA basis."""
        return self.gaussian.basis

    @property
    def mean(self) -> Float[Array | np.ndarray, " mode"]:
        """Mean of z."""
        return self.gaussian.mean

    @property
    def cholesky(self) -> Float[Array | np.ndarray, "mode mode"]:
        """Factor of the covariance of z."""
        return self.gaussian.cholesky

    def denoise(
        self, x_t: Float[Array, "n band stamp stamp"], sigma: Float[Array, ""]
    ) -> Float[Array, "n band stamp stamp"]:
        """Mean of x given `x_t = x + sigma n`, at one noise level."""
        return denoise(self.network, self.moments, x_t, jnp.full(len(x_t), sigma))

    def variances(
        self, sigma: Float[Array, ""]
    ) -> tuple[Float[Array, " mode"], Float[Array, "band stamp stamp"]]:
        """Covariance `Q diag(v) Q^T + P diag(w) P` of x given x_t: v and w.

        Wiener's, times factors that the held-out errors of the network call for. It is
        positive definite by construction and the same for all x_t. The alternative,
        `sigma^2` times the Jacobian of the denoiser, is right only for a perfect denoiser:
        Jacobians of learned ones are neither symmetric nor positive at high noise, conjugate
        gradients on them diverged, and each product costs a pull-back of the network
        (DESIGN section 5). Price: the variance of a single galaxy is that of an average one.
        """
        along, outside = self.moments.variances(sigma[None])
        known = jnp.log(jnp.asarray(SPREAD_LEVELS, along.dtype))
        factor = jnp.exp(
            jax.vmap(lambda s: jnp.interp(jnp.log(sigma), known, s))(self.spread.T)
        )
        return along[0] * factor[:-1], outside[0] * factor[-1]


def denoise(
    network: UNet,
    moments: PixelMoments,
    x_t: Float[Array, "n band stamp stamp"],
    sigma: Float[Array, " n"],
    bfloat16: bool = False,
) -> Float[Array, "n band stamp stamp"]:
    """Mean of x given `x_t = x + sigma n`, one noise level per stamp."""
    wiener = moments.wiener(x_t, sigma)
    error = moments.pixel_errors(sigma)
    noise = jnp.sqrt(error**2 + sigma[:, None, None, None] ** 2)
    side = x_t.shape[-1]
    r = (jnp.arange(side, dtype=x_t.dtype) - side // 2) / (side / 2)
    radius = jnp.sqrt(r[:, None] ** 2 + r[None] ** 2)
    radius = jnp.broadcast_to(radius, (len(x_t), 1, side, side))
    # The contrast between core and edge is tamed; only the network sees it.
    inputs = jnp.concatenate(
        [_stretch(x_t / noise), _stretch(wiener / error), radius], axis=1
    )
    if bfloat16:
        low = jax.tree.map(
            lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, network
        )
        shift = jax.vmap(low)(
            inputs.astype(jnp.bfloat16), sigma.astype(jnp.bfloat16)
        ).astype(x_t.dtype)
    else:
        shift = jax.vmap(network)(inputs, sigma)
    gain = error / jnp.sqrt(1 + (sigma / DAMPING) ** 2)[:, None, None, None]
    return wiener + gain * shift


def _stretch(s: Array) -> Array:
    """Linear around 0, logarithmic beyond 1, odd."""
    return jnp.sign(s) * jnp.log1p(jnp.abs(s))


def unet_like(
    basis_like: Basis,
    *,
    channels: tuple[int, ...] = (48, 96),
    patch: int = 4,
    blocks: int = 1,
    dtype: str = "float32",
) -> UNetPrior:
    """A prior of zeros with the shapes of a stored one, for its leaves to be read into.

    Args:
        basis_like: Basis of the right shapes; its values are kept.
        channels, patch, blocks: Sizes of the network.
        dtype: Of its weights.
    """
    d, shape = len(basis_like.modes), tuple(basis_like.mean.shape)
    network = eqx.filter_eval_shape(
        UNet, shape[0], channels, patch, blocks, key=jax.random.key(0)
    )
    moments = PixelMoments(
        unit=np.zeros(shape[0], np.float32),
        mean=np.zeros(shape, np.float32),
        modes=np.zeros((d, *shape), np.float32),
        variance=np.zeros(d, np.float32),
        remainder=np.zeros(shape, np.float32),
    )
    return UNetPrior.wiener(
        GaussianPrior(basis_like, np.zeros(d), np.zeros((d, d))),
        moments,
        jax.tree.map(
            lambda x: (
                np.zeros(x.shape, dtype) if isinstance(x, jax.ShapeDtypeStruct) else x
            ),
            network,
        ),
    )
