"""Running one program over many blends: batch after batch, flat memory."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from blendem.blend import Blend, first_sources, largest_zoom, used_sources
from blendem.devices import over_devices, whole_batch
from blendem.inference.amplitude import Amplitudes
from blendem.inference.statistics import (
    BasisTransforms,
    Settings,
    compute_statistics,
    pad_statistics,
    render_sources,
    see_basis,
    transform_basis,
)
from blendem.prior.gaussian import Basis
from blendem.prior.magnify import kinds_of, magnified_side
from blendem.renderer import Renderer


def batches(tree: Any, n: int, batch: int) -> Iterator[tuple[int, Any]]:
    """Cut a pytree of arrays of leading axis `n` into batches of one size.

    Yields the number of rows that count, and the batch; the last batch repeats its last row
    to fill up, so that it needs no program of its own.
    """
    for start in range(0, n, batch):
        index = np.minimum(np.arange(start, start + batch), n - 1)
        rows = jax.tree.map(lambda leaf, index=index: np.asarray(leaf)[index], tree)
        yield min(batch, n - start), rows


def run_batches(program: Callable, stack: Blend, batch: int, *others: Any) -> Any:
    """Apply a batched `program(blends, *others)` and join its results in NumPy.

    `others` are pytrees of arrays with the same leading axis as the stack.
    """
    parts = []
    for count, rows in batches(
        (stack, *others), len(stack.centers), whole_batch(batch)
    ):
        result = program(*over_devices(rows))
        parts.append(jax.tree.map(lambda leaf, n=count: np.asarray(leaf)[:n], result))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def first_of(stack: Blend) -> Blend:
    """The first blend of a stack."""
    return jax.tree.map(lambda leaf: leaf[0], stack)


def transforms_of(stack: Blend, basis: Basis) -> tuple[BasisTransforms, ...]:
    """Transforms of a basis, magnified where needed, on the FFT grids of a stack."""
    largest = largest_zoom(stack)
    stamp = magnified_side(basis.mean.shape[-1], largest)
    kinds = kinds_of(basis, np.array([largest]))
    result = []
    for observation in first_of(stack).observations:
        shape = jax.eval_shape(
            partial(Renderer.of, stamp=stamp, psf_sigma=jnp.float32(0.7)), observation
        )
        transforms = [transform_basis(kind, shape) for kind in kinds]
        transform = transforms[0]
        if stack.zoom is not None:
            transform = BasisTransforms(
                np.stack([t.modes for t in transforms], axis=1),
                np.stack([t.mean for t in transforms], axis=1),
                np.stack([t.templates for t in transforms]),
            )
        result.append(jax.tree.map(jnp.asarray, transform))
    return tuple(result)


@eqx.filter_jit
def _statistics(blends, amplitudes, transforms, seen, psf_sigma, n_bands, settings):
    def one(blend, amplitudes):
        return compute_statistics(
            blend, transforms, n_bands, psf_sigma, settings, amplitudes, seen
        )

    return jax.vmap(one)(blends, amplitudes)


# Blends of a stack are computed with as many sources as they have, and pixels, rounded up to parts of
# all: few programs that other stacks of the same bucket have, too. Fewer blends are no group of their own.
PARTS, SMALLEST = 4, 16


def by_shape(stack: Blend) -> Iterator[tuple[np.ndarray, int, tuple[int, ...]]]:
    """Blends of a stack in groups, their most sources, and most unmasked pixels of each observation."""
    totals = [o.variance.shape[-1] * o.variance.shape[-2] for o in stack.observations]
    parts = np.stack(
        [
            np.ceil(PARTS * np.isfinite(o.variance).any(axis=1).mean(axis=(-2, -1)))
            for o in stack.observations
        ],
        axis=-1,
    ).clip(min=1)
    sources = used_sources(stack)
    for alike in _rising(sources):
        for group in _rising(parts[alike].max(axis=-1)):
            index = alike[group]
            yield index, int(sources[index].max()), _pixels(parts[index], totals)


def _rising(sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of the items in groups of rising size, of at least `SMALLEST` items if there are."""
    group = np.zeros(0, int)
    for size in np.unique(sizes):
        group = np.union1d(group, np.flatnonzero(sizes == size))
        left = np.count_nonzero(sizes > size)
        if not left or min(len(group), left) >= SMALLEST:
            yield group
            group = np.zeros(0, int)


