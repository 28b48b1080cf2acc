"""Headline numbers of a run under plain names, each with its unit and number of cases."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from blendem.measure.scores import summarise_scores


def entry(value: Any, unit: str, n: Any, meaning: str) -> dict[str, Any]:
    """One number: NaN becomes None."""
    number = float(value)
    return {
        "value": number if np.isfinite(number) else None,
        "unit": unit,
        "n": int(n),
        "meaning": meaning,
    }


def summarise_blends(blends: pd.DataFrame, bands: Sequence[str]) -> dict[str, Any]:
    """Numbers of all blends of a run: how many have a result, and how well they fit."""
    done = blends["chi2"].notna()
    good = blends[done]
    out = {
        "blends": entry(len(blends), "", len(blends), "blends in all fields"),
        "blends_without_result": entry(
            (~done).sum(), "", len(blends), "flagged with a reason in the catalog"
        ),
        "sources": entry(blends["n_sources"].sum(), "", len(blends), "sources"),
        "chi2_per_pixel": entry(
            good["chi2"].sum() / max(good["n_data"].sum(), 1),
            "",
            len(good),
            "of the posterior mean, all blends together",
        ),
        "chi2_over_expected_median": entry(
            (good["chi2"] / good["expected_chi2"]).median(),
            "",
            len(good),
            "chi2 of the posterior mean over its expectation N - tr(H C), median blend",
        ),
    }
    for column, meaning in (
        ("unconverged", "with a solve above the tolerance of the sampler"),
        ("guards", "where a solve met negative curvature"),
        ("failed_draws", "with draws that are not finite; they have no result"),
    ):
        if column in blends:
            out[f"blends_{column}"] = entry(
                (blends[column] > 0).sum(), "", len(blends), f"blends {meaning}"
            )
    if "predictive_chi2" in good:
        out["chi2_of_draws_per_pixel"] = entry(
            good["predictive_chi2"].sum() / max(good["n_data"].sum(), 1),
            "",
            len(good),
            "of the posterior draws, all blends together",
        )
        out["negative_flux_fraction"] = entry(
            good["negative_flux"].mean(),
            "",
            len(good),
            "share of fluxes of draws of galaxies below zero, all bands, mean blend",
        )
    # Zero for priors whose galaxies are in the basis.
    if "outside_basis" in good and (good["outside_basis"] > 0).any():
        out["draws_outside_basis"] = entry(
            good["outside_basis"].mean(),
            "",
            len(good),
            "share of the energy of draws of galaxies that the basis, and so the catalog,"
            " does not hold, mean blend",
        )
        out["chi2_outside_basis_per_pixel"] = entry(
            good["outside_chi2"].sum() / max(good["n_data"].sum(), 1),
            "",
            len(good),
            "what leaving it out adds to chi2 of the draws, all blends together",
        )
    for b in bands:
        n_data = good[f"ndata_{b}"].sum()
        if n_data:
            out[f"chi2_per_pixel_{b}"] = entry(
                good[f"chi2_{b}"].sum() / n_data, "", len(good), f"band {b}"
            )
            out[f"residual_autocorrelation_{b}"] = entry(
                good[f"autocorrelation_{b}"].mean(),
                "",
                len(good),
                f"of residual / sigma at a lag of one pixel in x, band {b}, mean blend",
            )
    return out


def summarise_evidence(laps: pd.DataFrame) -> dict[str, Any]:
    """Evidence at the first and the last prior; nothing for tiers without evidence."""
    if laps["log_evidence"].isna().all():
        return {}
    first, last = laps.iloc[0], laps.iloc[-1]
    steps = np.diff(laps["log_evidence"])
    return {
        "log_evidence_first": entry(
            first["log_evidence"], "nat", first["n_blends"], "of all blends, prior 00"
        ),
        "log_evidence_last": entry(
            last["log_evidence"], "nat", last["n_blends"], "of all blends, last prior"
        ),
        "evidence_smallest_step": entry(
            steps.min() if len(steps) else np.nan,
            "nat",
            len(steps),
            "change per EM iteration; never negative for exact EM",
        ),
    }


def summarise_sources(
    scores: pd.DataFrame, bands: Sequence[str], reference: str, rng: np.random.Generator
) -> dict[str, Any]:
    """Accuracy and coverage against the truth, reference band."""
    if not len(scores):
        return {}
    out = {}
    detail = summarise_scores(scores, bands, rng=rng)
    for b in bands:
        total, n = detail["bands"][b]["all"], detail["n_sources"]
        for key, unit, meaning in (
            ("median", "", "median flux residual (model - true) / true"),
            ("mean_abs", "", "mean |flux residual|"),
            ("within68", "", "share of true fluxes inside the 68 % interval"),
            ("within95", "", "share of true fluxes inside the 95 % interval"),
            ("pull_mean", "", "mean flux pull"),
            ("pull_std", "", "standard deviation of flux pulls"),
        ):
            value = total.get(key)
            out[f"flux_{key}_{b}"] = entry(
                np.nan if value is None else value, unit, n, f"{meaning}, band {b}"
            )
    for row in detail["bands"][reference]["by_blendedness"]:
        name = f"blendedness_{row['low']:g}_{row['high']:g}"
        for key in ("mean_abs", "within68", "cosine"):
            value = row.get(key)
            out[f"flux_{key}_{reference}_{name}"] = entry(
                np.nan if value is None else value,
                "",
                row["n"],
                f"{key}, band {reference}",
            )
    for name, values in detail["shapes"].items():
        n = int(scores[f"{name}_residual"].notna().sum())
        for key in ("within68", "scatter"):
            value = values.get(key)
            out[f"{name}_{key}"] = entry(
                np.nan if value is None else value, "", n, f"{key} of {name}"
            )
    return out
