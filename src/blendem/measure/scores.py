"""Scores of a catalog against the truth: one row per source, then headline numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from blendem.measure.calibration import coverage, coverage_table, pulls, rank_statistic
from blendem.measure.metrics import (
    binned_statistics,
    cosine_similarity,
    flux_residual,
    sed_correlation,
)
from blendem.measure.quantities import SHAPES, colors, quantity_names

BLENDEDNESS_EDGES = (0.0, 0.05, 0.2, 0.5, 1.0)  # the bins of published comparisons
MAGNITUDE_EDGES = (18.0, 20.0, 22.0, 23.0, 24.0, 25.0, 26.0)
Z_68, Z_95 = 0.994458, 1.959964  # two-sided 68 % and 95 % points of N(0, 1)


def match(
    catalog: pd.DataFrame, truth: pd.DataFrame, keys: Sequence[str] = ("id",)
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the sources that are in both tables, in the order of the catalog.

    Raises:
        ValueError: If a key is missing or repeated, or if nothing matches.
    """
    keys = list(keys)
    for name, table in (("catalog", catalog), ("truth", truth)):
        missing = [key for key in keys if key not in table]
        if missing:
            raise ValueError(
                f"Column(s) {missing} missing in the {name}; has {list(table)}."
            )
        repeated = table[table.duplicated(keys)]
        if len(repeated):
            raise ValueError(
                f"{len(repeated)} row(s) of the {name} repeat the key {keys}, first "
                f"{repeated[keys].iloc[0].to_dict()}. Add the field to `keys`, or drop them."
            )
    rows = catalog[keys].assign(catalog_row=np.arange(len(catalog)))
    rows = rows.merge(truth[keys].assign(truth_row=np.arange(len(truth))), on=keys)
    if rows.empty:
        raise ValueError(
            f"No row of the catalog ({len(catalog)}) matches the truth ({len(truth)}) in {keys}: "
            "are they of the same field?"
        )
    return rows["catalog_row"].to_numpy(), rows["truth_row"].to_numpy()


