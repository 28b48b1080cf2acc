"""Picture of a whole field that was cut into tiles, and a part of it at full resolution."""

from pathlib import Path

import matplotlib
import numpy as np
from astropy.wcs import WCS
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from blendem import plot
from blendem.config import PlotConfig
from blendem.io.fitsfile import browse_fits
from blendem.io.products import read_table
from blendem.logs import configure_logging
from blendem.plot.inputs import display_bands, pixel_scale_in, save

WHOLE = 800  # most pixels of the whole field along an axis, after binning
PART = 256  # side of the part that is shown at full resolution [pixel]


def main(mosaic: Path, catalog: Path, output: Path, config: PlotConfig) -> None:
    """Image, model and residual of the field and of its middle."""
    table = read_table(catalog)[0].to_pandas()
    with browse_fits(mosaic) as hdus:
        bands = tuple(hdus["MODEL"].header["BANDS"].split(","))
        rgb = display_bands(bands, config.rgb)
        wcs = WCS(hdus["MODEL"].header, naxis=2)
        scale = pixel_scale_in(wcs if wcs.has_celestial else None)
        shape = hdus["MODEL"].shape[1:]
        low = [max(0, (side - PART) // 2) for side in shape]
        box = tuple(slice(a, a + PART) for a in low)
        step = -(-max(shape) // WHOLE)
        binned = {n: _binned(hdus[n], step) for n in ("MODEL", "RESIDUAL")}
        part = {n: np.array(hdus[n].section[:, *box]) for n in binned}
    noise = [1.4826 * np.median(np.abs(part["RESIDUAL"][bands.index(b)])) for b in rgb]
    look = {
        "rgb": rgb,
        "stretch": config.stretch * float(np.mean(noise)),
        "q": config.q,
    }
    inside = table[
        (abs(table["y"] - low[0] - PART / 2) < PART / 2)
        & (abs(table["x"] - low[1] - PART / 2) < PART / 2)
    ]
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(plot.TWO_COLUMNS, 5.0))
        axes = figure.subplots(2, 3)
        views = ((binned, step, (0, 0)), (part, 1, low))
        for row, (images, pixels, corner) in zip(axes, views, strict=True):
            pictures = {
                "observation": images["MODEL"] + images["RESIDUAL"],
                "model": images["MODEL"],
                "residual": images["RESIDUAL"],
            }
            for ax, (title, image) in zip(row, pictures.items(), strict=True):
                height, width = image.shape[1:]
                edges = (0, width * pixels, 0, height * pixels)
                extent = np.array(edges) + np.repeat(corner[::-1], 2) - 0.5
                ax.imshow(
                    plot.lupton(image, bands, **look), origin="lower", extent=extent
                )
                ax.set(xlim=extent[:2], ylim=extent[2:])
                if images is binned:
                    ax.set_title(title)
                else:
                    ax.set_xlabel("x [pixel]")
            row[0].set_ylabel("y [pixel]")
            for ax in row[1:]:
                ax.tick_params(labelleft=False)
        axes[1, 0].scatter(
            inside["x"], inside["y"], s=18, facecolors="none", edgecolors="w", lw=0.5
        )
        axes[0, 0].add_patch(
            Rectangle(low[::-1], PART, PART, fill=False, edgecolor="white", lw=0.8)
        )
        if scale:
            for ax, side in zip(axes[:, 0], (shape[1], PART), strict=True):
                plot.plot_scale_bar(ax, side, scale)
        name = f"{catalog.stem}: {len(table)} sources"
        figure.suptitle(f"{name}   (red, green, blue: {', '.join(rgb)})", fontsize=8)
        save(figure, output, config.dpi)


def _binned(hdu, step: int) -> np.ndarray:
    """Mean of blocks of `step` pixels a side, band by band; what is left at the far edges is cut."""
    planes = []
    for b in range(hdu.shape[0]):
        plane = np.asarray(hdu.section[b], np.float32)
        height, width = (side // step for side in plane.shape)
        plane = plane[: height * step, : width * step]
        planes.append(plane.reshape(height, step, width, step).mean(axis=(1, 3)))
    return np.stack(planes)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.mosaic),
        Path(snakemake.input.catalog),
        Path(snakemake.output[0]),
        PlotConfig(**snakemake.params.plot),
    )
