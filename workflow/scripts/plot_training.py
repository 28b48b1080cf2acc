"""Training and held-out loss of the denoiser, and the held-out loss by noise level."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.logs import configure_logging
from blendem.plot.inputs import save


def main(curve: Path, output: Path, config: PlotConfig) -> None:
    """Read the curve, draw it, write the figure."""
    table = pd.read_csv(curve)
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(plot.TWO_COLUMNS, 2.6))
        plot.plot_training(figure.subplots(1, 2), table)
        save(figure, output, config.dpi)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.curve),
        Path(snakemake.output[0]),
        PlotConfig(**snakemake.params.plot),
    )