def score_sources(
    catalog: pd.DataFrame,
    truth: pd.DataFrame,
    bands: Sequence[str],
    *,
    keys: Sequence[str] = ("id",),
    samples: Mapping[str, np.ndarray]
    | Float[np.ndarray, "draw catalog band"]
    | None = None,
    model_images: Float[np.ndarray, "catalog band height width"] | None = None,
    true_images: Float[np.ndarray, "truth band height width"] | None = None,
) -> pd.DataFrame:
    """Compare a catalog with the truth, source by source.

    The truth must be measured on the noise-free model images with the same functions as the
    catalog, so that definitions cancel.

    Args:
        catalog: `keys`, `flux_<b>`, `flux_err_<b>`, `flux_q16_<b>`, `flux_q84_<b>`, `e1`, `e2`,
            `e1_err`, `e2_err`, `size`, `size_err`, `flags`.
        truth: `keys`, `flux_<b>`, `mag_<b>`, `blendedness_<b>`, `size`, `e1`, `e2`.
        bands: Names of the bands.
        keys: Columns that identify a source; add `field` when tables of fields are joined.
        samples: Draws by quantity (`quantities.quantity_names`), `(draw, catalog)` each, of
            any of them; an array holds fluxes. Without draws of a quantity its intervals are
            those of a Gaussian, and it has no ranks.
        model_images: Posterior mean images, for `cosine_<b>`; needs `true_images`.
        true_images: Noise-free model images.

    Returns:
        Per source: `keys`, `flags`; per band the true `flux_true_<b>`, `mag_<b>`,
        `blendedness_<b>`, then `flux_residual_<b>` (relative), `flux_pull_<b>`,
        `flux_within68_<b>` (between the catalog's q16 and q84), `flux_within95_<b>`,
        `flux_rank_<b>`, `cosine_<b>`; per pair of neighbouring bands `color_residual_<b>_<c>`
        [mag] and, from draws, `color_within68_<b>_<c>`, `color_within95_<b>_<c>`,
        `color_rank_<b>_<c>`; `sed_correlation`; for `size`, `e1`, `e2`: `<s>_residual`
        (relative for size), `<s>_pull`, `<s>_within68`, `<s>_within95`, `<s>_rank`.
        Within-flags are 1, 0, or NaN where nothing was measured; ranks see `draw_scores`.

    Raises:
        ValueError: See `match`; also if an array does not have the rows of its table.
    """
    if isinstance(samples, np.ndarray):
        samples = {f"flux_{b}": samples[:, :, i] for i, b in enumerate(bands)}
    samples = dict(samples or {})
    unknown = set(samples) - set(quantity_names(bands))
    if unknown:
        raise ValueError(
            f"`samples` holds {sorted(unknown)}; the quantities are {quantity_names(bands)}."
        )
    for name, array, axis, table in (
        *((f"samples[{name!r}]", draws, 1, catalog) for name, draws in samples.items()),
        ("model_images", model_images, 0, catalog),
        ("true_images", true_images, 0, truth),
    ):
        if array is not None and array.shape[axis] != len(table):
            raise ValueError(
                f"`{name}` has {array.shape[axis]} sources along axis {axis}, its table has "
                f"{len(table)} rows; pass them in the same order."
            )
    in_catalog, in_truth = match(catalog, truth, keys)
    c = catalog.iloc[in_catalog].reset_index(drop=True)
    t = truth.iloc[in_truth].reset_index(drop=True)
    out = {key: c[key].to_numpy() for key in keys} | {"flags": c["flags"].to_numpy()}

    def score_draws(quantity, true):
        """Columns from the draws of a quantity, if there are any."""
        if quantity not in samples:
            return {}
        kind, _, rest = quantity.partition("_")
        columns = draw_scores(true, np.asarray(samples[quantity])[:, in_catalog])
        return {"_".join(filter(None, (kind, k, rest))): columns[k] for k in columns}

    for i, b in enumerate(bands):
        flux, true = _column(c, f"flux_{b}"), _column(t, f"flux_{b}")
        pull = pulls(true, flux, _column(c, f"flux_err_{b}"))
        out[f"flux_true_{b}"] = true
        out[f"mag_{b}"] = _column(t, f"mag_{b}")
        out[f"blendedness_{b}"] = _column(t, f"blendedness_{b}")
        out[f"flux_residual_{b}"] = flux_residual(flux, true)
        out[f"flux_pull_{b}"] = pull
        low, high = _column(c, f"flux_q16_{b}"), _column(c, f"flux_q84_{b}")
        known = ~(np.isnan(low) | np.isnan(high))
        out[f"flux_within68_{b}"] = np.where(
            known, (low <= true) & (true <= high), np.nan
        )
        out[f"flux_within95_{b}"] = _within(pull, Z_95)
        within68 = out[f"flux_within68_{b}"]
        out |= score_draws(f"flux_{b}", true) | {f"flux_within68_{b}": within68}
        if model_images is not None and true_images is not None:
            pair = model_images[in_catalog, i], true_images[in_truth, i]
            out[f"cosine_{b}"] = cosine_similarity(*pair)
    vectors = [
        np.stack([_column(table, f"flux_{b}") for b in bands], axis=1)
        for table in (c, t)
    ]
    color, true_color = (colors(flux) for flux in vectors)
    for i, pair in enumerate(zip(bands[:-1], bands[1:], strict=True)):
        name = "{}_{}".format(*pair)
        out[f"color_residual_{name}"] = color[:, i] - true_color[:, i]
        out |= score_draws(f"color_{name}", true_color[:, i])
    out["sed_correlation"] = sed_correlation(*vectors)
    for name in SHAPES:
        value, true = _column(c, name), _column(t, name)
        pull = pulls(true, value, _column(c, f"{name}_err"))
        out[f"{name}_residual"] = (
            flux_residual(value, true) if name == "size" else value - true
        )
        out[f"{name}_pull"] = pull
        out[f"{name}_within68"] = _within(pull, Z_68)
        out[f"{name}_within95"] = _within(pull, Z_95)
        out |= score_draws(name, true)
    return pd.DataFrame(out)


