"""Panels of galaxies behind dust."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.image import AxesImage

from blendem.plot.pictures import plot_pull, plot_scale_bar
from blendem.plot.style import BLUE, ORANGE, SEQUENTIAL, Panels


def plot_dust_row(
    axes: Panels,
    observed_rgb: np.ndarray,
    model_rgb: np.ndarray,
    pull: Float[np.ndarray, "height width"],
    galaxy_rgb: np.ndarray,
    dust: Float[np.ndarray, "stamp stamp"],
    dust_std: Float[np.ndarray, "stamp stamp"],
    *,
    truth_rgb: np.ndarray | None = None,
    truth: Float[np.ndarray, "stamp stamp"] | None = None,
    pixel_scale: float | None = None,
    titles: bool = True,
) -> list[AxesImage]:
    """Draw one galaxy: data, model, pull, galaxy without dust, A_V and its error.

    Pictures should share one `stretch`. Both maps of A_V have one scale.

    Args:
        axes: Six, or eight with a truth.
        observed_rgb, model_rgb: Around the galaxy, with its neighbours.
        pull: Residual over the noise sigma, in one band.
        galaxy_rgb: Posterior mean of the galaxy without dust.
        dust, dust_std: Posterior mean and standard deviation of A_V [mag].
        truth_rgb, truth: The same galaxy and map of a simulation.
        pixel_scale: Of the observation [arcsec], for a scale bar.
        titles: Whether to name the panels.
    """
    top = float(max(dust.max(), 0 if truth is None else truth.max()))
    maps = {"cmap": SEQUENTIAL, "vmin": 0, "vmax": top}
    spread = {"cmap": "magma", "vmin": 0}
    panels = [
        (observed_rgb, "observed", {}),
        (model_rgb, "model", {}),
        (pull, "pull", None),
    ]
    if truth_rgb is not None:
        panels.append((truth_rgb, "true galaxy", {}))
    panels.append((galaxy_rgb, "galaxy", {}))
    if truth is not None:
        panels.append((truth, "true $A_V$", maps))
    panels += [(dust, "$A_V$", maps), (dust_std, "error of $A_V$", spread)]
    artists = []
    for ax, (picture, name, look) in zip(axes, panels, strict=True):
        if look is None:
            artists.append(plot_pull(ax, picture, colorbar=False))
        else:
            artists.append(ax.imshow(picture, origin="lower", **look))
        ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
        if titles:
            ax.set_title(name)
        if look != {}:
            label = r"[$\sigma$]" if look is None else "[mag]"
            bar = ax.figure.colorbar(artists[-1], ax=ax, fraction=0.046, pad=0.03)
            bar.set_label(label, labelpad=1, fontsize=6)
            bar.ax.tick_params(pad=1, length=2, labelsize=6)
    if pixel_scale:
        plot_scale_bar(axes[0], observed_rgb.shape[1], pixel_scale)
    return artists


def plot_attenuation(
    ax: Axes, scores: pd.DataFrame, blended: Bool[np.ndarray, " source"] | None = None
) -> list[ErrorbarContainer]:
    """Draw A_V against its truth, with errors; blended galaxies in a colour of their own.

    Args:
        ax: The panel.
        scores: `A_V`, `A_V_err`, `A_V_true` [mag] of each galaxy.
        blended: Of each; None: no difference is made.
    """
    marked = np.zeros(len(scores), bool) if blended is None else blended
    top = 1.05 * max(scores["A_V_true"].max(), scores["A_V"].max())
    ax.plot([0, top], [0, top], color="black", lw=0.6, ls="--")
    artists = []
    for chosen, color, label in (
        (~marked, BLUE, "isolated"),
        (marked, ORANGE, "blended"),
    ):
        if not chosen.any():
            continue
        rows = scores[chosen]
        artists.append(
            ax.errorbar(
                rows["A_V_true"], rows["A_V"], rows["A_V_err"], fmt="o", ms=2, lw=0.5,
                color=color, alpha=0.7, label=label if marked.any() else None,
            )
        )  # fmt: skip
    ax.set(
        xlabel="true $A_V$ [mag]", ylabel="$A_V$ [mag]", xlim=(0, top), ylim=(0, top)
    )
    ax.set_box_aspect(1)
    if marked.any():
        ax.legend(loc="upper left")
    return artists
