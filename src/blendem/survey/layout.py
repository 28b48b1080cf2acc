"""Where sources lie in a simulated field, and the field's world coordinates."""

import numpy as np
from astropy.wcs import WCS
from jaxtyping import Float, Int

# Number of sources in a simulated blend: uniform in 2..6.
BLEND_SOURCES = (2, 6)
# Closest pair in a simulated blend [pixel]: half an HSC FWHM. Closer pairs are not told
# apart by any detection and would not be in a catalog.
MIN_SEPARATION = 2.0
# Smallest radius within which the sources of a blend lie [pixel], and the largest over the
# side of the tile.
RADIUS = (3.0, 0.3)
# Smallest tile [pixel] in which a blend still has some empty sky around it.
MIN_TILE = 40
ATTEMPTS = 200


def tangent_wcs(
    shape: tuple[int, int],
    pixel_scale: float,
    center: tuple[float, float],
    *,
    shift: tuple[float, float] = (0.0, 0.0),
    rotation: float = 0.0,
) -> WCS:
    """Tangent-plane WCS, north up (+y) and east left (-x).

    Args:
        shape: Height and width [pixel].
        pixel_scale: Side of a pixel [arcsec].
        center: Right ascension and declination of the field's centre [deg, ICRS].
        shift: Where that is (y, x), from the middle of the image [pixel].
        rotation: Of the camera [deg].
    """
    height, width = shape
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.crval = center
    # FITS counts pixels from 1.
    middle = np.array([(width - 1) / 2 + 1, (height - 1) / 2 + 1])
    wcs.wcs.crpix = middle + np.array(shift[::-1])
    cos, sin = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    turn = np.array([[cos, -sin], [sin, cos]]) if rotation else np.eye(2)
    wcs.wcs.cd = np.diag([-pixel_scale, pixel_scale]) / 3600 @ turn
    wcs.array_shape = shape
    wcs.wcs.set()
    return wcs


def scatter_positions(
    n: int, shape: tuple[int, int], rng: np.random.Generator
) -> Float[np.ndarray, "n 2"]:
    """Uniform positions (y, x) [pixel] inside the outer edges of the field's pixels."""
    return rng.random((n, 2)) * np.asarray(shape) - 0.5


def blend_positions(
    n_blends: int, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "n 2"], Int[np.ndarray, " n"]]:
    """Positions of blends laid on a grid of square tiles, one blend in each.

    A blend has 2 to 6 sources, uniform in a disk whose radius is uniform between 3 pixels
    and 0.3 of the tile's side, so that blendedness spans 0 to 0.9 and more.

    Returns:
        Positions (y, x) [pixel] and the blend, 0 to `n_blends` - 1, of each source.

    Raises:
        ValueError: If the tiles are too small for blends to be apart.
    """
    columns = int(np.ceil(np.sqrt(n_blends * shape[1] / shape[0])))
    rows = int(np.ceil(n_blends / columns))
    tile = np.array([shape[0] / rows, shape[1] / columns])
    if tile.min() < MIN_TILE:
        raise ValueError(
            f"{n_blends} blends in a field of {shape} pixels leave tiles of"
            f" {tile[0]:.0f} x {tile[1]:.0f}; at least {MIN_TILE} pixels are needed. Lower"
            " `n_blends` or enlarge `shape`."
        )
    position, blend = [], []
    for k, child in enumerate(rng.spawn(n_blends)):
        centre = (np.array(divmod(k, columns)) + 0.5) * tile - 0.5
        # The centre itself is not on a pixel: blends sample all sub-pixel phases.
        centre += child.random(2) - 0.5
        n = int(child.integers(*BLEND_SOURCES, endpoint=True))
        radius = child.uniform(RADIUS[0], RADIUS[1] * tile.min())
        for offset in _separated(n, radius, child):
            position.append(centre + offset)
            blend.append(k)
    return np.array(position).reshape(-1, 2), np.array(blend, int)


def _separated(
    n: int, radius: float, rng: np.random.Generator
) -> Float[np.ndarray, "n 2"]:
    """Uniform points in a disk, no two closer than `MIN_SEPARATION`.

    A disk too small for that grows by 5 % after every `ATTEMPTS` refusals.
    """
    points = np.empty((0, 2))
    refused = 0
    while len(points) < n:
        if refused == ATTEMPTS:
            radius, refused = 1.05 * radius, 0
        r, angle = radius * np.sqrt(rng.random()), 2 * np.pi * rng.random()
        point = r * np.array([np.sin(angle), np.cos(angle)])
        if np.all(np.hypot(*(points - point).T) >= MIN_SEPARATION):
            points = np.vstack([points, point])
        else:
            refused += 1
    return points
