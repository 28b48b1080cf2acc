"""Pictures of the prior: draws before and after EM, mean and first modes."""

from pathlib import Path

import jax
import matplotlib
import numpy as np
from jaxtyping import PRNGKeyArray
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.io.priors import read_prior
from blendem.logs import configure_logging
from blendem.plot.inputs import display_bands, save
from blendem.prior.gaussian import GaussianPrior
from blendem.rng import stage_key

COLUMNS = 7


def main(
    first: Path,
    last: Path,
    output: Path,
    band: str,
    config: PlotConfig,
    *,
    key: PRNGKeyArray,
) -> None:
    """Read the priors, draw three rows, write the figure."""
    priors = {"first prior": read_prior(first)[0], "last prior": read_prior(last)[0]}
    basis = priors["first prior"].basis
    rgb = display_bands(basis.bands, config.rgb)
    mean = np.asarray(basis.mean)
    stretch = 0.03 * float(mean[[basis.bands.index(b) for b in rgb]].max())
    look = {"rgb": rgb, "stretch": stretch, "q": config.q}

    def picture(image):
        return plot.lupton(np.asarray(image), basis.bands, **look)

    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(plot.TWO_COLUMNS, 3.5))
        rows = figure.subplots(3, COLUMNS)
        for axes, (name, prior) in zip(rows, priors.items(), strict=False):
            # The same key: draws differ only as the moments do.
            draws = basis.decode(np.asarray(prior.sample(COLUMNS - 1, key=key)))
            images = [prior.basis.decode(prior.mean), *draws]
            plot.plot_prior_samples(axes, [picture(image) for image in images])
            axes[0].set_title("mean", loc="left")
            axes[1].set_title("draws", loc="left")
            axes[0].set_ylabel(name)
        draw_modes(rows[2], priors["first prior"], band)
        rows[2, 0].set_ylabel(f"modes, {band}")
        save(figure, output, config.dpi)


def draw_modes(axes: plot.Panels, prior: GaussianPrior, band: str) -> None:
    """The first modes in one band, red positive, each with its share of the variance."""
    basis = prior.basis
    index = basis.bands.index(band)
    values = np.asarray(basis.eigenvalues)
    total = values.sum() + float(basis.residual)
    for i, ax in enumerate(axes):
        if i >= len(values):
            ax.set_axis_off()
            continue
        mode = np.asarray(basis.modes[i, index])
        limit = np.abs(mode).max() or 1.0
        # Linear only near zero: wings and core are both seen.
        norm = AsinhNorm(linear_width=0.02 * limit, vmin=-limit, vmax=limit)
        ax.imshow(mode, cmap=plot.DIVERGING, norm=norm)
        ax.set(xticks=[], yticks=[], title=f"{i + 1}: {values[i] / total:.1%}")


if "snakemake" in globals():
    jax.config.update("jax_platforms", "cpu")  # a picture is not worth a GPU
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.first),
        Path(snakemake.input.last),
        Path(snakemake.output[0]),
        snakemake.params.band,
        PlotConfig(**snakemake.params.plot),
        key=stage_key(snakemake.params.seed, "plot_prior"),
    )
