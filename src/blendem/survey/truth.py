"""What is known of the sources of a simulated field."""

import galsim
import numpy as np
import pandas as pd
from astropy.table import Table
from jaxtyping import Float, Int

from blendem.survey.instruments import Instrument
from blendem.survey.population import total_flux

# Parameters of the population that are copied into the truth.
PARAMETERS = [
    "mag_i",
    "z",
    "hlr_disk",
    "hlr_bulge",
    "n_disk",
    "n_bulge",
    "q_disk",
    "q_bulge",
    "beta",
    "bt_i",
    "knots_n",
    "knots_frac",
]
_UNITS = {"hlr_disk": "arcsec", "hlr_bulge": "arcsec", "beta": "rad", "mag_i": "mag"}


def add_image(
    canvas: Float[np.ndarray, "_ _ _"],
    image: Float[np.ndarray, "_ _ _"],
    corner: Int[np.ndarray, " 2"],
) -> None:
    """Add an image that begins at `corner` (y, x) to `canvas` in place, clipped at its edges.

    Both are `(band, height, width)`; the corner may be negative or lie outside.
    """
    start = np.maximum(corner, 0)
    stop = np.maximum(np.minimum(corner + image.shape[1:], canvas.shape[1:]), start)
    both = list(zip(start, stop, corner, strict=True))
    here = tuple(slice(a, b) for a, b, _ in both)
    there = tuple(slice(a - c, b - c) for a, b, c in both)
    canvas[:, *here] += image[:, *there]


def blendedness(
    observed: Float[np.ndarray, "n band side side"], corner: Int[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n band"]:
    """Blendedness 1 - <t_k, t_k> / <t_k, sum_j t_j> of every source in every band.

    `t_k` is the noise-free PSF-convolved image of source k alone, over all of its stamp,
    also where that sticks out of the field. 0: isolated; near 1: outshone.

    References:
        Bosch et al. 2018, PASJ 70, S5; Biswas et al. 2025 (MADNESS).
    """
    n, n_bands, side, _ = observed.shape
    if n == 0:
        return np.zeros((0, n_bands))
    shifted = corner - corner.min(axis=0)
    canvas = np.zeros((n_bands, *(shifted.max(axis=0) + side)))
    for image, where in zip(observed, shifted, strict=True):
        add_image(canvas, image, where)
    result = np.zeros((n, n_bands))
    for k, (y, x) in enumerate(shifted):
        image = observed[k].astype(float)
        total = canvas[:, y : y + side, x : x + side]
        alone = np.sum(image**2, axis=(1, 2))
        result[k] = 1 - alone / np.sum(image * total, axis=(1, 2))
    return result


def half_light_radius(
    image: Float[np.ndarray, "side side"], pixel_scale: float
) -> float:
    """Circular radius around the central pixel that holds half the stamp's flux [arcsec].

    Whole pixels are added in order of radius, each giving its light evenly between the
    radii that enclose the area before and after it.
    """
    side = image.shape[-1]
    axis = np.arange(side) - side // 2
    order = np.argsort(
        axis[:, None] ** 2 + axis[None, :] ** 2, axis=None, kind="stable"
    )
    growth = np.concatenate([[0.0], np.cumsum(image.ravel()[order], dtype=float)])
    half = growth[-1] / 2
    k = int(np.argmax(growth >= half))
    pixels = k - 1 + (half - growth[k - 1]) / (growth[k] - growth[k - 1])
    return float(np.sqrt(pixels / np.pi) * pixel_scale)


def _ellipticity(image: np.ndarray) -> tuple[float, float]:
    """HSM distortion (e1, e2); NaN where the adaptive moments do not converge."""
    moments = galsim.hsm.FindAdaptiveMom(
        galsim.Image(np.ascontiguousarray(image, float)), strict=False
    )
    if moments.moments_status != 0:
        return np.nan, np.nan
    return moments.observed_e1, moments.observed_e2


def truth_table(
    catalog: Table,
    sources: pd.DataFrame,
    instrument: Instrument,
    model: Float[np.ndarray, "n band stamp stamp"],
    observed: Float[np.ndarray, "n band side side"],
    corner: Int[np.ndarray, "n 2"],
    *,
    model_bands: tuple[str, ...],
    model_scale: float,
) -> Table:
    """Collect what is known of each source.

    Columns: those of `catalog`; the parameters of the population (NaN for stars); and, with
    blendedness and S/N of NaN in bands that the instrument has not,

    - `flux_<band>`: total flux, to infinity [image unit];
    - `flux_model_<band>`: flux inside the model image;
    - `stamp_fraction`: flux inside the model image over the total, all bands together;
    - `blendedness_<band>`: see `blendedness`;
    - `snr_<band>`: S/N of the noise-weighted flux of the source were it alone,
      sqrt(sum t^2) / sigma of the sky;
    - `hlr` [arcsec], `e1`, `e2`: half-light radius and HSM distortion of the model image
      in the instrument's reference band.
    """
    truth = catalog.copy()
    for name in PARAMETERS:
        if name in sources:
            truth[name] = sources[name].to_numpy(float)
            truth[name].unit = _UNITS.get(name)
    blended = blendedness(observed, corner)
    total, inside = np.zeros(len(truth)), np.zeros(len(truth))
    for b, band in enumerate(model_bands):
        flux = total_flux(sources, band)
        flux_model = model[:, b].sum(axis=(1, 2), dtype=float)
        total, inside = total + flux, inside + flux_model
        truth[f"flux_{band}"] = flux
        truth[f"flux_model_{band}"] = flux_model
    for band in model_bands:
        truth[f"blendedness_{band}"] = truth[f"snr_{band}"] = np.nan
    for b, band in enumerate(instrument.bands):
        truth[f"blendedness_{band}"] = blended[:, b]
        norm = np.sqrt(np.sum(observed[:, b].astype(float) ** 2, axis=(1, 2)))
        truth[f"snr_{band}"] = norm / instrument.sky_sigma[b]
    truth["stamp_fraction"] = inside / total
    reference = model[:, model_bands.index(instrument.reference_band)]
    truth["hlr"] = [half_light_radius(x, model_scale) for x in reference]
    truth["hlr"].unit = "arcsec"
    shapes = np.array([_ellipticity(x) for x in reference], float).reshape(-1, 2)
    truth["e1"], truth["e2"] = shapes.T
    return truth
