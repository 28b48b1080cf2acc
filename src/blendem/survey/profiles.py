"""Images of single sources, drawn by GalSim.

A galaxy is a sum of components of one colour each. A component is drawn once for each PSF
and enters every band with its flux in that band.
"""

from collections.abc import Iterator

import galsim
import numpy as np
import pandas as pd
from jaxtyping import Float

from blendem.survey.instruments import Instrument, moffat
from blendem.survey.population import COMPONENTS
from blendem.survey.sed import BANDS

# Looser than GalSim's defaults: folding_threshold 5e-3, kvalue_accuracy 1e-5 and
# maxk_threshold 1e-3. Against ten times tighter settings the sum of the absolute errors of a
# stamp is 0.04 % of its flux in the median and at most 0.2 % (of 60 galaxies; tested).
GSPARAMS = galsim.GSParams(
    folding_threshold=1e-2,
    maxk_threshold=3e-3,
    kvalue_accuracy=1e-4,
    maximum_fft_size=8192,
)


def component_profiles(
    source, gsparams: galsim.GSParams = GSPARAMS
) -> Iterator[tuple[str, galsim.GSObject]]:
    """Yield the name and the unit-flux profile of each component with flux.

    Args:
        source: A row of a population, as `DataFrame.itertuples` gives it: sizes in arcsec.
        gsparams: Accuracy of GalSim.
    """
    if source.type != "galaxy":
        yield "point", galsim.DeltaFunction(gsparams=gsparams)
        return
    # The shear keeps the area, so half-light radii are circularised.
    tilt = source.beta * galsim.radians
    shear = galsim.Shear(q=source.q_disk, beta=tilt)

    def disk(n: float) -> galsim.GSObject:
        radius = source.hlr_disk
        if n == 1:
            return galsim.Exponential(half_light_radius=radius, gsparams=gsparams)
        return galsim.Sersic(n, half_light_radius=radius, gsparams=gsparams)

    if source.bt_i < 1:
        yield "disk", disk(source.n_disk).shear(shear)
    if source.bt_i > 0:
        bulge = galsim.Sersic(
            source.n_bulge, half_light_radius=source.hlr_bulge, gsparams=gsparams
        )
        yield "bulge", bulge.shear(galsim.Shear(q=source.q_bulge, beta=tilt))
    if source.knots_n > 0:
        knots = galsim.RandomKnots(
            int(source.knots_n),
            half_light_radius=source.hlr_disk,
            # One seed per galaxy: all bands, PSFs and pixel grids see the same knots.
            rng=galsim.BaseDeviate(int(source.knots_seed)),
            gsparams=gsparams,
        )
        yield "knots", knots.shear(shear)


def component_fluxes(
    sources: pd.DataFrame, bands: tuple[str, ...]
) -> dict[str, Float[np.ndarray, "n band"]]:
    """Flux of each component [image unit]; components that a table lacks are left out.

    Raises:
        ValueError: If a band is unknown to the populations.
    """
    if unknown := [band for band in bands if band not in BANDS]:
        raise ValueError(f"no fluxes in bands {unknown}; the populations have {BANDS}.")
    fluxes = {}
    for component in COMPONENTS:
        names = [f"flux_{band}_{component}" for band in bands]
        if set(names) <= set(sources.columns):
            fluxes[component] = sources[names].fillna(0.0).to_numpy(float)
    return fluxes


def _image(profile, psf, size: int, scale: float, **settings) -> np.ndarray:
    both = galsim.Convolve(profile, psf, gsparams=profile.gsparams)
    return both.drawImage(nx=size, ny=size, scale=scale, dtype=float, **settings).array


def draw_models(
    sources: pd.DataFrame,
    bands: tuple[str, ...],
    *,
    stamp: int,
    psf_sigma: float,
    pixel_scale: float,
    gsparams: galsim.GSParams = GSPARAMS,
) -> Float[np.ndarray, "n band stamp stamp"]:
    """Draw the model images of sources, centred on the central pixel, float32.

    Model images are convolved with the Gaussian model PSF and sampled at pixel centres
    (the model PSF is an effective one, see docs/architecture.md).

    Args:
        sources: A population.
        bands: Bands of the images.
        stamp: Side of the stamps [model pixel], odd.
        psf_sigma: Sigma of the model PSF [model pixel].
        pixel_scale: Side of a model pixel [arcsec].
        gsparams: Accuracy of GalSim.

    Raises:
        ValueError: If `stamp` is even or a band is unknown.
    """
    check_odd("stamp", stamp)
    psf = galsim.Gaussian(sigma=psf_sigma * pixel_scale)
    fluxes = component_fluxes(sources, bands)
    images = np.zeros((len(sources), len(bands), stamp, stamp), np.float32)
    for k, source in enumerate(sources.itertuples(index=False)):
        for component, profile in component_profiles(source, gsparams):
            unit = _image(profile, psf, stamp, pixel_scale, method="no_pixel")
            images[k] += fluxes[component][k, :, None, None] * unit
    return images


def draw_observed(
    sources: pd.DataFrame,
    instrument: Instrument,
    position: Float[np.ndarray, "n 2"],
    *,
    size: int,
    gsparams: galsim.GSParams = GSPARAMS,
) -> tuple[Float[np.ndarray, "n band size size"], np.ndarray]:
    """Draw each source alone as the instrument sees it, without noise, float32.

    Args:
        sources: A population.
        instrument: Its pixel scale, PSF and bands.
        position: Centres (y, x) in the field [pixel].
        size: Side of the images [pixel], odd.
        gsparams: Accuracy of GalSim.

    Returns:
        The images, and the integer position (y, x) of each one's first pixel in the field.

    Raises:
        ValueError: If `size` is even.
    """
    check_odd("size", size)
    psfs = [moffat(instrument, band) for band in instrument.bands]
    fluxes = component_fluxes(sources, instrument.bands)
    centre = np.round(position).astype(int)
    images = np.zeros((len(sources), len(psfs), size, size), np.float32)
    for k, source in enumerate(sources.itertuples(index=False)):
        dy, dx = position[k] - centre[k]
        for component, profile in component_profiles(source, gsparams):
            for b, psf in enumerate(psfs):
                unit = _image(
                    profile, psf, size, instrument.pixel_scale, offset=(dx, dy)
                )
                images[k, b] += fluxes[component][k, b] * unit
    return images, centre - size // 2


def check_odd(name: str, side: int) -> None:
    """Raise a ValueError if a side of a stamp is even."""
    if side % 2 == 0:
        raise ValueError(
            f"`{name}` must be odd so that the stamp has a central pixel; got {side}."
            " Add or remove one pixel."
        )
