"""Pictures of the prior: training galaxies, Gaussian draws, draws of the run's prior, modes."""

from pathlib import Path

import jax
import matplotlib
import numpy as np
from jaxtyping import PRNGKeyArray
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig, PriorConfig
from blendem.io.priors import read_prior
from blendem.logs import configure_logging
from blendem.plot.inputs import display_bands, prior_images, save
from blendem.prior.gaussian import Basis, GaussianPrior
from blendem.prior.stamps import prepare_stamps
from blendem.rng import stage_key, stage_rng

COLUMNS = 8
STAMPS = 256  # training galaxies read, and draws: the mean is that of all of them


def main(
    basis: Path,
    last: Path,
    stamps: list[Path],
    output: Path,
    band: str,
    training: PriorConfig,
    config: PlotConfig,
    *,
    key: PRNGKeyArray,
    rng: np.random.Generator,
) -> None:
    """Read the priors, draw a row of each, write the figure."""
    gaussian, prior = read_prior(basis)[0], read_prior(last)[0]
    space = gaussian.basis
    rows = {}
    if stamps:
        images = np.load(stamps[0], mmap_mode="r")[:STAMPS]
        images, _ = prepare_stamps(
            np.asarray(images),
            space.bands.index(band),
            amplitude_jitter=training.amplitude_jitter,
            colour_jitter=training.colour_jitter,
            rng=rng,
        )
        if not isinstance(prior, GaussianPrior):  # as it was trained
            images *= np.float32(gaussian.mean_flux(space.bands.index(band)))
        rows["training\ngalaxies"] = images
    rows["Gaussian\ndraws"] = prior_images(gaussian, STAMPS, key=key)
    if isinstance(prior, GaussianPrior):
        rows["draws\nafter EM"] = prior_images(prior, STAMPS, key=key)
    else:
        rows["diffusion\ndraws"] = prior_images(prior, STAMPS, key=key)
    rgb = display_bands(space.bands, config.rgb)
    mean = np.asarray(space.mean)
    stretch = 0.03 * float(mean[[space.bands.index(b) for b in rgb]].max())
    look = {"rgb": rgb, "stretch": stretch, "q": config.q}
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(plot.TWO_COLUMNS, 0.95 * (len(rows) + 1) + 0.2))
        panels = figure.subplots(len(rows) + 1, COLUMNS)
        for axes, (name, images) in zip(panels, rows.items(), strict=False):
            shown = [images.mean(axis=0), *images[: COLUMNS - 1]]
            pictures = [plot.lupton(np.asarray(i), space.bands, **look) for i in shown]
            plot.plot_prior_samples(axes, pictures)
            axes[0].set_ylabel(name)
        panels[0, 0].set_title(f"mean of {STAMPS}", fontsize=7)
        plot.plot_scale_bar(panels[0, 0], mean.shape[-1], float(space.pixel_scale))
        draw_modes(panels[-1], space, band)
        panels[-1, 0].set_ylabel(f"modes, {band}")
        save(figure, output, config.dpi)


def draw_modes(axes: plot.Panels, basis: Basis, band: str) -> None:
    """The first modes in one band, red positive, each with its share of the variance."""
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
    params = snakemake.params
    main(
        Path(snakemake.input.basis),
        Path(snakemake.input.last),
        [Path(path) for path in snakemake.input.stamps],
        Path(snakemake.output[0]),
        params.band,
        PriorConfig(**params.prior),
        PlotConfig(**params.plot),
        key=stage_key(params.seed, "plot_prior"),
        rng=stage_rng(params.seed, "plot_prior"),
    )
