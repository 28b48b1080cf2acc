"""Tests of many numbers at once: TARP for posteriors, Voronoi cells for two samples."""

from typing import NamedTuple

import numpy as np
import tarp
from jaxtyping import Float
from scipy import stats

from blendem.measure.metrics import MAD_TO_SIGMA

# Fewest counts expected in a cell, on average, for the chi2 distribution to hold.
CELL_COUNTS = 5


class TarpCoverage(NamedTuple):
    """Expected coverage of the regions of TARP.

    Attributes:
        levels: Credibility levels (k + 1)/(draw + 1), at which the coverage of a calibrated
            posterior is the level itself, `(draw + 1,)`.
        coverage: Part of the truths inside, `(draw + 1,)`.
        error: Its standard deviation over bootstrap samples of the sources, `(draw + 1,)`.
        deviation: Largest |coverage - level|.
        deviation_95: What `deviation` stays below in at least 95 % of the cases if the
            posterior is calibrated and sources are independent.
        n: Sources used.
        left_out: Sources with a NaN in truth or draws.
    """

    levels: Float[np.ndarray, " level"]
    coverage: Float[np.ndarray, " level"]
    error: Float[np.ndarray, " level"]
    deviation: float
    deviation_95: float
    n: int
    left_out: int


def tarp_coverage(
    truth: Float[np.ndarray, "source dim"],
    samples: Float[np.ndarray, "draw _ _"],
    *,
    rng: np.random.Generator,
    n_bootstrap: int = 200,
) -> TarpCoverage:
    """Coverage of the credible regions around random references, by the package `tarp`.

    A region is the ball about a random point on whose surface the truth lies; its
    credibility is the part of the draws inside. Every dimension is first mapped to 0..1 by
    a monotonic function, the distribution of Cauchy of the truths' median and deviation:
    balls stay regions, and a few bright sources do not set the scale. Leaving out a source
    for any NaN, of truth or draws alike, keeps a calibrated posterior calibrated.

    References are independent of the data, so a prior passes as its own posterior;
    accuracy must be measured elsewhere.

    Args:
        truth: True values.
        samples: Posterior draws, `(draw, source, dim)`.
        rng: Draws the references and the bootstrap samples.
        n_bootstrap: Bootstrap samples [count].

    Raises:
        ValueError: If shapes disagree, no source is left, or a dimension is constant.

    References:
        Lemos et al. 2023, ICML, arXiv:2302.03026.
    """
    truth, samples = np.asarray(truth, dtype=float), np.asarray(samples, dtype=float)
    if samples.ndim != 3 or truth.shape != samples.shape[1:]:
        raise ValueError(
            f"`samples` must be (draw, source, dim) and `truth` (source, dim); got "
            f"{samples.shape} and {truth.shape}."
        )
    used = np.isfinite(truth).all(axis=1) & np.isfinite(samples).all(axis=(0, 2))
    truth, samples = truth[used], samples[:, used]
    draws, n, dim = samples.shape
    center = np.median(truth, axis=0) if n else np.zeros(dim)
    width = MAD_TO_SIGMA * np.median(np.abs(truth - center), axis=0) if n else center
    if not n or not (width > 0).all():
        raise ValueError(
            f"{n} of {len(used)} sources have finite truth and draws, with deviations {width}; "
            "leave out quantities that are constant or mostly missing."
        )
    # Enough bins that no two of the values 0, 1/draw, ..., 1 share one.
    bins = 4 * (draws + 1)
    ecp, alpha = tarp.get_tarp_coverage(
        0.5 + np.arctan((samples - center) / width) / np.pi,
        0.5 + np.arctan((truth - center) / width) / np.pi,
        references=rng.uniform(size=(n, dim)),
        num_alpha_bins=bins,
        seed=int(rng.integers(2**32)),  # the package sets NumPy's global seed
    )
    # The package puts the bins between the smallest and the largest value found; counts per
    # value are free of that choice, and comparable with a level that is exact for few draws.
    inside = np.rint((alpha[:-1] + alpha[1:]) / 2 * draws).astype(int)
    counts = np.rint(np.diff(ecp) * n)
    counts = np.bincount(inside, counts, minlength=draws + 1).astype(int)
    coverage = np.cumsum(counts) / n
    resampled = rng.multinomial(n, counts / n, size=n_bootstrap)
    levels = np.arange(1, draws + 2) / (draws + 1)
    return TarpCoverage(
        levels,
        coverage,
        np.cumsum(resampled, axis=1).std(axis=0, ddof=1) / n,
        float(np.abs(coverage - levels).max()),
        float(stats.kstwo.isf(0.05, n)),
        n,
        int((~used).sum()),
    )


class TwoSampleTest(NamedTuple):
    """Pearson's chi2, its degrees of freedom and the probability of a larger one."""

    chi2: float
    dof: int
    p: float


def two_sample_test(
    a: Float[np.ndarray, "n dim"],
    b: Float[np.ndarray, "m _"],
    regions: int,
    *,
    rng: np.random.Generator,
) -> TwoSampleTest:
    """Whether two samples come from one distribution, by counts in Voronoi cells.

    Cells belong to `regions` random points of the pooled sample, which are then left out.
    With k_i of n and l_i of m points in cell i, p_i = (k_i + l_i)/(n + m) and
    chi2 = sum_i (k_i - n p_i)^2 / (n p_i) + (l_i - m p_i)^2 / (m p_i), which for equal
    distributions follows chi2 with (cells - 1) degrees of freedom.

    Points must be independent, also between `a` and `b`: compare images of some blends
    with replicas of others. Distances are Euclidean: divide pixels by their noise.

    Args:
        a: One sample.
        b: The other, `(m, dim)`.
        regions: Number of cells [count].
        rng: Chooses the points.

    Raises:
        ValueError: If dimensions differ, a value is not finite, or there are fewer than two
            cells or too few points for so many (five of the smaller sample per cell).

    References:
        Lemos et al. 2024, arXiv:2402.04355 (PQMass).
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape[1:] != b.shape[1:] or not (
        np.isfinite(a).all() and np.isfinite(b).all()
    ):
        raise ValueError(
            f"`a` and `b` must be finite, with vectors of one length; got shapes {a.shape} "
            f"and {b.shape}. Leave out sources without result."
        )
    if not 2 <= regions <= min(len(a), len(b)) / CELL_COUNTS:
        raise ValueError(
            f"`regions` must be 2 to {min(len(a), len(b)) // CELL_COUNTS} for samples of "
            f"{len(a)} and {len(b)}, got {regions}."
        )
    points = np.concatenate([a, b])
    points = points - points.mean(axis=0)  # rounding of the squares below
    first = np.arange(len(points)) < len(a)
    chosen = np.zeros(len(points), bool)
    chosen[rng.choice(len(points), regions, replace=False)] = True
    centers, points, first = points[chosen], points[~chosen], first[~chosen]
    # |x - c|^2 without |x|^2, which does not choose between centres.
    cell = np.argmin(np.sum(centers**2, axis=1) - 2 * points @ centers.T, axis=1)
    counts = np.stack(
        [np.bincount(cell[s], minlength=regions) for s in (first, ~first)]
    )
    counts = counts[:, counts.sum(axis=0) > 0]
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    chi2, dof = np.sum((counts - expected) ** 2 / expected), counts.shape[1] - 1
    return TwoSampleTest(float(chi2), int(dof), float(stats.chi2.sf(chi2, dof)))