def score_light_curves(measured: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Compare light curves with the truth, flux by flux.

    Args:
        measured: Columns of the HDU LIGHTCURVES.
        truth: `id`, `host`, `epoch`, `band`, `flux`.

    Returns:
        Rows of `measured` that shine and have data, with `host`, `flux_true`, `pull` and
        `within68`.
    """
    keys = ["id", "epoch", "band"]
    true = truth[[*keys, "host", "flux"]].rename(columns={"flux": "flux_true"})
    both = measured.merge(true, on=keys, validate="one_to_one")
    both = both[both["shines"] & both["flux"].notna()].reset_index(drop=True)
    low, high, value = (both[n] for n in ("flux_q16", "flux_q84", "flux_true"))
    return both.assign(
        pull=pulls(
            value.to_numpy(), both["flux"].to_numpy(), both["flux_err"].to_numpy()
        ),
        within68=((low <= value) & (value <= high)).astype(float),
    )


def draw_scores(
    truth: Float[np.ndarray, " source"], draws: Float[np.ndarray, "draw source"]
) -> dict[str, Float[np.ndarray, " source"]]:
    """Position of the truth among the draws of one quantity.

    Draws that are NaN are left out of their source, as in the catalog.

    Returns:
        `within68`, `within95` (1 or 0) and `rank`, 0 to the number of draws. With m draws of n
        left, the rank r among them is brought to (r + 1/2) (n + 1)/(m + 1) - 1/2. All are NaN
        without truth or with fewer than one draw in eight, or two.
    """
    n = len(draws)
    m = (~np.isnan(draws)).sum(axis=0)
    known = ~np.isnan(truth) & (m >= max(2, n // 8))
    inside = coverage(truth, draws)
    rank = (rank_statistic(truth, draws) + 0.5) * (n + 1) / (m + 1) - 0.5
    values = {"within68": inside[0], "within95": inside[1], "rank": rank}
    return {name: np.where(known, v, np.nan) for name, v in values.items()}


def summarise_scores(
    scores: pd.DataFrame,
    bands: Sequence[str],
    *,
    rng: np.random.Generator,
    blendedness_edges: Sequence[float] = BLENDEDNESS_EDGES,
    magnitude_edges: Sequence[float] = MAGNITUDE_EDGES,
) -> dict:
    """Headline numbers, ready for JSON (NaN becomes None).

    Returns:
        `n_sources`, `n_flagged`, `sed_correlation` (mean) and `shapes` (median, mean_abs, scatter,
        pull_std, within68, within95 for size, e1, e2); `bands[b]` holds `all`, `by_blendedness` and
        `by_magnitude`: rows of `low`, `high`, `n`, flux residual `median`, `mean_abs`, `scatter`
        with `_err`, `pull_mean`, `pull_std`, `within68`, `within95` with `_err`, `cosine` (mean).
    """
    shapes = {
        name: _summary(scores, f"{name}_{{}}", None, None, rng)[0] for name in SHAPES
    }
    per_band = {}
    for b in bands:
        name = f"flux_{{}}_{b}"
        binnings = {
            "all": (None, None),
            "by_blendedness": (f"blendedness_{b}", blendedness_edges),
            "by_magnitude": (f"mag_{b}", magnitude_edges),
        }
        rows = {
            k: _summary(scores, name, by, edges, rng)
            for k, (by, edges) in binnings.items()
        }
        per_band[b] = rows | {"all": rows["all"][0]}
    return _plain(
        {
            "n_sources": len(scores),
            "n_flagged": int((scores["flags"] != 0).sum()),
            "sed_correlation": scores["sed_correlation"].mean(),
            "shapes": shapes,
            "bands": per_band,
        }
    )


def _summary(scores, name, by, edges, rng) -> list[dict]:
    """Rows of numbers in bins of the column `by` (None: one bin of everything)."""
    if by is None:
        by, edges = "_all", (0.0, 1.0)
        scores = scores.assign(_all=0.5)
    elif by.startswith("blendedness"):
        # Rounding makes isolated sources -1e-17; they belong into the first bin.
        scores = scores.assign(**{by: scores[by].clip(0, 1)})
    flags = [name.format(f"within{level}") for level in (68, 95)]
    x, residual = (
        scores[by].to_numpy(float),
        scores[name.format("residual")].to_numpy(float),
    )
    rows = binned_statistics(x, residual, np.array(edges), rng=rng).drop(columns="x")
    covered = coverage_table(scores, by, edges, flags)
    for flag, level in zip(flags, ("within68", "within95"), strict=True):
        rows[level], rows[f"{level}_err"] = covered[flag], covered[f"{flag}_err"]
    pull, cosine = name.format("pull"), name.replace("flux_{}", "cosine")
    for i, (low, high) in enumerate(zip(rows["low"], rows["high"], strict=True)):
        chosen = (x >= low) & ((x < high) | ((x == high) & (high == edges[-1])))
        rows.loc[i, "pull_mean"] = scores.loc[chosen, pull].mean()
        rows.loc[i, "pull_std"] = scores.loc[chosen, pull].std()
        if cosine in scores:
            rows.loc[i, "cosine"] = scores.loc[chosen, cosine].mean()
    if by == "_all":
        rows = rows.drop(columns=["low", "high"])
    return rows.to_dict("records")


def _column(table: pd.DataFrame, name: str) -> Float[np.ndarray, " n"]:
    if name not in table:
        raise ValueError(f"Column {name!r} is missing; the table has {list(table)}.")
    return table[name].to_numpy(float)


def _within(pull: Float[np.ndarray, " n"], z: float) -> Float[np.ndarray, " n"]:
    return np.where(np.isnan(pull), np.nan, np.abs(pull) <= z)


def _plain(value):
    """Python numbers only; NaN, which JSON does not know, becomes None."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(value) if np.isfinite(value) else None
