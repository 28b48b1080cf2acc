"""One look for all figures: sizes, fonts, colours."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

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
BLUE, ORANGE, GREEN, PURPLE, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#7F7F7F",
)
SKY, AMBER = "#56B4E9", "#E69F00"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER)
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"  # perceptually uniform; blue is negative

# What `subplots` gives, or part of it.
Panels = Sequence[Axes] | np.ndarray
