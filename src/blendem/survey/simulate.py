"""Simulated stamps and fields with known truth."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from astropy.table import Table
from astropy.wcs import WCS
from jaxtyping import Float, Int

from blendem.noise import draw_noise
from blendem.survey.instruments import Instrument, effective_psf
from blendem.survey.layout import blend_positions, scatter_positions, tangent_wcs
from blendem.survey.population import (
    draw_galaxies,
    draw_stars,
    galaxy_density,
)
from blendem.survey.profiles import check_odd, draw_models, draw_observed
from blendem.survey.transients import (
    Transients,
    TransientSettings,
    draw_transients,
)
from blendem.survey.truth import add_image, truth_table

# Faintest and brightest magnitudes of simulated galaxies and stars, AB in i. Brighter ones
# saturate HSC (17.5 to 18.5: Aihara et al. 2022) and outgrow every stamp.
MAG_BRIGHT, STAR_LIMIT = 18.0, 24.0
# COSMOS, where HSC, HST and the LSST deep fields overlap (Scoville et al. 2007).
COSMOS = (150.11917, 2.20583)
MODES = ("scatter", "blends")
EDGE = 1e-3  # catalog positions stay as far inside of the image [pixel]


@dataclass(frozen=True)
class SimulatedImage:
    """Another observation of a simulated field.

    Attributes:
        instrument: What observes it.
        image, variance, psf, wcs: As in `SimulatedField`.
    """

    instrument: Instrument
    image: Float[np.ndarray, "band height width"]
    variance: Float[np.ndarray, "band height width"]
    psf: Float[np.ndarray, "band size size"]
    wcs: WCS


@dataclass(frozen=True)
class SimulatedField:
    """A simulated field and its truth.

    Attributes:
        instrument: What observes it.
        image: Noisy image [image unit at `magzero`], `(band, height, width)` float32.
        variance: Variance of each pixel's noise, same shape.
        psf: Effective PSF of sum 1 per band, `(band, size, size)` float32.
        wcs: Tangent-plane WCS of `(height, width)`.
        magzero: AB magnitude of one unit of flux.
        catalog: What a user would give: `id, x, y, ra, dec, type`, and `blend` (the tile,
            or -1 in mode "scatter").
        truth: Everything known of each source: `blendem.survey.truth.truth_table`.
        model: True model images, `(n, band, stamp, stamp)` float32.
        observed: Noise-free image of each source alone, `(n, band, size, size)` float32.
        corner: Position (y, x) in the field of each `observed[k]`'s first pixel, `(n, 2)`;
            it may be negative and the stamp may stick out of the field.
        sources: The population, in the order of the catalog.
        transients: The last of them, or None. In `truth`, `model`, `observed` and `sources` they
            have their mean flux, in `image` that of epoch 0.
    """

    instrument: Instrument
    image: Float[np.ndarray, "band height width"]
    variance: Float[np.ndarray, "band height width"]
    psf: Float[np.ndarray, "band size size"]
    wcs: WCS
    magzero: float
    catalog: Table
    truth: Table
    model: Float[np.ndarray, "n band stamp stamp"]
    observed: Float[np.ndarray, "n band side side"]
    corner: Int[np.ndarray, "n 2"]
    sources: pd.DataFrame
    transients: Transients | None = None

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in order."""
        return self.instrument.bands


def draw_stamps(
    galaxies: pd.DataFrame,
    instrument: Instrument,
    *,
    stamp: int,
    psf_sigma: float,
    pixel_scale: float | None = None,
    bands: tuple[str, ...] | None = None,
) -> Float[np.ndarray, "n band stamp stamp"]:
    """Draw noise-free model images, in image units at the instrument's zero point.

    Nothing random is left: the knots of a galaxy come from its own seed.

    Args:
        galaxies: A population.
        instrument: Bands and pixel scale.
        stamp: Side of the stamps [model pixel], odd.
        psf_sigma: Sigma of the Gaussian model PSF [model pixel].
        pixel_scale: Side of a model pixel [arcsec]; None: the instrument's.
        bands: Bands of the model; None: the instrument's.

    Raises:
        ValueError: If `stamp` is even or a band is unknown.
    """
    return draw_models(
        galaxies,
        instrument.bands if bands is None else bands,
        stamp=stamp,
        psf_sigma=psf_sigma,
        pixel_scale=instrument.pixel_scale if pixel_scale is None else pixel_scale,
    )


