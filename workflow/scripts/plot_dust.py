"""Galaxies behind dust: data, model, galaxy without dust and maps of A_V; below, calibration."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.io.priors import read_prior
from blendem.io.products import read_h5, read_models
from blendem.io.truth import read_truth
from blendem.logs import configure_logging
from blendem.measure.calibration import coverage_fraction, rank_level
from blendem.measure.dusty import ATTENUATION, BLENDED, quantity_names
from blendem.plot.dust import plot_attenuation, plot_dust_row
from blendem.plot.inputs import FieldImages, cutout, display_bands, read_field, save

LEVELS = np.linspace(0.05, 0.95, 19)


def main(
    catalogs: list[Path],
    models: list[Path],
    truths: list[Path],
    scores: Path,
    prior: Path,
    output: Path,
    band: str,
    n_samples: int,
    config: PlotConfig,
) -> None:
    """Choose galaxies, draw a row for each, then the panels of calibration."""
    basis = read_prior(prior)[0].basis
    fields = [
        read_field(*paths, "GALAXY") for paths in zip(catalogs, models, strict=True)
    ]
    chosen = choose(fields, config.max_sources, band)
    height = 0.95 * max(len(chosen), 1) + 0.3
    below = 2.6 if truths else 0.0
    with matplotlib.rc_context(plot.STYLE | {"axes.titlesize": 7}):
        figure = Figure(figsize=(plot.TWO_COLUMNS, height + below))
        if not truths:
            upper = figure
        else:
            upper, lower = figure.subfigures(2, 1, height_ratios=(height, below))
        rows = upper.subplots(max(len(chosen), 1), 8 if truths else 6, squeeze=False)
        if not chosen:
            upper.text(0.5, 0.5, "no galaxy has a result", ha="center")
            for ax in rows.flat:
                ax.set_axis_off()
        for line, (i, k) in enumerate(chosen):
            source = int(fields[i].catalog["id"].iloc[k])
            truth = true_images(truths[i], source) if truths else None
            maps = read_models(models[i])
            given = fields[i], maps, k, truth, basis, band, config
            draw_row(rows[line], *given, titles=line == 0)
        if truths:
            draw_calibration(lower, pd.read_csv(scores), basis.bands, band, n_samples)
        save(figure, output, config.dpi)


def choose(fields: list[FieldImages], n: int, band: str) -> list[tuple[int, int]]:
    """Field and row of bright galaxies, from little to much dust; half of them blended."""
    parts = [
        field.catalog.assign(path=i, row=np.arange(len(field.catalog)))
        for i, field in enumerate(fields)
    ]
    table = pd.concat(parts)
    table = table[table["n_samples"] > 0]
    size = table.groupby(["path", "blend"])["id"].transform("size")
    found = []
    for group, part in ((table[size > 1], n // 2), (table[size == 1], n - n // 2)):
        bright = group.nlargest(3 * part, f"snr_{band}").sort_values("A_V")
        at = np.linspace(0, len(bright) - 1, min(part, len(bright))).round().astype(int)
        found += bright.iloc[at][["path", "row"]].to_numpy().tolist()
    return [(int(i), int(k)) for i, k in found]


def true_images(truth: Path, source: int) -> tuple[np.ndarray, np.ndarray]:
    """Galaxy without dust, and map of A_V, of a simulated source."""
    known = read_truth(truth)
    row = known.rows([source])[0]
    return known.images[row], read_h5(truth, only=("dust",))[0]["dust"][row]


def draw_row(axes, field, maps, k, truth, basis, band, config, titles) -> None:
    """One galaxy."""
    source, seen = field.catalog.iloc[k], field.seen[0]
    rgb = display_bands(basis.bands, config.rgb)
    side, at = basis.mean.shape[-1], source[["y", "x"]].to_numpy(float)
    stretch = config.stretch * seen.noise(rgb)

    def picture(image):
        return plot.lupton(image, basis.bands, rgb=rgb, stretch=stretch, q=config.q)

    def around(image):
        return np.array([cutout(plane, at, side) for plane in image])

    reference = basis.bands.index(band)
    plot_dust_row(
        axes,
        picture(around(seen.image)),
        picture(around(seen.model)),
        around(seen.pull)[reference],
        picture(field.stamps[k]),
        maps["A_V_MEAN"][k],
        maps["A_V_STD"][k],
        truth_rgb=None if truth is None else picture(truth[0]),
        truth=None if truth is None else truth[1],
        pixel_scale=float(basis.pixel_scale),
        titles=titles,
    )
    text = f"{field.name} {source['id']:.0f}\n$z$ = {source['redshift']:.2f}\n"
    text += f"$A_V$ {source['A_V']:.2f} $\\pm$ {source['A_V_err']:.2f}"
    axes[0].set_ylabel(text, fontsize=5.5)


def draw_calibration(figure, scores, bands, band, n_samples) -> None:
    """Coverage of fluxes and A_V, and A_V against its truth."""
    good = scores[scores["n_samples"] > 0]
    left, middle, right = figure.subplots(1, 3)
    names = quantity_names(bands)
    for ax, which in ((left, names[:-1]), (middle, names[-1:])):
        for name, hue in zip(which, plot.COLORS, strict=False):
            levels = rank_level(
                good[f"{name}_rank"].dropna().to_numpy(float), n_samples
            )
            found = coverage_fraction(levels[None] <= LEVELS[:, None])
            label = "$A_V$" if name == ATTENUATION else name.removeprefix("flux_")
            plot.plot_coverage(ax, LEVELS, *found, label=label, color=hue)
    left.set_title("flux without dust", loc="left")
    middle.set_title("attenuation", loc="left")
    middle.set_ylabel("")
    blended = good[f"blendedness_{band}"].to_numpy() > BLENDED
    plot_attenuation(right, good, blended)
    right.set_title(f"{len(good)} galaxies", loc="left")


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    given, params = snakemake.input, snakemake.params
    main(
        [Path(path) for path in given.catalogs],
        [Path(path) for path in given.models],
        [Path(path) for path in given.truths],
        Path(given.sources),
        Path(given.galaxy),
        Path(snakemake.output[0]),
        params.band,
        params.n_samples,
        PlotConfig(**params.plot),
    )
