"""What the sky holds: galaxies and stars, as tables of parameters.

Every source is a row of uniform numbers turned into parameters by inverse cumulative
distributions, so row k is the same however many rows are drawn after it.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import betaincinv, gammaincinv, ndtri

from blendem.survey.instruments import MAGZERO
from blendem.survey.sed import BANDS, galaxy_colours, star_colours, wavelengths

COMPONENTS = ("disk", "bulge", "knots", "point")
POPULATIONS = ("realistic", "wrong", "broad")

# N(<i) = 46 10^(0.31 (i - 25)) per arcmin^2: LSST Science Book (arXiv:0912.0201), sec. 3.7.2.
COUNTS_AT_25, COUNTS_SLOPE = 46.0, 0.31
# Circularised half-light radius [arcsec]: ln r = ln(0.30) - 0.26 (i - 23), scatter 0.40. Our
# fit to the 100 COSMOS Sersic fits that GalSim ships as an example (i < 22.5; median
# 0.44" at 21.5) and to 65 COSMOS stamps of BlendingToolKit (medians 0.29" at 23.3, 0.20" at
# 24.5, 0.17" at 25.7); scatter 0.42 and 0.30-0.44. Leauthaud et al. 2007 for the data.
LN_SIZE_AT_23, LN_SIZE_SLOPE, LN_SIZE_SCATTER = np.log(0.30), -0.26, 0.40
# More scatter of ln(size) and of the slope of ln(flux) in ln(wavelength) in the broad
# population, which covers galaxies up to `BROAD_SIZE` times as large as evenly as real ones.
BROAD, BROAD_SIZE = 0.4, 1.5
# Axis ratio of disks: uniform; the COSMOS fits above have the 5/16/50/84/95 % points
# 0.25 0.35 0.56 0.84 0.90, these limits give 0.26 0.33 0.57 0.81 0.89.
Q_DISK = (0.22, 0.92)
# Bulges are rounder: a mean of 0.7, that of ellipticals (Padilla & Strauss 2008, MNRAS 388,
# 1321); a uniform distribution is our choice.
Q_BULGE = (0.45, 0.95)
# Shares of: one Sersic profile; bulge and disk; bulge-dominated. Of the COSMOS fits above,
# 64 % are better described by one profile; 10 % early types is typical of i < 25.
KINDS = (0.60, 0.30, 0.10)
# Sersic index of single profiles: log-normal clipped to 0.5-4; 16/50/84 % of the COSMOS
# fits 0.73 1.4 4.4, where the upper end is mostly the bulge-dominated third kind here.
LN_N_MEDIAN, LN_N_SCATTER, N_RANGE = np.log(1.3), 0.6, (0.5, 4.0)
# Bulge-to-total ratio in i of disk galaxies: Beta(0.8, 2.4), mean 0.25, as the mean of
# the COSMOS de Vaucouleurs fractions above; bulge-dominated: uniform in (our choice)
BT_BETA, BT_EARLY = (0.8, 2.4), (0.6, 1.0)
# Bulge index: pseudo-bulges to de Vaucouleurs (Fisher & Drory 2008, AJ 136, 773).
N_BULGE = (2.5, 4.0)
# Size of the bulge over that of the disk: median 0.5, scatter 0.3 in ln (our choice,
# resolved bulges of Simard et al. 2011, ApJS 196, 11, are 0.2-0.8 of their disks).
LN_BULGE_SIZE, LN_BULGE_SCATTER = np.log(0.5), 0.3
# Star-forming knots: half of the disks have 1 to 10 of them, with 5-30 % of the disk's
# i flux; our choice, close to LSST DESC's DC2 (2021, ApJS 253, 31).
KNOTS_SHARE, KNOTS_MAX, KNOTS_FLUX = 0.5, 10, (0.05, 0.30)
# Spectral type of disks (0 E, 1 Sbc, 2 Scd, 3 Im): mean at i = 23, change per magnitude and
# scatter of a normal distribution, and how much older bulges are. Our choice: it meets the
# median HSC colours of the COSMOS stamps above within 0.2 mag in g-r and 0.1 in r-i, i-z, z-y
# (those at 23.5 < i < 25 are g-r 0.29, r-i 0.32, i-z 0.28, z-y 0.20).
TYPE_AT_23, TYPE_SLOPE, TYPE_SCATTER, TYPE_BULGE = 2.4, 0.25, 0.7, 1.3
# Dust and star-formation history: a tilt of the spectrum, lambda^s with this mean (galaxies at
# z = 1 form more stars than the local templates) and scatter of s; chosen with the types.
TILT_MEAN, TILT_SCATTER = -0.3, 0.3
# Quantised Sersic indices, since GalSim tabulates each new value for tens of milliseconds.
N_STEP = 0.25
# Counts of stars at high galactic latitude rise slowly: N(<i) ~ 10^(0.1 i), close to the
# model of Bahcall & Soneira 1980, ApJS 44, 73, at the pole.
STAR_SLOPE = 0.10
# Colours g-i: halo turn-off and disk M dwarfs, shares and widths our choice after the
# bimodal counts of Juric et al. 2008, ApJ 673, 864.
STAR_KINDS = ((0.4, 0.70, 0.20), (0.6, 2.30, 0.40))
# Scatter around the stellar locus [mag]: High et al. 2009, AJ 138, 110.
STAR_SCATTER = 0.03


def galaxy_density(mag_limit: float, *, mag_bright: float | None = None) -> float:
    """Number of galaxies brighter than `mag_limit` in i, per arcmin^2.

    Args:
        mag_limit: Faintest magnitude [AB, i].
        mag_bright: Leave out those brighter than this.

    References:
        LSST Science Book 2009, arXiv:0912.0201, section 3.7.2; fitted to 20.5 < i < 25.5.
    """
    count = 10 ** (COUNTS_SLOPE * (mag_limit - 25))
    if mag_bright is not None:
        count -= 10 ** (COUNTS_SLOPE * (mag_bright - 25))
    return COUNTS_AT_25 * count


def _magnitudes(u: np.ndarray, slope: float, bright: float, faint: float) -> np.ndarray:
    """Inverse of N(<m) ~ 10^(slope m) between two limits."""
    if not bright < faint:
        raise ValueError(
            f"`mag_bright` must be below `mag_limit`; got {bright} and {faint}."
        )
    low, high = 10 ** (slope * (bright - faint)), 1.0
    return faint + np.log10(low + u * (high - low)) / slope


def _redshifts(pick: np.ndarray, u: np.ndarray, mag_i: np.ndarray) -> np.ndarray:
    """Redshift at magnitude `mag_i` [not brighter than it].

    The Science Book gives the sample brighter than i: p(z) ~ z^2 exp(-z/z0), z0 =
    0.0417 i - 0.744. Differentiating N(<i) p(z | <i) by i gives, at i, the mixture
    (1 - w) Gamma(3, z0) + w Gamma(4, z0) with w = 3 * 0.0417 / (0.31 ln(10) z0). The mixture is
    clipped to w <= 1 (i < 22.1) and z0 to 0.05 (i < 19, beyond the fit's range).
    """
    z0 = np.maximum(0.0417 * mag_i - 0.744, 0.05)
    w = np.minimum(3 * 0.0417 / (COUNTS_SLOPE * np.log(10) * z0), 1.0)
    return z0 * gammaincinv(np.where(pick < w, 4.0, 3.0), u)


def _uniform(u: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    return limits[0] + u * (limits[1] - limits[0])


def _quantise(n: np.ndarray) -> np.ndarray:
    return np.clip(np.round(n / N_STEP) * N_STEP, *N_RANGE)


def with_fluxes(
    table: dict[str, np.ndarray], fluxes: dict[str, Float[np.ndarray, "n band"]]
) -> pd.DataFrame:
    """A population of these columns and the fluxes of its components in `BANDS`."""
    for component, flux in fluxes.items():
        for j, band in enumerate(BANDS):
            table[f"flux_{band}_{component}"] = flux[:, j]
    return pd.DataFrame(table)


def draw_galaxies(
    n: int,
    rng: np.random.Generator,
    *,
    mag_limit: float = 25.0,
    mag_bright: float = 18.0,
    population: str = "realistic",
) -> pd.DataFrame:
    """Draw the parameters of `n` galaxies.

    Columns: `type` ("galaxy"), `mag_i` [AB], `z`, `hlr_disk`, `hlr_bulge` (circularised
    half-light radii [arcsec]), `n_disk`, `n_bulge` (Sersic), `q_disk`, `q_bulge` (axis
    ratios), `beta` (angle of the major axis from +x towards +y [radian]), `bt_i`
    (bulge-to-total), `knots_n`, `knots_frac` (of the disk's i flux), `knots_seed` and
    `flux_<band>_<component>` [image unit at `MAGZERO`] for `BANDS` and disk, bulge, knots.

    Args:
        n: Number of galaxies; row k does not depend on it.
        rng: Random generator.
        mag_limit: Faintest magnitude [AB, i].
        mag_bright: Brightest magnitude.
        population: "realistic", or "wrong": Exponential disks only, 1.5 times too large,
            all of one colour, with the same magnitudes; where tests of EM start. Or
            "broad": sizes and slopes of spectra scattered more widely than any survey's, for a
            basis that no start of EM confines.

    Raises:
        ValueError: If the magnitudes are in the wrong order or `population` is unknown.
    """
    if population not in POPULATIONS:
        raise ValueError(
            f"`population` must be one of {POPULATIONS}; got {population!r}."
        )
    # One row of uniform numbers per galaxy, one column per use below. The open interval:
    # an exact 0 would become an infinite normal deviate.
    uniform = rng.random((n, 20)).clip(1e-12, 1 - 1e-12)
    columns = iter(uniform.T)
    mag_i = _magnitudes(next(columns), COUNTS_SLOPE, mag_bright, mag_limit)
    z = _redshifts(next(columns), next(columns), mag_i)
    ln_size = LN_SIZE_AT_23 + LN_SIZE_SLOPE * (mag_i - 23)
    hlr = np.exp(ln_size + LN_SIZE_SCATTER * ndtri(next(columns)))
    kind = np.searchsorted(np.cumsum(KINDS)[:-1], next(columns), side="right")
    single, early = kind == 0, kind == 2
    n_single = _quantise(np.exp(LN_N_MEDIAN + LN_N_SCATTER * ndtri(next(columns))))
    bt_u = next(columns)
    bt = np.where(early, _uniform(bt_u, BT_EARLY), betaincinv(*BT_BETA, bt_u))
    bt = np.where(single, 0.0, bt)
    ratio = np.exp(LN_BULGE_SIZE + LN_BULGE_SCATTER * ndtri(next(columns)))
    n_bulge = _quantise(_uniform(next(columns), N_BULGE))
    q_disk, q_bulge = (_uniform(next(columns), q) for q in (Q_DISK, Q_BULGE))
    # A bulge is never flatter than its disk.
    q_bulge = np.maximum(q_disk, q_bulge)
    beta = np.pi * next(columns)
    has_knots, knots_u = next(columns) < KNOTS_SHARE, next(columns)
    # Knots sit in disks: none in early types and in concentrated single profiles.
    has_knots &= ~early & ~(single & (n_single > 2))
    knots_n = np.where(has_knots, 1 + (knots_u * KNOTS_MAX).astype(int), 0)
    knots_frac = np.where(has_knots, _uniform(next(columns), KNOTS_FLUX), 0.0)
    # GalSim takes a seed of 0 as "from the system".
    seed = 1 + (next(columns) * (2**31 - 2)).astype(int)
    type_mean = TYPE_AT_23 + TYPE_SLOPE * (mag_i - 23)
    type_u = ndtri(next(columns))
    type_disk = np.clip(type_mean + TYPE_SCATTER * type_u - 1.5 * early, 0.0, 3.0)
    # Concentrated single profiles are old.
    type_disk = np.where(single & (n_single >= 2.5), 0.5 * type_disk, type_disk)
    type_bulge = np.clip(type_disk - TYPE_BULGE, 0.0, 3.0)
    tilt = TILT_MEAN + TILT_SCATTER * ndtri(next(columns))

    flux_i = 10 ** (-0.4 * (mag_i - MAGZERO))
    if population == "wrong":
        hlr, bt, knots_n, knots_frac = 1.5 * hlr, 0 * bt, 0 * knots_n, 0 * knots_frac
        n_single, single = np.ones(n), np.ones(n, bool)
        # The spectrum of an Scd galaxy at z = 0.5, for all.
        type_disk, z, tilt = np.full(n, 2.0), np.full(n, 0.5), np.zeros(n)
    if population == "broad":
        size, slope = BROAD * rng.standard_normal((n, 2)).T
        hlr, tilt = np.sqrt(BROAD_SIZE) * hlr * np.exp(size), tilt + slope
    wave = wavelengths()
    slope = np.log([wave[band] / wave["i"] for band in BANDS])
    reddening = np.exp(tilt[:, None] * slope)
    shares = {
        "disk": ((1 - bt) * (1 - knots_frac), type_disk),
        "bulge": (bt, type_bulge),
        "knots": ((1 - bt) * knots_frac, np.full(n, 3.0)),
    }
    fluxes = {
        component: (share * flux_i)[:, None] * galaxy_colours(template, z) * reddening
        for component, (share, template) in shares.items()
    }
    table = {
        "type": np.full(n, "galaxy"),
        "mag_i": mag_i,
        "z": z,
        "hlr_disk": hlr,
        "hlr_bulge": hlr * np.where(early, 1.0, ratio),
        "n_disk": np.where(single, n_single, 1.0),
        "n_bulge": n_bulge,
        "q_disk": q_disk,
        "q_bulge": q_bulge,
        "beta": beta,
        "bt_i": bt,
        "knots_n": knots_n,
        "knots_frac": knots_frac,
        "knots_seed": seed,
    }
    return with_fluxes(table, fluxes)


def draw_stars(
    n: int,
    rng: np.random.Generator,
    *,
    mag_limit: float = 24.0,
    mag_bright: float = 18.0,
) -> pd.DataFrame:
    """Draw `n` stars on the stellar locus at high galactic latitude.

    Columns: `type` ("star"), `mag_i` [AB] and `flux_<band>_point`.

    Raises:
        ValueError: If the magnitudes are in the wrong order.
    """
    uniform = rng.random((n, 3 + len(BANDS))).clip(1e-12, 1 - 1e-12)
    mag_i = _magnitudes(uniform[:, 0], STAR_SLOPE, mag_bright, mag_limit)
    share, mean, width = np.array(STAR_KINDS).T
    kind = np.searchsorted(np.cumsum(share)[:-1], uniform[:, 1], side="right")
    g_i = mean[kind] + width[kind] * ndtri(uniform[:, 2])
    scatter = STAR_SCATTER * ndtri(uniform[:, 3:])
    scatter[:, BANDS.index("i")] = 0.0
    colours = star_colours(g_i) * 10 ** (-0.4 * scatter)
    flux = 10 ** (-0.4 * (mag_i - MAGZERO))[:, None] * colours
    return with_fluxes({"type": np.full(n, "star"), "mag_i": mag_i}, {"point": flux})


def total_flux(sources: pd.DataFrame, band: str) -> Float[np.ndarray, " n"]:
    """Flux of all components in `band` [image unit at `MAGZERO`].

    Raises:
        ValueError: If the table has no flux in that band.
    """
    names = [f"flux_{band}_{component}" for component in COMPONENTS]
    names = [name for name in names if name in sources]
    if not names:
        raise ValueError(f"no flux in band {band!r}; the populations have {BANDS}.")
    return sources[names].fillna(0.0).to_numpy(float).sum(axis=1)
