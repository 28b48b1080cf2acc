"""Cutting a field into padded blends."""

from collections.abc import Sequence
from enum import IntFlag
from typing import NamedTuple

import numpy as np
from astropy.wcs import WCS
from jaxtyping import Bool, Float, Int
from scipy.ndimage import binary_dilation, find_objects

from blendem.blend import (
    Blend,
    Bucket,
    bounding_box,
    choose_bucket,
    pad_observation,
    pad_sources,
)
from blendem.frame import affine_between, local_cd
from blendem.noise import estimate_correlation
from blendem.prior.magnify import magnified_side
from blendem.survey.footprints import (
    Footprints,
    choose_zoom,
    detected_regions,
    group_footprints,
)
from blendem.survey.psf_model import PSFModel, at_pixels, psf_at
from blendem.survey.significance import detection_image

# Scales that differ by less are the same: it moves the edge of 200 pixels by 0.004 pixel.
SAME = 2e-5
SAME_PIXEL = 0.01  # relative difference of pixels that are taken for the model's
CLEARANCE = (
    3  # more than that of the extreme sources of a blend fits its bucket [pixel]
)
WINGS = 5  # pixels about what is detected that are not free of its light


class SourceFlag(IntFlag):
    """What may be wrong with a source; 0 is fine. The values are part of the catalog."""

    SPLIT = 1  # its blend was cut: more sources, or further apart, than a bucket holds
    CLIPPED = 2  # the image of its blend was cut to the largest bucket
    TOO_LARGE = 4  # the blend fits no bucket: no result
    NO_DATA = 8  # all pixels at its position are masked: the result is the prior
    FAILED = 16  # the posterior could not be computed: no result
    OFF_CENTER = 32  # the fitted centre ran into its bound
    NO_SHAPE = 64  # size or ellipticity could not be measured
    BAD_FIT = 128  # chi2 of the blend is far above its expectation
    BEYOND_STAMP = 256  # a galaxy of its blend outgrows the largest stamp


class Plane(NamedTuple):
    """One observation of a field, as plain values.

    Attributes:
        image, variance, psf: As in `Observation`, for the whole field. A PSF that varies is
            taken at the middle of each blend, and of the image for detection.
        wcs: Celestial WCS or None.
        band_index: Index of each plane among the model bands.
        pixel_scale: Side of a pixel [arcsec], used where there is no WCS.
        correlation: Of the noise, as in `Observation`.
        oversampling: Pixels of `psf` per pixel of the image, along an axis.
    """

    # Observations differ in bands and size: no name of an axis binds two of them.
    image: Float[np.ndarray, "_ _ _"]
    variance: Float[np.ndarray, "_ _ _"]
    psf: Float[np.ndarray, "_ _ _"] | PSFModel
    wcs: WCS | None
    band_index: tuple[int, ...]
    pixel_scale: float
    correlation: Float[np.ndarray, "_ _ _"] | None = None
    oversampling: int = 1

    def central_psf(self) -> Float[np.ndarray, "_ _ _"]:
        """PSF at the middle of the image, on its pixels: what detection sees."""
        middle = (np.array(self.image.shape[1:]) - 1) / 2
        return at_pixels(psf_at(self.psf, middle), self.oversampling)


class CutBlend(NamedTuple):
    """A blend of a field.

    Attributes:
        blend: The padded blend, or None where no bucket holds it.
        bucket: The bucket.
        members: Row of each source in the catalog.
        corner: First pixel (y, x) of the cut-out in the first observation.
        shape: Height and width of the cut-out before padding.
        flags: `SourceFlag` of the whole blend.
    """

    blend: Blend | None
    bucket: Bucket | None
    members: Int[np.ndarray, " _"]  # a list holds blends of any size
    corner: tuple[int, int]
    shape: tuple[int, int]
    flags: int


