"""Point sources that appear on galaxies: where, and how bright at what time."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from blendem.survey.instruments import MAGZERO
from blendem.survey.population import with_fluxes
from blendem.survey.sed import BANDS, wavelengths

# A light curve rises and falls as an exponential (the simplest shape with the time scales of a
# type Ia supernova, days of the observer), and reddens as it fades.
RISE, DECLINE = 12.0, 40.0
# Slope of the spectrum at the peak, ln flux over ln wavelength: mean and scatter among transients;
# and its change by the time that the flux has fallen to 1/e.
SLOPE_MEAN, SLOPE_SD, REDDENING = 0.0, 0.7, 0.8
# Distance from the centre of the host, over its half-light radius: of light with an exponential
# profile, cut where hardly any host would be seen.
MOST_RADII = 3.0


class Transients(NamedTuple):
    """Transients of a field. Their bands are not those of an image: no name of an axis binds.

    Attributes:
        host: Row of each host among the sources, `(transient,)`.
        offset: From the centre of the host (y, x) [arcsec], `(transient, 2)`.
        flux: At every epoch, 0 where they are off [image unit at `MAGZERO`], for `sed.BANDS`,
            `(epoch, transient, band)`.
    """

    host: Int[np.ndarray, " _"]
    offset: Float[np.ndarray, "_ 2"]
    flux: Float[np.ndarray, "_ _ _"]

    @property
    def mean(self) -> Float[np.ndarray, "_ _"]:
        """Mean flux over the epochs in which they shine."""
        return self.flux.sum(axis=0) / (self.flux > 0).sum(axis=0)

    def sources(self) -> pd.DataFrame:
        """Rows for a population, of `mean` flux."""
        mag_i = MAGZERO - 2.5 * np.log10(self.mean[:, BANDS.index("i")])
        table = {"type": np.full(len(mag_i), "variable"), "mag_i": mag_i}
        return with_fluxes(table, {"point": self.mean})

    def gain(self, epoch: int, bands: Sequence[str]) -> Float[np.ndarray, "_ _"]:
        """Flux at an epoch over `mean`, `(transient, band)`."""
        index = [BANDS.index(band) for band in bands]
        return self.flux[epoch][:, index] / self.mean[:, index]


class TransientSettings(NamedTuple):
    """Who gets a transient, and when.

    Attributes:
        share: Of the groups of sources that have one.
        mag_range: Brightest and faintest peak [AB, i], uniform.
        times: Of the epochs [day]; the peak is uniform between the first and the last in which
            they shine.
        off: Epochs before all transients: their flux is exactly 0.
    """

    share: float
    mag_range: tuple[float, float]
    times: tuple[float, ...]
    off: tuple[bool, ...]


def draw_transients(
    sources: pd.DataFrame,
    group: Int[np.ndarray, " source"],
    rng: np.random.Generator,
    settings: TransientSettings,
) -> Transients:
    """Draw at most one transient per group of sources, on one of its galaxies.

    Args:
        sources: A population.
        group: Blend of each source; -1: each such galaxy is a group of its own.
        rng: Random generator.
        settings: Who gets one.

    Raises:
        ValueError: If they are off in all epochs.
    """
    times, dark = np.array(settings.times, float), np.array(settings.off, bool)
    if dark.all():
        raise ValueError("transients need an epoch that is no reference.")
    galaxies = np.flatnonzero((sources["type"] == "galaxy").to_numpy())
    group = np.where(
        group < 0, group.max(initial=-1) + 1 + np.arange(len(group)), group
    )
    chosen = [
        rng.choice(galaxies[group[galaxies] == g])
        for g in np.unique(group[galaxies])
        if rng.random() < settings.share
    ]
    host = np.array(chosen, int)
    n = len(host)
    radius = sources["hlr_disk"].to_numpy(float)[host]
    # The light of an exponential disk within r half-light radii, inverted on a grid.
    grid = np.linspace(0, MOST_RADII, 1001)
    inside = 1 - (1 + 1.678 * grid) * np.exp(-1.678 * grid)
    at = np.interp(rng.random(n) * inside[-1], inside, grid)
    angle = 2 * np.pi * rng.random(n)
    offset = (radius * at)[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)

    peak = 10 ** (-0.4 * (rng.uniform(*settings.mag_range, n) - MAGZERO))
    on = times[~dark]
    since = times[:, None] - rng.uniform(on.min(), on.max(), n)
    shape = np.exp(np.where(since < 0, since / RISE, -since / DECLINE))
    wave = wavelengths()
    ln_wave = np.log([wave[b] / wave["i"] for b in BANDS])
    slope = SLOPE_MEAN + SLOPE_SD * rng.standard_normal(n)
    slope = slope + REDDENING * np.clip(since / DECLINE, 0, 2)
    flux = (peak * shape)[..., None] * np.exp(slope[..., None] * ln_wave)
    return Transients(host, offset, np.where(dark[:, None, None], 0.0, flux))
