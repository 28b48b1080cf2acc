"""Are the errors right? Pulls, coverage, ranks and posterior-predictive chi2."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import special, stats

from blendem.measure.photometry import quantiles

LEVELS = (0.68, 0.95)
RANK_NUMBERS = ("nan_draws", "mean", "std", "chi2", "p_chi2", "ks", "p_ks")
Levels = Sequence[float] | Float[np.ndarray, " level"]


def pulls(
    truth: Float[np.ndarray, "*n"],
    mean: Float[np.ndarray, "*n"],
    std: Float[np.ndarray, "*n"],
) -> Float[np.ndarray, "*n"]:
    """(mean - truth) / std, N(0, 1) if calibrated and Gaussian; NaN where std is not positive.

    The sign is that of a flux residual: positive is too bright.
    """
    return (np.asarray(mean) - truth) / np.where(np.asarray(std) > 0, std, np.nan)


def coverage(
    truth: Float[np.ndarray, "*n"],
    samples: Float[np.ndarray, "draw *n"],
    levels: Levels = LEVELS,
) -> Bool[np.ndarray, "level *n"]:
    """Whether the truth lies in the central interval of each level between sample quantiles.

    The intervals hold the stated probability for any number of draws
    (`photometry.QUANTILE_METHOD`) up to (draw - 1)/(draw + 1); False where there is no draw.
    """
    levels = np.asarray(levels, dtype=float)
    tails = np.concatenate([(1 - levels) / 2, (1 + levels) / 2])
    low, high = np.split(quantiles(samples, tails), 2)
    return (low <= truth) & (truth <= high)


def gaussian_coverage(
    truth: Float[np.ndarray, "*n"],
    mean: Float[np.ndarray, "*n"],
    std: Float[np.ndarray, "*n"],
    levels: Levels = LEVELS,
) -> Bool[np.ndarray, "level *n"]:
    """Whether the truth lies within mean +- z std, for z of the two-sided Gaussian levels."""
    z = np.sqrt(2) * special.erfinv(np.asarray(levels, dtype=float))
    z = z.reshape(-1, *np.ones(np.ndim(truth), dtype=int))
    return np.abs(np.asarray(mean) - truth) <= z * np.asarray(std)


def coverage_fraction(
    inside: Bool[np.ndarray, "*level n"],
) -> tuple[Float[np.ndarray, "*level"], Float[np.ndarray, "*level"]]:
    """Part of the sources inside, and its binomial error.

    The error is the standard deviation of the Beta posterior under a flat prior, so it does
    not vanish when all or none are inside. NaN for no source at all.
    """
    inside = np.asarray(inside)
    n, hits = inside.shape[-1], inside.sum(axis=-1)
    p = (hits + 1) / (n + 2)
    fraction = hits / n if n else np.full(hits.shape, np.nan)
    return np.asarray(fraction, dtype=float), np.asarray(np.sqrt(p * (1 - p) / (n + 3)))


def coverage_curve(
    truth: Float[np.ndarray, " n"],
    samples: Float[np.ndarray, "draw n"],
    levels: Levels,
) -> tuple[Float[np.ndarray, " level"], Float[np.ndarray, " level"]]:
    """Coverage against credibility level, with binomial errors; the diagonal is calibrated."""
    return coverage_fraction(coverage(truth, samples, levels))


def rank_statistic(
    truth: Float[np.ndarray, "*n"], samples: Float[np.ndarray, "draw *n"]
) -> Int[np.ndarray, "*n"]:
    """Number of draws below the truth, 0 to draw: uniform if the posterior is calibrated.

    References:
        Talts et al. 2018, arXiv:1804.06788 (simulation-based calibration).
    """
    return (np.asarray(samples) < truth).sum(axis=0)


def rank_level(
    ranks: Float[np.ndarray, " n"], n_samples: int
) -> Float[np.ndarray, " n"]:
    """Level of the smallest central interval that holds the truth, from its rank."""
    return np.abs(2 * (ranks + 0.5) / (n_samples + 1) - 1)


def rank_histogram(
    ranks: Int[np.ndarray, " n"],
    n_samples: int,
    bins: int = 16,
    *,
    rng: np.random.Generator,
) -> dict[str, np.ndarray | float]:
    """Histogram of ranks and two tests of uniformity.

    Args:
        ranks: Ranks among `n_samples` independent draws, 0 to `n_samples`.
        n_samples: Number of draws per source.
        bins: Number of bins. If it does not divide `n_samples` + 1, bins hold unequal numbers
            of ranks, which `expected` accounts for.
        rng: Spreads each rank over its cell, so that the Kolmogorov-Smirnov test, which is for
            continuous values, holds exactly.

    Returns:
        `edges` (ranks), `counts`, `expected`, `chi2`, `p_chi2`, `ks`, `p_ks`.

    Raises:
        ValueError: If there are no ranks, more bins than ranks, or a rank out of range.
    """
    ranks = np.asarray(ranks)
    if not 2 <= bins <= n_samples + 1:
        raise ValueError(
            f"`bins` must be 2 to n_samples + 1 = {n_samples + 1}, got {bins}."
        )
    if not ranks.size or ranks.min() < 0 or ranks.max() > n_samples:
        raise ValueError(
            f"`ranks` must be one or more integers from 0 to {n_samples}; "
            f"got {ranks.size} values{f' in {ranks.min()}..{ranks.max()}' if ranks.size else ''}."
        )
    edges = np.ceil(np.linspace(0, n_samples + 1, bins + 1)) - 0.5
    counts = np.histogram(ranks, edges)[0]
    expected = len(ranks) * np.diff(edges) / (n_samples + 1)
    chi2, p_chi2 = stats.chisquare(counts, expected)
    spread = (ranks + rng.uniform(size=ranks.shape)) / (n_samples + 1)
    ks, p_ks = stats.kstest(spread, "uniform")
    tests = {"chi2": chi2, "p_chi2": p_chi2, "ks": ks, "p_ks": p_ks}
    arrays = {"edges": edges, "counts": counts, "expected": expected}
    return arrays | {name: float(value) for name, value in tests.items()}


def sbc_table(
    truth: Mapping[str, np.ndarray],
    draws: Mapping[str, np.ndarray],
    bins: int = 16,
    *,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Uniformity of the ranks of many quantities.

    Draws that are NaN are left out of their source. Given that the truth is a number, its
    rank among the m draws that are left is uniform on 0..m if the posterior is calibrated,
    whatever m: ranks are spread over their cells and brought to 0..1, so that both tests
    are exact. They take sources as independent. Those of one blend are not; one source per
    blend is.

    Args:
        truth: By quantity, `(source,)`.
        draws: By quantity, `(draw, source)`.
        bins: Number of bins of chi2.
        rng: Spreads the ranks.

    Returns:
        One row per quantity of `truth`: `quantity`, `n` (sources tested), `left_out`
        (sources without truth or without any draw), `nan_draws` (part of the draws of the
        tested sources), `mean` and `std` of the ranks in units of their range (0.5 and
        0.289 expected), `chi2`, `p_chi2`, `ks`, `p_ks`. NaN if no source is left.

    References:
        Talts et al. 2018, arXiv:1804.06788.
    """
    rows = []
    for name, true, values in _pairs(truth, draws):
        m = (~np.isnan(values)).sum(axis=0)
        used = ~np.isnan(true) & (m > 0)
        ranks = rank_statistic(true[used], values[:, used])
        level = (ranks + rng.uniform(size=ranks.shape)) / (m[used] + 1)
        row = {"quantity": name, "n": len(level), "left_out": int((~used).sum())}
        row |= dict.fromkeys(RANK_NUMBERS, np.nan)
        if len(level):
            counts = np.histogram(level, bins, (0, 1))[0]
            tests = (*stats.chisquare(counts), *stats.kstest(level, "uniform"))
            numbers = (1 - m[used].mean() / len(values), level.mean(), level.std())
            row |= dict(zip(RANK_NUMBERS, map(float, (*numbers, *tests)), strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def interval_table(
    truth: Mapping[str, np.ndarray],
    draws: Mapping[str, np.ndarray],
    by: Mapping[str, tuple] | None = None,
    levels: Levels = LEVELS,
) -> pd.DataFrame:
    """Coverage of the central intervals of many quantities, overall and in bins.

    A source is left out where its truth is NaN or where it has fewer than
    (1 + level)/(1 - level) draws that are not: between fewer draws no interval holds the
    level (39 draws for 95 %).

    Args:
        truth: By quantity, `(source,)`.
        draws: By quantity, `(draw, source)`.
        by: Name, values `(source,)` and edges of what is binned in. Bins are [low, high),
            the last one closed; sources outside or without value are in none. Values of
            names that begin with "blendedness" are cut to 0..1.
        levels: Probabilities of the intervals.

    Returns:
        Rows of `quantity`, `level`, `bin_by` ("all" for all sources), `low`, `high`, `n`,
        `left_out`, `coverage`, `error` (binomial, `coverage_fraction`).
    """
    rows = []
    for name, true, values in _pairs(truth, draws):
        m = (~np.isnan(values)).sum(axis=0)
        everything = ("all", -np.inf, np.inf, np.ones(len(true), bool))
        for level, inside in zip(levels, coverage(true, values, levels), strict=True):
            # The last digit of the level must not decide: 1.95 / 0.05 is 39 less rounding.
            known = ~np.isnan(true) & (m * (1 - level) > (1 + level) * (1 - 1e-9))
            for bin_by, low, high, chosen in (everything, *_bins(by or {})):
                fraction, error = coverage_fraction(inside[chosen & known])
                row = {"quantity": name, "level": level, "bin_by": bin_by}
                row |= {"low": low, "high": high, "n": int((chosen & known).sum())}
                row |= {"left_out": int((chosen & ~known).sum())}
                rows.append(row | {"coverage": float(fraction), "error": float(error)})
    return pd.DataFrame(rows)


def _pairs(truth, draws):
    """Name, truth and draws of every quantity, checked."""
    for name, true in truth.items():
        if name not in draws or np.shape(draws[name])[1:] != np.shape(true):
            got = np.shape(draws[name]) if name in draws else "nothing"
            raise ValueError(
                f"`draws` of {name!r} must be (draw, {len(true)}) like the truth, got {got}."
            )
        yield name, np.asarray(true, dtype=float), np.asarray(draws[name], dtype=float)


def _bins(by):
    """Name, edges and members of every bin."""
    for name, (values, edges) in by.items():
        x = np.asarray(values, dtype=float)
        if name.startswith("blendedness"):
            # Rounding makes isolated sources -1e-17; they belong into the first bin.
            x = x.clip(0, 1)
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            last = (x == high) & (high == edges[-1])
            yield name, float(low), float(high), (x >= low) & ((x < high) | last)


def coverage_table(
    scores: pd.DataFrame,
    by: str,
    edges: Sequence[float] | Float[np.ndarray, " edge"],
    columns: Sequence[str],
) -> pd.DataFrame:
    """Coverage in bins of a column.

    Args:
        scores: One row per source; `columns` are true, false or missing.
        by: Column to bin in. Bins are [low, high), the last one closed.
        edges: Edges of the bins.
        columns: Flags such as `flux_within68_i`. Missing values are left out.

    Returns:
        One row per bin: `low`, `high`, and for each column `<column>`, `<column>_err`,
        `<column>_n`.
    """
    x = scores[by].to_numpy(float)
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        chosen = (x >= low) & ((x < high) | ((x == high) & (high == edges[-1])))
        row = {"low": low, "high": high}
        for column in columns:
            inside = scores.loc[chosen, column].dropna().to_numpy(bool)
            fraction, error = coverage_fraction(inside)
            row |= {column: float(fraction), f"{column}_err": float(error)}
            row[f"{column}_n"] = len(inside)
        rows.append(row)
    return pd.DataFrame(rows)


def expected_chi2(
    chi2_of_mean: Float[np.ndarray, "*n"],
    trace: Float[np.ndarray, "*n"],
    n_data: Int[np.ndarray, "*n"],
) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """Posterior-predictive chi2 over its expected value, and the error of that ratio.

    With whitened data of marginal covariance S = 1 + A P A^T, the residual of the posterior
    mean has covariance S^-1 and the posterior of the data A C A^T = 1 - S^-1, so that
    E |y - A mu|^2 + tr(A C A^T) = N exactly: 1 is right, however much the fit absorbs.

    Args:
        chi2_of_mean: |y - A mu|^2, whitened (noise 1).
        trace: tr(A C A^T), whitened.
        n_data: Unmasked data values.

    Returns:
        The ratio and an upper limit to its standard error: Var |y - A mu|^2 = 2 tr(S^-2), at
        most 2 (N - trace). NaN without data.
    """
    n = np.where(np.asarray(n_data) > 0, n_data, np.nan)
    ratio = (np.asarray(chi2_of_mean) + trace) / n
    return ratio, np.sqrt(2 * np.maximum(n - trace, 0.0)) / n