def psf_widths(
    psf: Float[np.ndarray, "band size size"],
) -> Float[np.ndarray, " band"]:
    """Sigma of the Gaussian with the same noise-equivalent area [pixel of `psf`]."""
    return np.sqrt(1 / (4 * np.pi * np.sum(psf**2, axis=(1, 2))))


def overlaps(first: Plane, plane: Plane) -> bool:
    """Whether an observation shows any part of what the first one does."""
    if plane.wcs is None or first.wcs is None:
        return True
    height, width = first.image.shape[1:]
    y, x = (
        a.ravel()
        for a in np.meshgrid(
            np.linspace(0, height - 1, 50), np.linspace(0, width - 1, 50)
        )
    )
    sky = first.wcs.celestial.all_pix2world(x, y, 0)
    x, y = plane.wcs.celestial.all_world2pix(*sky, 0, quiet=True)
    height, width = plane.image.shape[1:]
    return bool(np.any((x > 0) & (y > 0) & (x < width - 1) & (y < height - 1)))


def estimate_noise(
    plane: Plane, threshold: float, reach: int
) -> Float[np.ndarray, "_ _ _"]:
    """Correlation of the noise of every band, from pixels of a plane without sources.

    Args:
        plane: Observation of a field.
        threshold: Pixels above it belong to sources [sigma].
        reach: Largest lag [pixel].

    Raises:
        ValueError: If there are too few such pixels.
    """
    bright = (
        detection_image(plane.image, plane.variance, plane.central_psf()) > threshold
    )
    free = ~binary_dilation(bright, iterations=WINGS)
    found = []
    for image, variance in zip(plane.image, plane.variance, strict=True):
        used = free & np.isfinite(variance)
        pulls = image / np.sqrt(np.where(used, variance, 1.0))
        found.append(estimate_correlation(pulls, used, reach)[0])
    return np.stack(found)


def pixel_scale_of(wcs: WCS | None, fallback: float) -> float:
    """Side of a pixel [arcsec]: that of the WCS at its reference pixel, or `fallback`."""
    if wcs is None:
        return fallback
    x, y = wcs.wcs.crpix - 1
    return float(np.sqrt(abs(np.linalg.det(local_cd(wcs, (y, x))))))


