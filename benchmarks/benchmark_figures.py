"""Figures of `make benchmark`, at the width of a journal page, and their captions."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blendem.plot.style import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    TWO_COLUMNS,
)

# Name in the legend, colour and mark: filled marks and full lines for blendem.
LOOKS = {
    "latent": ("blendem, posterior mean", BLUE, "o", "-"),
    "score_map": ("blendem, score MAP", SKY, "s", "-"),
    "gaussian": ("blendem, Gaussian tier", GREEN, "D", "-"),
    "profiles": ("blendem, Sersic profiles", AMBER, "^", "-"),
    "scarlet2": ("scarlet2", ORANGE, "X", "--"),
    "sep_auto": ("sep, Kron", PURPLE, "v", "--"),
    "photutils_auto": ("photutils, Kron", GREY, "P", "--"),
    "none": ("no deblending", "black", "x", ":"),
}
BLENDED = ("<0.05", "0.05-0.2", "0.2-0.5", ">0.5")
LEGEND_ROWS = 2

CAPTIONS = {
    "benchmark_flux": "Mean of |F / F_true - 1| over bands and sources of the simulated HSC deep blends that all"
    " methods were run on, against blendedness, true i magnitude and S/N of the source were it alone. Each method has the definition of the true"
    " flux that serves it best; sources without a result count as 1. Bars: bootstrap of whole blends. Marks of one bin"
    " are set beside each other.",
    "benchmark_shapes": "The same blends: one minus the cosine similarity of the image of each source with the truth, rms error of"
    " an ellipticity component (galaxies that all methods with most shapes could measure), mean error of colours of neighbouring"
    " bands, half of the central 68 % of relative size errors, against blendedness.",
    "benchmark_depth": "The HSC blends at three depths. Left: mean flux residual of all sources with blendedness above 0.2, all blends that"
    " all methods were run on. Right: how often the 68 % interval of a flux holds the truth, by depth and blendedness (posterior"
    " mean's draws and Gaussian tier; no other row has intervals); the band is the goal, 0.65 to 0.71.",
    "benchmark_lsst": "Mean residual of the r flux in an aperture of 1.5 arcsec radius on LSST ten-year fields, against blendedness; lines: published"
    " averages of MADNESS, scarlet and no deblending over all of its galaxies.",
    "benchmark_lsst_sim": "Bias and scatter of the magnitudes of matched sources in blends of another pipeline, the sources that all methods have.",
    "benchmark_speed": "Wall seconds per blend of 1000 in one process, compilation included (that of blendem, once per shape, spread over 1000; that of scarlet2 with every blend).",
}


def rows_of(
    table: pd.DataFrame, method: str, quantity: str, band: str, labels
) -> pd.DataFrame:
    """Rows of some bins in their order."""
    found = table[
        (table["method"] == method)
        & (table["quantity"] == quantity)
        & (table["band"] == band)
    ].set_index("bin")
    return found.reindex([label for label in labels if label in found.index])


def plot_bins(
    ax: Axes,
    table: pd.DataFrame,
    quantity: str,
    band: str,
    labels,
    *,
    deficit=False,
    log=True,
) -> None:
    """Value of every method in every bin, methods beside each other."""
    shown = [m for m in LOOKS if m in set(table["method"])]
    for k, method in enumerate(shown):
        rows = rows_of(table, method, quantity, band, labels)
        if rows["value"].notna().sum() == 0:
            continue
        _, colour, mark, line = LOOKS[method]
        x = np.array([labels.index(label) for label in rows.index], float)
        value = 1 - rows["value"] if deficit else rows["value"]
        if len(rows) > 1 and rows.index[-1] == "all":  # no bin: no line leads there
            ax.errorbar(
                x[-1:] + 0.5 * (k / max(len(shown) - 1, 1) - 0.5),
                value.iloc[-1:],
                rows["error"].iloc[-1:],
                color=colour,
                marker=mark,
                ls="",
                ms=3.5,
                elinewidth=0.7,
            )
            x, value, rows = x[:-1], value.iloc[:-1], rows.iloc[:-1]
        ax.errorbar(
            x + 0.5 * (k / max(len(shown) - 1, 1) - 0.5),
            value,
            rows["error"],
            color=colour,
            marker=mark,
            ls=line,
            ms=3.5,
            lw=0.9,
            elinewidth=0.7,
        )
    if log:
        ax.set_yscale("log")
    ax.set_xlim(-0.5, len(labels) - 0.5)
    ax.set_xticks(range(len(labels)), [short(label) for label in labels])


def short(label: str) -> str:
    """Label of a bin on an axis."""
    text = label.removeprefix("mag ").removeprefix("snr ").replace(" to ", "-")
    text = text.replace("-inf-", "<")
    return f">{text.removesuffix('-inf')}" if text.endswith("-inf") else text


def bins(table: pd.DataFrame, variable: str) -> list[str]:
    """Labels of the bins of a variable that hold sources of the first method."""
    here = table[(table["variable"] == variable) & (table["quantity"] == "mean_flux")]
    return list(dict.fromkeys(here["bin"]))


def legend(figure: Figure, methods) -> None:
    """One legend above all panels."""
    handles = [
        plt.Line2D([], [], color=c, marker=m, ls=ls, ms=4, lw=0.9, label=name)
        for key, (name, c, m, ls) in LOOKS.items()
        if key in methods
    ]
    columns = int(np.ceil(len(handles) / LEGEND_ROWS))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)


def plot_flux(parts, more) -> Figure | None:
    """Residuals in bins of three variables."""
    table = parts["benchmark_hsc"].subset("common")
    figure, axes = plt.subplots(1, 3, figsize=(TWO_COLUMNS, 2.9), sharey=True)
    for ax, variable, name in zip(
        axes,
        ("blendedness", "mag", "snr"),
        ("blendedness", "true i [mag]", "S/N in i, alone"),
        strict=True,
    ):
        labels = list(BLENDED) if variable == "blendedness" else bins(table, variable)
        plot_bins(ax, table, "best_flux", "mean", labels)
        ax.set_xlabel(name)
    axes[0].set_ylabel("mean $|F/F_{\\mathrm{true}} - 1|$")
    legend(figure, set(table["method"]))
    return figure


def plot_shapes(parts, more) -> Figure | None:
    """Images, ellipticities, colours and sizes."""
    table = parts["benchmark_hsc"].subset("common")
    figure, axes = plt.subplots(2, 2, figsize=(TWO_COLUMNS, 4.4), sharex=True)
    panels = (
        ("mean_cosine", "mean", "1 - cosine similarity"),
        ("rms_e1", "reference", "rms error of $e_1$"),
        ("mean_colour", "mean", "mean colour error [mag]"),
        ("scatter_size", "reference", "scatter of size errors"),
    )
    for ax, (quantity, band, name) in zip(axes.flat, panels, strict=True):
        plot_bins(
            ax, table, quantity, band, list(BLENDED), deficit=quantity == "mean_cosine"
        )
        ax.set_ylabel(name)
        ax.yaxis.set_tick_params(which="minor", labelsize=6)
    for ax in axes[-1]:
        ax.set_xlabel("blendedness")
    legend(figure, set(table["method"]))
    return figure


def plot_depth(parts, more) -> Figure | None:
    """Residual and coverage by depth."""
    names = {
        "benchmark_hsc": "deep",
        "benchmark_hsc_1": "-1 mag",
        "benchmark_hsc_2": "-2 mag",
    }
    names = {k: v for k, v in names.items() if k in parts}
    if len(names) < 2:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(TWO_COLUMNS, 2.8))
    tables = [
        parts[name]
        .subset("common")
        .assign(bin=lambda t, d=depth: np.where(t["bin"] == ">0.2", d, "other"))
        for name, depth in names.items()
    ]
    table = pd.concat(tables)
    plot_bins(
        axes[0],
        table[table["bin"] != "other"],
        "best_flux",
        "mean",
        list(names.values()),
    )
    axes[0].set(
        xlabel="depth", ylabel="mean $|F/F_{\\mathrm{true}} - 1|$, blendedness > 0.2"
    )
    ax = axes[1]
    ax.axhspan(0.65, 0.71, color="0.85", lw=0)
    for method, shift in (("latent", -0.08), ("gaussian", 0.08)):
        for k, name in enumerate(names):
            rows = rows_of(
                parts[name].subset("all"), method, "mean_within68", "mean", BLENDED
            )
            if not len(rows):
                continue
            colour, mark = LOOKS[method][1:3]
            x = np.arange(len(rows)) + shift + 0.25 * (k - 1)
            ax.errorbar(
                x,
                rows["value"],
                rows["error"],
                color=colour,
                marker=mark,
                ls="",
                ms=3.5,
                alpha=1 - 0.3 * k,
            )
    ax.set_xticks(range(len(BLENDED)), BLENDED)
    ax.set(
        xlabel="blendedness; left to right: deep, -1, -2 mag",
        ylabel="truth inside 68 % intervals",
        ylim=(0.45, 0.95),
    )
    legend(figure, set(table["method"]))
    return figure


def plot_lsst(parts, more) -> Figure | None:
    """Aperture photometry in r."""
    if "benchmark_lsst" not in parts:
        return None
    figure, ax = plt.subplots(figsize=(TWO_COLUMNS, 2.9))
    table = parts["benchmark_lsst"].subset("all")
    plot_bins(ax, table, "mean_aperture", "r", [*BLENDED, "all"])
    for value, name in (
        (0.0197, "MADNESS"),
        (0.0278, "scarlet"),
        (0.142, "not deblended"),
    ):
        ax.axhline(value, color="0.5", lw=0.6, ls=":")
        ax.text(1.5, value * 1.04, name, fontsize=6, color="0.3")
    ax.set(xlabel="blendedness", ylabel="mean $|$aperture residual$|$, r")
    legend(figure, set(table["method"]))
    return figure


def plot_lsst_sim(parts, more) -> Figure | None:
    """Magnitudes of the other pipeline."""
    if "sim" not in more:
        return None
    figure, ax = plt.subplots(figsize=(TWO_COLUMNS, 2.9))
    rows, shown = more["sim"], set()
    rows = rows[(rows["subset"] == "common") & (rows["band"] == "mean")]
    keyed = rows.set_index(["quantity", "method"])
    for method, (_, colour, mark, _) in LOOKS.items():
        if ("bias", method) not in keyed.index:
            continue
        bias, scatter = (keyed.loc[(name, method)] for name in ("bias", "scatter"))
        ax.errorbar(
            bias["value"],
            scatter["value"],
            scatter["error"],
            bias["error"],
            color=colour,
            marker=mark,
            ls="",
            ms=4,
            elinewidth=0.7,
        )
        shown.add(method)
    ax.set(
        xlabel="|bias| of magnitudes, mean of bands [mag]",
        ylabel="scatter of magnitudes [mag]",
    )
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    legend(figure, shown)
    return figure


def plot_speed(parts, more) -> Figure | None:
    """Bars of seconds."""
    if "speed" not in more:
        return None
    table = more["speed"].set_index("what")
    wanted = [w for w in table.index if w.startswith(("blendem", "scarlet2"))]
    figure, ax = plt.subplots(figsize=(TWO_COLUMNS / 2, 1.7))
    values = table.loc[wanted, "seconds_of_1000"]
    colours = [ORANGE if w.startswith("scarlet2") else BLUE for w in wanted]
    ax.barh(range(len(wanted)), values, color=colours, height=0.6)
    for y, v in enumerate(values):
        ax.text(v, y, f" {v:.2f}", va="center", fontsize=7)
    ax.set_yticks(
        range(len(wanted)), [f"{w} (n = {table.loc[w, 'n']})" for w in wanted]
    )
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 1.2 * values.max())
    ax.set_xlabel("seconds per blend of 1000")
    return figure


FIGURES: Mapping = {
    "benchmark_flux": plot_flux,
    "benchmark_shapes": plot_shapes,
    "benchmark_depth": plot_depth,
    "benchmark_lsst": plot_lsst,
    "benchmark_lsst_sim": plot_lsst_sim,
    "benchmark_speed": plot_speed,
}