def _pixels(parts: np.ndarray, totals: list[int]) -> tuple[int, ...]:
    """Pixels of each observation that hold all of its parts."""
    most = parts.max(axis=0)
    return tuple(
        int(-(-total * n // PARTS)) for total, n in zip(totals, most, strict=True)
    )


@eqx.filter_jit
def _see(blend, transforms, psf_sigma, stamp):
    return tuple(
        see_basis(transform, Renderer.of(observation, stamp, psf_sigma))
        for transform, observation in zip(transforms, blend.observations, strict=True)
    )


def _by_psf(stack: Blend) -> list[np.ndarray]:
    """Numbers of the blends of a stack that have the same PSFs on the same grids."""
    alike = defaultdict(list)
    seen_by = [x for o in stack.observations for x in (o.psf, o.jacobian)]
    for i, arrays in enumerate(zip(*map(np.asarray, seen_by), strict=True)):
        alike[b"".join(array.tobytes() for array in arrays)].append(i)
    return [np.array(group) for group in alike.values()]


def statistics_of(
    stack: Blend,
    basis: Basis,
    settings: Settings,
    batch: int,
    amplitudes: Amplitudes | None = None,
) -> dict[str, np.ndarray]:
    """`compute_statistics` of stacked blends: one compilation, flat memory.

    Amplitudes are fitted unless they are given, with a leading axis for the blends. A CPU gets one
    blend at a time whatever `batch` says: it is as fast, and none fills up a batch. What an
    observation shows of the basis is computed once for all blends with its PSF.
    Returns the fields of `Statistics`, each with the stack's leading axis.
    """
    transforms = transforms_of(stack, basis)
    stamp = magnified_side(settings.stamp, largest_zoom(stack))
    psf_sigma = jnp.float32(basis.psf_sigma)
    batch = 1 if jax.default_backend() == "cpu" else batch
    order, parts = [], []
    for index, sources, pixels in by_shape(stack):
        some, given = jax.tree.map(lambda leaf, i=index: leaf[i], (stack, amplitudes))
        some, padding = first_sources(some, sources), some.centers[:, sources:]
        given = None if given is None else given.first_sources(sources)
        chosen = settings._replace(pixels=pixels, stamp=stamp)
        groups, seen = _by_psf(some), None
        shared = len(index) > batch * len(groups)
        for group in groups if shared else [np.arange(len(index))]:
            mine = jax.tree.map(lambda leaf, i=group: leaf[i], (some, given))
            if shared:
                seen = _see(first_of(mine[0]), transforms, psf_sigma, stamp)

            def program(blends, amplitudes, chosen=chosen, seen=seen):
                return _statistics(
                    blends,
                    amplitudes,
                    transforms,
                    seen,
                    psf_sigma,
                    len(basis.bands),
                    chosen,
                )

            found = run_batches(program, mine[0], batch, mine[1])
            found = found._asdict()
            parts.append(
                pad_statistics(found, padding[group], len(basis.modes), chosen)
            )
            order.append(index[group])
    back = np.argsort(np.concatenate(order))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *parts)


@eqx.filter_jit
def _render(blends, images, centers, psf_sigma):
    one = partial(render_sources, psf_sigma=psf_sigma)
    return jax.vmap(lambda blend, i, c: one(i, c, blend))(blends, images, centers)


def render_of(
    stack: Blend, images: np.ndarray, centers: np.ndarray, psf_sigma: float, batch: int
) -> tuple[np.ndarray, ...]:
    """Observed images `(blend, source, band, height, width)` per observation.

    Args:
        stack: Stacked blends.
        images: Model images `(blend, source, band, stamp, stamp)`, zero for padding.
        centers: Model pixel (y, x) `(blend, source, 2)`.
        psf_sigma: Sigma of the model PSF [model pixel].
        batch: Blends at once.
    """
    sigma = jnp.float32(psf_sigma)

    def program(blends, i, c):
        return _render(blends, i, c, sigma)

    return run_batches(program, stack, batch, np.float32(images), np.float32(centers))