def extract_blends(
    planes: Sequence[Plane],
    positions: Float[np.ndarray, "n 2"],
    is_star: Bool[np.ndarray, " n"],
    buckets: Sequence[Bucket],
    *,
    group: str,
    threshold: float,
    max_sources: int,
    margin: int,
    pixel_scale: float | None = None,
    stamp: int | None = None,
    magnify: int = 1,
    shines: Bool[np.ndarray, "n plane"] | None = None,
    footprints: Footprints | None = None,
) -> list[CutBlend]:
    """Group the sources of a field and cut one padded blend per group.

    Pixels of other groups' footprints are masked in a cut-out.

    Args:
        planes: Observations of the field; the first sets the model grid.
        positions: Sources (y, x) in the first observation [pixel].
        is_star: Point sources.
        buckets: Allowed shapes.
        group: "footprint" (sources that share a detection footprint are one blend) or
            "field" (the field is one blend, as in sets of ready-made cut-outs).
        threshold: Of the footprints [sigma].
        max_sources: Larger blends are split, and those that no bucket holds.
        margin: Pixels around a footprint.
        pixel_scale: Side of a model pixel [arcsec]; None: that of the first observation.
        stamp: Side of the stamps [model pixel]; None: any source fits.
        magnify: Largest factor, a power of 2, by which the stamps of a galaxy that reaches beyond
            them are magnified.
        shines: Planes in which variable stars shine, see `Blend`; None: nothing varies.
        footprints: Groups that are known already, with the pixels of others; None: see `group`.
    """
    first = planes[0]
    psf = first.central_psf()
    significance = detection_image(first.image, first.variance, psf)
    lit = None
    if footprints is not None:
        group = "known"
        labels, segmentation, split = footprints
    if group == "field":
        labels = np.ones(len(positions), int)
        segmentation = np.ones(first.image.shape[1:], int)
        split = np.zeros(len(positions), bool)
        if len(positions) > max_sources:
            group = "footprint"
    if group == "footprint":
        labels, segmentation, split = group_footprints(
            significance,
            positions,
            threshold=threshold,
            max_sources=max_sources,
            max_extent=largest_extent(buckets, max_sources),
        )
    if group == "field" and stamp is not None:
        lit = detected_regions(significance, positions, threshold=threshold)
    if stamp is not None:
        zooms = range(int(np.log2(magnify)) + 1)
        sides = [magnified_side(stamp, zoom) for zoom in zooms]
        half = np.stack(
            [_half_stamps(first, psf, s, pixel_scale, is_star) for s in sides]
        )
    blends = []
    boxes = find_objects(segmentation, max_label=labels.max(initial=0))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        flags = SourceFlag.SPLIT if split[members].any() else SourceFlag(0)
        box = bounding_box(
            boxes[label - 1], segmentation.shape, positions[members], margin
        )
        shape = (box[1] - box[0], box[3] - box[2])
        region = segmentation == label if lit is None else lit
        zoom = np.zeros(len(members), int)
        if stamp is not None:
            zoom, beyond = choose_zoom(
                region,
                significance,
                positions[members],
                is_star[members],
                half[:, members],
            )
            flags |= SourceFlag.BEYOND_STAMP if beyond else SourceFlag(0)
        bucket = choose_bucket(len(members), shape, buckets)
        if bucket is None:
            box, bucket = _clip(box, positions[members], buckets)
            flags |= SourceFlag.CLIPPED
        if bucket is None:
            blends.append(
                CutBlend(
                    None,
                    None,
                    members,
                    box[::2],
                    shape,
                    int(flags | SourceFlag.TOO_LARGE),
                )
            )
            continue
        shape = (box[1] - box[0], box[3] - box[2])
        observations, centers = _cut(
            planes, box, bucket, positions[members], segmentation, label, pixel_scale
        )
        light = None if shines is None else shines[members]
        blend = pad_sources(
            observations,
            centers,
            is_star[members],
            bucket.sources,
            light if light is not None and light.any() else None,
            zoom if zoom.any() else None,
        )
        blends.append(CutBlend(blend, bucket, members, box[::2], shape, int(flags)))
    return blends


def largest_extent(buckets: Sequence[Bucket], max_sources: int) -> int:
    """Largest distance of two sources of a blend along an axis that a bucket holds [pixel]."""
    enough = [b.size for b in buckets if b.sources >= max_sources]
    return max(enough or [b.size for b in buckets]) - CLEARANCE


