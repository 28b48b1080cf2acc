"""Observed chi2 of every blend against its expected value, and per band."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.logs import configure_logging
from blendem.plot.inputs import save


def main(
    blends: Path,
    observations: Path,
    output: Path,
    bands: list[str],
    config: PlotConfig,
) -> None:
    """Read the scores of blends and of their observations, draw two panels, write the figure."""
    table = pd.read_csv(blends)
    table = table[table["chi2"].notna()]
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(plot.TWO_COLUMNS, 2.6))
        left, right = figure.subplots(1, 2)
        if len(table):
            columns = ("chi2", "expected_chi2", "n_sources")
            dots = plot.plot_chi2(left, *(table[c].to_numpy(float) for c in columns))
            figure.colorbar(dots, ax=left, label="sources in the blend (8: or more)")
            plot.plot_spread(right, per_band(pd.read_csv(observations), bands))
        right.axhline(1, color="black", lw=0.6, ls="--")
        right.set(xlabel="band", ylabel=r"$\chi^2/N$ of blends")
        left.set_title(f"{len(table)} blends", loc="left")
        save(figure, output, config.dpi)


def per_band(observations: pd.DataFrame, bands: list[str]) -> dict[str, np.ndarray]:
    """chi2 per pixel of blends, by band and, where there are several, by observation."""
    ratio = observations["chi2"] / observations["n_data"]
    numbers = sorted(observations["observation"].unique())
    groups = {}
    for number in numbers:
        mine = observations["observation"] == number
        for band in bands:
            chosen = ratio[mine & (observations["band"] == band)].to_numpy(float)
            if len(numbers) == 1 or len(chosen):
                groups[band if number == 0 else f"{band}\n({number + 1})"] = chosen
    return groups


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.blends),
        Path(snakemake.input.observations),
        Path(snakemake.output[0]),
        list(snakemake.params.bands),
        PlotConfig(**snakemake.params.plot),
    )
