"""Observed chi2 of every blend against its expected value, and per band."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.logs import configure_logging
from blendem.plot.inputs import save


def main(blends: Path, output: Path, bands: list[str], config: PlotConfig) -> None:
    """Read the scores of blends, draw two panels, write the figure."""
    table = pd.read_csv(blends)
    table = table[table["chi2"].notna()]
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(plot.TWO_COLUMNS, 2.6))
        left, right = figure.subplots(1, 2)
        if len(table):
            columns = ("chi2", "expected_chi2", "n_sources")
            dots = plot.plot_chi2(left, *(table[c].to_numpy(float) for c in columns))
            figure.colorbar(dots, ax=left, label="sources in the blend (8: or more)")
            per_band = {b: table[f"chi2_{b}"] / table[f"ndata_{b}"] for b in bands}
            plot.plot_spread(right, {b: v.to_numpy(float) for b, v in per_band.items()})
        right.axhline(1, color="black", lw=0.6, ls="--")
        right.set(xlabel="band", ylabel=r"$\chi^2/N$ of blends")
        left.set_title(f"{len(table)} blends", loc="left")
        save(figure, output, config.dpi)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.blends),
        Path(snakemake.output[0]),
        list(snakemake.params.bands),
        PlotConfig(**snakemake.params.plot),
    )