def simulate_field(
    instrument: Instrument,
    shape: tuple[int, int],
    *,
    rng: np.random.Generator,
    mode: str = "scatter",
    density: float = 1.0,
    n_blends: int = 16,
    mag_limit: float = 25.0,
    mag_bright: float = MAG_BRIGHT,
    star_density: float = 2.0,
    population: str = "realistic",
    stamp: int = 49,
    psf_sigma: float = 0.7,
    psf_size: int = 41,
    observed_size: int | None = None,
    electrons: float | None = None,
    center: tuple[float, float] = COSMOS,
    centroid_error: float = 0.0,
    undetected_limit: float | None = None,
    model_scale: float | None = None,
    model_bands: tuple[str, ...] | None = None,
    transients: TransientSettings | None = None,
) -> SimulatedField:
    """Simulate a field: sources, their truth, and a noisy image.

    The image is the sum of `observed`, clipped at the field's edges, plus Gaussian noise.
    No source lies outside the field, so its edges are emptier than the real sky.

    Args:
        instrument: Bands, pixels, seeing and noise; see `INSTRUMENTS`.
        shape: Height and width [pixel].
        rng: Random generator; its children draw numbers, positions, sources and noise, so
            that noise does not depend on the sources, nor galaxies on the stars.
        mode: "scatter": uniform positions, a Poisson number of sources. "blends":
            `n_blends` blends of 2 to 6 sources on a grid of tiles.
        density: Multiplies the real surface density of galaxies (mode "scatter").
        n_blends: Number of blends (mode "blends").
        mag_limit: Faintest galaxy [AB, i].
        mag_bright: Brightest galaxy and star [AB, i].
        star_density: Stars of `mag_bright` < i < 24 per arcmin^2; in mode "blends" it sets the share
            of the sources that are stars.
        population: "realistic" or "wrong", see `draw_galaxies`.
        stamp: Side of the model images [pixel], odd.
        psf_sigma: Sigma of the Gaussian model PSF [pixel].
        psf_size: Side of the PSF images [pixel], odd.
        observed_size: Side of the `observed` images [pixel], odd; light beyond is lost.
            None: `stamp + psf_size - 1`.
        electrons: Electrons per image unit; adds the photon noise of the sources to
            image and variance. None: sky noise only.
        center: Right ascension and declination of the centre [deg].
        centroid_error: Standard deviation of the catalog positions about the truth, along
            each axis [pixel].
        undetected_limit: Galaxies between `mag_limit` and this magnitude are in the image,
            uniformly placed with their real density, and neither in the catalog nor in the
            truth. None: there are none.
        model_scale, model_bands: Pixel [arcsec] and bands of the model images; None: those of the
            instrument.
        transients: Point sources on the galaxies; this image is epoch 0. They do not change the
            other sources, nor the noise.

    Raises:
        ValueError: If a setting cannot be used; the message names it.
    """
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {MODES}; got {mode!r}.")
    if observed_size is None:
        observed_size = stamp + psf_size - 1
    check_odd("stamp", stamp)
    check_odd("observed_size", observed_size)
    number, place, galaxy, star, mix, noise, centroid = rng.spawn(7)
    area = np.prod(shape) * (instrument.pixel_scale / 60) ** 2
    galaxies_expected = (
        galaxy_density(mag_limit, mag_bright=mag_bright) * area * density
    )
    stars_expected = star_density * area
    if mode == "scatter":
        counts = number.poisson([galaxies_expected, stars_expected])
        n_galaxies, n_stars = counts.tolist()
        position = scatter_positions(n_galaxies + n_stars, shape, place)
        blend = np.full(len(position), -1)
        is_star = np.arange(len(position)) >= n_galaxies
    else:
        position, blend = blend_positions(n_blends, shape, place)
        share = stars_expected / (stars_expected + galaxies_expected)
        is_star = mix.random(len(position)) < share
    sources = _sources(is_star, galaxy, star, (mag_bright, mag_limit), population)
    drawn = None
    if transients is not None:
        (changing,) = rng.spawn(1)
        drawn = draw_transients(sources, blend, changing, transients)
        there = position[drawn.host] + drawn.offset / instrument.pixel_scale
        position = np.concatenate([position, there])
        blend = np.concatenate([blend, blend[drawn.host]])
        sources = pd.concat([sources, drawn.sources()], ignore_index=True)

    model_bands = instrument.bands if model_bands is None else model_bands
    model_scale = instrument.pixel_scale if model_scale is None else model_scale
    model = draw_stamps(
        sources,
        instrument,
        stamp=stamp,
        psf_sigma=psf_sigma,
        pixel_scale=model_scale,
        bands=model_bands,
    )
    observed, corner = draw_observed(sources, instrument, position, size=observed_size)
    expected = _total(observed, corner, shape, drawn, 0, instrument.bands)
    if undetected_limit is not None:
        (faint,) = rng.spawn(1)
        limits = (mag_limit, undetected_limit)
        _add_undetected(
            expected, instrument, limits, density, population, observed_size, faint
        )
    image, variance = _expose(expected, instrument, electrons, noise)

    wcs = tangent_wcs(shape, instrument.pixel_scale, center)
    ra, dec = wcs.pixel_to_world_values(position[:, 1], position[:, 0])
    catalog = Table(
        {
            "id": np.arange(len(sources)),
            "x": position[:, 1],
            "y": position[:, 0],
            "ra": np.asarray(ra, float),
            "dec": np.asarray(dec, float),
            "type": sources["type"].to_numpy(str),
            "blend": blend,
        },
        units={"x": "pix", "y": "pix", "ra": "deg", "dec": "deg"},
    )
    # The truth keeps the true positions; what users know is the catalog.
    truth = truth_table(
        catalog,
        sources,
        instrument,
        model,
        observed,
        corner,
        model_bands=model_bands,
        model_scale=model_scale,
    )
    if centroid_error > 0:
        given = position + centroid_error * centroid.standard_normal(position.shape)
        # A catalog of the image has no source beyond its edge.
        given = np.clip(given, EDGE - 0.5, np.array(shape) - 0.5 - EDGE)
        ra, dec = wcs.pixel_to_world_values(given[:, 1], given[:, 0])
        catalog["x"], catalog["y"] = given[:, 1], given[:, 0]
        catalog["ra"], catalog["dec"] = np.asarray(ra), np.asarray(dec)
    return SimulatedField(
        instrument=instrument,
        image=image.astype(np.float32),
        variance=variance.astype(np.float32),
        psf=effective_psf(instrument, psf_size).astype(np.float32),
        wcs=wcs,
        magzero=instrument.magzero,
        catalog=catalog,
        truth=truth,
        model=model,
        observed=observed,
        corner=corner,
        sources=sources,
        transients=drawn,
    )


