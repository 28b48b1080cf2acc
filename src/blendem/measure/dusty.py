"""Galaxies behind dust: from draws to fluxes and A_V, and their scores against a truth.

*A_V of a galaxy* is the mean of its map weighted with its light without dust in one band,
`sum_p x(p) A(p) / sum_p x(p)`. Truth and draws go through the same function.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float

from blendem.inference.dust_model import DustModel
from blendem.measure.calibration import coverage_fraction, pulls
from blendem.measure.photometry import quantiles, summarise_samples
from blendem.measure.scores import draw_scores
from blendem.measure.sources import photometry_columns
from blendem.measure.summary import entry
from blendem.prior.dust import dim

BLENDED = 0.05  # blendedness above which a galaxy is not isolated
ATTENUATION = "A_V"


class DustySource(NamedTuple):
    """Draws of one galaxy and its dust, as numbers and images.

    Attributes:
        values: `dusty_quantities` of every draw, `(draw, band + 1)`.
        mean, std: Of the galaxy without dust [flux unit], `(band, stamp, stamp)`.
        dust_mean, dust_std: Of the map of A_V [mag], `(stamp, stamp)`.
        dimmed: Mean of the galaxy behind its dust [flux unit], as `mean`.
    """

    values: Float[np.ndarray, "draw quantity"]
    mean: Float[np.ndarray, "band stamp stamp"]
    std: Float[np.ndarray, "band stamp stamp"]
    dust_mean: Float[np.ndarray, "stamp stamp"]
    dust_std: Float[np.ndarray, "stamp stamp"]
    dimmed: Float[np.ndarray, "band stamp stamp"]


def quantity_names(bands: Sequence[str]) -> tuple[str, ...]:
    """Names of `dusty_quantities`: the flux without dust in every band, then A_V."""
    return (*(f"flux_{band}" for band in bands), ATTENUATION)


def dusty_quantities(
    galaxy: Float[np.ndarray, "n band *pixel"],
    dust: Float[np.ndarray, "n *pixel"],
    reference: int,
) -> Float[np.ndarray, "n quantity"]:
    """Flux without dust in every band, then A_V [mag].

    Args:
        galaxy: Stamps without dust [flux unit].
        dust: Maps of A_V [mag].
        reference: Index of the band whose light weighs A_V.
    """
    galaxy = np.asarray(galaxy, float).reshape(*galaxy.shape[:2], -1)
    dust = np.asarray(dust, float).reshape(len(dust), -1)
    light = galaxy[:, reference]
    return np.column_stack([galaxy.sum(-1), (light * dust).sum(-1) / light.sum(-1)])


def dusty_source(
    model: DustModel,
    e: Float[np.ndarray, "draw latent"],
    law: Float[np.ndarray, " band"],
    tilt: Float[np.ndarray, " band"],
    scale: float,
    reference: int,
) -> DustySource:
    """Turn draws of one galaxy into numbers and images.

    Args:
        model: The model that they belong to.
        e: Draws.
        law, tilt: As in `DustLikelihood`, of this galaxy.
        scale: Amplitude [flux unit].
        reference: As in `dusty_quantities`.
    """
    galaxy, dust = (np.asarray(x) for x in _decode(model, jnp.asarray(e)))
    side = int(np.sqrt(dust.shape[-1]))
    galaxy = scale * galaxy.reshape(*galaxy.shape[:2], side, side)
    dust = dust.reshape(-1, side, side)
    slope = float(model.slope_sd) * np.asarray(e, float)[:, -1:]
    seen = dim(galaxy, dust, law * np.exp(slope * tilt))
    return DustySource(
        dusty_quantities(galaxy, dust, reference),
        galaxy.mean(axis=0),
        galaxy.std(axis=0, ddof=1),
        dust.mean(axis=0),
        dust.std(axis=0, ddof=1),
        seen.mean(axis=0),
    )


@jax.jit
def _decode(model, e):
    return model.intrinsic(e), model.attenuation(e)


def dusty_columns(
    values: Float[np.ndarray, "draw source quantity"],
    bands: tuple[str, ...],
    magzero: Float[np.ndarray, " source"],
) -> dict[str, np.ndarray]:
    """Columns of the catalog: those of `photometry_columns`, medians, and A_V.

    Sources without a result are NaN in all draws.
    """
    flux, a_v = values[..., :-1], values[..., -1]
    summary = summarise_samples(flux)
    columns = photometry_columns(flux, summary["mean"], bands, magzero)
    middle = quantiles(values, np.array([0.5]))[0]
    for i, band in enumerate(bands):
        columns[f"flux_median_{band}"] = middle[:, i]
    found = summarise_samples(a_v)
    return columns | {
        ATTENUATION: found["mean"],
        f"{ATTENUATION}_err": found["std"],
        f"{ATTENUATION}_median": middle[:, -1],
        f"{ATTENUATION}_q16": found["q16"],
        f"{ATTENUATION}_q84": found["q84"],
    }


def score_dusty(
    truth: Float[np.ndarray, "source quantity"],
    values: Float[np.ndarray, "draw source quantity"],
    bands: Sequence[str],
) -> pd.DataFrame:
    """One row per source: for every quantity its truth, error, pull and place among the draws.

    Columns `<q>_true`, `<q>_residual` (mean - truth; relative for fluxes), `<q>_pull`,
    `<q>_within68`, `<q>_within95`, `<q>_rank` (`measure.scores.draw_scores`).
    """
    columns = {}
    for i, name in enumerate(quantity_names(bands)):
        true, draws = truth[:, i], values[..., i]
        found = summarise_samples(draws)
        away = found["mean"] - true
        columns[f"{name}_true"] = true
        columns[f"{name}_residual"] = away if name == ATTENUATION else away / true
        columns[f"{name}_pull"] = pulls(true, found["mean"], found["std"])
        scores = draw_scores(true, draws)
        columns |= {f"{name}_{key}": value for key, value in scores.items()}
    return pd.DataFrame(columns)


def summarise_dusty(
    scores: pd.DataFrame, bands: Sequence[str], blended: str | None = None
) -> dict[str, Any]:
    """Headline numbers of `score_dusty`, of all galaxies and by blendedness.

    Args:
        scores: Rows of galaxies with a result.
        bands: Names of the bands.
        blended: Column by which isolated and blended galaxies are told apart; None: not.
    """
    groups = {"": (scores, "")}
    if blended is not None:
        apart = scores[blended] > BLENDED
        groups["_isolated"] = scores[~apart], f", blendedness up to {BLENDED}"
        groups["_blended"] = scores[apart], f", blendedness above {BLENDED}"
    out = {}
    for suffix, (rows, where) in groups.items():
        for name in quantity_names(bands):
            unit = "mag" if name == ATTENUATION else ""
            n = int(rows[f"{name}_pull"].notna().sum())
            for level in ("within68", "within95"):
                inside = rows[f"{name}_{level}"].dropna().to_numpy(bool)
                value, error = coverage_fraction(inside)
                text = f"part of true values inside the interval{where}"
                out[f"{name}_{level}{suffix}"] = entry(value, "", n, text)
                out[f"{name}_{level}{suffix}"]["error"] = float(error)
            pull, away = rows[f"{name}_pull"], rows[f"{name}_residual"]
            for key, value, its_unit in (
                ("pull_mean", pull.mean(), ""),
                ("pull_sd", pull.std(), ""),
                ("bias", away.median(), unit),
                ("rms", np.sqrt((away**2).mean()), unit),
                ("median_abs", away.abs().median(), unit),
            ):
                out[f"{name}_{key}{suffix}"] = entry(
                    value, its_unit, n, f"{MEANING[key]}{where}"
                )
    return out


MEANING = {
    "pull_mean": "mean of (posterior mean - truth) / error",
    "pull_sd": "standard deviation of the same",
    "bias": "median of posterior mean - truth; relative for fluxes",
    "rms": "rms of the same",
    "median_abs": "median absolute value of the same",
}
