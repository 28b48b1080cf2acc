"""The forward model of galaxies behind dust: images, compressed data, Jacobian.

The image of a source is `x_b(e_g) 10^(-0.4 k_b A(e_a))`: linear in the galaxy, not in the dust.
Data are compressed: `compress` projects whitened pixels on what attenuated galaxies span as seen
by the observation (Tegmark, Taylor & Heavens 1997, ApJ 480, 22). The likelihood of the compressed
data is exact, whatever was left out.
"""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from blendem.noise import Whitening
from blendem.observation import Observation
from blendem.precision import single_precision
from blendem.prior.dust import LINK, MAGNITUDE, DustPrior
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior
from blendem.renderer import Renderer

AT_ONCE = 32  # images rendered at once
SPANNED = 3  # stamps that stand for all examples, over the rank of the compression


class DustModel(eqx.Module):
    """Both priors in whitened coordinates e, ordered galaxy, dust, slope of the law.

    Attributes:
        mixtures: Priors of the coordinates of galaxy and dust.
        galaxy_mean, galaxy_modes: Stamp of unit amplitude, `mean + e modes`.
        dust_mean, dust_modes: Field of the attenuation, likewise.
        slope_sd: The law is `k_b (lambda / 550 nm)^(slope_sd e)`, e ~ N(0, 1); 0: fixed.
        link: As in `DustPrior`. Static.
    """

    mixtures: tuple[MixturePrior, MixturePrior]
    galaxy_mean: Float[Array | np.ndarray, "band pixel"]
    galaxy_modes: Float[Array | np.ndarray, "galaxy band pixel"]
    dust_mean: Float[Array | np.ndarray, " pixel"]
    dust_modes: Float[Array | np.ndarray, "dust pixel"]
    slope_sd: Float[Array | np.ndarray, ""]
    link: str = eqx.field(static=True, default="softplus")

    @classmethod
    def of(
        cls, galaxy: LatentPrior, dust: DustPrior, slope_sd: float = 0.0
    ) -> "DustModel":
        """The model of two trained priors.

        Raises:
            ValueError: If a prior has coordinates that its mixture does not have.
        """
        parts = []
        for prior in (galaxy, dust.latent):
            if prior.n_latent != len(prior.mean) or prior.network is not None:
                raise ValueError(
                    f"the mixture has {prior.n_latent} coordinates of {len(prior.mean)}"
                    " modes; dust needs a mixture of all modes, without brightness and network"
                )
            mean, cholesky = np.asarray(prior.mean), np.asarray(prior.cholesky)
            stamp = np.asarray(prior.basis.decode(mean))
            modes = np.tensordot(cholesky.T, np.asarray(prior.basis.modes), 1)
            shape = stamp.shape[0], stamp[0].size
            parts.append((stamp.reshape(shape), modes.reshape(len(modes), *shape)))
        return cls(
            mixtures=(galaxy.mixture, dust.latent.mixture),
            galaxy_mean=parts[0][0],
            galaxy_modes=parts[0][1],
            dust_mean=parts[1][0][0],
            dust_modes=parts[1][1][:, 0],
            slope_sd=np.asarray(slope_sd, float),
            link=dust.link,
        )

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of coordinates of galaxy and dust."""
        return len(self.galaxy_modes), len(self.dust_modes)

    @property
    def n_latent(self) -> int:
        """Number of coordinates of a source, with the slope of the law."""
        return sum(self.sizes) + 1

    def split(self, e):
        """Coordinates of galaxy, dust and slope."""
        n, d = self.sizes
        return e[..., :n], e[..., n : n + d], e[..., -1]

    def intrinsic(
        self, e: Float[Array | np.ndarray, "*n latent"]
    ) -> Float[Array, "*n band pixel"]:
        """Galaxies without dust, of unit amplitude."""
        change = jnp.tensordot(self.split(e)[0], jnp.asarray(self.galaxy_modes), 1)
        return change + self.galaxy_mean.reshape(
            (1,) * (e.ndim - 1) + self.galaxy_mean.shape
        )

    def attenuation(
        self, e: Float[Array | np.ndarray, "*n latent"]
    ) -> Float[Array, "*n pixel"]:
        """Maps of A_V [mag]."""
        return LINK[self.link](self._field(e))

    def _field(self, e):
        change = self.split(e)[1] @ jnp.asarray(self.dust_modes)
        return change + self.dust_mean.reshape(
            (1,) * (e.ndim - 1) + self.dust_mean.shape
        )

    def prior_draw(self, n: int, *, key: PRNGKeyArray) -> Float[Array, "n latent"]:
        """Draw `n` dusty galaxies from both priors."""
        one, two, three = jax.random.split(key, 3)
        galaxy = self.mixtures[0].sample(n, key=one)
        dust = self.mixtures[1].sample(n, key=two)
        slope = jax.random.normal(three, (n, 1), galaxy.dtype)
        return jnp.concatenate([galaxy, dust, slope], axis=1)


class DustLikelihood(NamedTuple):
    """Compressed, whitened data of one blend: `data = sum_k whiten operator_k image_k + N(0, 1)`.

    Attributes:
        operator: From model stamps to compressed data.
        data: `(band, rank)`, whitened.
        scale: Amplitudes [flux unit].
        law: `k_b = A_b / A_V` of every source.
        tilt: `ln(lambda_rest / 550 nm)` of the bands.
        whiten: Of what `operator` gives, bands in turn; None: it is white already.
    """

    operator: Float[Array | np.ndarray, "source band rank pixel"]
    data: Float[Array | np.ndarray, "band rank"]
    scale: Float[Array | np.ndarray, " source"]
    law: Float[Array | np.ndarray, "source band"]
    tilt: Float[Array | np.ndarray, "source band"]
    whiten: Float[Array | np.ndarray, "datum datum"] | None = None


def compress(
    observation: Observation,
    centers: Float[np.ndarray, "source 2"],
    examples: Float[np.ndarray, "n band stamp stamp"],
    psf_sigma: float,
    rank: int,
) -> tuple[
    Float[np.ndarray, "source band rank stamp_pixel"],
    Float[np.ndarray, "band rank n_pixel"],
]:
    """Operator of `DustLikelihood`, and the projection of whitened pixels.

    Args:
        observation: Image, noise and PSF; only noise and PSF are used. Its bands are those of
            the model, in order.
        centers: Of the sources (y, x) [model pixel].
        examples: Attenuated stamps in flux unit, or `spanning` ones, which set what is kept.
        psf_sigma: Sigma of the model PSF [model pixel].
        rank: Numbers kept per band; no more than there are pixels or examples of all sources.
    """
    side, bands = examples.shape[-1], examples.shape[1]
    seen = [
        see(observation, center, examples, psf_sigma) for center in np.asarray(centers)
    ]
    seen = np.concatenate(seen).swapaxes(0, 1)
    projection = []
    for images in seen:
        # Right singular vectors by way of a triangle: there are more pixels than images.
        q, r = np.linalg.qr(images.T)
        projection.append((q @ np.linalg.svd(r)[0][:, :rank]).T)
    projection = np.array(projection)
    operator = [
        _adjoint(
            single_precision(observation),
            jnp.asarray(center, jnp.float32),
            jnp.asarray(projection.swapaxes(0, 1), jnp.float32),
            jnp.float32(psf_sigma),
            side,
        )
        for center in np.asarray(centers)
    ]
    shape = (len(centers), -1, bands, side * side)
    return np.reshape(operator, shape).swapaxes(1, 2), projection


def spanning(
    examples: Float[np.ndarray, "n band stamp stamp"], rank: int
) -> Float[np.ndarray, "few band stamp stamp"]:
    """A few stamps with the second moments of many, band by band: enough for a rank."""
    n, bands, side, _ = examples.shape
    number = min(SPANNED * rank, n, side * side)
    out = np.zeros((number, bands, side * side))
    for b in range(bands):
        flat = np.asarray(examples[:, b], float).reshape(n, -1)
        values, vectors = np.linalg.eigh(flat.T @ flat)
        keep = slice(None, -number - 1, -1)
        root = np.sqrt(np.maximum(values[keep], 0))
        out[:, b] = root[:, None] * vectors[:, keep].T
    return out.reshape(number, bands, side, side)


def whitened(observation: Observation) -> Float[np.ndarray, "band n_pixel"]:
    """Image with noise of unit variance, independent between pixels; masked ones are 0."""
    observation = jax.tree.map(jnp.asarray, observation)
    white = Whitening.of(observation.weight, observation.correlation)(observation.image)
    return np.asarray(white).reshape(len(white), -1)


def see(
    observation: Observation,
    center: Float[np.ndarray, " 2"],
    stamps: Float[np.ndarray, "n band stamp stamp"],
    psf_sigma: float,
) -> Float[np.ndarray, "n band n_pixel"]:
    """Stamps of one source as an observation sees them, whitened."""
    image = _see(
        single_precision(observation),
        jnp.asarray(center, jnp.float32),
        jnp.asarray(stamps, jnp.float32),
        jnp.float32(psf_sigma),
    )
    return np.asarray(image, float)


def _camera(observation, center, side, psf_sigma):
    """Function from a stamp to whitened pixels."""
    renderer = Renderer.of(observation, side, psf_sigma)
    white = Whitening.of(observation.weight, observation.correlation)

    def image(stamp):
        seen = white(renderer.render_stamps(stamp, center))
        return seen.reshape(len(stamp), -1)

    return image


@eqx.filter_jit
def _see(observation, center, stamps, psf_sigma):
    image = _camera(observation, center, stamps.shape[-1], psf_sigma)
    return jax.lax.map(image, stamps, batch_size=AT_ONCE)


@eqx.filter_jit
def _adjoint(observation, center, images, psf_sigma, side):
    """Transpose of `_see` for images `(n, band, pixel)`."""
    image = _camera(observation, center, side, psf_sigma)
    stamp = jax.ShapeDtypeStruct((images.shape[1], side, side), images.dtype)
    back = jax.linear_transpose(image, stamp)
    return jax.lax.map(lambda x: back(x)[0], images, batch_size=AT_ONCE)


def linearise(
    model: DustModel, likelihood: DustLikelihood, e: Float[Array, "source latent"]
) -> tuple[Float[Array, " datum"], Float[Array, "unknown datum"]]:
    """Prediction of the data and its exact Jacobian, transposed; `unknown = source x latent`."""
    seen, slopes = jax.vmap(partial(_linearise_source, model))(
        e,
        likelihood.operator,
        likelihood.scale,
        likelihood.law,
        likelihood.tilt,
    )
    total, slopes = jnp.sum(seen, axis=0), slopes.reshape(-1, seen.shape[1])
    if likelihood.whiten is not None:
        total, slopes = likelihood.whiten @ total, slopes @ likelihood.whiten.T
    return total, slopes


def _linearise_source(model, e, operator, scale, law, tilt):
    """Prediction of one source, and its Jacobian, transposed."""
    field, a = model._field(e), model.attenuation(e)
    law = law * jnp.exp(model.slope_sd * e[-1] * tilt)
    through = jnp.exp(-MAGNITUDE * law[:, None] * a[None])
    image = scale * model.intrinsic(e) * through
    dimming = -MAGNITUDE * law[:, None] * image
    slope = jax.nn.sigmoid(field) if model.link == "softplus" else jnp.ones_like(a)
    dust_modes, seen = model.dust_modes * slope[None], []
    # Band after band: one large product of matrices each.
    for b, camera in enumerate(operator):
        stamps = jnp.concatenate(
            [
                image[b][None],
                scale * through[b][None] * model.galaxy_modes[:, b],
                dimming[b][None] * dust_modes,
                (dimming[b] * a * (tilt[b] * model.slope_sd))[None],
            ]
        )
        seen.append(stamps @ camera.T)
    seen = jnp.concatenate(seen, axis=1)
    return seen[0], seen[1:]
