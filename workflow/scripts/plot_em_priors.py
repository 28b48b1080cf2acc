"""Draws of the prior, lap by lap."""

from pathlib import Path

import jax
import matplotlib
import numpy as np
from jaxtyping import PRNGKeyArray
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.io.priors import read_prior
from blendem.logs import configure_logging
from blendem.plot.inputs import display_bands, prior_images, save
from blendem.rng import stage_key

COLUMNS = 10


def main(
    priors: list[Path], output: Path, config: PlotConfig, *, key: PRNGKeyArray
) -> None:
    """The same random numbers in all rows: a column is one component as it moves."""
    with matplotlib.rc_context(plot.STYLE):
        height = 0.7 * len(priors) + 0.2
        figure = Figure(figsize=(plot.TWO_COLUMNS, height))
        panels = figure.subplots(len(priors), COLUMNS, squeeze=False)
        for axes, path in zip(panels, priors, strict=True):
            prior, _ = read_prior(path)
            space = prior.basis
            rgb = display_bands(space.bands, config.rgb)
            mean = np.asarray(space.mean)
            stretch = 0.03 * float(mean[[space.bands.index(b) for b in rgb]].max())
            pictures = [
                plot.lupton(image, space.bands, rgb=rgb, stretch=stretch, q=config.q)
                for image in prior_images(prior, COLUMNS, key=key)
            ]
            plot.plot_prior_samples(axes, pictures)
            axes[0].set_ylabel(f"lap {int(path.stem)}")
        plot.plot_scale_bar(panels[0, 0], mean.shape[-1], float(space.pixel_scale))
        save(figure, output, config.dpi)


if "snakemake" in globals():
    jax.config.update("jax_platforms", "cpu")  # a picture is not worth a GPU
    configure_logging(snakemake.log[0])
    main(
        [Path(path) for path in snakemake.input.priors],
        Path(snakemake.output[0]),
        PlotConfig(**snakemake.params.plot),
        key=stage_key(snakemake.params.seed, "plot_em_priors"),
    )
