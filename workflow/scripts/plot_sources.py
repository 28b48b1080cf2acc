"""Pictures of a few sources: observation, truth, posterior, draws, residual."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.io.priors import read_prior
from blendem.io.products import read_samples, read_table
from blendem.io.truth import read_truth
from blendem.logs import configure_logging
from blendem.plot.inputs import cutout, read_field, save, shown_side
from blendem.prior.magnify import fit_side


def main(
    catalogs: list[Path],
    models: list[Path],
    samples: list[Path],
    truths: list[Path],
    prior: Path,
    output: Path,
    band: str,
    config: PlotConfig,
) -> None:
    """Choose sources, draw a row for each, write the figure."""
    basis = read_prior(prior)[0].basis
    tables = [
        read_table(path)[0].to_pandas().assign(path=i)
        for i, path in enumerate(catalogs)
    ]
    chosen = choose(pd.concat(tables), band, config.max_sources)
    index = basis.bands.index(band)
    n, scale = max(len(chosen), 1), float(basis.pixel_scale)
    with matplotlib.rc_context(plot.STYLE | {"axes.titlesize": 7}):
        figure = Figure(figsize=(plot.TWO_COLUMNS, 0.72 * n + 0.2))
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.02)
        columns = 4 + bool(truths) + config.n_samples
        rows = figure.subplots(n, columns, squeeze=False)
        if not len(chosen):
            figure.text(0.5, 0.5, "no source has a result", ha="center")
            for ax in rows.flat:
                ax.set_axis_off()
        for axes, (i, source) in zip(
            rows, enumerate(chosen.to_dict("records")), strict=False
        ):
            path = source["path"]
            field = read_field(catalogs[path], models[path])
            draws = read_samples(samples[path])
            row = int(np.flatnonzero(field.catalog["id"] == source["id"])[0])
            k = int(np.flatnonzero(draws.ids == source["id"])[0])
            seen = field.best(band)
            plane = seen.bands.index(seen.shown(band))
            mean = field.stamps[row, index]
            part = shown_side(mean)
            inner = slice(len(mean) // 2 - part // 2, len(mean) // 2 + part // 2 + 1)
            # The same part of the sky in observed pixels.
            ratio = scale / (seen.pixel_scale or scale)
            side = 2 * int(part * ratio / 2) + 1
            truth = None
            if truths:
                truth = true_image(truths[path], source["id"], band)
                truth = fit_side(truth, len(mean))[inner, inner]
            at = seen.positions[row]
            plot.plot_source_row(
                axes,
                cutout(seen.image[plane], at, side),
                mean[inner, inner],
                field.stds[row, index][inner, inner],
                fit_side(draws.images(basis, k)[:, index], len(mean))[:, inner, inner],
                cutout(seen.pull[plane], at, side),
                truth=truth,
                unit=f"{field.unit or 'flux'} / pixel",
                pixel_scale=scale / ratio,
                titles=i == 0,
            )
            axes[0].set_ylabel(
                f"{field.name[-14:]}\nsource {source['id']}\n"
                f"{band} = {source[f'mag_{band}']:.1f}\n"
                f"S/N {source[f'snr_{band}']:.0f}\n"
                f"blended {abs(source[f'blendedness_{band}']):.2f}",
                fontsize=5.5,
            )
        save(figure, output, config.dpi)


def true_image(truth: Path, source: int, band: str) -> np.ndarray:
    """Noise-free model image of a simulated source."""
    true = read_truth(truth)
    return true.images[true.rows([source])[0], true.bands.index(band)]


def choose(catalog: pd.DataFrame, band: str, n: int) -> pd.DataFrame:
    """Galaxies with a result, bright to faint at equal steps of rank; blended ones first."""
    good = (
        catalog["flags"].eq(0)
        & catalog["type"].eq("galaxy")
        & catalog["n_samples"].gt(0)
    )
    good &= catalog[f"snr_{band}"] > 0
    blended = good & (catalog[f"blendedness_{band}"] > 0.02)
    pool = catalog[blended if blended.sum() >= n else good]
    pool = pool.sort_values(f"snr_{band}", ascending=False, kind="stable")
    rank = np.linspace(0, len(pool) - 1, min(n, len(pool))).round().astype(int)
    return pool.iloc[rank]


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        [Path(path) for path in snakemake.input.catalogs],
        [Path(path) for path in snakemake.input.models],
        [Path(path) for path in snakemake.input.samples],
        [Path(path) for path in snakemake.input.truths],
        Path(snakemake.input.prior),
        Path(snakemake.output[0]),
        snakemake.params.band,
        PlotConfig(**snakemake.params.plot),
    )
