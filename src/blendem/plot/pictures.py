"""Panels with images: colour pictures, pulls, posteriors, draws of the prior."""

from collections.abc import Sequence

import numpy as np
from astropy.visualization import make_lupton_rgb
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import AsinhNorm
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from blendem.plot.style import DIVERGING, SEQUENTIAL, Panels

# Panels of `plot_blend_row`.
BLEND_PANELS = ("model", "rendered model", "observation", "residual", "pull")


def lupton(
    image: Float[np.ndarray, "band height width"],
    bands: Sequence[str],
    *,
    rgb: Sequence[str] | None = None,
    stretch: float | None = None,
    q: float = 8.0,
) -> np.ndarray:
    """Colour picture of a multi-band image, for display only.

    Args:
        image: Image, the same unit in every band.
        bands: Names of the bands.
        rgb: Bands drawn red, green, blue; the reddest, middle and bluest if None. One band
            alone is grey.
        stretch: Brightness where the stretch turns from linear to logarithmic [image unit];
            the 95 % quantile of the mean over bands if None. Pass one value to compare images.
        q: Softening, larger shows fainter wings.

    Returns:
        `(height, width, 3)`, uint8.

    Raises:
        ValueError: If a band of `rgb` is not one of `bands`.

    References:
        Lupton et al. 2004, PASP 116, 133.
    """
    rgb = (bands[-1], bands[len(bands) // 2], bands[0]) if rgb is None else rgb
    missing = [band for band in rgb if band not in bands]
    if missing:
        raise ValueError(
            f"`rgb` names {missing}, the image has the bands {list(bands)}."
        )
    planes = [np.nan_to_num(image[list(bands).index(band)]) for band in rgb]
    if stretch is None:
        stretch = float(np.quantile(np.abs(np.mean(planes, axis=0)), 0.95)) or 1.0
    with np.errstate(
        invalid="ignore"
    ):  # astropy divides by the brightness, 0/0 in empty pixels
        picture = make_lupton_rgb(*planes, minimum=0, stretch=stretch, Q=q)
    dark = np.all([plane <= 0 for plane in planes], axis=0)
    return np.where(dark[..., None], np.uint8(0), picture)


def plot_field(
    ax: Axes,
    rgb: np.ndarray,
    positions: Float[np.ndarray, "source 2"],
    *,
    labels: Sequence[str] | None = None,
) -> tuple[AxesImage, PathCollection]:
    """Draw a colour picture with a circle at each position (y, x) [pixel]."""
    image = ax.imshow(rgb, origin="lower")
    marks = ax.scatter(
        positions[:, 1],
        positions[:, 0],
        s=24,
        facecolors="none",
        edgecolors="white",
        lw=0.6,
    )
    for position, label in zip(positions, labels or (), strict=bool(labels)):
        ax.annotate(
            label,
            position[::-1],
            (4, 4),
            textcoords="offset points",
            color="white",
            size=6,
        )
    ax.set(xlabel="x [pixel]", ylabel="y [pixel]")
    height, width = rgb.shape[:2]
    ax.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5))
    return image, marks


def plot_scale_bar(
    ax: Axes, width: int, pixel_scale: float, *, color: str = "white"
) -> Line2D:
    """Draw a bar of 1, 2, 5, 10 ... arcsec, up to 40 % of a picture of `width` pixels."""
    limit = 0.4 * width * pixel_scale
    length = max(
        m * 10.0**e for m in (1, 2, 5) for e in range(-2, 4) if m * 10.0**e <= limit
    )
    start, level = 0.05 * width, 0.05 * width
    (line,) = ax.plot(
        [start, start + length / pixel_scale], [level, level], color=color, lw=1
    )
    ax.annotate(
        f'{length:g}"',
        (start, level),
        (0, 2),
        textcoords="offset points",
        color=color,
        size=6,
    )
    return line


def plot_pull(
    ax: Axes,
    pull: Float[np.ndarray, "height width"],
    *,
    limit: float = 5.0,
    colorbar: bool = True,
) -> AxesImage:
    """Draw `pull` (residual over noise sigma) on `ax`, from -`limit` to `limit`; NaN is grey."""
    image = ax.imshow(pull, origin="lower", cmap=DIVERGING, vmin=-limit, vmax=limit)
    ax.set_facecolor("0.8")
    ax.set(xlabel="x [pixel]", ylabel="y [pixel]")
    if colorbar:
        _colorbar(ax, image, r"residual / $\sigma$")
    return image


