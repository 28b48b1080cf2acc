"""Light curves of variable sources from their posterior draws."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from astropy.table import Table, vstack
from jaxtyping import Bool, Float

from blendem.inference.statistics import STAR_SPREAD
from blendem.measure.photometry import summarise_samples

COLUMNS = ("flux", "flux_err", "flux_q16", "flux_q84")


class Exposure(NamedTuple):
    """One image of a field: a band of an observation.

    Attributes:
        epoch: Name of the exposure.
        mjd: When it was taken [day]; NaN if unknown.
        band: Name of its band.
    """

    epoch: str
    mjd: float
    band: str


class LightCurve(NamedTuple):
    """Fluxes of one variable source, `(plane,)` or `(draw, plane)`.

    Attributes:
        mean: Posterior mean [flux unit]; 0 where the source is known to be off, NaN where it has
            no data.
        draws: Posterior draws, likewise.
        shines: False where it is known to be off.
    """

    mean: Float[np.ndarray, " plane"]
    draws: Float[np.ndarray, "draw plane"]
    shines: Bool[np.ndarray, " plane"]

    @classmethod
    def of(
        cls,
        scale: Float[np.ndarray, " plane"],
        shines: Bool[np.ndarray, " plane"],
        mean: Float[np.ndarray, " mode"],
        draws: Float[np.ndarray, "draw mode"],
    ) -> "LightCurve":
        """From coordinates, whose unit is `amplitude.plane_scale` (0: off, or without data)."""
        scale = np.asarray(scale, float)
        unit = np.where(shines & (scale == 0), np.nan, scale)
        n, off = len(unit), unit == 0
        fluxes = (np.where(off, 0.0, unit * z[..., :n]) for z in (mean, draws))
        return cls(*fluxes, np.asarray(shines))

    @property
    def error(self) -> Float[np.ndarray, " plane"]:
        """Standard deviation of the draws [flux unit]."""
        return self.draws.std(axis=0, ddof=1)

    def band_means(
        self, planes: Sequence[Exposure], bands: Sequence[str]
    ) -> tuple[Float[np.ndarray, " band"], Float[np.ndarray, "draw band"]]:
        """Posterior mean and draws of the mean flux of each band while the source shines.

        Only images with data count; NaN in bands that have none.
        """
        names = np.array([plane.band for plane in planes])
        used = self.shines & np.isfinite(self.mean)
        share = np.stack([used & (names == band) for band in bands]).astype(float)
        count = share.sum(axis=1)
        share /= np.where(count > 0, count, np.nan)[:, None]
        both = np.nan_to_num(np.concatenate([self.mean[None], self.draws]))
        means = both @ share.T
        return means[0], means[1:]

    def table(self, number: int, planes: Sequence[Exposure]) -> Table:
        """Rows of the HDU LIGHTCURVES (docs/formats.md) of the source with this id."""
        summary = summarise_samples(self.draws)
        values = (self.mean, *(summary[k] for k in ("std", "q16", "q84")))
        fluxes = dict(zip(COLUMNS, values, strict=True))
        return fluxes_table(number, planes, fluxes, self.shines)


def fluxes_table(
    number: int,
    planes: Sequence[Exposure],
    fluxes: Mapping[str, Float[np.ndarray, " plane"]],
    shines: Bool[np.ndarray, " plane"],
) -> Table:
    """Rows of the HDU LIGHTCURVES of one source, with these columns of fluxes."""
    fixed = {
        "id": np.full(len(planes), number),
        "epoch": [plane.epoch for plane in planes],
        "mjd": [plane.mjd for plane in planes],
        "band": [plane.band for plane in planes],
    }
    return Table(fixed | dict(fluxes) | {"shines": shines})


def as_star(
    scale: float, fluxes: Float[np.ndarray, "*draw band"], n_modes: int
) -> Float[np.ndarray, "*draw mode"]:
    """Coordinates of the constant star of amplitude `scale` with these fluxes.

    What only knows sources of one flux per band reads a variable source so. NaN becomes 0.
    """
    z = np.zeros((*fluxes.shape[:-1], n_modes))
    z[..., : fluxes.shape[-1]] = (np.nan_to_num(fluxes) / scale - 1) / STAR_SPREAD
    return z


def stacked(tables: Sequence[Table]) -> Table | None:
    """All light curves of a field as one table; None if there are none."""
    return vstack(list(tables), metadata_conflicts="silent") if tables else None
