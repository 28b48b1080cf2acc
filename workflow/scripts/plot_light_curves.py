"""Light curves of the brightest variable sources."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.io.products import read_light_curves
from blendem.io.truth import read_truth
from blendem.logs import configure_logging
from blendem.plot.inputs import save
from blendem.plot.light_curves import brightest, plot_light_curve

COLUMNS = 3


def main(
    catalogs: list[Path], truths: list[Path], output: Path, config: PlotConfig
) -> None:
    """One panel per source; a run may have none."""
    tables = {path.stem: read_light_curves(path) for path in catalogs}
    parts = [t.to_pandas().assign(field=f) for f, t in tables.items() if t is not None]
    true = {path.stem: read_truth(path).light_curves for path in truths}
    with matplotlib.rc_context(plot.STYLE):
        if not parts:
            figure = Figure(figsize=(plot.ONE_COLUMN, 1.0))
            figure.text(0.5, 0.5, "no source varies", ha="center", va="center")
            save(figure, output, config.dpi)
            return
        curves = pd.concat(parts, ignore_index=True)
        shown = brightest(curves, config.max_sources)
        n_rows = -(-len(shown) // COLUMNS)
        figure = Figure(figsize=(plot.TWO_COLUMNS, 1.9 * n_rows))
        axes = figure.subplots(n_rows, COLUMNS, squeeze=False).ravel()
        for ax, (field, number) in zip(axes, shown, strict=False):
            of = curves[(curves["field"] == field) & (curves["id"] == number)]
            known = true.get(field)
            if known is not None:
                known = known[known["id"] == number]
            unit = str(tables[field]["flux"].unit or "")
            plot_light_curve(ax, of, known, unit)
            ax.set_title(f"{field}, source {number}", loc="left")
        for ax in axes[len(shown) :]:
            ax.set_axis_off()
        axes[0].legend(title="band")
        save(figure, output, config.dpi)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        [Path(path) for path in snakemake.input.catalogs],
        [Path(path) for path in snakemake.input.truths],
        Path(snakemake.output[0]),
        PlotConfig(**snakemake.params.plot),
    )
