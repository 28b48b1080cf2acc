"""Are the errors right? Pulls, coverage, ranks and posterior-predictive chi2."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import special, stats

from blendem.measure.photometry import quantiles

LEVELS = (0.68, 0.95)
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
