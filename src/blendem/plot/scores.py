"""Panels with numbers: flux errors, calibration, evidence, chi2."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from blendem.measure.metrics import binned_statistics
from blendem.measure.scores import BLENDEDNESS_EDGES, MAGNITUDE_EDGES
from blendem.plot.style import BLUE, GREY, SEQUENTIAL, Panels


def plot_flux_error(
    axes: Panels,
    scores: pd.DataFrame,
    band: str,
    *,
    rng: np.random.Generator,
    blendedness_edges: Sequence[float] = BLENDEDNESS_EDGES,
    magnitude_edges: Sequence[float] = MAGNITUDE_EDGES,
    label: str | None = None,
    color: str = BLUE,
    limit: float = 0.5,
) -> list[ErrorbarContainer]:
    """Draw relative flux errors against blendedness and against true magnitude.

    Points are sources, marks the medians of bins with bootstrap errors, the band the median
    +- scatter (1.4826 MAD). Call again with another `color` to compare methods.

    Args:
        axes: Two.
        scores: `flux_residual_<band>`, `blendedness_<band>`, `mag_<band>` of each source.
        band: Name of the band.
        rng: Draws the bootstrap samples.
        blendedness_edges: Edges of the bins.
        magnitude_edges: Edges of the bins [mag].
        label: Name of the method in the legend.
        color: Colour of the method.
        limit: Half height of the panels; points beyond it are drawn at the edge.
    """
    residual = scores[f"flux_residual_{band}"].to_numpy(float)
    artists = []
    alpha = 0.25 if len(residual) > 2000 else 0.6
    for ax, column, edges, name in (
        (axes[0], f"blendedness_{band}", blendedness_edges, "blendedness"),
        (axes[1], f"mag_{band}", magnitude_edges, f"true {band} [mag]"),
    ):
        x = scores[column].to_numpy(float)
        x = x.clip(0, 1) if name == "blendedness" else x
        bins = binned_statistics(x, residual, np.array(edges), rng=rng)
        bins = bins[bins["n"] > 0]
        ax.axhline(0, color="black", lw=0.6)
        shown = residual.clip(-limit, limit)
        ax.plot(
            x,
            shown,
            ".",
            color=color,
            ms=2,
            alpha=alpha,
            mew=0,
            zorder=1,
            rasterized=True,
        )
        low, high = bins["median"] - bins["scatter"], bins["median"] + bins["scatter"]
        ax.fill_between(bins["x"], low, high, color=color, alpha=0.2, lw=0, zorder=2)
        artists.append(
            ax.errorbar(
                bins["x"], bins["median"], bins["median_err"], fmt="o-", color=color, ms=3,
                capsize=2, label=label, zorder=3,
            )
        )  # fmt: skip
        ax.set(xlabel=name, xlim=(edges[0], edges[-1]), ylim=(-limit, limit))
    axes[0].set_ylabel(f"({band} flux $-$ truth) / truth")
    if label:
        axes[0].legend(loc="upper left")
    return artists


def plot_coverage(
    ax: Axes,
    levels: Float[np.ndarray, " level"],
    coverage: Float[np.ndarray, " level"],
    errors: Float[np.ndarray, " level"],
    *,
    label: str | None = None,
    color: str = BLUE,
) -> Line2D:
    """Draw coverage against credibility level; above the diagonal errors are too large."""
    if not ax.lines:
        ax.plot([0, 1], [0, 1], color="black", lw=0.6, ls="--")
        ax.text(0.03, 0.97, "errors too large", va="top", color=GREY, size=7)
        ax.text(0.97, 0.03, "errors too small", ha="right", color=GREY, size=7)
    (line,) = ax.plot(levels, coverage, color=color, label=label)
    low, high = coverage - errors, coverage + errors
    ax.fill_between(levels, low, high, color=color, alpha=0.25, lw=0)
    ax.set(xlabel="credibility level", ylabel="part of sources inside")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    if label:
        # Curves of errors that are too small, the common fault, leave this corner free.
        ax.legend(
            loc="upper left",
            bbox_to_anchor=(0.0, 0.92),
            labelspacing=0.2,
            handlelength=1.0,
        )
    return line


def plot_ranks(
    ax: Axes, histogram: Mapping[str, np.ndarray | float], *, color: str = BLUE
) -> Line2D:
    """Draw a rank histogram (`calibration.rank_histogram`) over its expected value +- 2 sigma."""
    edges, expected = histogram["edges"], histogram["expected"]
    error = 2 * np.sqrt(expected * (1 - expected / expected.sum()))
    wide = [np.append(v, v[-1]) for v in (expected - error, expected + error)]
    ax.fill_between(edges, *wide, step="post", color="0.85", lw=0)
    counts = np.append(histogram["counts"], histogram["counts"][-1])
    (line,) = ax.plot(edges, counts, drawstyle="steps-post", color=color)
    ax.set(xlabel="rank of the truth", ylabel="sources", xlim=(edges[0], edges[-1]))
    ax.set_ylim(0, None)
    ax.set_title(
        f"p = {histogram['p_chi2']:.2g} ($\\chi^2$)\np = {histogram['p_ks']:.2g} (KS)"
    )
    return line


def plot_evidence(
    ax: Axes,
    laps: Float[np.ndarray, " lap"],
    evidence: Float[np.ndarray, " lap"],
    errors: Float[np.ndarray, " lap"] | None = None,
    *,
    reference: float | None = None,
    label: str | None = None,
    color: str = BLUE,
    ylabel: str = "log evidence per blend",
) -> ErrorbarContainer:
    """Draw the evidence lap by lap, and as a dashed line that of a reference (the true prior)."""
    if reference is not None:
        ax.axhline(reference, color=GREY, ls="--", lw=0.8, label="true prior")
    artist = ax.errorbar(
        laps, evidence, errors, fmt="o-", color=color, ms=3, capsize=2, label=label
    )
    ax.set(xlabel="EM lap", ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.ticklabel_format(axis="y", useOffset=False)
    if label or reference is not None:
        ax.legend(loc="lower right")
    return artist


def plot_chi2(
    ax: Axes,
    chi2: Float[np.ndarray, " blend"],
    expected: Float[np.ndarray, " blend"],
    n_sources: Float[np.ndarray, " blend"],
    *,
    limit: float = 2.0,
) -> PathCollection:
    """Draw chi2 of every blend over its expected value, against that value, by sources.

    The grey band is +-2 sigma for white noise of the stated variance. Blends above `limit` are
    triangles at the upper edge.
    """
    ratio = chi2 / expected
    x = np.geomspace(0.8 * expected.min(), 1.25 * expected.max(), 100)
    # Var |y - A mu|^2 is at most 2 (N - trace), see `calibration.expected_chi2`.
    error = 2 * np.sqrt(2 / x)
    ax.fill_between(x, 1 - error, 1 + error, color="0.88", lw=0, zorder=0)
    ax.axhline(1, color="black", lw=0.6, ls="--", zorder=1)
    top, colors = ratio > limit, np.minimum(n_sources, 8)
    look = {"cmap": SEQUENTIAL, "vmin": 1, "vmax": 8, "lw": 0, "alpha": 0.9}
    if top.any():
        edge = np.full(top.sum(), limit)
        ax.scatter(
            expected[top], edge, c=colors[top], marker="^", s=18, clip_on=False, **look
        )
    dots = ax.scatter(expected[~top], ratio[~top], c=colors[~top], s=9, **look)
    ax.set(xlabel=r"expected $\chi^2$", ylabel=r"$\chi^2$ / expected $\chi^2$")
    low = min(0.8, 1 - error.max(), ratio.min() - 0.02)
    ax.set(xscale="log", xlim=(x[0], x[-1]), ylim=(low, limit))
    # Less than a decade is common: ticks at powers of ten alone would be none.
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    return dots


def plot_spread(
    ax: Axes, values: Mapping[str, Float[np.ndarray, " n"]], *, color: str = BLUE
) -> ErrorbarContainer:
    """Draw the median and the 16 % to 84 % range of each group, thin lines from 5 % to 95 %."""
    groups = [v[np.isfinite(v)] for v in values.values()]
    found = [np.quantile(v, [0.05, 0.16, 0.5, 0.84, 0.95]) for v in groups if len(v)]
    q = np.stack(found, axis=1)
    x = np.flatnonzero([len(v) > 0 for v in groups])
    ax.vlines(x, q[0], q[4], color=color, lw=0.8)
    ax.vlines(x, q[1], q[3], color=color, lw=4, alpha=0.4)
    artist = ax.errorbar(x, q[2], fmt="o", color=color, ms=4)
    ax.set_xticks(np.arange(len(values)), list(values))
    ax.set_xlim(-0.5, len(values) - 0.5)
    return artist
