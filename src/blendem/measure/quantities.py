"""What is scored of every draw: fluxes, colours, size and ellipticity.

Draws and truth go through the same functions, so that definitions cancel.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from blendem.inference.statistics import STAR_SPREAD
from blendem.measure.photometry import fluxes
from blendem.measure.shapes import measure_shapes
from blendem.prior.gaussian import Basis
from blendem.prior.magnify import kinds_of

SHAPES = ("size", "e1", "e2")
IMAGES = 4096  # images in memory at once: 40 MB of 49 x 49 pixels


def quantity_names(bands: Sequence[str]) -> tuple[str, ...]:
    """Names of all quantities: `flux_<b>`, `color_<b>_<c>` of neighbours, `size`, `e1`, `e2`."""
    colors = (f"color_{b}_{c}" for b, c in zip(bands[:-1], bands[1:], strict=True))
    return (*(f"flux_{b}" for b in bands), *colors, *SHAPES)


def posterior_quantities(
    basis: Basis,
    scale: Float[Array | np.ndarray, " source"],
    z: Float[Array | np.ndarray, "draw source mode"],
    reference_band: str,
    *,
    is_star: Bool[np.ndarray, " source"] | None = None,
    zoom: Int[np.ndarray, " source"] | None = None,
    chunk: int = IMAGES,
) -> dict[str, Float[np.ndarray, "draw source"]]:
    """Quantities of every draw of every source.

    Memory is flat: images, of the reference band only, exist for `chunk` draws at a time.
    Fluxes are linear in z and need no image.

    Args:
        basis: Basis of z.
        scale: Amplitudes `s_k` [flux unit]; NaN for a source without result.
        z: Coordinates; those of a star are its fluxes, see `Samples`.
        reference_band: Band of size and ellipticity.
        is_star: Stars have no size and ellipticity. None: there are no stars.
        zoom: Galaxies whose stamps are magnified, as in `Samples`. None: there are none.
        chunk: Images in memory at once [count].

    Returns:
        By name (`quantity_names` of the bands of the basis), `(draw, source)`: fluxes [flux
        unit], colours [mag], NaN where a flux is not positive, `size` (half-light radius
        [arcsec]) and `e1`, `e2` (distortion), NaN where `measure_shapes` finds none. All
        are NaN for sources without result.

    Raises:
        ValueError: If the band is not in the basis, or shapes disagree.
    """
    z, scale = np.asarray(z), np.asarray(scale, dtype=float)
    draws, n = z.shape[:2]
    n_modes, n_bands = len(basis.modes), len(basis.mean)
    if z.shape[1:] != (len(scale), n_modes):
        raise ValueError(
            f"`z` must be (draw, {len(scale)} sources, {n_modes} modes), got {z.shape}; "
            "use the basis of the prior that the run used."
        )
    reference = _index(basis.bands, reference_band)
    star = np.zeros(n, bool) if is_star is None else np.asarray(is_star)
    flux = np.full((draws, n, n_bands), np.nan)
    flux[:, star] = 1 + STAR_SPREAD * z[:, star, :n_bands].astype(float)
    shapes = {name: np.full((draws, n), np.nan) for name in SHAPES}
    zoom = np.zeros(n, int) if zoom is None else np.asarray(zoom)
    for number, kind in enumerate(kinds_of(basis, zoom)):
        galaxy = np.flatnonzero(~star & (zoom == number))
        modes, mean = np.asarray(kind.modes), np.asarray(kind.mean)
        light = modes.sum((-2, -1), dtype=float)
        template = modes[:, reference].reshape(n_modes, -1).astype(np.float32)
        base = mean[reference].astype(np.float32).ravel()
        for part in _blocks(len(galaxy), max(1, chunk // draws // 4**number)):
            rows = galaxy[part]
            flux[:, rows] = mean.sum((-2, -1), dtype=float) + z[:, rows] @ light
            images = z[:, rows].astype(np.float32).reshape(-1, n_modes) @ template
            images += base
            images *= np.tile(scale[rows], draws)[:, None].astype(np.float32)
            images = images.reshape(-1, *mean.shape[1:])
            for name, values in _shapes(images, float(basis.pixel_scale)).items():
                shapes[name][:, rows] = values.reshape(draws, len(rows))
    return _named(flux * scale[:, None], basis.bands) | shapes


def truth_quantities(
    images: Float[np.ndarray, "source band stamp stamp"],
    bands: Sequence[str],
    pixel_scale: float,
    reference_band: str,
    *,
    is_star: Bool[np.ndarray, " source"] | None = None,
    chunk: int = IMAGES,
) -> dict[str, Float[np.ndarray, " source"]]:
    """The same quantities of true model images, `(source,)` each.

    Args:
        images: Noise-free images at model resolution, centred on the central pixel.
        bands: Their bands, in the order of the axis.
        pixel_scale: Side of a pixel [arcsec].
        reference_band: As in `posterior_quantities`, like the others.
        is_star: Stars have no size and ellipticity.
        chunk: Images measured at once [count].

    Raises:
        ValueError: If the reference band or the shape of `images` does not fit `bands`.
    """
    if images.shape[1] != len(bands):
        raise ValueError(
            f"`images` must have one plane for each band of {tuple(bands)}, got {images.shape}."
        )
    reference, n = _index(bands, reference_band), len(images)
    galaxy = np.arange(n) if is_star is None else np.flatnonzero(~np.asarray(is_star))
    shapes = {name: np.full(n, np.nan) for name in SHAPES}
    for part in _blocks(len(galaxy), chunk):
        rows = galaxy[part]
        # The precision of the draws: adaptive moments stop at a rounding error.
        stamps = np.asarray(images[rows, reference], np.float32)
        for name, values in _shapes(stamps, pixel_scale).items():
            shapes[name][rows] = values
    return _named(fluxes(images), bands) | shapes


def colors(
    flux: Float[np.ndarray, "*n band"],
) -> Float[np.ndarray, "*n color"]:
    """Colours of neighbouring bands [mag], bluer minus redder; NaN where a flux is not positive."""
    magnitude = -2.5 * np.log10(np.where(flux > 0, flux, np.nan))
    return magnitude[..., :-1] - magnitude[..., 1:]


def _named(flux, bands) -> dict:
    """Fluxes and colours by the names of their bands."""
    values = np.concatenate([flux, colors(flux)], axis=-1)
    names = quantity_names(bands)[: -len(SHAPES)]
    return {name: values[..., i] for i, name in enumerate(names)}


def _shapes(images, pixel_scale) -> dict:
    measured = measure_shapes(images, pixel_scale)
    return {name: measured[name] for name in SHAPES}


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


def _index(bands: Sequence[str], band: str) -> int:
    if band not in bands:
        raise ValueError(f"`reference_band` {band!r} is none of {tuple(bands)}.")
    return list(bands).index(band)
