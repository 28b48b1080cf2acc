"""Flux per band of a component."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from blendem.morphology import as_float


class Spectrum(eqx.Module):
    """Flux of a component in each model band.

    Attributes:
        flux: Flux [flux unit of the images], shape `(band,)`, in the order of
            `Frame.bands`.

    Raises:
        ValueError: If `flux` has no band axis.
    """

    flux: Float[Array, " band"] = eqx.field(converter=as_float)

    def __check_init__(self):
        if self.flux.ndim == 0:
            raise ValueError(
                "`flux` must have one value per band; got a single number. Give a list of"
                " one value for one band."
            )

    @classmethod
    def from_magnitudes(
        cls, magnitude: Float[Array, " band"], magzero: Float[Array, ""]
    ) -> "Spectrum":
        """Spectrum of AB magnitudes, mag = magzero - 2.5 log10(flux)."""
        return cls(10 ** (0.4 * (magzero - as_float(magnitude))))

    @property
    def colours(self) -> Float[Array, " colour"]:
        """Colours of neighbouring bands [mag], first minus second, `(band - 1,)`."""
        return -2.5 * jnp.log10(self.flux[:-1] / self.flux[1:])
