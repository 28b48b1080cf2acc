"""The linear operator from model images to the pixels of one observation.

Closed-form profiles are multiplied by the PSF on the observation's own Fourier grid, so
that shifts, scales and rotations are exact. Free pixels (stamps) take the difference
kernel: on a shared grid by a phase, on one that is turned by band-limited interpolation, and where
only the scale differs by trigonometric interpolation straight onto rows and columns. Frequencies that an
observation does not hold are left out from the start.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from blendem.observation import Observation, Sampling
from blendem.psf import (
    crop_frequencies,
    difference_kernel,
    fast_length,
    frequencies,
    gaussian_transform,
    image_transform,
    image_transform_at,
)

HALF_WIDTH = 3  # of the interpolation kernel [upsampled model pixel]
UPSAMPLE = 2  # Fourier zero-padding before interpolation
SHARPNESS = 2.3 * 2 * HALF_WIDTH  # of the kernel; best for `UPSAMPLE` = 2


class Renderer(eqx.Module):
    """Renders one observation. Build it with `Renderer.of`.

    Attributes:
        psf_fourier: Transform of the PSF on the observation's FFT grid.
        kernel: Difference kernel on the frequencies of the stamps that the observation
            holds: all of `n_stamp` on a shared grid, else the lowest `n_low`.
        jacobian, offset: As in `Observation`.
        psf_sigma: Sigma of the model PSF [model pixel].
        shape: Height and width of the observation. Static.
        n_image: Side of the observation's FFT grid [pixel of the PSF image]. Static.
        n_stamp: Side of the stamps' FFT grid [model pixel]. Static.
        n_low: Frequencies that are kept along an axis, at most `n_stamp`. Static.
        same_grid, band_index, sampling: As in `Observation`. Static.
    """

    psf_fourier: Complex[Array, "band n half"]
    kernel: Complex[Array, "band low halflow"]
    jacobian: Float[Array, "2 2"]
    offset: Float[Array, " 2"]
    psf_sigma: Float[Array, ""]
    shape: tuple[int, int] = eqx.field(static=True)
    n_image: int = eqx.field(static=True)
    n_stamp: int = eqx.field(static=True)
    n_low: int = eqx.field(static=True)
    same_grid: bool = eqx.field(static=True)
    band_index: tuple[int, ...] = eqx.field(static=True)
    sampling: Sampling = eqx.field(static=True)

    @classmethod
    def of(
        cls, observation: Observation, stamp: int, psf_sigma: Float[Array, ""]
    ) -> "Renderer":
        """Precompute the operator of `observation` for stamps of side `stamp`.

        The FFT grid is so large that light which leaves the image on one side does not
        come back on the other, for any centre inside the image.
        """
        dtype = observation.image.dtype
        psf = observation.psf.astype(dtype)
        psf_sigma = jnp.asarray(psf_sigma, dtype)
        fine = observation.sampling.oversampling
        reach = (fine * stamp + psf.shape[-1]) // 2
        n_image = fast_length(fine * max(observation.image.shape[-2:]) + reach)
        psf_fourier = image_transform(psf, n_image)
        jacobian = observation.jacobian.astype(dtype)
        if observation.same_grid:
            # The patch that a convolved stamp fills, whatever the size of the image.
            n_stamp = n_low = fast_length(stamp + psf.shape[-1] - 1)
            ky, kx = frequencies(n_stamp, dtype)
            observed = image_transform(psf, n_stamp)
        else:
            # The PSF may reach far in small model pixels; stamps that are larger than
            # it set the scale, and what wraps around is below the PSF's own wings.
            n_stamp = fast_length(2 * stamp)
            n_low = kept_frequencies(n_stamp, observation.sampling.band_limit)
            ky, kx = frequencies(n_stamp, dtype, n_low)
            to_psf = jacobian / fine
            ky_o = to_psf[0, 0] * ky + to_psf[1, 0] * kx
            kx_o = to_psf[0, 1] * ky + to_psf[1, 1] * kx
            observed = image_transform_at(psf, ky_o, kx_o)
        kernel = difference_kernel(observed, gaussian_transform(ky, kx, psf_sigma))
        return cls(
            psf_fourier=psf_fourier,
            kernel=kernel,
            jacobian=jacobian,
            offset=observation.offset.astype(dtype),
            psf_sigma=psf_sigma,
            shape=tuple(observation.image.shape[-2:]),
            n_image=n_image,
            n_stamp=n_stamp,
            n_low=n_low,
            same_grid=observation.same_grid,
            band_index=observation.band_index,
            sampling=observation.sampling,
        )

    def moved(self, offset: Float[Array, " 2"]) -> "Renderer":
        """The same observation with all sources moved by `offset` (y, x) [model pixel]."""
        return eqx.tree_at(lambda r: r.offset, self, self.offset - offset)

    def observed_center(self, center: Float[Array, " 2"]) -> Float[Array, " 2"]:
        """Observed pixel (y, x) of a model pixel (y, x)."""
        if self.same_grid:
            return center - self.offset
        return jnp.linalg.solve(self.jacobian, center - self.offset)

    def fine_center(self, center: Float[Array, " 2"]) -> Float[Array, " 2"]:
        """Position (y, x) of a model pixel on the observation's FFT grid."""
        return self.sampling.oversampling * self.observed_center(center)

    def stamp_frequencies(self) -> tuple[Array, Array]:
        """Frequencies (ky, kx) of the kernel and of `stamp_transform` [radian / model pixel]."""
        return frequencies(self.n_stamp, self.psf_sigma.dtype, self.n_low)

    def stamp_axes(self) -> tuple[Float[Array, " low"], Float[Array, " halflow"]]:
        """`stamp_frequencies` along either axis."""
        ky, kx = self.stamp_frequencies()
        return ky[:, 0], kx[0]

    def half_plane(self) -> Float[Array, " halflow"]:
        """Weights with which the half plane of frequencies sums up to an image."""
        index = jnp.arange(self.n_low // 2 + 1)
        # It stands for both halves, but for its first and last column.
        double = jnp.where((index > 0) & (index < self.n_low // 2), 2.0, 1.0)
        return double.astype(self.psf_sigma.dtype) / self.n_stamp**2

    def model_axes(
        self, center: Float[Array, " 2"]
    ) -> tuple[Float[Array, " height"], Float[Array, " width"]]:
        """Rows and columns of an aligned observation, from `center` [model pixel]."""
        dtype = self.psf_sigma.dtype
        y, x = (jnp.arange(n, dtype=dtype) for n in self.shape)
        if not self.same_grid:
            y, x = self.jacobian[0, 0] * y, self.jacobian[1, 1] * x
        return y + self.offset[0] - center[0], x + self.offset[1] - center[1]

    def pixel_area(self) -> Float[Array, ""] | float:
        """Area of an observed pixel [model pixel]."""
        if self.same_grid:
            return 1.0
        jac = self.jacobian
        return jnp.abs(jac[0, 0] * jac[1, 1] - jac[0, 1] * jac[1, 0])

    @property
    def separable(self) -> bool:
        """Whether rows and columns of the observation are those of the model."""
        return self.same_grid or self.sampling.aligned

    def model_frequencies(self) -> tuple[Array, Array]:
        """Frequencies of the observation's FFT grid, in radian / *model* pixel."""
        ky, kx = frequencies(self.n_image, self.psf_sigma.dtype)
        if self.same_grid:
            return ky, kx
        inverse = self.sampling.oversampling * jnp.linalg.inv(self.jacobian)
        return (
            inverse[0, 0] * ky + inverse[1, 0] * kx,
            inverse[0, 1] * ky + inverse[1, 1] * kx,
        )

    def phase(self, center: Float[Array, " 2"]) -> Complex[Array, "n half"]:
        """Transform of a unit impulse at model pixel `center` (y, x)."""
        ky, kx = frequencies(self.n_image, self.psf_sigma.dtype)
        y, x = self.fine_center(center)
        return jnp.exp(-1j * (ky * y + kx * x))

    def render_fourier(
        self, transform: Complex[Array, "*batch n half"]
    ) -> Float[Array, "*batch height width"]:
        """Inverse transform from the observation's FFT grid, cropped to the image."""
        image = jnp.fft.irfft2(transform, s=(self.n_image, self.n_image))
        fine = self.sampling.oversampling
        height, width = (fine * n for n in self.shape)
        return image[..., :height:fine, :width:fine] * fine**2

    def stamp_transform(
        self, stamps: Float[Array, "*batch band stamp stamp"]
    ) -> Complex[Array, "*batch band low halflow"]:
        """Transform of centred stamps at `stamp_frequencies`, before any shift.

        It depends on the FFT grid only, not on the observation: for the modes of a prior it is
        computed once and shared by all blends of a bucket.
        """
        return crop_frequencies(image_transform(stamps, self.n_stamp), self.n_low)

    def render_stamps(
        self,
        stamps: Float[Array, "*batch band stamp stamp"],
        center: Float[Array, " 2"],
    ) -> Float[Array, "*batch band height width"]:
        """Image of model stamps (already in this observation's bands) at `center`."""
        return self.render_transform(self.stamp_transform(stamps), center)

    def render_transform(
        self,
        transform: Complex[Array, "*batch band low halflow"],
        center: Float[Array, " 2"],
    ) -> Float[Array, "*batch band height width"]:
        """Image of stamps given by `stamp_transform`, at model pixel `center`."""
        return self.render_band(transform, self.kernel, center)

    def render_band(
        self,
        transform: Complex[Array, "*batch low halflow"],
        kernel: Complex[Array, "*band low halflow"],
        center: Float[Array, " 2"],
    ) -> Float[Array, "*batch height width"]:
        """As `render_transform`, with the kernel of the wanted bands given."""
        values = self.render_pixels(transform, kernel, center, self._all_pixels())
        return values.reshape(*values.shape[:-1], *self.shape)

    def render_pixels(
        self,
        transform: Complex[Array, "*batch low halflow"],
        kernel: Complex[Array, "*band low halflow"],
        center: Float[Array, " 2"],
        pixels: Int[Array, " pixel"],
    ) -> Float[Array, "*batch pixel"]:
        """As `render_band`, on some pixels only (numbered row by row).

        On a shared grid the sub-pixel part of the shift is a phase, exact for what is
        band-limited, and the whole part moves pixels.
        """
        lead = transform.ndim - kernel.ndim
        product = transform * kernel.reshape((1,) * lead + kernel.shape)
        return self._render_product(product, center, pixels)

    def see(
        self,
        transform: Complex[Array, "*batch column low halflow"],
        kernel: Complex[Array, "low halflow"],
    ) -> Array:
        """Many stamps as a band of the observation sees them, at no place yet: for `render_columns`.

        It depends on the PSF and the grid, not on where the source is: computed once for all
        sources of all blends that have these.

        Returns:
            Where rows and columns are those of the model, the convolved stamps on `n_low` x `n_low`
            points of their FFT grid, `(*batch, y, x, column)`, real; else their transforms,
            `(*batch, low, halflow, column)`.
        """
        product = transform * kernel.reshape((1,) * (transform.ndim - 2) + kernel.shape)
        return (
            self._sample(product) if self.separable else jnp.moveaxis(product, -3, -1)
        )

    def render_columns(
        self,
        seen: Array,
        center: Float[Array, " 2"],
        pixels: Int[Array, " pixel"] | None = None,
    ) -> Float[Array, "pixel column"]:
        """Image of many stamps at one centre, as `render_pixels` transposed.

        Where rows and columns are those of the model, the shift is a real matrix along either
        axis, exact for what is band-limited: no FFT, half the operations of Fourier sums, and
        pixels are picked as rows of memory.

        Args:
            seen: From `see`, without batch.
            center: Model pixel (y, x).
            pixels: Numbers of pixels, row by row; None: all.
        """
        if self.separable:
            values = self._shift(seen, center)
            return values if pixels is None else values[pixels]
        if pixels is None:
            pixels = self._all_pixels()
        return self._render_product(jnp.moveaxis(seen, -1, 0), center, pixels).T

    def render_slopes(
        self,
        seen: Array,
        center: Float[Array, " 2"],
        pixels: Int[Array, " pixel"] | None = None,
    ) -> tuple[Float[Array, "pixel column"], Float[Array, "2 pixel column"]]:
        """`render_columns`, and its derivative by the centre (y, x)."""
        if self.separable:
            value = self.render_columns(seen, center, pixels)
            slopes = jnp.stack([self._shift(seen, center, slope=i) for i in (0, 1)])
            return value, slopes if pixels is None else slopes[:, pixels]

        def render(c):
            return self.render_columns(seen, c, pixels)

        value = render(center)
        unit = jnp.eye(2, dtype=center.dtype)
        slopes = [jax.jvp(render, (center,), (unit[i],))[1] for i in (0, 1)]
        return value, jnp.stack(slopes)

    def _all_pixels(self) -> Int[Array, " pixel"]:
        """Numbers of all pixels, row by row."""
        return jnp.arange(self.shape[0] * self.shape[1])

    def _render_product(
        self,
        product: Complex[Array, "*batch low halflow"],
        center: Float[Array, " 2"],
        pixels: Int[Array, " pixel"],
    ) -> Float[Array, "*batch pixel"]:
        """`render_pixels` of transforms that have been multiplied by the kernel."""
        if self.separable and not self.same_grid:
            flat = product.reshape(-1, *product.shape[-2:])
            values = self._shift(self._sample(flat), center)[pixels]
            return values.T.reshape(*product.shape[:-2], len(pixels))
        if not self.same_grid:
            image = self._interpolate(product, center)
            return image.reshape(*image.shape[:-2], -1)[..., pixels]
        m, width = self.n_stamp, self.shape[1]
        at = self.observed_center(center)
        whole = jax.lax.stop_gradient(jnp.round(at))
        ky, kx = frequencies(m, self.psf_sigma.dtype)
        # The patch is centred on pixel m // 2 instead of 0.
        y, x = at - whole + m // 2
        phase = jnp.exp(-1j * (ky * y + kx * x))
        phase = phase.reshape((1,) * (product.ndim - 2) + phase.shape)
        patch = jnp.fft.irfft2(product * phase, s=(m, m))
        row = pixels // width - whole[0].astype(pixels.dtype) + m // 2
        column = pixels % width - whole[1].astype(pixels.dtype) + m // 2
        inside = (row >= 0) & (row < m) & (column >= 0) & (column < m)
        index = jnp.where(inside, row * m + column, 0)
        flat = patch.reshape(*patch.shape[:-2], m * m)
        values = jnp.take(flat, index, axis=-1)
        return values * inside.astype(values.dtype).reshape(
            (1,) * (values.ndim - 1) + (-1,)
        )

    def _sample(
        self, product: Complex[Array, "*batch column low halflow"]
    ) -> Float[Array, "*batch low low column"]:
        """Convolved stamps on as many points of their period as there are frequencies."""
        n = self.n_low
        scale = (n / self.n_stamp) ** 2 * self.pixel_area()
        image = jnp.fft.irfft2(product, s=(n, n)) * scale
        return jnp.moveaxis(image, -3, -1)

    def _shift(
        self,
        image: Float[Array, "low low column"],
        center: Float[Array, " 2"],
        slope: int | None = None,
    ) -> Float[Array, "pixel column"]:
        """What `_sample` gives at all pixels, row by row, for a source at `center`.

        `slope`: its derivative by that coordinate of the centre instead.
        """
        n, columns = self.n_low, image.shape[-1]
        to_rows, to_columns = (
            self._interpolator(at, slope == axis)
            for axis, at in enumerate(self.model_axes(center))
        )
        exact = jax.lax.Precision.HIGHEST
        if columns == 1:  # products of matrices and vectors would be slow
            rows = jnp.matmul(to_rows, image[..., 0], precision=exact)
            return jnp.matmul(rows, to_columns.T, precision=exact).reshape(-1, 1)
        rows = jnp.matmul(to_rows, image.reshape(n, -1), precision=exact)
        rows = rows.reshape(-1, n, columns)
        values = jnp.matmul(to_columns[None], rows, precision=exact)
        return values.reshape(-1, columns)

    def _interpolator(
        self, at: Float[Array, " pixel"], slope: bool = False
    ) -> Float[Array, "pixel low"]:
        """Trigonometric interpolation from the points of `_sample` to places `at` [model pixel].

        Zero where the next periodic copy begins. `slope`: its derivative by the centre from which
        places are counted.
        """
        n, dtype = self.n_low, at.dtype
        order = np.arange(n // 2 + 1)
        weight = np.where((order > 0) & (order < n // 2), 2.0, 1.0) / n
        node = 2 * np.pi * (np.outer(order, np.arange(n)) % n) / n
        k = (2 * np.pi * order / self.n_stamp).astype(dtype)[None]
        angle = at[:, None] * k
        inside = (jnp.abs(at) < self.n_stamp / 2).astype(dtype)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        waves = jnp.concatenate([k * sin, -k * cos] if slope else [cos, sin], axis=1)
        points = (
            np.concatenate([np.cos(node), np.sin(node)]) * np.tile(weight, 2)[:, None]
        )
        exact = jax.lax.Precision.HIGHEST
        return inside[:, None] * jnp.matmul(
            waves, points.astype(dtype), precision=exact
        )

    def _interpolate(
        self,
        transform: Complex[Array, "*batch low halflow"],
        center: Float[Array, " 2"],
    ) -> Float[Array, "*batch height width"]:
        """Evaluate a convolved stamp on the observation's pixels.

        Fourier zero-padding by `UPSAMPLE`, then a smooth kernel of few taps whose transform
        is divided out beforehand: a non-uniform FFT, right to 1e-5 of the peak where a
        Lanczos kernel of 10 taps is right to 1e-3. Pixels beyond the FFT grid of the stamp
        read zero.

        References:
            Barnett, Magland & af Klinteberg 2019, SIAM J. Sci. Comput. 41, C479.
        """
        m, big = self.n_low, UPSAMPLE * self.n_low
        zoom = big / self.n_stamp  # pixels of the upsampled patch per model pixel
        dtype = self.psf_sigma.dtype
        inverse = (
            1 / kernel_transform(2 * np.pi * np.fft.fftfreq(m) / UPSAMPLE)
        ).astype(dtype)
        correction = inverse[:, None] * inverse[: m // 2 + 1]
        transform = transform * correction.reshape(
            (1,) * (transform.ndim - 2) + correction.shape
        )
        rows = jnp.concatenate(
            [
                transform[..., : m // 2, :],
                jnp.zeros(
                    (*transform.shape[:-2], big - m, m // 2 + 1), transform.dtype
                ),
                transform[..., m // 2 :, :],
            ],
            axis=-2,
        )
        image = jnp.fft.irfft2(rows, s=(big, big)) * zoom**2
        image = jnp.roll(image, (big // 2, big // 2), (-2, -1))

        height, width = self.shape
        y, x = jnp.meshgrid(
            jnp.arange(height, dtype=dtype),
            jnp.arange(width, dtype=dtype),
            indexing="ij",
        )
        dy, dx = (
            y - self.observed_center(center)[0],
            x - self.observed_center(center)[1],
        )
        jac = self.jacobian
        at_y = (jac[0, 0] * dy + jac[0, 1] * dx) * zoom + big // 2
        at_x = (jac[1, 0] * dy + jac[1, 1] * dx) * zoom + big // 2
        index_y, weight_y = _taps(at_y.ravel(), big)
        index_x, weight_x = _taps(at_x.ravel(), big)
        flat = image.reshape(*image.shape[:-2], big * big)
        out = jnp.zeros((*image.shape[:-2], height * width), image.dtype)
        for i in range(2 * HALF_WIDTH):
            for j in range(2 * HALF_WIDTH):
                weight = weight_y[i] * weight_x[j]
                tap = jnp.take(flat, index_y[i] * big + index_x[j], axis=-1)
                out = out + tap * weight.reshape((1,) * (tap.ndim - 1) + weight.shape)
        # Flux per model pixel -> flux per observed pixel.
        return (out * self.pixel_area()).reshape(*image.shape[:-2], height, width)


def kept_frequencies(n: int, band_limit: float) -> int:
    """Even number of frequencies of a grid of side `n` that a band limit leaves."""
    # The last one stands for both signs: it is to lie beyond the limit.
    return min(n, fast_length(int(np.ceil(band_limit * n)) + 2))


def kernel_transform(k: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Transform of the interpolation kernel at angular frequency `k`."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    value = np.exp(SHARPNESS * (np.sqrt(1 - nodes**2) - 1)) * weights * HALF_WIDTH
    return np.cos(np.outer(k, nodes * HALF_WIDTH)) @ value


def _taps(
    at: Float[Array, " pixel"], size: int
) -> tuple[Array, Float[Array, "tap pixel"]]:
    """Indices and kernel values of the taps around `at`; 0 off the grid."""
    low = jnp.floor(at)
    steps = jnp.arange(-HALF_WIDTH + 1, HALF_WIDTH + 1, dtype=at.dtype)
    distance = (at - low)[None, :] - steps[:, None]
    # The slope of the root is infinite at the end of the kernel: stop just before.
    inner = jnp.maximum(1 - (distance / HALF_WIDTH) ** 2, 1e-12)
    weight = jnp.exp(SHARPNESS * (jnp.sqrt(inner) - 1))
    index = low[None, :] + steps[:, None]
    inside = (index >= 0) & (index < size)
    index = jnp.clip(index, 0, size - 1).astype(jnp.int32)
    return jax.lax.stop_gradient(index), jnp.where(inside, weight, 0.0)
