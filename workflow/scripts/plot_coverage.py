"""Coverage of credible intervals and ranks of the truth (simulated runs)."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.logs import configure_logging
from blendem.measure.calibration import (
    coverage_fraction,
    rank_histogram,
    rank_level,
)
from blendem.plot.inputs import save
from blendem.rng import stage_rng

LEVELS = np.linspace(0.05, 0.95, 19)
SHAPES = {"size": "size", "e1": "$e_1$", "e2": "$e_2$"}


def main(
    sources: Path,
    output: Path,
    band: str,
    n_samples: int,
    config: PlotConfig,
    rng: np.random.Generator,
) -> None:
    """Read the scores, draw fluxes and colours, shapes, and ranks; write the figure."""
    scores = pd.read_csv(sources)

    def levels_of(column: str) -> Float[np.ndarray, " n"]:
        return rank_level(scores[column].dropna().to_numpy(float), n_samples)

    flux = {
        c.removeprefix("flux_rank_"): levels_of(c)
        for c in scores
        if c.startswith("flux_rank_")
    }
    color = {
        c.removeprefix("color_rank_").replace("_", " $-$ "): levels_of(c)
        for c in scores
        if c.startswith("color_rank_")
    }
    shape = {
        label: levels_of(f"{name}_rank")
        for name, label in SHAPES.items()
        if f"{name}_rank" in scores
    }
    groups = [("flux", flux), ("colour", color), ("size and shape", shape)]
    groups = [(title, levels) for title, levels in groups if levels]
    with matplotlib.rc_context(plot.STYLE):
        n = len(groups) + 1
        figure = Figure(figsize=(plot.TWO_COLUMNS, plot.TWO_COLUMNS / n + 0.4))
        axes = figure.subplots(1, n)
        for ax, (title, levels) in zip(axes, groups, strict=False):
            for (label, values), hue in zip(levels.items(), plot.COLORS, strict=False):
                inside = values[None] <= LEVELS[:, None]
                plot.plot_coverage(
                    ax, LEVELS, *coverage_fraction(inside), label=label, color=hue
                )
            ax.set_title(title, loc="left")
            if ax is not axes[0]:
                ax.set_ylabel("")
        ranks = scores[f"flux_rank_{band}"].dropna().to_numpy(int)
        if len(ranks):
            bins = min(n_samples + 1, 16 if len(ranks) >= 160 else 8)
            plot.plot_ranks(axes[-1], rank_histogram(ranks, n_samples, bins, rng=rng))
        axes[-1].set_xlabel(f"rank of the true {band} flux")
        axes[-1].set_box_aspect(1)
        save(figure, output, config.dpi)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    params = snakemake.params
    main(
        Path(snakemake.input.sources),
        Path(snakemake.output[0]),
        params.band,
        params.n_samples,
        PlotConfig(**params.plot),
        stage_rng(params.seed, "plot_coverage"),
    )
