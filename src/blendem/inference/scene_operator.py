"""All sources of a blend on one grid, and from there onto the pixels of every observation.

`operator` renders every source on its own, which a sampler over few sources wants. With many
sources and several observations it is cheaper to add the sources up first: each is moved by the
part of a pixel that its centre is off, added to a scene of model pixels, and the scene is observed
once per observation. All steps are products with matrices, additions and FFTs, whose adjoints are
as fast, and a grid of any scale and rotation costs no interpolation: its pixels are Fourier sums
over the few frequencies that it holds.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from blendem.observation import Observation
from blendem.psf import (
    difference_kernel,
    fast_length,
    frequencies,
    gaussian_transform,
    image_transform,
    image_transform_at,
)
from blendem.renderer import kept_frequencies

# Half width of the kernel that moves stamps by a part of a pixel, for observations that hold
# at most half of the model's frequencies and for others; and shape of its window.
GUARD_LOW, GUARD, KAISER = 5, 16, 6.5


class SameGrid(eqx.Module):
    """A scene convolved on its own pixels.

    Attributes:
        kernel: Difference kernel with the part of a pixel between both grids.
        corner: Pixel (y, x) of the scene where the observation begins.
        shape: Of the observation. Static.
        n: Side of the FFT grid. Static.
        band_index: Of the observation. Static.
    """

    kernel: Complex[Array, "band n half"]
    corner: Int[Array, " 2"]
    shape: tuple[int, int] = eqx.field(static=True)
    n: int = eqx.field(static=True)
    band_index: tuple[int, ...] = eqx.field(static=True)

    def __call__(
        self, scene: Float[Array, "observed y x"]
    ) -> Float[Array, "observed height width"]:
        """Image of a scene in the observed bands."""
        transform = jnp.fft.rfft2(scene, s=(self.n, self.n)) * self.kernel
        image = jnp.fft.irfft2(transform, s=(self.n, self.n))
        begin = (0, self.corner[0], self.corner[1])
        return jax.lax.dynamic_slice(image, begin, (len(image), *self.shape))


class OtherGrid(eqx.Module):
    """A scene on pixels of another scale or rotation.

    Attributes:
        from_y: Columns to frequencies, real and imaginary part, `(2 low, y)`.
        from_x: Rows to frequencies, `(x, 2 halflow)`.
        kernel: Difference kernel, weights of the half plane in it.
        to_y: Phases (cosine, sine) of every observed pixel, `(2, low, pixel)`; of every row if
            the grids are aligned.
        to_x: The same along the other axis, `(2, halflow, pixel)`; of every column.
        shape, band_index: Of the observation. Static.
        aligned: Whether its rows and columns are those of the scene. Static.
    """

    from_y: Float[Array, "_ y"]
    from_x: Float[Array, "x _"]
    kernel: Complex[Array, "band low halflow"]
    to_y: Float[Array, "2 low _"]
    to_x: Float[Array, "2 halflow _"]
    shape: tuple[int, int] = eqx.field(static=True)
    band_index: tuple[int, ...] = eqx.field(static=True)
    aligned: bool = eqx.field(static=True)

    def __call__(
        self, scene: Float[Array, "observed y x"]
    ) -> Float[Array, "observed height width"]:
        """Image of a scene in the observed bands."""
        exact = jax.lax.Precision.HIGHEST
        low, half = self.kernel.shape[1:]
        rows = jnp.matmul(scene, self.from_x, precision=exact)
        both = jnp.matmul(self.from_y, rows, precision=exact)
        cc, cs = both[:, :low, :half], both[:, :low, half:]
        sc, ss = both[:, low:, :half], both[:, low:, half:]
        # exp(-i(ky y + kx x)) = (cy - i sy)(cx - i sx)
        real, imaginary = cc - ss, -(cs + sc)
        a, b = self.kernel.real, self.kernel.imag
        real, imaginary = real * a - imaginary * b, real * b + imaginary * a
        # Real part of the sum of (real + i imaginary)(cy + i sy)(cx + i sx).
        cx, sx = self.to_x
        cy, sy = self.to_y
        out_real = jnp.matmul(real, cx, precision=exact) - jnp.matmul(
            imaginary, sx, precision=exact
        )
        out_imaginary = jnp.matmul(real, sx, precision=exact) + jnp.matmul(
            imaginary, cx, precision=exact
        )
        if self.aligned:
            return jnp.matmul(cy.T, out_real, precision=exact) - jnp.matmul(
                sy.T, out_imaginary, precision=exact
            )
        image = jnp.sum(cy[None] * out_real - sy[None] * out_imaginary, axis=1)
        return image.reshape(-1, *self.shape)


class SceneOperator(eqx.Module):
    """From stamps of all sources to the images of all observations.

    Bands that an observation has on the model's own pixels are moved exactly; for the others,
    which hold low frequencies only, a short kernel is as good.

    Attributes:
        exact_y, exact_x: Stamps onto all rows and columns of the scene, `(source, y, stamp)`.
        shift_y, shift_x: Stamps onto a patch of the scene, `(source, patch, stamp)`.
        corner: First pixel (y, x) of each source's patch on the scene, `(source, 2)`.
        observations: One projection each.
        size: Height and width of the scene. Static.
    """

    exact_y: Float[Array, "source y stamp"]
    exact_x: Float[Array, "source x stamp"]
    shift_y: Float[Array, "source patch stamp"]
    shift_x: Float[Array, "source patch stamp"]
    corner: Int[Array, "source 2"]
    observations: tuple[SameGrid | OtherGrid, ...]
    size: tuple[int, int] = eqx.field(static=True)

    @classmethod
    def of(
        cls,
        observations: Sequence[Observation],
        stamp: int,
        psf_sigma: float,
        centers: Float[np.ndarray, "source 2"],
    ) -> "SceneOperator":
        """Precompute everything; outside any program, since the scene follows the sources.

        Args:
            observations: Of one blend, without a leading axis.
            stamp: Side of the stamps [model pixel], odd.
            psf_sigma: Sigma of the model PSF [model pixel].
            centers: Of the sources (y, x) [model pixel].
        """
        centers = np.asarray(centers, float)
        dtype = np.asarray(observations[0].image).dtype
        limits = [o.sampling.band_limit for o in observations if not o.same_grid]
        guard = GUARD if max(limits, default=0.0) > 0.5 else GUARD_LOW
        patch = fast_length(stamp + 2 * guard)
        whole = np.round(centers).astype(int)
        corner = whole - patch // 2
        low = corner.min(axis=0)
        size = tuple(int(n) for n in corner.max(axis=0) + patch - low)
        r = np.arange(stamp) - stamp // 2
        exact = (
            np.sinc(np.arange(n)[None, :, None] - r - (c - first)[:, None, None])
            for n, c, first in zip(size, centers.T, low, strict=True)
        )
        shift = shift_matrices(patch, stamp, guard, centers - whole)
        return cls(
            *(jnp.asarray(s, dtype) for s in (*exact, *shift)),
            corner=jnp.asarray(corner - low),
            observations=tuple(
                _same_grid(o, psf_sigma, low, size, dtype)
                if o.same_grid
                else _other_grid(o, psf_sigma, low, size, dtype)
                for o in observations
            ),
            size=size,
        )

    def exact_scene(
        self, x: Float[Array, "source band stamp stamp"]
    ) -> Float[Array, "band y x"]:
        """Sum of all sources on the pixels of the scene."""
        n, bands, stamp, _ = x.shape
        exact = jax.lax.Precision.HIGHEST
        rows = jnp.matmul(self.exact_y[:, None], x, precision=exact)
        # One product for all sources: side by side.
        rows = rows.transpose(1, 2, 0, 3).reshape(bands, -1, n * stamp)
        columns = self.exact_x.transpose(0, 2, 1).reshape(n * stamp, -1)
        return jnp.matmul(rows, columns, precision=exact)

    def smooth_scene(
        self, x: Float[Array, "source band stamp stamp"]
    ) -> Float[Array, "band y x"]:
        """The same below 0.87 of the Nyquist frequency, patch by patch."""
        exact = jax.lax.Precision.HIGHEST
        rows = jnp.matmul(self.shift_y[:, None], x, precision=exact)
        turned = jnp.swapaxes(self.shift_x, 1, 2)[:, None]
        patches = jnp.matmul(rows, turned, precision=exact)
        scene = jnp.zeros((x.shape[1], *self.size), x.dtype)
        shape = patches.shape[1:]
        for k in range(len(patches)):
            begin = (0, self.corner[k, 0], self.corner[k, 1])
            there = jax.lax.dynamic_slice(scene, begin, shape)
            scene = jax.lax.dynamic_update_slice(scene, there + patches[k], begin)
        return scene

    def __call__(
        self, x: Float[Array, "source band stamp stamp"]
    ) -> tuple[Float[Array, "..."], ...]:
        """Images of stamps of all model bands, one per observation."""
        images = [None] * len(self.observations)
        for kind, scene_of in (
            (SameGrid, self.exact_scene),
            (OtherGrid, self.smooth_scene),
        ):
            mine = [i for i, o in enumerate(self.observations) if isinstance(o, kind)]
            bands = sorted({b for i in mine for b in self.observations[i].band_index})
            if not bands:
                continue
            scene = scene_of(x[:, jnp.asarray(bands)])
            for i in mine:
                observation = self.observations[i]
                chosen = [bands.index(b) for b in observation.band_index]
                images[i] = observation(scene[jnp.asarray(chosen)])
        return tuple(images)


def shift_matrices(
    patch: int, stamp: int, guard: int, shift: Float[np.ndarray, "source 2"]
) -> tuple[Float[np.ndarray, "source patch stamp"], ...]:
    """Matrices that move a stamp by a part of a pixel, along y and x.

    The sinc of band-limited interpolation under a Kaiser window of half width `guard`: right to
    1e-4 up to 0.87 of the Nyquist frequency for 16 pixels, to 0.6 for 5.
    """
    at = np.arange(patch) - patch // 2
    r = np.arange(stamp) - stamp // 2
    t = at[None, None, :, None] - r - shift.T[:, :, None, None]
    inner = np.maximum(1 - (t / guard) ** 2, 0.0)
    window = np.where(inner > 0, np.i0(KAISER * np.sqrt(inner)) / np.i0(KAISER), 0.0)
    kernel = np.sinc(t) * window
    return tuple(
        kernel / kernel.sum(axis=-2, keepdims=True)
    )  # every pixel keeps its flux


def _same_grid(o: Observation, psf_sigma, low, size, dtype) -> SameGrid:
    height, width = o.image.shape[-2:]
    offset = np.asarray(o.offset, float)
    begin = np.floor(offset).astype(int)
    # An observed pixel (0, 0) that the scene does not reach is beyond the periodic grid's edge.
    reach = np.maximum(size, begin - low + [height, width]) + np.maximum(low - begin, 0)
    n = fast_length(int(reach.max()) + o.psf.shape[-1] // 2 + 1)
    ky, kx = frequencies(n, dtype)
    kernel = difference_kernel(
        image_transform(jnp.asarray(o.psf, dtype), n),
        gaussian_transform(ky, kx, jnp.asarray(psf_sigma, dtype)),
    )
    # Observed pixels begin at `corner`, a part of a pixel and what is left of the scene aside.
    lead = np.maximum(low - begin, 0)
    away = lead - (offset - begin)
    phase = jnp.exp(-1j * (ky * away[0] + kx * away[1]))
    return SameGrid(
        kernel=kernel * phase[None].astype(kernel.dtype),
        corner=jnp.asarray(begin - low + lead),
        shape=(height, width),
        n=n,
        band_index=o.band_index,
    )


def _other_grid(o: Observation, psf_sigma, low, size, dtype) -> OtherGrid:
    jacobian, offset = np.asarray(o.jacobian, float), np.asarray(o.offset, float)
    height, width = o.image.shape[-2:]
    fine = o.sampling.oversampling
    scale = np.sqrt(abs(np.linalg.det(jacobian)))
    reach = scale * o.psf.shape[-1] / fine / 2
    y, x = (a.ravel() for a in np.mgrid[:height, :width])
    at = (jacobian @ np.stack([y, x])) + (offset - low)[:, None]  # on the scene
    extent = np.maximum(at.max(axis=1), size) - np.minimum(at.min(axis=1), 0)
    n = fast_length(int(np.ceil(extent.max() + reach)))
    n_low = kept_frequencies(n, o.sampling.band_limit)
    ky, kx = frequencies(n, dtype, n_low)
    to_psf = jacobian / fine
    observed = image_transform_at(
        jnp.asarray(o.psf, dtype),
        to_psf[0, 0] * ky + to_psf[1, 0] * kx,
        to_psf[0, 1] * ky + to_psf[1, 1] * kx,
    )
    sigma = jnp.asarray(psf_sigma, dtype)
    kernel = difference_kernel(observed, gaussian_transform(ky, kx, sigma))
    half = np.arange(n_low // 2 + 1)
    double = np.where((half > 0) & (half < n_low // 2), 2.0, 1.0)
    kernel = kernel * jnp.asarray(double * scale**2 / n**2, dtype)[None, None]
    step = 2 * np.pi * n_low / n
    ly, lx = step * np.fft.fftfreq(n_low), step * np.fft.rfftfreq(n_low)

    def waves(k, position):
        angle = np.outer(k, position)
        return np.stack([np.cos(angle), np.sin(angle)])

    to_y, to_x = (waves(k, a) for k, a in zip((ly, lx), at, strict=True))
    if o.sampling.aligned:
        to_y = to_y.reshape(2, len(ly), height, width)[..., 0]
        to_x = to_x.reshape(2, len(lx), height, width)[:, :, 0]
    return OtherGrid(
        from_y=jnp.asarray(np.concatenate(waves(ly, np.arange(size[0]))), dtype),
        from_x=jnp.asarray(np.concatenate(waves(lx, np.arange(size[1]))).T, dtype),
        kernel=kernel,
        to_y=jnp.asarray(to_y, dtype),
        to_x=jnp.asarray(to_x, dtype),
        shape=(height, width),
        band_index=o.band_index,
        aligned=o.sampling.aligned,
    )
