"""Simulated galaxies behind dust: stamps to learn from, and fields with known attenuation."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float

from blendem.observation import Observation
from blendem.prior.dust import (
    DustPrior,
    attenuation_law,
    dim,
    draw_dust_maps,
    fit_dust_prior,
    fit_galaxy_prior,
    greatest_redshift,
    unit_flux,
)
from blendem.prior.latent import LatentPrior
from blendem.renderer import Renderer
from blendem.survey.instruments import FLUX_WEIGHT, Instrument, seen_by
from blendem.survey.population import draw_galaxies
from blendem.survey.sed import wavelengths
from blendem.survey.simulate import SimulatedField, draw_stamps
from blendem.survey.truth import add_image, blendedness


class DustyGalaxies(NamedTuple):
    """Galaxies and the dust in front of them.

    Attributes:
        galaxy: Stamps without dust [image unit].
        dust: Maps of A_V [mag].
        redshift: Of every galaxy and its dust.
        law, tilt: As `attenuation_law` gives them for the bands of the stamps.
    """

    galaxy: Float[np.ndarray, "n band stamp stamp"]
    dust: Float[np.ndarray, "n stamp stamp"]
    redshift: Float[np.ndarray, " n"]
    law: Float[np.ndarray, "n band"]
    tilt: Float[np.ndarray, "n band"]

    @property
    def dimmed(self) -> Float[np.ndarray, "n band stamp stamp"]:
        """Attenuated stamps [image unit]."""
        return dim(self.galaxy, self.dust, self.law)


def band_wavelengths(bands: tuple[str, ...]) -> Float[np.ndarray, " band"]:
    """Mean wavelengths of bands [nm].

    Raises:
        ValueError: If one is unknown.
    """
    known = wavelengths()
    if unknown := [band for band in bands if band not in known]:
        raise ValueError(
            f"no wavelength of bands {unknown} is known, only of {list(known)}; dust needs"
            " them: leave these bands out"
        )
    return np.array([known[band] for band in bands])


def dust_of(
    galaxies: pd.DataFrame,
    rng: np.random.Generator,
    *,
    stamp: int,
    pixel_scale: float,
    psf_sigma: float,
    aligned: bool,
) -> Float[np.ndarray, "n stamp stamp"]:
    """Maps of A_V [mag] for galaxies of a population.

    Args:
        galaxies: The population.
        rng: Random generator.
        stamp, pixel_scale, psf_sigma: As in `draw_dust_maps`.
        aligned: Whether the dust lies in the disc of its galaxy; else in that of another
            galaxy, so that both are independent, as their priors have it.
    """
    n = len(galaxies)
    other = np.arange(n) if aligned else rng.permutation(n)
    shape = (galaxies[c].to_numpy()[other] for c in ("hlr_disk", "q_disk", "beta"))
    return draw_dust_maps(
        *shape, rng, stamp=stamp, pixel_scale=pixel_scale, psf_sigma=psf_sigma
    )


def draw_dusty_galaxies(
    n: int,
    rng: np.random.Generator,
    instrument: Instrument,
    *,
    stamp: int,
    psf_sigma: float,
    mag_bright: float,
    mag_limit: float,
    population: str = "realistic",
    aligned: bool = False,
) -> DustyGalaxies:
    """Draw galaxies, their dust and its law.

    Args:
        n: How many.
        rng: Random generator.
        instrument: Bands and pixels.
        stamp, psf_sigma: As in `draw_stamps`.
        mag_bright, mag_limit: Of the galaxies without dust [AB, i].
        population: As in `draw_galaxies`.
        aligned: As in `dust_of`.
    """
    table = draw_galaxies(
        n, rng, mag_bright=mag_bright, mag_limit=mag_limit, population=population
    )
    stamps = draw_stamps(table, instrument, stamp=stamp, psf_sigma=psf_sigma)
    dust = dust_of(
        table,
        rng,
        stamp=stamp,
        pixel_scale=instrument.pixel_scale,
        psf_sigma=psf_sigma,
        aligned=aligned,
    )
    wave = band_wavelengths(instrument.bands)
    redshift = _redshifts(table, wave)
    return DustyGalaxies(stamps, dust, redshift, *attenuation_law(wave, redshift))


def fit_priors(
    taught: DustyGalaxies,
    instrument: Instrument,
    *,
    reference: int,
    modes: int,
    dust_modes: int,
    components: int,
    shrink: float,
    psf_sigma: float,
    rng: np.random.Generator,
    link: str = "softplus",
) -> tuple[LatentPrior, DustPrior]:
    """Priors of galaxies and of the dust in front of them, as an instrument sees them.

    Args:
        taught: Galaxies to learn from [image unit].
        instrument: Its seeing and noise decide which modes count.
        reference: Index of the band whose flux weighs galaxies, and whose light weighs maps.
        modes, dust_modes: Numbers of modes.
        components, shrink, link: As in `fit_dust_prior`.
        psf_sigma: Sigma of the model PSF [pixel].
        rng: Generator of the start of the range finders.
    """
    unit = np.float32(unit_flux(instrument.magzero))
    stamps = (taught.galaxy / unit).astype(np.float32)
    flux = stamps[:, reference].sum((-2, -1), dtype=float)
    known = {"pixel_scale": instrument.pixel_scale, "psf_sigma": psf_sigma, "rng": rng}
    metric = seen_by(
        [instrument.name],
        instrument.bands,
        psf_sigma=psf_sigma,
        pixel_scale=instrument.pixel_scale,
        # Stamps are not of unit flux, unlike those of a basis for all amplitudes.
        weight=flux ** (FLUX_WEIGHT - 2),
    )
    mixture = {"components": components, "shrink": shrink}
    galaxy = fit_galaxy_prior(
        stamps, modes, bands=instrument.bands, metric=metric, **known, **mixture
    )
    light = stamps[:, reference].mean(axis=0)
    dust = fit_dust_prior(taught.dust, light, dust_modes, link=link, **known, **mixture)
    return galaxy, dust


def dim_field(
    field: SimulatedField,
    rng: np.random.Generator,
    *,
    psf_sigma: float,
    aligned: bool = False,
) -> tuple[SimulatedField, Float[np.ndarray, "n stamp stamp"]]:
    """Put dust in front of the galaxies of a simulated field.

    What the dust takes from a model image is rendered as the instrument sees it and taken from
    image and truth. The light of a galaxy outside its stamp is not dimmed.

    Args:
        field: On the pixels of its model images, with sky noise alone.
        rng: Random generator.
        psf_sigma: Sigma of the PSF of the model images [pixel].
        aligned: As in `dust_of`.

    Returns:
        The field, with a column `redshift` in its catalog (NaN for stars) and its truth; and
        the maps of A_V [mag], 0 for stars. Fluxes of the truth are those without dust, S/N and
        blendedness those with it. Redshifts beyond the law are lowered to its end.
    """
    stamp, bands = field.model.shape[-1], field.instrument.bands
    galaxy = np.asarray(field.truth["type"]) == "galaxy"
    chosen = np.flatnonzero(galaxy)
    table = field.sources.iloc[chosen]
    maps = np.zeros((len(galaxy), stamp, stamp))
    maps[chosen] = dust_of(
        table,
        rng,
        stamp=stamp,
        pixel_scale=field.instrument.pixel_scale,
        psf_sigma=psf_sigma,
        aligned=aligned,
    )
    wave = band_wavelengths(bands)
    redshift = np.full(len(galaxy), np.nan)
    redshift[chosen] = _redshifts(table, wave)
    law = np.zeros((len(galaxy), len(bands)))
    law[chosen], _ = attenuation_law(wave, redshift[chosen])
    lost = field.model - dim(field.model, maps, law)
    image, observed = field.image.astype(float), field.observed.copy()
    position = np.stack([field.truth["y"], field.truth["x"]], axis=-1)
    render = _renderer(field, psf_sigma)
    for k in chosen:
        seen = np.asarray(render(lost[k], position[k] - field.corner[k]))
        observed[k] -= seen
        add_image(image, -seen, field.corner[k])
    truth, catalog = field.truth.copy(), field.catalog.copy()
    norm = np.sqrt((observed.astype(float) ** 2).sum(axis=(2, 3)))
    blended = blendedness(observed, field.corner)
    for b, band in enumerate(bands):
        truth[f"snr_{band}"] = norm[:, b] / field.instrument.sky_sigma[b]
        truth[f"blendedness_{band}"] = blended[:, b]
    catalog["redshift"] = truth["redshift"] = redshift
    dimmed = replace(
        field,
        image=image.astype(np.float32),
        observed=observed,
        catalog=catalog,
        truth=truth,
    )
    return dimmed, maps


def _redshifts(table, wave):
    """Redshifts of a population, lowered to where the law ends."""
    return np.minimum(table["z"].to_numpy(float), greatest_redshift(wave))


def _renderer(field: SimulatedField, psf_sigma: float):
    """Function from a stamp and its centre in the window to what the instrument sees there."""
    window = np.zeros(field.observed.shape[1:], np.float32)
    observation = Observation(
        image=jnp.asarray(window),
        variance=jnp.asarray(window + 1),
        psf=jnp.asarray(field.psf, jnp.float32),
        jacobian=jnp.eye(2),
        offset=jnp.zeros(2),
        band_index=tuple(range(len(window))),
        same_grid=True,
    )
    renderer = Renderer.of(observation, field.model.shape[-1], jnp.float32(psf_sigma))

    @jax.jit
    def render(image, center):
        return renderer.render_stamps(image, center)

    return lambda x, c: render(jnp.float32(x), jnp.float32(c))
