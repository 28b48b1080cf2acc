"""Padded blends and their statistics on disk, stacked by the program that they need."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from blendem.blend import Blend, largest_zoom
from blendem.io.h5 import read_h5, write_h5
from blendem.io.table import FieldRow, epochs_of
from blendem.measure.light_curves import Exposure
from blendem.observation import Observation, Sampling
from blendem.survey.truth import add_image

# Arrays of an observation; the last one may be absent.
LEAVES = ("image", "variance", "psf", "jacobian", "offset", "correlation")
STATIC = ("band_index", "same_grid", "sampling")  # likewise
# Arrays of the sources of a blend; the last two may be absent.
SOURCES = ("centers", "is_star", "present", "shines", "zoom")


@dataclass(frozen=True)
class BlendSet:
    """All blends of a chunk of fields.

    Attributes:
        stacks: Blends of equal shape stacked on their first axis: one compilation each.
        sources: Columns of the sources: `field, id, x, y, ra, dec, type, blend` (row in
            `blends`), `slot` (place in its blend), `flags`.
        blends: Columns of the blends: `field, number` (in the field), `stack` (-1: none),
            `index` (in the stack), `corner_y, corner_x, height, width, flags`.
        fields: Name -> `magzero, unit, bands, instrument, wcs` (header text or "").
        attrs: `bands, psf_sigma, pixel_scale, stamp`.
    """

    stacks: list[Blend]
    sources: dict[str, np.ndarray]
    blends: dict[str, np.ndarray]
    fields: dict[str, dict[str, Any]]
    attrs: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """`field/number` of every blend: its name in logs and random numbers."""
        columns = (self.blends["field"], self.blends["number"])
        return [f"{field}/{number}" for field, number in zip(*columns, strict=True)]

    @property
    def zoom(self) -> np.ndarray:
        """`Blend.zoom` of every source, 0 where nothing is magnified."""
        zoom = np.zeros(len(self.sources["blend"]), int)
        for k, (row, slot) in enumerate(
            zip(self.sources["blend"], self.sources["slot"], strict=True)
        ):
            stack = int(self.blends["stack"][row])
            if stack >= 0 and self.stacks[stack].zoom is not None:
                zoom[k] = self.stacks[stack].zoom[self.blends["index"][row], slot]
        return zoom

    def members(self, row: int | np.integer) -> np.ndarray:
        """Rows in `sources` of the sources of a blend, in the order of its unknowns."""
        members = np.flatnonzero(self.sources["blend"] == row)
        return members[np.argsort(self.sources["slot"][members])]

    def place(self, source: int | np.integer) -> tuple[int, int, int]:
        """Stack (-1: none), index in it, and slot in its blend of a row of `sources`."""
        row = self.sources["blend"][source]
        where = (self.blends["stack"][row], self.blends["index"][row])
        return (*map(int, where), int(self.sources["slot"][source]))

    def corner(self, row: int | np.integer) -> np.ndarray:
        """Pixel (y, x) of the first image of its field where the cut-out of a blend begins."""
        return np.array([self.blends["corner_y"][row], self.blends["corner_x"][row]])

    def mosaic(
        self,
        field: str,
        cuts: Sequence[Float[np.ndarray, "_ _ _"] | None],
        shape: tuple[int, int, int],
    ) -> Float[np.ndarray, "band height width"]:
        """Sum of the images of all blends of a field on the pixels of its first observation.

        Args:
            field: Name of the field.
            cuts: Image of every blend, padded as its bucket is; None: it has none.
            shape: Of the result.
        """
        total, columns = np.zeros(shape, np.float32), self.blends
        for row in np.flatnonzero(columns["field"] == field):
            if cuts[row] is not None:
                corner = np.array([columns[f"corner_{axis}"][row] for axis in "yx"])
                height, width = columns["height"][row], columns["width"][row]
                # Cut-outs overlap; each adds its own sources, cut at its own border.
                add_image(total, cuts[row][:, :height, :width], corner)
        return total

    def exposures(self, rows: Sequence[FieldRow]) -> dict[str, list[Exposure]]:
        """Every plane of the observations of each field that has a blend in a stack."""
        bands, found = self.attrs["bands"], {}
        for name, stack in zip(
            self.blends["field"], self.blends["stack"].tolist(), strict=True
        ):
            if stack < 0 or name in found:
                continue
            here = [row for row in rows if row.field == name]
            seen = self.stacks[stack].observations
            found[str(name)] = [
                Exposure(epoch, np.nan if row.mjd is None else row.mjd, bands[i])
                for epoch, row, o in zip(epochs_of(here), here, seen, strict=True)
                for i in o.band_index
            ]
        return found

    def blend(self, row: int | np.integer) -> Blend | None:
        """The padded blend of a row of `blends`; None where it fits no bucket."""
        stack, index = int(self.blends["stack"][row]), int(self.blends["index"][row])
        if stack < 0:
            return None
        return jax.tree.map(lambda leaf: leaf[index], self.stacks[stack])


def signature(blend: Blend) -> tuple:
    """What decides which program a blend needs."""
    return (
        len(blend.present),
        blend.shines is not None,
        largest_zoom(blend),
        tuple(
            (
                o.image.shape,
                o.psf.shape,
                None if o.correlation is None else o.correlation.shape,
                *(getattr(o, name) for name in STATIC),
            )
            for o in blend.observations
        ),
    )


def write_blends(path: str | Path, blends: BlendSet) -> None:
    """Write a set of blends as HDF5; the file appears only when complete."""
    arrays: dict[str, Any] = {"sources": blends.sources, "blends": blends.blends}
    static = []
    for number, stack in enumerate(blends.stacks):
        static.append([[getattr(o, n) for n in STATIC] for o in stack.observations])
        arrays[f"stack_{number}"] = {
            name: getattr(stack, name) for name in _sources(stack)
        } | {
            f"observation_{i}": {name: getattr(o, name) for name in _present(o)}
            for i, o in enumerate(stack.observations)
        }
    attrs = {"static": static, "fields": blends.fields, "attrs": blends.attrs}
    write_h5(path, arrays, attrs)


def read_blends(path: str | Path) -> BlendSet:
    """Read what `write_blends` wrote.

    Raises:
        InputError: If the file is missing or damaged.
    """
    arrays, attrs = read_h5(path)
    stacks = []
    for number, static in enumerate(attrs["static"]):
        group = arrays[f"stack_{number}"]
        one = Blend(
            tuple(
                Observation(
                    **{name: a[0] for name, a in group[f"observation_{i}"].items()},
                    band_index=tuple(band_index),
                    same_grid=bool(same_grid),
                    sampling=Sampling(*sampling),
                )
                for i, (band_index, same_grid, sampling) in enumerate(static)
            ),
            **{name: group[name][0] for name in SOURCES if name in group},
        )
        # The annotations describe one blend; stacked leaves take its place, as in `stack`.
        leaves = [
            group[f"observation_{i}"][name]
            for i, o in enumerate(one.observations)
            for name in _present(o)
        ]
        leaves += [group[name] for name in _sources(one)]
        stacks.append(eqx.tree_at(_leaves, one, leaves))
    return BlendSet(
        stacks, arrays["sources"], arrays["blends"], attrs["fields"], attrs["attrs"]
    )


def _leaves(blend: Blend) -> list:
    arrays = [getattr(o, name) for o in blend.observations for name in _present(o)]
    return arrays + [getattr(blend, name) for name in _sources(blend)]


def _sources(blend: Blend) -> list[str]:
    """Names of the arrays that a blend has of its sources."""
    return [name for name in SOURCES if getattr(blend, name) is not None]


def _present(observation: Observation) -> list[str]:
    """Names of the arrays that an observation has."""
    return [name for name in LEAVES if getattr(observation, name) is not None]
