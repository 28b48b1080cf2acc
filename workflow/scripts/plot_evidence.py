"""Evidence of the observations, EM iteration by iteration."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.logs import configure_logging
from blendem.plot.inputs import save


def main(laps: Path, output: Path, config: PlotConfig) -> None:
    """Read the evidence, draw its gain over the first prior, write the figure."""
    table = pd.read_csv(laps).sort_values("lap", kind="stable")
    first = table.iloc[0]
    gain = (
        (table["log_evidence"] - first["log_evidence"]) / first["n_blends"]
    ).to_numpy(float)
    same = (table[["n_data", "n_blends"]] == first[["n_data", "n_blends"]]).all(axis=1)
    if not same.all():
        raise ValueError(
            f"{laps}: the laps do not hold the same data (n_data, n_blends), so that their"
            " evidence cannot be compared; run `score` again."
        )
    column = "log_evidence_truth_prior"
    reference = None
    if column in table and table[column].notna().any():
        truth = table[column].dropna().iloc[-1]
        reference = float((truth - first["log_evidence"]) / first["n_blends"])
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(plot.ONE_COLUMN, 2.4))
        plot.plot_evidence(
            figure.subplots(),
            table["lap"].to_numpy(float),
            gain,
            reference=reference,
            ylabel="gain in log evidence per blend [nat]",
        )
        save(figure, output, config.dpi)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.laps),
        Path(snakemake.output[0]),
        PlotConfig(**snakemake.params.plot),
    )
