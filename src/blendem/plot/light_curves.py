"""Light curves of variable sources."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from blendem.plot.style import COLORS


def plot_light_curve(
    ax: Axes, curve: pd.DataFrame, truth: pd.DataFrame | None = None, unit: str = ""
) -> None:
    """Draw the flux of one source against time, a colour per band.

    Marks are posterior means with errors, filled where the source may shine and open where it is
    known to be off; lines are the truth.

    Args:
        ax: Where.
        curve: Rows of the HDU LIGHTCURVES of one source.
        truth: `epoch`, `mjd`, `band` and `flux` of the same source, or None.
        unit: Of the flux.
    """
    # Without dates the epochs are drawn in their order.
    order = {epoch: i for i, epoch in enumerate(dict.fromkeys(curve["epoch"]))}
    dated = curve["mjd"].notna().all()
    ax.axhline(0, color="black", lw=0.6)
    for color, band in zip(COLORS, dict.fromkeys(curve["band"]), strict=False):
        part = curve[curve["band"] == band]
        x = part["mjd"] if dated else part["epoch"].map(order)
        if truth is not None:
            true = part[["epoch"]].merge(truth[truth["band"] == band], on="epoch")
            ax.plot(x, true["flux"], "-", color=color, lw=0.8, alpha=0.7)
        for shines in (True, False):
            chosen = (part["shines"] == shines).to_numpy()
            ax.errorbar(
                x[chosen],
                part["flux"][chosen],
                part["flux_err"][chosen],
                fmt="o",
                ms=3.5,
                mfc=color if shines else "white",
                color=color,
                capsize=2,
                label=band if shines else None,
            )
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_xlabel("MJD [day]" if dated else "epoch")
    if not dated:
        ax.set_xticks(list(order.values()), list(order), rotation=30)
    ax.set_ylabel(f"flux [{unit}]" if unit else "flux")


def brightest(curves: pd.DataFrame, n: int) -> list[tuple[str, int]]:
    """`field` and `id` of the `n` sources with the largest S/N of all their fluxes together."""
    power = (curves["flux"] / curves["flux_err"].where(curves["flux_err"] > 0)) ** 2
    total = power.groupby([curves["field"], curves["id"]]).sum()
    order = np.argsort(-total.to_numpy(), kind="stable")[:n]
    return [total.index[i] for i in order]
