"""Blends as padded values: cut from a field, put into buckets, stacked into batches."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from blendem.observation import Observation, Sampling


class Blend(eqx.Module):
    """All sources of a blend and every observation of it, padded to a bucket.

    Attributes:
        observations: One per instrument or epoch.
        centers: Model pixel (y, x) of each source, `(source, 2)`.
        is_star: True for point sources, `(source,)`.
        present: False for padding, `(source,)`.
        shines: For variable stars, the planes (bands of all observations in their order) in which
            they shine; in others they are known to be off. False for all other sources,
            `(source, plane)`. None: the blend has no variable star.
        zoom: Sources whose stamps are those of the prior magnified by 2^zoom, `(source,)`. None:
            no source outgrows its stamp.
    """

    observations: tuple[Observation, ...]
    centers: Float[Array | np.ndarray, "source 2"]
    is_star: Bool[Array | np.ndarray, " source"]
    present: Bool[Array | np.ndarray, " source"]
    shines: Bool[Array | np.ndarray, "source plane"] | None = None
    zoom: Int[Array | np.ndarray, " source"] | None = None

    @property
    def is_variable(self) -> Bool[Array | np.ndarray, " source"]:
        """True for stars with a flux of their own in every plane, `(source,)`."""
        if self.shines is None:
            return self.is_star & False
        return self.shines.any(axis=-1)

    @property
    def planes(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the planes of each observation."""
        numbers = itertools.count()
        return tuple(
            tuple(itertools.islice(numbers, len(o.band_index)))
            for o in self.observations
        )


class Bucket(NamedTuple):
    """Shape that blends are padded to: one compilation each.

    Attributes:
        sources: Number of sources.
        size: Side of the image in the first observation [pixel].
    """

    sources: int
    size: int


def choose_bucket(
    n_sources: int, shape: tuple[int, int], buckets: Sequence[Bucket]
) -> Bucket | None:
    """Smallest bucket (by pixels times sources) that holds a blend; `None` if none does."""
    fits = [b for b in buckets if b.sources >= n_sources and b.size >= max(shape)]
    return min(fits, key=lambda b: b.sources * b.size**2) if fits else None


def bounding_box(
    region: tuple[slice, slice] | None,
    shape: tuple[int, int],
    positions: Float[np.ndarray, "source 2"],
    margin: int,
) -> tuple[int, int, int, int]:
    """Box (y0, y1, x0, x1) around a footprint and its sources, inside the image.

    Args:
        region: Box of the footprint; None: it has no pixels.
        shape: Height and width of the image.
        positions: Sources (y, x) [pixel].
        margin: Around them [pixel].
    """
    low = np.floor(positions.min(axis=0)).astype(int)
    high = np.ceil(positions.max(axis=0)).astype(int) + 1
    if region is not None:
        low = np.minimum(low, [axis.start for axis in region])
        high = np.maximum(high, [axis.stop for axis in region])
    (y0, x0), (y1, x1) = np.maximum(low - margin, 0), np.minimum(high + margin, shape)
    return int(y0), int(y1), int(x0), int(x1)


def pad_observation(
    image: Float[np.ndarray, "band height width"],
    variance: Float[np.ndarray, "band height width"],
    psf: Float[np.ndarray, "band size size"],
    *,
    size: int,
    jacobian: Float[np.ndarray, "2 2"],
    offset: Float[np.ndarray, " 2"],
    band_index: tuple[int, ...],
    same_grid: bool,
    oversampling: int = 1,
    correlation: Float[np.ndarray, "band lag lag"] | None = None,
) -> Observation:
    """An observation padded at the far edges with masked zeros to `size` pixels.

    Values under a mask are set to zero, so that a NaN there can do no harm.
    """
    masked = ~np.isfinite(variance)
    image = np.where(masked, 0.0, image)
    pad = [(0, 0), (0, size - image.shape[1]), (0, size - image.shape[2])]
    return Observation(
        image=np.pad(image, pad).astype(np.float32),
        variance=np.pad(
            np.where(masked, np.inf, variance), pad, constant_values=np.inf
        ).astype(np.float32),
        psf=np.asarray(psf, np.float32),
        jacobian=np.asarray(jacobian, np.float32),
        offset=np.asarray(offset, np.float32),
        band_index=tuple(band_index),
        same_grid=bool(same_grid),
        sampling=Sampling() if same_grid else Sampling.of(jacobian, oversampling),
        correlation=None if correlation is None else np.float32(correlation),
    )


def pad_sources(
    observations: tuple[Observation, ...],
    centers: Float[np.ndarray, "source 2"],
    is_star: Bool[np.ndarray, " source"],
    sources: int,
    shines: Bool[np.ndarray, "source plane"] | None = None,
    zoom: Int[np.ndarray, " source"] | None = None,
) -> Blend:
    """A blend padded to `sources` sources; padding sits at the first source."""
    n = len(centers)
    padded = np.broadcast_to(centers[:1], (sources, 2)).astype(np.float32).copy()
    padded[:n] = centers
    star = np.zeros(sources, bool)
    star[:n] = is_star
    if shines is not None:
        shines = np.pad(shines, [(0, sources - n), (0, 0)])
    if zoom is not None:
        zoom = np.pad(zoom, (0, sources - n)).astype(np.int32)
    return Blend(observations, padded, star, np.arange(sources) < n, shines, zoom)


def used_sources(stacked: Blend) -> Int[np.ndarray, " blend"]:
    """Sources of each of stacked blends without the padding at the end."""
    present = np.asarray(stacked.present, bool)
    return present.shape[1] - present[:, ::-1].argmax(axis=1)


def first_sources(stacked: Blend, n: int) -> Blend:
    """The first `n` sources of each of stacked blends; the others are padding."""
    names = [
        name
        for name in ("centers", "is_star", "present", "shines", "zoom")
        if getattr(stacked, name) is not None
    ]

    def of(blend):
        return [getattr(blend, name) for name in names]

    return eqx.tree_at(of, stacked, [values[:, :n] for values in of(stacked)])


def largest_zoom(blends: Blend) -> int:
    """Largest `zoom` of a blend or of stacked ones, which have one program."""
    return 0 if blends.zoom is None else int(np.max(blends.zoom))


def stack(blends: Sequence[Blend], batch: int) -> Blend:
    """Stack blends of one bucket on a leading axis of `batch`; the last one fills up."""
    blends = list(blends) + [blends[-1]] * (batch - len(blends))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *blends)
