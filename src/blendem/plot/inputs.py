"""What the figures of a run need from its products, cut and arranged. Reads files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from jaxtyping import Float, PRNGKeyArray
from matplotlib.figure import Figure
from scipy.ndimage import map_coordinates

from blendem.inference.pixel_sampler import PixelSettings, sample_prior_stamps
from blendem.inference.sampler import sample_prior
from blendem.io.atomic import atomic_path
from blendem.io.priors import Prior
from blendem.io.products import read_models, read_table, read_views
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.unet import UNetPrior

PRIOR_LEVELS = 32  # noise levels of draws of a U-Net
MARGIN = 14  # shown around the sources of a blend [pixel]


@dataclass(frozen=True)
class SeenField:
    """A field as one observation sees it.

    Attributes:
        name: Of the instrument; empty for the first observation.
        bands: Names of the bands that it has.
        image, model, variance: `(band, y, x)`; infinite variance is masked.
        positions: Fitted centres (y, x) [pixel of the observation].
        pixel_scale: Side of a pixel [arcsec]; None without WCS.
    """

    name: str
    bands: tuple[str, ...]
    # Observations differ in bands and size: no name of an axis binds two of them.
    image: Float[np.ndarray, "_ _ _"]
    model: Float[np.ndarray, "_ _ _"]
    variance: Float[np.ndarray, "_ _ _"]
    positions: Float[np.ndarray, "_ 2"]
    pixel_scale: float | None

    @property
    def pull(self) -> Float[np.ndarray, "_ _ _"]:
        """Residual over noise sigma; NaN where masked."""
        used = np.isfinite(self.variance) & (self.variance > 0)
        sigma = np.sqrt(np.where(used, self.variance, np.nan))
        return (self.image - self.model) / sigma

    def noise(self, bands: Sequence[str]) -> float:
        """Median noise sigma of a pixel over `bands` [image unit]; 1 if all is masked."""
        planes = self.variance[[self.bands.index(b) for b in bands]]
        used = planes[np.isfinite(planes) & (planes > 0)]
        return float(np.sqrt(np.median(used))) if used.size else 1.0

    def shown(self, band: str) -> str:
        """The band, or the middle one of those that the observation has instead."""
        return band if band in self.bands else self.bands[len(self.bands) // 2]


@dataclass(frozen=True)
class FieldImages:
    """Catalog and images of one field.

    Attributes:
        name: Name of the field.
        bands: Names of the model bands.
        catalog: One row per source.
        seen: Its observations, the first one first.
        stamps: Posterior mean of every source at model resolution, `(source, band, S, S)`.
        stds: Posterior standard deviation, the same.
        unit: Of the images; may be empty.
    """

    name: str
    bands: tuple[str, ...]
    catalog: pd.DataFrame
    seen: tuple[SeenField, ...]
    stamps: Float[np.ndarray, "source band stamp stamp"]
    stds: Float[np.ndarray, "source band stamp stamp"]
    unit: str = ""

    def best(self, band: str) -> SeenField:
        """The first observation that has a band, else the first."""
        return next((o for o in self.seen if band in o.bands), self.seen[0])


def band_names(catalog: pd.DataFrame) -> tuple[str, ...]:
    """Bands of a catalog, in the order of its columns."""
    return tuple(c.removeprefix("snr_") for c in catalog if c.startswith("snr_"))


def read_field(catalog: Path, models: Path, stamps: str = "MODEL") -> FieldImages:
    """Read `catalog/<field>.fits` and `models/<field>.fits`; `stamps` begins their HDUs' names.

    Raises:
        InputError: If a file is missing or damaged.
    """
    table = read_table(catalog)[0].to_pandas()
    arrays, bands = read_models(models), band_names(table)
    header = fits.getheader(models, "SCI")
    wcs = WCS(header, naxis=2)
    variance = arrays.get("VAR", np.ones_like(arrays["SCI"]))
    # Planes of bands that the first observation lacks are masked.
    has = np.isfinite(variance).any(axis=(1, 2))
    has = has if has.any() else np.ones_like(has)
    positions = table[["y", "x"]].to_numpy(float)
    first = SeenField(
        "",
        tuple(b for b, there in zip(bands, has, strict=True) if there),
        np.nan_to_num(arrays["SCI"])[has],
        np.nan_to_num(arrays["MODEL"])[has],
        variance[has],
        positions,
        pixel_scale_in(wcs if wcs.has_celestial else None),
    )
    others = []
    for view in read_views(models):
        at = positions
        if view.wcs is not None:
            sky = np.stack([table["ra"], table["dec"]], axis=-1)
            at = view.wcs.celestial.all_world2pix(sky, 0)[:, ::-1]
        pictures = np.nan_to_num(view.image), np.nan_to_num(view.model)
        scale = pixel_scale_in(view.wcs)
        others.append(
            SeenField(view.instrument, view.bands, *pictures, view.variance, at, scale)
        )
    return FieldImages(
        name=catalog.stem,
        bands=bands,
        catalog=table,
        seen=(first, *others),
        stamps=arrays[f"{stamps}_MEAN"],
        stds=arrays[f"{stamps}_STD"],
        unit=str(header.get("BUNIT", "")).strip(),
    )


def pixel_scale_in(wcs: WCS | None) -> float | None:
    """Side of a pixel [arcsec]."""
    if wcs is None:
        return None
    return float(np.sqrt(np.prod(proj_plane_pixel_scales(wcs.celestial)))) * 3600


def display_bands(bands: Sequence[str], rgb: Sequence[str]) -> tuple[str, str, str]:
    """Bands drawn red, green and blue: `rgb`, or what the image has instead."""
    if all(band in bands for band in rgb):
        return tuple(rgb) if len(rgb) == 3 else (rgb[0],) * 3
    return bands[-1], bands[len(bands) // 2], bands[0]


def window_of(
    positions: Float[np.ndarray, "source 2"],
    shape: tuple[int, int],
    margin: int = MARGIN,
) -> tuple[slice, slice]:
    """Square window (y, x) around sources, moved into an image of `shape` and cut to it."""
    low, high = positions.min(axis=0) - margin, positions.max(axis=0) + margin
    side = int(np.ceil((high - low).max()))
    window = []
    for center, length in zip((low + high) / 2, shape, strict=True):
        start = int(np.clip(round(center - side / 2), 0, max(length - side, 0)))
        window.append(slice(start, min(start + side, length)))
    return tuple(window)


def cutout(
    image: Float[np.ndarray, "y x"], position: Float[np.ndarray, "2"], side: int
) -> Float[np.ndarray, "side side"]:
    """Square of `side` pixels about the pixel of a position (y, x); NaN outside the image."""
    padded = np.pad(np.asarray(image, float), side, constant_values=np.nan)
    y, x = np.round(position).astype(int) + side - side // 2
    return padded[y : y + side, x : x + side]


def shown_side(image: Float[np.ndarray, "side side"], part: float = 0.99) -> int:
    """Odd side of the central square with `part` of the absolute light, not below 25."""
    side = image.shape[-1]
    middle, light = side // 2, np.abs(np.nan_to_num(image))
    for half in range(min(12, middle), middle):
        box = slice(middle - half, middle + half + 1)
        if light[box, box].sum() >= part * light.sum():
            return 2 * half + 1
    return 2 * middle + 1


def place_stamps(
    stamps: Float[np.ndarray, "source band stamp stamp"],
    positions: Float[np.ndarray, "source 2"],
    shape: tuple[int, int],
    ratio: float = 1.0,
) -> Float[np.ndarray, "band y x"]:
    """Sum of model images on a grid of observed pixels, for display.

    Args:
        stamps: Model images; sources without a result (NaN) are left out.
        positions: Centres (y, x) [pixel of the grid].
        shape: Height and width of the grid.
        ratio: Side of a pixel of the grid over that of a model pixel.
    """
    total = np.zeros((stamps.shape[1], *shape))
    grid = np.indices(shape, dtype=float)
    middle = stamps.shape[-1] // 2
    for planes, position in zip(stamps, positions, strict=True):
        if not (np.isfinite(planes).all() and np.isfinite(position).all()):
            continue
        at = (grid - position[:, None, None]) * ratio + middle
        for band, plane in enumerate(planes):
            # Linear, because splines ring around a source that is a pixel wide.
            total[band] += ratio**2 * map_coordinates(plane, at, order=1)
    return total


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure; the file appears only when complete."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def prior_images(
    prior: Prior, n: int, *, key: PRNGKeyArray
) -> Float[np.ndarray, "n band stamp stamp"]:
    """Images of unconditional draws; those of a U-Net are not confined to the basis."""
    if isinstance(prior, UNetPrior):
        return sample_prior_stamps(prior, n, PixelSettings(steps=PRIOR_LEVELS), key=key)
    if isinstance(prior, GaussianPrior):
        z = prior.sample(n, key=key)
    else:
        z = sample_prior(prior, n, key=key)
    return np.asarray(prior.basis.decode(np.asarray(z)))
