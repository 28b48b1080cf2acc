"""How far a model is from the truth: fluxes, images, shapes, residuals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

# 1.4826 = 1 / Phi^-1(3/4): the median absolute deviation of a Gaussian times this is its sigma.
MAD_TO_SIGMA = 1.4826


def blendedness(
    isolated: Float[np.ndarray, "source height width"],
) -> Float[np.ndarray, " source"]:
    """Blendedness of each source of a blend in one band: 1 - <t_k, t_k> / <t_k, sum_j t_j>.

    0 means alone, 1 invisible under its neighbours. An image of zeros (padding) has no
    overlap with anything: 0. Not clipped: negative neighbours make it negative, and it is NaN
    if they outweigh the source.

    Args:
        isolated: Noise-free images of the sources, each alone, convolved with the PSF of the
            observation, on one common grid.

    References:
        Biswas et al. 2025 (MADNESS); after Bosch et al. 2018, PASJ 70, S5.
    """
    t = np.asarray(isolated, dtype=float)
    own = np.einsum("kyx,kyx->k", t, t)
    both = np.einsum("kyx,yx->k", t, t.sum(axis=0))
    ratio = own / np.where(both > 0, both, np.nan)
    return np.where(own > 0, 1 - ratio, 0.0)


def flux_residual(
    model: Float[np.ndarray, "*n"], truth: Float[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n"]:
    """(F_model - F_true) / F_true; NaN where the true flux is not positive."""
    return (np.asarray(model) - truth) / np.where(np.asarray(truth) > 0, truth, np.nan)


def cosine_similarity(
    model: Float[np.ndarray, "*n height width"],
    truth: Float[np.ndarray, "*n height width"],
) -> Float[np.ndarray, "*n"]:
    """<m, t> / (|m| |t|) over pixels; 0 where one of the images is zero. Blind to flux errors."""
    model, truth = np.asarray(model, dtype=float), np.asarray(truth, dtype=float)
    dot = (model * truth).sum(axis=(-2, -1))
    norm = np.linalg.norm(model, axis=(-2, -1)) * np.linalg.norm(truth, axis=(-2, -1))
    return np.asarray(dot / np.where(norm > 0, norm, 1.0))


def ellipticity_residual(
    model: Float[np.ndarray, "*n 2"], truth: Float[np.ndarray, "*n 2"]
) -> Float[np.ndarray, "*n 2"]:
    """(e1, e2) of the model minus those of the truth [distortion]; NaN stays NaN."""
    return np.asarray(model) - truth


def sed_correlation(
    model: Float[np.ndarray, "*n band"], truth: Float[np.ndarray, "*n band"]
) -> Float[np.ndarray, "*n"]:
    """Normalised product of two flux vectors over bands, 1 for equal colours; 0 without flux.

    No mean over bands is taken off, so that a flat spectrum is defined.
    """
    model, truth = np.asarray(model, dtype=float), np.asarray(truth, dtype=float)
    norm = np.linalg.norm(model, axis=-1) * np.linalg.norm(truth, axis=-1)
    return np.asarray((model * truth).sum(axis=-1) / np.where(norm > 0, norm, 1.0))


def segmentation_iou(
    model: Float[np.ndarray, "*n height width"],
    truth: Float[np.ndarray, "*n height width"],
    threshold: float | Float[np.ndarray, "*n"],
) -> Float[np.ndarray, "*n"]:
    """Intersection over union of the pixels brighter than `threshold` [image unit].

    The threshold is absolute (a multiple of the noise), never a part of an image's own
    maximum, which would hide flux errors. NaN where no pixel of either image is above it.
    """
    limit = np.asarray(threshold)[..., None, None]
    a, b = np.asarray(model) > limit, np.asarray(truth) > limit
    union = (a | b).sum(axis=(-2, -1))
    return np.asarray((a & b).sum(axis=(-2, -1)) / np.where(union > 0, union, np.nan))


def residual_autocorrelation(
    pull: Float[np.ndarray, "*n height width"],
    mask: Bool[np.ndarray, "*n height width"],
    lags: Sequence[tuple[int, int]],
) -> tuple[Float[np.ndarray, " lag"], Float[np.ndarray, " lag"]]:
    """Autocorrelation of residuals over noise sigma, and its error for white noise.

    Leftover structure shows up here long before it moves chi2. All images count as one.

    Args:
        pull: (data - model) / sigma.
        mask: True where a pixel is left out.
        lags: Offsets (dy, dx) [pixel]; (0, 0) is 1 by definition.

    Returns:
        Correlation and error 1/sqrt(number of pairs), one per lag; NaN without pairs.

    Raises:
        ValueError: If a lag does not fit into the image.
    """
    height, width = pull.shape[-2:]
    kept = ~np.asarray(mask)
    pull = np.where(kept, pull, 0.0)
    variance = (pull**2).sum() / max(kept.sum(), 1)
    correlation, error = np.full((2, len(lags)), np.nan)
    for i, (dy, dx) in enumerate(lags):
        if abs(dy) >= height or abs(dx) >= width:
            raise ValueError(
                f"Lag {(dy, dx)} does not fit into an image of {height} x {width} pixels; "
                "use shorter lags."
            )
        here = (..., *_overlap((-dy, -dx), (height, width)))
        there = (..., *_overlap((dy, dx), (height, width)))
        pairs = (kept[here] & kept[there]).sum()
        if pairs and variance > 0:
            correlation[i] = (pull[here] * pull[there]).sum() / pairs / variance
            error[i] = 1 / np.sqrt(pairs)
    return correlation, error


def _overlap(lag: tuple[int, int], shape: tuple[int, int]) -> tuple[slice, slice]:
    """The part of an image that still lies on it after a move by -`lag`."""
    return tuple(
        slice(max(0, d), n + min(0, d)) for d, n in zip(lag, shape, strict=True)
    )


def binned_statistics(
    x: Float[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
    edges: Sequence[float] | Float[np.ndarray, " edge"],
    *,
    rng: np.random.Generator,
    n_bootstrap: int = 200,
) -> pd.DataFrame:
    """Statistics of `values` in bins of `x`, with bootstrap errors.

    Pairs with a NaN, or outside the edges, are in no bin. Bins are [low, high), the last
    one closed.

    Args:
        x: What is binned.
        values: What is summarised.
        edges: Edges of the bins, increasing.
        rng: Draws the bootstrap samples.
        n_bootstrap: Number of them; 200 give errors good to 5 % (1/sqrt(2 n)).

    Returns:
        One row per bin: `low`, `high`, `x` (median), `n`, `median`, `mean_abs`, `scatter`
        (`MAD_TO_SIGMA` times the median absolute deviation), and `<name>_err` of the last
        three. NaN in empty bins; errors need two values.

    Raises:
        ValueError: If the edges do not increase.
    """
    x, values, edges = (np.asarray(a, dtype=float) for a in (x, values, edges))
    if len(edges) < 2 or (np.diff(edges) <= 0).any():
        raise ValueError(
            f"`edges` must be at least two increasing numbers, got {edges}."
        )
    index = np.searchsorted(edges, x, side="right") - 1
    index[x == edges[-1]] = len(edges) - 2
    good = ~(np.isnan(x) | np.isnan(values))
    rows = []
    for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        chosen = good & (index == i)
        v = values[chosen]
        row = {"low": low, "high": high, "x": np.nan, "n": len(v)}
        row |= {
            k: np.nan
            for s in ("median", "mean_abs", "scatter")
            for k in (s, f"{s}_err")
        }
        if len(v):
            row["x"] = np.median(x[chosen])
            row |= {name: float(stat) for name, stat in _statistics(v).items()}
        if len(v) > 1:
            draws = _statistics(v[rng.integers(len(v), size=(n_bootstrap, len(v)))])
            row |= {f"{name}_err": d.std(ddof=1) for name, d in draws.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def _statistics(v: Float[np.ndarray, "*draw n"]) -> dict:
    """Median, mean absolute value and scatter along the last axis."""
    median = np.median(v, axis=-1)
    deviation = np.abs(v - median[..., None])
    return {
        "median": median,
        "mean_abs": np.abs(v).mean(axis=-1),
        "scatter": MAD_TO_SIGMA * np.median(deviation, axis=-1),
    }
