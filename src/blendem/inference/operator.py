"""From the stamps of all sources to one observation, as matrix products.

The transpose of a matrix product is one too, so that adjoints are as fast as the operator. The
adjoint of `Renderer.render_stamps` scatters pixels, 20 times slower on a CPU.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blendem.renderer import Renderer


class Separable(eqx.Module):
    """Operator of an observation whose rows and columns are those of the model.

    Same as `Renderer.render_stamps` summed over the sources: to Fourier space, times the
    kernel, and back onto the rows and columns of the image, which hold the shift.

    Attributes:
        along_x: DFT of a row, `(stamp, real|imaginary half)`.
        along_y: The same of the columns, `(part stamp, part m)`.
        kernel: Real and imaginary part, `(band, half, part, m)`.
        to_y: Back onto the rows, for each source, `(source, part m, part height)`.
        to_x: Back onto the columns, real, `(source, part half, width)`.
        band_index: As in `Observation`. Static.
    """

    along_x: Float[Array, "stamp _"]
    along_y: Float[Array, "_ _"]
    kernel: Float[Array, "band half 2 m"]
    to_y: Float[Array, "source _ _"]
    to_x: Float[Array, "source _ width"]
    band_index: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def of(
        cls, renderer: Renderer, stamp: int, centers: Float[Array, "source 2"]
    ) -> "Separable":
        """The operator of `renderer` for sources at `centers` [model pixel]."""
        dtype = renderer.psf_sigma.dtype
        ky, kx = renderer.stamp_axes()
        r = jnp.arange(stamp, dtype=dtype) - stamp // 2
        x, y = r[:, None] * kx[None], r[:, None] * ky[None]
        along_y = jnp.concatenate(
            [
                jnp.concatenate([jnp.cos(y), -jnp.sin(y)], axis=1),
                jnp.concatenate([jnp.sin(y), jnp.cos(y)], axis=1),
            ]
        )
        kernel = jnp.stack([renderer.kernel.real, renderer.kernel.imag], axis=1)
        double = renderer.half_plane() * renderer.pixel_area()

        def back(center):
            y, x = renderer.model_axes(center)
            # A patch ends where its periodic copy begins.
            inside_y = (jnp.abs(y) < renderer.n_stamp / 2).astype(dtype)[None]
            inside_x = (jnp.abs(x) < renderer.n_stamp / 2).astype(dtype)[None]
            angle = ky[:, None] * y[None]
            cos, sin = jnp.cos(angle) * inside_y, jnp.sin(angle) * inside_y
            to_y = jnp.concatenate(
                [
                    jnp.concatenate([cos, sin], axis=1),
                    jnp.concatenate([-sin, cos], axis=1),
                ]
            )
            angle = kx[:, None] * x[None]
            weight = inside_x * double[:, None]
            to_x = jnp.concatenate([jnp.cos(angle) * weight, -jnp.sin(angle) * weight])
            return to_y, to_x

        to_y, to_x = jax.vmap(back)(centers)
        return cls(
            along_x=jnp.concatenate([jnp.cos(x), -jnp.sin(x)], axis=1),
            along_y=along_y,
            kernel=jnp.moveaxis(kernel, (1, 3), (2, 1)),
            to_y=to_y,
            to_x=to_x,
            band_index=renderer.band_index,
        )

    def __call__(
        self, x: Float[Array, "source band stamp stamp"]
    ) -> Float[Array, "observed height width"]:
        """Image of stamps of all model bands."""

        def one(x, to_y, to_x):
            return self._image(x[jnp.asarray(self.band_index)], to_y, to_x)

        return jnp.sum(jax.vmap(one)(x, self.to_y, self.to_x), axis=0)

    def each(
        self, x: Float[Array, "source n band stamp stamp"]
    ) -> Float[Array, "source n observed height width"]:
        """Images of several stamps of every source, one source after the other."""

        def one(inputs):
            x, to_y, to_x = inputs
            index = jnp.asarray(self.band_index)
            return jax.vmap(lambda s: self._image(s[index], to_y, to_x))(x)

        return jax.lax.map(one, (x, self.to_y, self.to_x))

    def _image(self, x, to_y, to_x):
        bands, stamp = x.shape[0], x.shape[-1]
        half, m = self.kernel.shape[1], self.kernel.shape[3]
        exact = jax.lax.Precision.HIGHEST
        t = jnp.matmul(x, self.along_x, precision=exact)
        t = t.reshape(bands, stamp, 2, half).transpose(0, 3, 2, 1)
        t = jnp.matmul(t.reshape(bands, half, 2 * stamp), self.along_y, precision=exact)
        real, imaginary = t[..., :m], t[..., m:]
        a, b = self.kernel[:, :, 0], self.kernel[:, :, 1]
        t = jnp.concatenate(
            [real * a - imaginary * b, real * b + imaginary * a], axis=-1
        )
        t = jnp.matmul(t, to_y, precision=exact)
        height = t.shape[-1] // 2
        t = t.reshape(bands, half, 2, height).transpose(0, 3, 2, 1)
        return jnp.matmul(t.reshape(bands, height, 2 * half), to_x, precision=exact)


class AnyGrid(eqx.Module):
    """Operator of an observation on a grid of its own, by the renderer.

    Attributes:
        renderer: Of the observation.
        centers: `(source, 2)`.
    """

    renderer: Renderer
    centers: Float[Array, "source 2"]

    def __call__(
        self, x: Float[Array, "source band stamp stamp"]
    ) -> Float[Array, "observed height width"]:
        """Image of stamps of all model bands."""
        index = jnp.asarray(self.renderer.band_index)
        image = jax.vmap(self.renderer.render_stamps)(x[:, index], self.centers)
        return jnp.sum(image, axis=0)

    def each(
        self, x: Float[Array, "source n band stamp stamp"]
    ) -> Float[Array, "source n observed height width"]:
        """Images of several stamps of every source, one source after the other."""
        index = jnp.asarray(self.renderer.band_index)
        return jax.lax.map(
            lambda a: self.renderer.render_stamps(a[0][:, index], a[1]),
            (x, self.centers),
        )


def operator_of(
    renderer: Renderer, stamp: int, centers: Float[Array, "source 2"]
) -> Separable | AnyGrid:
    """The fastest operator for an observation."""
    if renderer.separable:
        return Separable.of(renderer, stamp, centers)
    return AnyGrid(renderer, centers)
