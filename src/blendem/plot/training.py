"""Panels of a training: losses, and the loss by noise level."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from blendem.plot.style import BLUE, GREY, ORANGE, SEQUENTIAL, Panels

# What is minimised in a training of each kind.
TRAINED = {
    "mixture": "training loss [nat per galaxy]",
    "network": "training loss, both heads",
    "unet": "training error / Wiener's expected",
}


def plot_training(axes: Panels, curve: pd.DataFrame) -> list[Line2D]:
    """Draw losses over steps, and the held-out squared error over Wiener's by noise level.

    Args:
        axes: Two.
        curve: `kind` ("mixture", "network" or "unet"), `step`, `train_loss`, `held_out` and
            `ratio_<sigma>` of every evaluation.

    Returns:
        The training curve, the held-out curve, and one line per noise level.
    """
    levels = sorted(
        float(c.removeprefix("ratio_")) for c in curve if c.startswith("ratio_")
    )
    kind = curve["kind"].iloc[0]
    step = curve["step"] / (1 if kind == "mixture" else 1000)
    label = "iteration of EM" if kind == "mixture" else "step [1000]"
    loss, ratio = axes
    # The training loss is no squared error: a scale of its own.
    (trained,) = loss.plot(step, curve["train_loss"], color=GREY, marker=".")
    loss.set(xlabel=label)
    loss.set_ylabel(TRAINED[kind], color=GREY)
    other = loss.twinx()
    (held,) = other.plot(step, curve["held_out"], color=BLUE, marker=".")
    best = int(np.argmin(curve["held_out"]))
    other.plot(step[best], curve["held_out"][best], "o", mfc="none", color=ORANGE)
    # In the corner that falling curves leave free.
    other.text(
        0.97,
        0.95,
        f"kept: {curve['held_out'][best]:.3f} (step {curve['step'][best]})",
        transform=other.transAxes,
        ha="right",
        va="top",
        color=ORANGE,
        size=7,
    )
    other.set_ylabel("held-out error / Wiener's, mean", color=BLUE)
    lines = []
    colors = matplotlib.colormaps[SEQUENTIAL](np.linspace(0.0, 0.85, len(levels)))
    for sigma, color in zip(levels, colors, strict=True):
        values = curve[f"ratio_{sigma:g}"]
        name = rf"$\sigma$ = {sigma:g}"
        lines += ratio.plot(step, values, color=color, marker=".", label=name)
    ratio.axhline(1, color="black", lw=0.6, ls="--")
    ratio.set(xlabel=label, ylabel="held-out squared error / Wiener's")
    low = min(float(curve[f"ratio_{s:g}"].min()) for s in levels)
    ratio.set_yscale("log")
    ticks = [t for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0) if t > 0.8 * low]
    ratio.yaxis.set_major_locator(FixedLocator(ticks))
    ratio.yaxis.set_major_formatter(FixedFormatter([f"{t:g}" for t in ticks]))
    ratio.yaxis.set_minor_locator(NullLocator())
    ratio.yaxis.set_minor_formatter(NullFormatter())
    ratio.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return [trained, held, *lines]
