"""Pictures of the posterior of a few sources: mean, standard deviation, draws."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.io.priors import read_prior
from blendem.io.products import read_samples, read_table
from blendem.logs import configure_logging
from blendem.plot.inputs import read_field, save


def main(
    catalogs: list[Path],
    models: list[Path],
    samples: list[Path],
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
    n = max(len(chosen), 1)
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(plot.TWO_COLUMNS, 1.06 * n + 0.15))
        rows = figure.subplots(n, 2 + config.n_samples, squeeze=False)
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
            plot.plot_posterior_row(
                axes,
                field.stamps[row, index],
                field.stds[row, index],
                draws.images(basis, k)[:, index],
                pixel_scale=float(basis.pixel_scale),
                titles=i == 0,
            )
            axes[0].set_ylabel(
                f"{field.name[-14:]}\nsource {source['id']}\n"
                f"{band} = {source[f'mag_{band}']:.1f}, "
                f"S/N {source[f'snr_{band}']:.0f}\n"
                f"blendedness {abs(source[f'blendedness_{band}']):.2f}",
                fontsize=6,
            )
        save(figure, output, config.dpi)


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
        Path(snakemake.input.prior),
        Path(snakemake.output[0]),
        snakemake.params.band,
        PlotConfig(**snakemake.params.plot),
    )
