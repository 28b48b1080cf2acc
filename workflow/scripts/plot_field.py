"""Picture of one field as every observation sees it: data, model, residual, pulls of a band."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.logs import configure_logging
from blendem.plot.inputs import SeenField, display_bands, read_field, save


def main(
    catalog: Path, models: Path, output: Path, band: str, config: PlotConfig
) -> None:
    """Read the field, draw four panels of every observation, write the figure."""
    field = read_field(catalog, models)
    first, several = field.seen[0], len(field.seen) > 1
    rgb = display_bands(first.bands, config.rgb)
    with matplotlib.rc_context(plot.STYLE):
        if several:
            aspects = [seen.image.shape[1] / seen.image.shape[2] for seen in field.seen]
            tall = (plot.TWO_COLUMNS - 0.8) / 4 * sum(aspects) + 0.45 * len(aspects)
            figure = Figure(figsize=(plot.TWO_COLUMNS, min(tall, 9.0)))
            blocks = figure.subplots(len(field.seen), 4, squeeze=False)
        else:
            height, width = first.image.shape[1:]
            side = min((plot.TWO_COLUMNS - 1.2) / 2 * height / width, 4.2)
            figure = Figure(figsize=(plot.TWO_COLUMNS, 2 * side + 0.9))
            blocks = figure.subplots(2, 2, sharex=True, sharey=True).reshape(1, 4)
        for axes, seen in zip(blocks, field.seen, strict=True):
            draw(axes, seen, band, config)
            for ax in axes:
                if several:
                    ax.set(xlabel="", ylabel="")
                else:
                    ax.label_outer()
            if several:
                axes[0].set_ylabel(f"{seen.name} {', '.join(seen.bands)}\ny [pixel]")
        colours = "" if several else f"   (red, green, blue: {', '.join(rgb)})"
        figure.suptitle(f"{field.name}{colours}", fontsize=8)
        save(figure, output, config.dpi)


def draw(axes: plot.Panels, seen: SeenField, band: str, config: PlotConfig) -> None:
    """Observation, model, residual and pull of one observation."""
    rgb = display_bands(seen.bands, config.rgb)
    look = {"rgb": rgb, "stretch": config.stretch * seen.noise(rgb), "q": config.q}
    panels = (
        ("observation", seen.image),
        ("model", seen.model),
        ("residual", seen.image - seen.model),
    )
    for ax, (title, image) in zip(axes, panels, strict=False):
        picture = plot.lupton(image, seen.bands, **look)
        shown = seen.positions if title == "observation" else seen.positions[:0]
        plot.plot_field(ax, picture, shown)
        ax.set_title(title)
    if seen.pixel_scale:
        plot.plot_scale_bar(axes[0], seen.image.shape[2], seen.pixel_scale)
    band = seen.shown(band)
    plot.plot_pull(axes[3], seen.pull[seen.bands.index(band)])
    axes[3].set_title(f"pull, band {band}")


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.catalog),
        Path(snakemake.input.models),
        Path(snakemake.output[0]),
        snakemake.params.band,
        PlotConfig(**snakemake.params.plot),
    )
