"""All laps of EM in one table and one figure."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.io.atomic import atomic_path
from blendem.logs import configure_logging
from blendem.plot.em import gain, plot_em
from blendem.plot.inputs import save


def main(
    laps: list[Path],
    blends: list[Path],
    table: Path,
    figure: Path,
    config: PlotConfig,
) -> None:
    """Log scores are compared blend by blend with those of lap 0."""
    rows = pd.concat([pd.read_csv(path) for path in laps], ignore_index=True)
    scores = [pd.read_csv(path) for path in blends]
    columns = ["blend", "log_score"]
    pairs = [gain(s[columns], scores[0][columns]) for s in scores]
    rows["gain"], rows["gain_error"], rows["gain_blends"] = zip(*pairs, strict=True)
    with atomic_path(table) as temporary:
        rows.to_csv(temporary, index=False)
    panels = 4 if "flux_within68" in rows else 2
    with matplotlib.rc_context(plot.STYLE):
        page = Figure(figsize=(plot.TWO_COLUMNS, 2.3 * panels / 2))
        plot_em(page.subplots(panels // 2, 2).ravel(), rows)
        save(page, figure, config.dpi)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        [Path(path) for path in snakemake.input.laps],
        [Path(path) for path in snakemake.input.blends],
        Path(snakemake.output.table),
        Path(snakemake.output.figure),
        PlotConfig(**snakemake.params.plot),
    )
