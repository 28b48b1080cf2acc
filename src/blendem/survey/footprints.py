"""Grouping of sources into blends by the footprints that they share."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt, find_objects, label

from blendem.survey.significance import THRESHOLD

# Diagonal neighbours are connected, as in SExtractor.
_CONNECTED = np.ones((3, 3), int)
# Detected pixels outside all stamps that make a blend too large for them.
BEYOND_PIXELS = 10
# Step of the threshold when a footprint is split.
_RAISE = 1.25


class Footprints(NamedTuple):
    """Blends of sources.

    Attributes:
        labels: Blend of each source, 1 to the number of blends.
        segmentation: Blend of each pixel, 0 where there is none, `(height, width)`.
        split: True for sources whose footprint was cut because it held more than
            `max_sources`, or sources too far apart. Such blends touch: light of sources in one reaches the other and
            is not modelled there, an approximation.
    """

    labels: Int[np.ndarray, " n"]
    segmentation: Int[np.ndarray, "height width"]
    split: Bool[np.ndarray, " n"]


def group_footprints(
    significance: Float[np.ndarray, "height width"],
    positions: Float[np.ndarray, "n 2"],
    *,
    threshold: float = THRESHOLD,
    max_sources: int | None = None,
    max_extent: float | None = None,
    radius: float = 5.0,
) -> Footprints:
    """Group sources that share a footprint of a detection image into blends.

    Footprints are the connected regions of the detection image above `threshold`, never
    deblended. A source outside all of them is a blend of its own, with a disk for a
    footprint (as far as its pixels are free). Footprints without any source are dropped.

    A footprint with more than `max_sources`, or with sources further apart than `max_extent`, is
    cut: the threshold is raised in steps of 25 % until its sources fall apart, sources below it
    join the nearest part; a part that is still too large is cut again. Sources that never fall
    apart are cut across their longest extent. Each pixel goes to the part of its nearest source.

    Args:
        significance: Detection image [sigma].
        positions: Sources (y, x) [pixel]; those outside the image count at its edge.
        threshold: Lowest significance of a footprint [sigma].
        max_sources: Most sources in a blend; None: any number.
        max_extent: Largest distance of two sources of a blend along an axis [pixel]; None: any.
        radius: Radius of the disk of a source outside all footprints [pixel].

    Raises:
        ValueError: If `positions` has the wrong shape or is not finite, or if
            `max_sources` is below 1.
    """
    positions = np.asarray(positions, float)
    if (
        positions.ndim != 2
        or positions.shape[1] != 2
        or not np.isfinite(positions).all()
    ):
        raise ValueError(
            "`positions` must hold a finite (y, x) per source, shape (n, 2); got shape"
            f" {positions.shape}."
        )
    if max_sources is not None and max_sources < 1:
        raise ValueError(f"`max_sources` must be at least 1; got {max_sources}.")
    limits = _Limits(
        np.inf if max_sources is None else max_sources,
        np.inf if max_extent is None else max_extent,
    )
    shape = np.array(significance.shape)
    pixel = np.clip(np.round(positions).astype(int), 0, shape - 1)
    regions, _ = label(significance > threshold, _CONNECTED)
    region_of = regions[pixel[:, 0], pixel[:, 1]]
    boxes = find_objects(regions)

    labels = np.zeros(len(positions), int)
    split = np.zeros(len(positions), bool)
    # As small as labels of a whole field need.
    segmentation = np.zeros(shape, np.int32)
    blend = 0
    for region in np.unique(region_of[region_of > 0]):
        members, box = np.flatnonzero(region_of == region), boxes[region - 1]
        corner = np.array([axis.start for axis in box])
        mask = regions[box] == region
        parts = [members]
        if not limits.allow(pixel[members]):
            split[members] = True
            parts = _cut(
                significance[box], mask, members, pixel - corner, threshold, limits
            )
        for part in parts:
            blend += 1
            labels[part] = blend
        there = segmentation[box]
        there[mask] = labels[members[0]]
        if len(parts) > 1:
            there[mask] = labels[_nearest(mask, members, positions - corner)]
    reach = int(np.ceil(radius))
    for k in np.flatnonzero(region_of == 0):
        blend += 1
        labels[k] = blend
        low = np.maximum(pixel[k] - reach, 0)
        there = segmentation[tuple(map(slice, low, pixel[k] + reach + 1))]
        y, x = np.indices(there.shape) + (low - pixel[k])[:, None, None]
        there[(np.hypot(y, x) <= radius) & (there == 0)] = blend
    return Footprints(labels, segmentation, split)


class _Limits(NamedTuple):
    """What a blend may hold."""

    sources: float
    extent: float

    def allow(self, pixel: np.ndarray) -> bool:
        """Whether sources at these pixels may be one blend."""
        few = len(pixel) <= self.sources
        return few and bool(np.ptp(pixel, axis=0).max() <= self.extent)


def detected_regions(
    significance: Float[np.ndarray, "height width"],
    positions: Float[np.ndarray, "n 2"],
    *,
    threshold: float = THRESHOLD,
) -> Bool[np.ndarray, "height width"]:
    """Pixels above `threshold` in a region that holds a source; see `group_footprints`."""
    regions, _ = label(significance > threshold, _CONNECTED)
    limit = np.array(regions.shape) - 1
    pixel = np.clip(np.round(np.asarray(positions)).astype(int), 0, limit)
    held = np.unique(regions[pixel[:, 0], pixel[:, 1]])
    return np.isin(regions, held[held > 0])


def choose_zoom(
    region: Bool[np.ndarray, "height width"],
    significance: Float[np.ndarray, "height width"],
    positions: Float[np.ndarray, "n 2"],
    is_star: Bool[np.ndarray, " n"],
    half: Float[np.ndarray, "zoom n"],
) -> tuple[Int[np.ndarray, " n"], bool]:
    """How large a stamp the sources of a blend need, and whether that is large enough.

    Light is beyond the stamps where `BEYOND_PIXELS` or more pixels of `region` are outside all
    of them. One galaxy after the other gets the next larger stamp, first the one with the most
    light there that is symmetric about its centre, as that of galaxies is for the most part. Where
    it has the largest stamp already, the light that a larger one would hold stays outside.

    Args:
        region: Detected pixels of the blend.
        significance: `detection_image`.
        positions: Its sources (y, x) [pixel].
        is_star: Sources that never get a larger stamp.
        half: Half sides of the stamps with what the PSF adds [pixel], for each zoom from 0 on.
    """
    zoom, largest = np.zeros(len(positions), int), len(half) - 1
    box = _mirrored(region, positions)
    region, significance = region[box], significance[box]
    positions = positions - [axis.start for axis in box]
    half = np.concatenate([half, 2 * half[-1:]])
    lost = np.zeros_like(region)
    while True:
        outside = region & ~lost
        for k, position in enumerate(positions):
            outside[_box(position, half[zoom[k], k])] = False
        if outside.sum() < BEYOND_PIXELS:
            return zoom, bool(lost.any())
        gain = np.zeros(len(zoom))
        for k in np.flatnonzero(~is_star):
            reached = np.zeros_like(outside)
            reached[_box(positions[k], half[zoom[k] + 1, k])] = True
            gain[k] = _symmetric(significance, outside & reached, positions[k])
        if not gain.any():
            return zoom, True
        best = int(np.argmax(gain))
        if zoom[best] < largest:
            zoom[best] += 1
        else:
            there = _box(positions[best], half[-1, best])
            lost[there] |= outside[there]


def _mirrored(
    region: Bool[np.ndarray, "height width"], positions: Float[np.ndarray, "n 2"]
) -> tuple[slice, slice]:
    """Box of a region and of its mirror images about each of some positions."""
    box = []
    for axis, size in enumerate(region.shape):
        (there,) = np.nonzero(region.any(axis=1 - axis))
        ends = np.array([there.min(initial=size), there.max(initial=-1)])
        if len(there):
            mirror = np.round(2 * positions[:, axis, None] - ends)
            ends = np.append(mirror, ends)
        # A pixel more on each side, since centres are not whole.
        low, high = np.clip([ends.min() - 1, ends.max() + 2], 0, size).astype(int)
        box.append(slice(low, high))
    return tuple(box)


def _box(position: Float[np.ndarray, " 2"], half: float) -> tuple[slice, slice]:
    """Pixels within `half` of a position along both axes."""
    low = np.maximum(np.ceil(position - half).astype(int), 0)
    high = np.maximum(np.floor(position + half).astype(int) + 1, 0)
    return slice(low[0], high[0]), slice(low[1], high[1])


def _symmetric(
    image: Float[np.ndarray, "height width"],
    mask: Bool[np.ndarray, "height width"],
    center: Float[np.ndarray, " 2"],
) -> float:
    """Light of pixels as far as their mirror images about a centre have it, too."""
    pixels = np.argwhere(mask)
    mirror = np.round(2 * center - pixels).astype(int)
    mirror = mirror[((mirror >= 0) & (mirror < image.shape)).all(axis=1)]
    own = np.round(2 * center - mirror).astype(int)
    own = np.clip(own, 0, np.array(image.shape) - 1)
    return float(np.minimum(image[tuple(own.T)], image[tuple(mirror.T)]).clip(0).sum())


def _nearest(
    mask: np.ndarray, members: np.ndarray, positions: np.ndarray
) -> Int[np.ndarray, " pixel"]:
    """The member nearest to each pixel of `mask`."""
    pixels = np.argwhere(mask)
    distance = np.full(len(pixels), np.inf)
    nearest = np.zeros(len(pixels), int)
    for k in members:
        d = np.sum((pixels - positions[k]) ** 2, axis=1)
        closer = d < distance
        nearest[closer], distance[closer] = k, d[closer]
    return nearest


def _cut(
    significance: np.ndarray,
    mask: np.ndarray,
    members: np.ndarray,
    pixel: np.ndarray,
    threshold: float,
    limits: _Limits,
) -> list[np.ndarray]:
    """Cut the members of one footprint into parts that the limits allow."""
    if limits.allow(pixel[members]):
        return [members]
    top = significance[pixel[members, 0], pixel[members, 1]].max()
    level = threshold * _RAISE
    while level < top:
        islands, _ = label(mask & (significance > level), _CONNECTED)
        island = islands[pixel[members, 0], pixel[members, 1]]
        if len(np.unique(island[island > 0])) > 1:
            break
        level *= _RAISE
    else:
        # They never fall apart: halve them across their longest extent.
        spread = np.ptp(pixel[members], axis=0)
        order = np.argsort(pixel[members, int(np.argmax(spread))], kind="stable")
        half = len(members) // 2
        low, high = members[order[:half]], members[order[half:]]
        return [
            part
            for side in (low, high)
            for part in _cut(significance, mask, side, pixel, top, limits)
        ]
    # Sources below the level join the island that is nearest to them, of those with sources.
    occupied = np.isin(islands, np.unique(island[island > 0]))
    index = distance_transform_edt(
        ~occupied, return_distances=False, return_indices=True
    )
    where = tuple(index[:, pixel[members, 0], pixel[members, 1]])
    island = islands[where]
    return [
        part
        for number in np.unique(island)
        for part in _cut(
            significance, mask, members[island == number], pixel, level, limits
        )
    ]
