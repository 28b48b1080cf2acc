"""Panels of EM: what is watched, lap by lap."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from blendem.plot.style import BLUE, GREEN, GREY, ORANGE, SEQUENTIAL, Panels


def gain(scores: pd.DataFrame, first: pd.DataFrame) -> tuple[float, float, int]:
    """Mean gain in log score per blend over the first lap, its error, number of blends.

    Blends that have a score in both; the error is that of a mean of paired differences.
    """
    both = scores.merge(first, on="blend", suffixes=("", "_first"))
    change = (both["log_score"] - both["log_score_first"]).dropna()
    n = len(change)
    return float(change.mean()), float(change.std() / np.sqrt(max(n, 1))), n


def plot_em(axes: Panels, laps: pd.DataFrame) -> None:
    """Draw the held-out log score, the fit, and, in simulations, the distance to the truth.

    Args:
        axes: Two, or four where `laps` has columns of a truth.
        laps: One row per lap: `lap`, `gain`, `gain_error`, `chi2_of_draws`, `open_variance`; of
            a truth `loss_<sigma>`, `flux_residual_blended`, `flux_within68`.
    """
    lap = laps["lap"].to_numpy()
    axes[0].errorbar(
        lap, laps["gain"], laps["gain_error"], color=BLUE, marker="o", ms=3
    )
    axes[0].axhline(0, color=GREY, lw=0.6)
    axes[0].set_ylabel("gain in held-out\nlog score per blend [nat]")
    axes[1].plot(lap, laps["chi2_of_draws"], color=BLUE, marker="o", ms=3)
    axes[1].set_ylabel(r"$\chi^2$ of draws per pixel", color=BLUE)
    _right(axes[1], lap, laps["open_variance"], "variance that the data leave open")
    if len(axes) > 2:
        names = [c for c in laps if c.startswith("loss_")]
        colors = matplotlib.colormaps[SEQUENTIAL](np.linspace(0.0, 0.85, len(names)))
        for name, color in zip(names, colors, strict=True):
            label = rf"$\sigma$ = {name.removeprefix('loss_')}"
            value = laps[name] / laps[name].iloc[0]
            axes[2].plot(lap, value, color=color, marker="o", ms=3, label=label)
        axes[2].set_ylabel("denoising loss / lap 0")
        axes[2].legend()
        axes[3].plot(lap, laps["flux_residual_blended"], color=BLUE, marker="o", ms=3)
        axes[3].set_ylabel("|flux residual|,\nblendedness > 0.2", color=BLUE)
        _right(axes[3], lap, laps["flux_within68"], "in 68 % intervals")
        axes[3].set_ylim(bottom=0)
    for ax in axes:
        ax.set_xlabel("lap")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _right(ax: Axes, lap, values, label: str) -> None:
    other = ax.twinx()
    color = ORANGE if "intervals" in label else GREEN
    other.plot(lap, values, color=color, marker="s", ms=3)
    other.set_ylabel(label, color=color)
    if "intervals" in label:
        other.axhline(0.683, color=color, lw=0.6, ls="--")