def plot_blend_row(
    axes: Panels,
    model_rgb: np.ndarray,
    rendered_rgb: np.ndarray,
    observed_rgb: np.ndarray,
    residual_rgb: np.ndarray,
    pull: Float[np.ndarray, "height width"],
    *,
    positions: Float[np.ndarray, "source 2"] | None = None,
    pixel_scale: float | None = None,
    titles: bool = True,
) -> list[AxesImage]:
    """Draw a blend in five panels: model, as observed, data, residual and pull.

    The pictures should share one `stretch`; `positions` (y, x) [observed pixel] are marked on
    the data, and `pixel_scale` (of the observation [arcsec]) gives a scale bar.
    """
    pictures = (model_rgb, rendered_rgb, observed_rgb, residual_rgb)
    artists = [
        ax.imshow(p, origin="lower") for ax, p in zip(axes[:4], pictures, strict=True)
    ]
    artists.append(plot_pull(axes[4], pull))
    if positions is not None:
        axes[2].plot(
            positions[:, 1], positions[:, 0], "+", color="white", ms=4, mew=0.6
        )
    if pixel_scale:
        plot_scale_bar(axes[2], observed_rgb.shape[1], pixel_scale)
    for ax, name in zip(axes, BLEND_PANELS, strict=True):
        ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
        if titles:
            ax.set_title(name)
    return artists


def plot_source_row(
    axes: Panels,
    observed: Float[np.ndarray, "observed observed"],
    mean: Float[np.ndarray, "stamp stamp"],
    std: Float[np.ndarray, "stamp stamp"],
    samples: Float[np.ndarray, "sample stamp stamp"],
    pull: Float[np.ndarray, "observed observed"],
    *,
    truth: Float[np.ndarray, "stamp stamp"] | None = None,
    unit: str = "flux / pixel",
    pixel_scale: float | None = None,
    titles: bool = True,
) -> list[AxesImage]:
    """Draw one source in one band: data, posterior and residual.

    Panels: observation, truth if there is one, posterior mean, standard deviation, a few
    draws, residual over the noise sigma. Brightness is on an asinh scale, linear below 5 % of
    the peak of the mean, so that wings and centre are both seen; the standard deviation has
    a scale of its own, the pull goes from -5 to 5.

    Args:
        axes: Four, one more for the truth, and one more for each draw to show.
        observed: Observation around the source, with its neighbours [unit]; NaN outside.
        mean: Posterior mean, at the resolution of the model [unit].
        std: Posterior standard deviation [unit].
        samples: Draws [unit]; the first are shown.
        pull: Residual of the whole field over sigma, where `observed` is.
        truth: Noise-free model image [unit].
        unit: Unit of the images, for the colour bars.
        pixel_scale: Side of a pixel [arcsec], for a scale bar; none if None.
        titles: Whether to name the panels.

    Raises:
        ValueError: If there are fewer draws than axes for them.
    """
    given = [(observed, "observation")]
    given += [] if truth is None else [(truth, "truth")]
    given += [(mean, "mean")]
    n = len(axes) - len(given) - 2
    if n < 0 or len(samples) < n:
        raise ValueError(
            f"{len(axes)} axes need {n} draws ({len(given) + 2} are for the rest), got"
            f" {len(samples)}."
        )
    peak = float(np.nanmax(mean))
    peak = peak if peak > 0 else 1.0
    norm = AsinhNorm(linear_width=0.05 * peak, vmin=-0.05 * peak, vmax=peak)
    panels = [*given, (std, "st. deviation")]
    panels += [(draw, f"draw {i + 1}") for i, draw in enumerate(samples[:n])]
    artists = []
    for ax, (picture, title) in zip(axes, panels, strict=False):
        look = {"cmap": SEQUENTIAL, "norm": norm}
        if picture is std:
            look = {"cmap": "magma", "vmin": 0}
        artists.append(ax.imshow(picture, origin="lower", **look))
        ax.set_facecolor("0.8")
        if titles:
            ax.set_title(title)
    artists.append(plot_pull(axes[-1], pull, colorbar=False))
    if titles:
        axes[-1].set_title("pull")
    for ax in axes:
        ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
    decade = 10 ** np.floor(np.log10(peak))
    top = decade * np.floor(peak / decade)  # one digit, inside the bar
    ticks = [0, *(f * top for f in (0.1, 0.3, 1.0))]
    at = len(given) - 1
    _colorbar(axes[at], artists[at], f"[{unit}]", ticks=ticks)
    _colorbar(axes[at + 1], artists[at + 1], f"[{unit}]")
    _colorbar(axes[-1], artists[-1], r"[$\sigma$]", ticks=[-5, 0, 5])
    if pixel_scale:
        plot_scale_bar(axes[0], observed.shape[1], pixel_scale)
    return artists


def plot_prior_samples(
    axes: Panels, images: Sequence[np.ndarray], *, title: str | None = None
) -> list[AxesImage]:
    """Draw one colour picture per axis, without ticks; `title` goes over the first."""
    artists = []
    for ax, picture in zip(axes, images, strict=True):
        artists.append(ax.imshow(picture, origin="lower"))
        ax.set(xticks=[], yticks=[])
    if title:
        axes[0].set_title(title, loc="left")
    return artists


def _colorbar(ax: Axes, image: AxesImage, label: str, ticks=None) -> Colorbar:
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03, ticks=ticks)
    bar.set_label(label, labelpad=1, fontsize=6)
    bar.ax.tick_params(pad=1, length=2, labelsize=6)
    if ticks is not None:
        bar.ax.set_yticks(ticks, [f"{tick:.2g}" for tick in ticks])
        bar.ax.minorticks_off()
    return bar