def _half_stamps(
    first: Plane,
    psf: Float[np.ndarray, "band size size"],
    stamp: int,
    pixel_scale: float | None,
    is_star: Bool[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """Half sides of the stamps as detection sees them [pixel of the first observation].

    The PSF of the image and the filter of the detection each widen the light; two of their
    common standard deviations are allowed for. A star is seen as far as its PSF is known.
    """
    scale = pixel_scale_of(first.wcs, first.pixel_scale)
    sigma = psf_widths(psf).max()
    zoom = 1.0 if pixel_scale is None else pixel_scale / scale
    half = 0.5 * stamp * zoom + 2 * np.sqrt(2) * sigma
    return np.where(is_star, half + psf.shape[-1], half)


def _clip(box, positions, buckets):
    """Shrink a box to the largest bucket that holds the sources, around their middle."""
    extent = np.ptp(positions, axis=0)
    fits = [
        b
        for b in buckets
        if b.sources >= len(positions) and b.size > extent.max() + CLEARANCE - 1
    ]
    if not fits:
        return box, None
    bucket = max(fits, key=lambda b: b.size)
    middle = 0.5 * (positions.min(axis=0) + positions.max(axis=0))
    sides = []
    for axis, (low, high) in enumerate((box[:2], box[2:])):
        start = int(
            np.clip(middle[axis] - bucket.size // 2, low, max(low, high - bucket.size))
        )
        sides += [start, min(high, start + bucket.size)]
    return tuple(sides), bucket


def _cut(planes, box, bucket, positions, segmentation, label, pixel_scale):
    """Padded observations of one box, and the centres in the blend's model pixels."""
    first = planes[0]
    y0, y1, x0, x1 = box
    middle = np.array([0.5 * (y0 + y1 - 1), 0.5 * (x0 + x1 - 1)])
    scale = pixel_scale_of(first.wcs, first.pixel_scale)
    zoom = 1.0 if pixel_scale is None else scale / pixel_scale
    if abs(zoom - 1) < SAME_PIXEL:
        zoom = 1.0
    observations = []
    for plane in planes:
        # observed pixel -> pixel of the first observation -> model pixel of the blend
        jacobian, offset = (np.eye(2), np.zeros(2))
        center = middle
        if plane is not first:
            if plane.wcs is not None:
                sky = first.wcs.celestial.all_pix2world([middle[::-1]], 0)
                center = plane.wcs.celestial.all_world2pix(sky, 0)[0][::-1]
            jacobian, offset = affine_between(plane.wcs, first.wcs, tuple(center))
        limit = np.array(plane.image.shape[1:])
        # Pixels of the model itself, whichever observation has them.
        same = bool(np.allclose(zoom * jacobian, np.eye(2), atol=SAME))
        if same:  # exact in the middle of the blend
            offset = offset + (jacobian - np.eye(2) / zoom) @ center
            jacobian = np.eye(2) / zoom
        low, high = _box_in(plane, box, jacobian, offset)
        zoomed = bucket.size / np.sqrt(abs(np.linalg.det(jacobian)))
        size = int(np.ceil(zoomed / 2) * 2)
        if np.isclose(zoomed, bucket.size, rtol=1e-3):
            size = bucket.size
        high = np.minimum(high, low + size)
        image = plane.image[:, low[0] : high[0], low[1] : high[1]]
        variance = plane.variance[:, low[0] : high[0], low[1] : high[1]].copy()
        yy, xx = np.mgrid[low[0] : high[0], low[1] : high[1]]
        at = np.tensordot(jacobian, np.stack([yy, xx]), axes=1) + offset[:, None, None]
        at = np.round(at).astype(int)
        height, width = segmentation.shape
        inside = (at[0] >= 0) & (at[0] < height) & (at[1] >= 0) & (at[1] < width)
        owner = np.zeros(at.shape[1:], int)
        owner[inside] = segmentation[at[0][inside], at[1][inside]]
        variance[:, (owner != 0) & (owner != label)] = np.inf
        # A blend that this plane does not hold takes the PSF of its rim.
        psf = psf_at(plane.psf, np.clip(center, 0, limit - 1))
        observations.append(
            pad_observation(
                image,
                variance,
                # Model pixels of the same size hold no more than the pixels do.
                at_pixels(psf, plane.oversampling) if same else psf,
                size=size,
                jacobian=np.eye(2) if same else zoom * jacobian,
                offset=zoom * (jacobian @ low + offset - np.array([y0, x0])),
                band_index=plane.band_index,
                same_grid=same,
                oversampling=plane.oversampling,
                correlation=plane.correlation,
            )
        )
    return tuple(observations), zoom * (positions - np.array([y0, x0]))


def _box_in(plane, box, jacobian, offset):
    """Corners (low, high) in `plane` of a box of the first observation."""
    y0, y1, x0, x1 = box
    corners = np.array([[y, x] for y in (y0, y1 - 1) for x in (x0, x1 - 1)], float)
    mapped = np.linalg.solve(jacobian, (corners - offset).T).T
    limit = np.array(plane.image.shape[1:])
    low = np.clip(np.floor(mapped.min(axis=0) + 1e-6).astype(int), 0, limit - 1)
    high = np.clip(np.ceil(mapped.max(axis=0) - 1e-6).astype(int) + 1, low + 1, limit)
    return low, high
