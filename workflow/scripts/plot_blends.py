"""Pictures of blends: those that fit worst, and typical ones."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.io.priors import read_prior
from blendem.logs import configure_logging
from blendem.plot.inputs import (
    FieldImages,
    display_bands,
    place_stamps,
    read_field,
    save,
    window_of,
)


def main(
    blends: Path,
    catalogs: list[Path],
    models: list[Path],
    prior: Path,
    output: Path,
    band: str,
    config: PlotConfig,
) -> None:
    """Choose blends, draw a row for each, write the figure."""
    chosen = choose(pd.read_csv(blends), config.max_blends)
    paths = {c.stem: (c, m) for c, m in zip(catalogs, models, strict=True)}
    fields = {name: read_field(*paths[name]) for name in chosen["field"].unique()}
    scale = float(read_prior(prior)[0].basis.pixel_scale)
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(plot.TWO_COLUMNS, 1.22 * max(len(chosen), 1) + 0.2))
        if not len(chosen):
            figure.text(0.5, 0.5, "no blend has a result", ha="center")
        rows = figure.subplots(max(len(chosen), 1), 5, squeeze=False)
        for axes, (i, blend) in zip(
            rows, enumerate(chosen.to_dict("records")), strict=False
        ):
            draw(
                axes, fields[blend["field"]], blend, scale, band, config, titles=i == 0
            )
        for ax in rows.flat if not len(chosen) else ():
            ax.set_axis_off()
        save(figure, output, config.dpi)


def choose(blends: pd.DataFrame, n: int) -> pd.DataFrame:
    """The worst half by chi2 over its expectation, then the nearest to the median.

    Blends of one source are taken only where there are not enough others.
    """
    ratio = blends["chi2"] / blends["expected_chi2"]
    blends = blends.assign(ratio=ratio)[ratio.notna()]
    many = blends[blends["n_sources"] > 1]
    blends = many if len(many) >= n else blends
    worst = blends.sort_values("ratio", ascending=False).head((n + 1) // 2)
    rest = blends.drop(worst.index)
    distance = (rest["ratio"] - blends["ratio"].median()).abs()
    typical = rest.loc[distance.sort_values(kind="stable").index[: n - len(worst)]]
    return pd.concat([worst, typical.sort_values("ratio", ascending=False)])


def draw(
    axes: plot.Panels,
    field: FieldImages,
    blend: dict,
    model_scale: float,
    band: str,
    config: PlotConfig,
    *,
    titles: bool,
) -> None:
    """Fill the five panels of a blend."""
    members = (field.catalog["blend"] == blend["number"]).to_numpy()
    y, x = window_of(field.positions[members], field.image.shape[1:])
    shape = (y.stop - y.start, x.stop - x.start)
    shift = np.array([y.start, x.start])
    image, model = field.image[:, y, x], field.model[:, y, x]
    ratio = (field.pixel_scale or model_scale) / model_scale
    sharp = place_stamps(field.stamps, field.positions - shift, shape, ratio)
    rgb = display_bands(field.bands, config.rgb)
    stretch = config.stretch * field.noise(rgb)
    pictures = [
        plot.lupton(planes, field.bands, rgb=rgb, stretch=stretch, q=config.q)
        for planes in (sharp, model, image, image - model)
    ]
    plot.plot_blend_row(
        axes,
        *pictures,
        field.pull[field.bands.index(band)][y, x],
        positions=field.positions[members] - shift,
        pixel_scale=field.pixel_scale,
        titles=titles,
    )
    if titles:
        axes[4].set_title(f"pull, band {band}")
    axes[2].set(xlim=(-0.5, shape[1] - 0.5), ylim=(-0.5, shape[0] - 0.5))
    axes[0].set_ylabel(
        f"{field.name[-14:]}\nblend {blend['number']}, {blend['n_sources']} sources\n"
        rf"$\chi^2/\langle\chi^2\rangle$ = {blend['ratio']:.2f}",
        fontsize=6,
    )


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.blends),
        [Path(path) for path in snakemake.input.catalogs],
        [Path(path) for path in snakemake.input.models],
        Path(snakemake.input.prior),
        Path(snakemake.output[0]),
        snakemake.params.band,
        PlotConfig(**snakemake.params.plot),
    )
