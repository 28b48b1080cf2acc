"""Colours of galaxies and stars in the bands of all instruments."""

from functools import lru_cache

import galsim
import numpy as np
from jaxtyping import Float

# GalSim ships the LSST filters, which stand in for the HSC ones: the pivot wavelengths of
# g, r, i, z, y differ by less than 3 % (Kawanomoto et al. 2018, PASJ 70, 66).
FILTERS = {band: f"LSST_{band}.dat" for band in "ugrizy"} | {
    "f814w": "ACS_wfc_F814W.dat"
}
BANDS = tuple(FILTERS)
# Coleman, Wu & Weedman 1980, ApJS 43, 393, extended to the UV and the infrared; ordered
# from old to young, so that a fractional type interpolates between neighbours.
TEMPLATES = ("E", "Sbc", "Scd", "Im")
Z_MAX = 4.0
_REDSHIFTS = np.linspace(0.0, Z_MAX, 161)

# Median stellar locus against g-i (Covey et al. 2007, AJ 134, 2398, main sequence),
# rounded to 0.05 mag; z-y is 0.45 (i-z) (Tonry et al. 2012, ApJ 750, 99, rounded).
_LOCUS_GI = np.array([0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 3.4])
_LOCUS = {
    ("u", "g"): np.array([1.0, 1.1, 1.55, 2.2, 2.55, 2.6, 2.55, 2.5]),
    ("r", "i"): np.array([0.05, 0.15, 0.25, 0.40, 0.65, 1.05, 1.55, 1.90]),
    ("i", "z"): np.array([-0.05, 0.05, 0.15, 0.20, 0.35, 0.60, 0.85, 1.05]),
}
_LOCUS_ZY = 0.45


@lru_cache(maxsize=1)
def _bandpasses() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Wavelength [nm] and throughput of each filter."""
    curves = {}
    for band, name in FILTERS.items():
        bandpass = galsim.Bandpass(name, wave_type="nm")
        # The templates are tabulated every 4 nm in the median; coarser steps than 1 nm move g by
        # 0.04 mag where an emission line enters it.
        wave = np.arange(bandpass.blue_limit, bandpass.red_limit, 1.0)
        curves[band] = (wave, bandpass(wave))
    return curves


@lru_cache(maxsize=1)
def wavelengths() -> dict[str, float]:
    """Photon-weighted mean wavelength of each band [nm]."""
    return {
        band: float(np.trapezoid(wave * t, wave) / np.trapezoid(t, wave))
        for band, (wave, t) in _bandpasses().items()
    }


@lru_cache(maxsize=1)
def colour_grid() -> Float[np.ndarray, "band template redshift"]:
    """ln of the flux in each band over the i-band flux, on a grid of redshifts.

    AB fluxes: photons of the source over photons of a flat f_nu. Neither dust nor the
    absorption by intergalactic hydrogen is included: u is too bright beyond z = 2 and g
    beyond z = 3 (Madau 1995, ApJ 441, 18), a few per cent of a sample limited at i = 25.
    """
    grid = np.empty((len(BANDS), len(TEMPLATES), len(_REDSHIFTS)))
    for j, template in enumerate(TEMPLATES):
        sed = galsim.SED(
            f"CWW_{template}_ext.sed", wave_type="Ang", flux_type="flambda"
        )
        for i, (wave, throughput) in enumerate(_bandpasses().values()):
            # Photons per wavelength: the (1 + z) factors are common to all bands.
            rest = wave / (1 + _REDSHIFTS[:, None])
            photons = sed(rest.ravel()).reshape(rest.shape)
            flux = np.trapezoid(photons * throughput, wave, axis=-1)
            grid[i, j] = np.log(flux / np.trapezoid(throughput / wave, wave))
    return grid - grid[BANDS.index("i")]


def galaxy_colours(
    template: Float[np.ndarray, " n"], z: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n band"]:
    """Flux in each of `BANDS` over the i-band flux.

    Args:
        template: Spectral type, 0 (E) to 3 (Im); fractions interpolate ln flux.
        z: Redshift; values above `Z_MAX` take the colours of `Z_MAX`.
    """
    grid = colour_grid()
    template = np.clip(template, 0, len(TEMPLATES) - 1)
    z = np.clip(z, 0, Z_MAX) / _REDSHIFTS[1]
    j = np.minimum(template.astype(int), len(TEMPLATES) - 2)
    k = np.minimum(z.astype(int), len(_REDSHIFTS) - 2)
    u, v = template - j, z - k
    ln_flux = (1 - u) * ((1 - v) * grid[:, j, k] + v * grid[:, j, k + 1]) + u * (
        (1 - v) * grid[:, j + 1, k] + v * grid[:, j + 1, k + 1]
    )
    return np.exp(ln_flux).T


def star_colours(g_i: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n band"]:
    """Flux in each of `BANDS` over the i-band flux, on the stellar locus at colour g-i.

    F814W lies between i and z and is interpolated in wavelength.
    """
    colour = {pair: np.interp(g_i, _LOCUS_GI, value) for pair, value in _LOCUS.items()}
    wave = wavelengths()
    share = (wave["f814w"] - wave["i"]) / (wave["z"] - wave["i"])
    mag = {"i": np.zeros_like(g_i), "g": g_i, "r": colour["r", "i"]}
    mag["u"] = g_i + colour["u", "g"]
    mag["z"] = -colour["i", "z"]
    mag["y"] = mag["z"] - _LOCUS_ZY * colour["i", "z"]
    mag["f814w"] = share * mag["z"]
    return np.stack([10 ** (-0.4 * mag[band]) for band in BANDS], axis=1)