def observe_again(
    field: SimulatedField,
    instrument: Instrument,
    *,
    rng: np.random.Generator,
    psf_size: int = 41,
    observed_size: int = 137,
    offset: tuple[float, float] = (0.0, 0.0),
    correlation: Float[np.ndarray, "lag lag"] | None = None,
    epoch: int = 0,
    shift: tuple[float, float] = (0.0, 0.0),
    rotation: float = 0.0,
) -> SimulatedImage:
    """Observe the sources of a field with another instrument, or once more with the same.

    Args:
        field: The field.
        instrument: What observes it now; its image covers the same sky.
        rng: Of the noise.
        psf_size: Side of the PSF images [pixel], odd.
        observed_size: Side of the image of a source [pixel], odd; light beyond is lost.
        offset: Error (y, x) of the WCS of the new image [arcsec].
        correlation: Of the noise; None: pixels are independent.
        epoch: At which transients are seen.
        shift, rotation: Of the camera, see `tangent_wcs`.
    """
    zoom = field.instrument.pixel_scale / instrument.pixel_scale
    shape = tuple(int(np.ceil(n * zoom)) for n in field.image.shape[1:])
    wcs = tangent_wcs(
        shape,
        instrument.pixel_scale,
        tuple(field.wcs.wcs.crval),
        shift=shift,
        rotation=rotation,
    )
    y, x = field.truth["y"], field.truth["x"]
    there = wcs.world_to_pixel(field.wcs.pixel_to_world(x, y))[::-1]
    position = np.stack(there, axis=-1) + np.array(offset) / instrument.pixel_scale
    observed, corner = draw_observed(
        field.sources, instrument, position, size=observed_size
    )
    expected = _total(
        observed, corner, shape, field.transients, epoch, instrument.bands
    )
    image, variance = _expose(expected, instrument, None, rng, correlation)
    return SimulatedImage(
        instrument=instrument,
        image=image.astype(np.float32),
        variance=variance.astype(np.float32),
        psf=effective_psf(instrument, psf_size).astype(np.float32),
        wcs=wcs,
    )


