"""Picture of one field: observation, model, residual, and pulls of one band."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.logs import configure_logging
from blendem.plot.inputs import display_bands, read_field, save


def main(
    catalog: Path, models: Path, output: Path, band: str, config: PlotConfig
) -> None:
    """Read the field, draw four panels, write the figure."""
    field = read_field(catalog, models)
    rgb = display_bands(field.bands, config.rgb)
    look = {"rgb": rgb, "stretch": config.stretch * field.noise(rgb), "q": config.q}
    height, width = field.image.shape[1:]
    with matplotlib.rc_context(plot.STYLE):
        side = min((plot.TWO_COLUMNS - 1.2) / 2 * height / width, 4.2)
        figure = Figure(figsize=(plot.TWO_COLUMNS, 2 * side + 0.9))
        axes = figure.subplots(2, 2, sharex=True, sharey=True).flat
        panels = (
            ("observation", field.image),
            ("model", field.model),
            ("residual", field.image - field.model),
        )
        for ax, (title, image) in zip(axes, panels, strict=False):
            picture = plot.lupton(image, field.bands, **look)
            shown = field.positions if title == "observation" else field.positions[:0]
            plot.plot_field(ax, picture, shown)
            ax.set_title(title)
        if field.pixel_scale:
            plot.plot_scale_bar(axes[0], width, field.pixel_scale)
        plot.plot_pull(axes[3], field.pull[field.bands.index(band)])
        axes[3].set_title(f"pull, band {band}")
        for ax in axes:
            ax.label_outer()
        figure.suptitle(
            f"{field.name}   (red, green, blue: {', '.join(rgb)})", fontsize=8
        )
        save(figure, output, config.dpi)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.catalog),
        Path(snakemake.input.models),
        Path(snakemake.output[0]),
        snakemake.params.band,
        PlotConfig(**snakemake.params.plot),
    )
