"""Panels of figures: data and Axes in, artists out. Scripts make the figure and save it."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from astropy.visualization import make_lupton_rgb
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import AsinhNorm
from matplotlib.container import ErrorbarContainer
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from blendem.measure.metrics import binned_statistics
from blendem.measure.scores import BLENDEDNESS_EDGES, MAGNITUDE_EDGES

# Widths of a journal page (A&A, MNRAS: one column 88 mm, two columns 180 mm) [inch].
ONE_COLUMN, TWO_COLUMNS = 3.46, 7.09
# Read at print size: `with matplotlib.rc_context(STYLE):` around the making of a figure.
STYLE = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "image.origin": "lower",
    "image.interpolation": "nearest",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
}
# Okabe & Ito 2008, readable with every kind of colour blindness.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F7F7F"
COLORS = (BLUE, ORANGE, GREEN, PURPLE)
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"  # perceptually uniform; blue is negative

# What `subplots` gives, or part of it.
Panels = Sequence[Axes] | np.ndarray


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
        raise ValueError(f"`rgb` names {missing}, the image has the bands {list(bands)}.")
    planes = [np.nan_to_num(image[list(bands).index(band)]) for band in rgb]
    if stretch is None:
        stretch = float(np.quantile(np.abs(np.mean(planes, axis=0)), 0.95)) or 1.0
    with np.errstate(invalid="ignore"):  # astropy divides by the brightness, 0/0 in empty pixels
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
        positions[:, 1], positions[:, 0], s=24, facecolors="none", edgecolors="white", lw=0.6
    )
    for position, label in zip(positions, labels or (), strict=bool(labels)):
        ax.annotate(
            label, position[::-1], (4, 4), textcoords="offset points", color="white", size=6
        )
    ax.set(xlabel="x [pixel]", ylabel="y [pixel]")
    height, width = rgb.shape[:2]
    ax.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5))
    return image, marks


def plot_scale_bar(ax: Axes, width: int, pixel_scale: float, *, color: str = "white") -> Line2D:
    """Draw a bar of 1, 2, 5, 10 ... arcsec, up to 40 % of a picture of `width` pixels."""
    limit = 0.4 * width * pixel_scale
    length = max(m * 10.0**e for m in (1, 2, 5) for e in range(-2, 4) if m * 10.0**e <= limit)
    start, level = 0.05 * width, 0.05 * width
    (line,) = ax.plot([start, start + length / pixel_scale], [level, level], color=color, lw=1)
    ax.annotate(
        f'{length:g}"', (start, level), (0, 2), textcoords="offset points", color=color, size=6
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
    artists = [ax.imshow(p, origin="lower") for ax, p in zip(axes[:4], pictures, strict=True)]
    artists.append(plot_pull(axes[4], pull))
    if positions is not None:
        axes[2].plot(positions[:, 1], positions[:, 0], "+", color="white", ms=4, mew=0.6)
    if pixel_scale:
        plot_scale_bar(axes[2], observed_rgb.shape[1], pixel_scale)
    names = ("model", "rendered model", "observation", "residual", "pull")
    for ax, name in zip(axes, names, strict=True):
        ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
        if titles:
            ax.set_title(name)
    return artists


def plot_posterior_row(
    axes: Panels,
    mean: Float[np.ndarray, "height width"],
    std: Float[np.ndarray, "height width"],
    samples: Float[np.ndarray, "sample height width"],
    *,
    unit: str = "flux / pixel",
    pixel_scale: float | None = None,
    titles: bool = True,
) -> list[AxesImage]:
    """Draw the posterior of one source in one band: mean, standard deviation, a few draws.

    Brightness is on an asinh scale, linear below 5 % of the peak of the mean, so that wings and
    centre are both seen. Mean and draws share a scale.

    Args:
        axes: Two, and one more for each draw to show.
        mean: Posterior mean [unit].
        std: Posterior standard deviation [unit].
        samples: Draws [unit]; the first are shown.
        unit: Unit of the images, for the colour bars.
        pixel_scale: Side of a pixel [arcsec], for a scale bar; none if None.
        titles: Whether to name the panels.

    Raises:
        ValueError: If there are fewer draws than axes for them.
    """
    n = len(axes) - 2
    if n < 0 or len(samples) < n:
        raise ValueError(
            f"{len(axes)} axes need {n} draws (two are mean and sd), got {len(samples)}."
        )
    peak = float(np.nanmax(mean))
    peak = peak if peak > 0 else 1.0
    norm = AsinhNorm(linear_width=0.05 * peak, vmin=-0.05 * peak, vmax=peak)
    panels = [(mean, "mean"), (std, "standard deviation")]
    panels += [(draw, f"draw {i + 1}") for i, draw in enumerate(samples[:n])]
    artists = []
    for i, (ax, (picture, title)) in enumerate(zip(axes, panels, strict=True)):
        look = {"cmap": "magma", "vmin": 0} if i == 1 else {"cmap": SEQUENTIAL, "norm": norm}
        artists.append(ax.imshow(picture, origin="lower", **look))
        ax.set(xticks=[], yticks=[])
        if titles:
            ax.set_title(title)
    decade = 10 ** np.floor(np.log10(peak))
    top = decade * np.floor(peak / decade)  # one digit, inside the bar
    ticks = [0, *(f * top for f in (0.1, 0.3, 1.0))]
    _colorbar(axes[0], artists[0], f"[{unit}]", ticks=ticks)
    _colorbar(axes[1], artists[1], f"[{unit}]")
    if pixel_scale:
        plot_scale_bar(axes[0], mean.shape[1], pixel_scale)
    return artists


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
        ax.plot(x, shown, ".", color=color, ms=2, alpha=0.25, mew=0, zorder=1, rasterized=True)
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
        ax.legend(loc="center left", bbox_to_anchor=(0.0, 0.8))
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
    ax.set_title(rf"$\chi^2$: p = {histogram['p_chi2']:.2g}, KS: p = {histogram['p_ks']:.2g}")
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
    bar.set_label(label)
    if ticks is not None:
        bar.ax.set_yticks(ticks, [f"{tick:.2g}" for tick in ticks])
        bar.ax.minorticks_off()
    return bar
