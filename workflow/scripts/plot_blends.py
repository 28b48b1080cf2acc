"""Pictures of blends: those that fit worst, and typical ones."""

from collections.abc import Sequence
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
    MARGIN,
    FieldImages,
    SeenField,
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
    """Choose blends, draw a row for each and every observation of it, write the figure."""
    chosen = choose(pd.read_csv(blends), config.max_blends)
    paths = {c.stem: (c, m) for c, m in zip(catalogs, models, strict=True)}
    fields = {name: read_field(*paths[name]) for name in chosen["field"].unique()}
    scale = float(read_prior(prior)[0].basis.pixel_scale)
    many = [len(fields[name].seen) for name in chosen["field"]]
    n = max(sum(many), 1)
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(plot.TWO_COLUMNS, 1.22 * n + 0.2))
        if not len(chosen):
            figure.text(0.5, 0.5, "no blend has a result", ha="center")
        rows = figure.subplots(n, 5, squeeze=False)
        left = list(rows)
        for blend, n_seen in zip(chosen.to_dict("records"), many, strict=True):
            block, left = left[:n_seen], left[n_seen:]
            draw(block, fields[blend["field"]], blend, scale, band, config)
        if len(chosen):
            name_panels(rows, max(many) > 1, band)
        for ax in rows.flat if not len(chosen) else ():
            ax.set_axis_off()
        save(figure, output, config.dpi)


def name_panels(rows: np.ndarray, several: bool, band: str) -> None:
    """Titles over the first row; with several observations pulls say their band themselves."""
    for ax, title in zip(rows[0], plot.BLEND_PANELS, strict=True):
        ax.set_title(title)
    if not several:
        rows[0, 4].set_title(f"pull, band {band}")


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
    rows: Sequence[plot.Panels],
    field: FieldImages,
    blend: dict,
    model_scale: float,
    band: str,
    config: PlotConfig,
) -> None:
    """Fill the five panels of a blend in every observation, one row each."""
    members = (field.catalog["blend"] == blend["number"]).to_numpy()
    for axes, seen in zip(rows, field.seen, strict=True):
        draw_seen(axes, seen, field, members, model_scale, band, config)
        if len(rows) > 1:
            axes[4].set_ylabel(f"band {seen.shown(band)}", fontsize=6)
        if seen.name:
            axes[0].set_ylabel(f"{seen.name}\n{', '.join(seen.bands)}", fontsize=6)
    rows[0][0].set_ylabel(
        f"{field.name[-14:]}\nblend {blend['number']}, {blend['n_sources']} sources\n"
        rf"$\chi^2/\langle\chi^2\rangle$ = {blend['ratio']:.2f}",
        fontsize=6,
    )


def draw_seen(
    axes: plot.Panels,
    seen: SeenField,
    field: FieldImages,
    members: np.ndarray,
    model_scale: float,
    band: str,
    config: PlotConfig,
) -> None:
    """Model, model as observed, data, residual and pull of one observation of a blend."""
    y, x = window_of(
        seen.positions[members], seen.image.shape[1:], margin_of(seen, field)
    )
    shape = (y.stop - y.start, x.stop - x.start)
    shift = np.array([y.start, x.start])
    image, model = seen.image[:, y, x], seen.model[:, y, x]
    ratio = (seen.pixel_scale or model_scale) / model_scale
    planes = [field.bands.index(b) for b in seen.bands]
    sharp = place_stamps(field.stamps[:, planes], seen.positions - shift, shape, ratio)
    rgb = display_bands(seen.bands, config.rgb)
    stretch = config.stretch * seen.noise(rgb)
    pictures = [
        plot.lupton(picture, seen.bands, rgb=rgb, stretch=stretch, q=config.q)
        for picture in (sharp, model, image, image - model)
    ]
    plot.plot_blend_row(
        axes,
        *pictures,
        seen.pull[seen.bands.index(seen.shown(band))][y, x],
        positions=seen.positions[members] - shift,
        pixel_scale=seen.pixel_scale,
        titles=False,
    )
    axes[2].set(xlim=(-0.5, shape[1] - 0.5), ylim=(-0.5, shape[0] - 0.5))


def margin_of(seen: SeenField, field: FieldImages) -> int:
    """Of the window [pixel]: the same part of the sky in every observation."""
    coarsest = max(o.pixel_scale or 1.0 for o in field.seen)
    return round(MARGIN * coarsest / (seen.pixel_scale or coarsest))


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
