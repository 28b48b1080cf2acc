"""Relative flux errors against blendedness and magnitude (simulated runs)."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.logs import configure_logging
from blendem.measure.metrics import binned_statistics
from blendem.measure.scores import BLENDEDNESS_EDGES
from blendem.plot.inputs import save
from blendem.rng import stage_rng


def main(
    sources: Path, output: Path, band: str, config: PlotConfig, rng: np.random.Generator
) -> None:
    """Read the scores, draw two panels, write the figure."""
    scores = pd.read_csv(sources)
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(plot.TWO_COLUMNS, 2.6))
        axes = figure.subplots(1, 2, sharey=True)
        limit = half_height(scores, band, rng)
        plot.plot_flux_error(axes, scores, band, rng=rng, limit=limit)
        n = int(scores[f"flux_residual_{band}"].notna().sum())
        axes[0].set_title(f"{n} sources", loc="left")
        save(figure, output, config.dpi)


def half_height(scores: pd.DataFrame, band: str, rng: np.random.Generator) -> float:
    """Half height of the panels that shows the medians and errors of all bins, up to 2."""
    x = scores[f"blendedness_{band}"].to_numpy(float).clip(0, 1)
    residual = scores[f"flux_residual_{band}"].to_numpy(float)
    bins = binned_statistics(x, residual, BLENDEDNESS_EDGES, rng=rng)
    reach = bins["median"].abs() + bins["median_err"].fillna(0)
    return float(np.clip(1.2 * np.nan_to_num(reach.max()), 0.25, 2))


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.sources),
        Path(snakemake.output[0]),
        snakemake.params.band,
        PlotConfig(**snakemake.params.plot),
        stage_rng(snakemake.params.seed, "plot_flux_error"),
    )
