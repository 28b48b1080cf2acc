"""The forward model of galaxies behind dust: images, compressed data, Jacobian.

The image of a source is `x_b(e_g) 10^(-0.4 k_b A(e_a))`: linear in the galaxy, not in the dust.
Data are compressed: `compress` projects whitened pixels on what attenuated galaxies span as seen
by the observation (Tegmark, Taylor & Heavens 1997, ApJ 480, 22). The likelihood of the compressed
data is exact, whatever was left out.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from blendem.observation import Observation
from blendem.prior.dust import LINK, DustPrior
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior
from blendem.renderer import Renderer

MAGNITUDE = 0.4 * np.log(10)  # 10^(-0.4 m) = exp(-MAGNITUDE m)


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
    """Compressed, whitened data of one blend: `data = sum_k operator_k image_k + N(0, 1)`.

    Attributes:
        operator: From model stamps to compressed data.
        data: `(band, rank)`.
        scale: Amplitudes [flux unit].
        law: `k_b = A_b / A_V` of every source.
        tilt: `ln(lambda_rest / 550 nm)` of the bands.
    """

    operator: Float[Array | np.ndarray, "source band rank pixel"]
    data: Float[Array | np.ndarray, "band rank"]
    scale: Float[Array | np.ndarray, " source"]
    law: Float[Array | np.ndarray, "source band"]
    tilt: Float[Array | np.ndarray, "source band"]


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
        examples: Attenuated stamps in flux unit, which set what is kept.
        psf_sigma: Sigma of the model PSF [model pixel].
        rank: Numbers kept per band.
    """
    side, bands = examples.shape[-1], examples.shape[1]
    observation = jax.tree.map(jnp.asarray, observation)
    renderer = Renderer.of(observation, side, jnp.asarray(psf_sigma))
    root = np.sqrt(np.asarray(observation.weight)).reshape(bands, -1)
    unit = np.eye(side * side, dtype=np.float32).reshape(-1, 1, side, side)
    unit = jnp.broadcast_to(jnp.asarray(unit), (side * side, bands, side, side))
    dense = []
    for center in centers:
        image = renderer.render_stamps(unit, jnp.asarray(center))
        dense.append(np.asarray(image).reshape(side * side, bands, -1) * root[None])
    flat = examples.reshape(len(examples), bands, -1)
    operator, projection = [], []
    for b in range(bands):
        seen = np.concatenate([flat[:, b] @ one[:, b] for one in dense])
        vectors = np.linalg.eigh(seen.T @ seen)[1][:, : -rank - 1 : -1]
        projection.append(vectors.T)
        operator.append([(one[:, b] @ vectors).T for one in dense])
    return np.array(operator).swapaxes(0, 1), np.array(projection)


def linearise(
    model: DustModel, likelihood: DustLikelihood, e: Float[Array, "source latent"]
) -> tuple[Float[Array, " datum"], Float[Array, "unknown datum"]]:
    """Prediction of the data and its exact Jacobian, transposed; `unknown = source x latent`."""
    total, jacobian = 0.0, []
    for k, one in enumerate(e):
        field, a = model._field(one), model.attenuation(one)
        tilt, scale = likelihood.tilt[k], likelihood.scale[k]
        law = likelihood.law[k] * jnp.exp(model.slope_sd * one[-1] * tilt)
        through = jnp.exp(-MAGNITUDE * law[:, None] * a[None])
        image = scale * model.intrinsic(one) * through
        dimming = -MAGNITUDE * law[:, None] * image
        slope = jax.nn.sigmoid(field) if model.link == "softplus" else jnp.ones_like(a)
        dust_modes = model.dust_modes * slope[None]
        predicted, columns = [], []
        # Band after band: one large product of matrices each.
        for b, operator in enumerate(likelihood.operator[k]):
            stamps = jnp.concatenate(
                [
                    image[b][None],
                    scale * through[b][None] * model.galaxy_modes[:, b],
                    dimming[b][None] * dust_modes,
                    (dimming[b] * a * (tilt[b] * model.slope_sd))[None],
                ]
            )
            seen = stamps @ operator.T
            predicted.append(seen[0])
            columns.append(seen[1:])
        total = total + jnp.concatenate(predicted)
        jacobian.append(jnp.concatenate(columns, axis=1))
    return total, jnp.concatenate(jacobian)