def _total(
    observed: np.ndarray,
    corner: np.ndarray,
    shape: tuple[int, int],
    transients: Transients | None,
    epoch: int,
    bands: tuple[str, ...],
) -> Float[np.ndarray, "band height width"]:
    """Sum of all sources at an epoch, without noise."""
    gain = np.ones(observed.shape[:2])
    if transients is not None and len(transients.host):
        gain[-len(transients.host) :] = transients.gain(epoch, bands)
    total = np.zeros((len(bands), *shape))
    for k in range(len(observed)):
        add_image(total, gain[k][:, None, None] * observed[k], corner[k])
    return total


def _sources(
    is_star: np.ndarray,
    galaxy_rng: np.random.Generator,
    star_rng: np.random.Generator,
    mag_range: tuple[float, float],
    population: str,
) -> pd.DataFrame:
    """Galaxies and stars in the order of `is_star`."""
    n_stars = int(is_star.sum())
    galaxies = draw_galaxies(
        len(is_star) - n_stars,
        galaxy_rng,
        mag_limit=mag_range[1],
        mag_bright=mag_range[0],
        population=population,
    )
    stars = draw_stars(n_stars, star_rng, mag_limit=STAR_LIMIT, mag_bright=mag_range[0])
    galaxies.index, stars.index = np.flatnonzero(~is_star), np.flatnonzero(is_star)
    return pd.concat([galaxies, stars]).sort_index()


def _add_undetected(
    expected, instrument, limits, density, population, size, rng
) -> None:
    """Add the light of galaxies that no catalog has."""
    bright, faint = limits
    if not faint > bright:
        raise ValueError(
            f"`undetected_limit` must be fainter than `mag_limit` = {bright}; got {faint}."
        )
    shape = expected.shape[1:]
    area = np.prod(shape) * (instrument.pixel_scale / 60) ** 2
    number, place, galaxy = rng.spawn(3)
    expectation = galaxy_density(faint, mag_bright=bright) * area * density
    n = int(number.poisson(expectation))
    galaxies = draw_galaxies(
        n, galaxy, mag_limit=faint, mag_bright=bright, population=population
    )
    position = scatter_positions(n, shape, place)
    observed, corner = draw_observed(galaxies, instrument, position, size=size)
    for k in range(n):
        add_image(expected, observed[k], corner[k])


def _expose(
    expected: np.ndarray,
    instrument: Instrument,
    electrons: float | None,
    rng: np.random.Generator,
    correlation: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Add noise; return image and variance."""
    sigma = np.asarray(instrument.sky_sigma)[:, None, None]
    variance = np.broadcast_to(sigma**2, expected.shape).copy()
    if correlation is None:
        noise = rng.standard_normal(expected.shape)
    else:
        noise = np.stack(
            [draw_noise(correlation, expected.shape[1:], rng) for _ in expected]
        )
    image = expected + sigma * noise
    if electrons is not None:
        if not electrons > 0:
            raise ValueError(f"`electrons` must be positive; got {electrons}.")
        # GalSim's FFT leaves tiny negative values, which have no photon noise.
        counts = np.maximum(expected, 0) * electrons
        image += (rng.poisson(counts) - counts) / electrons
        variance += counts / electrons**2
    return image, variance
