"""Statistics of blends on disk: stacked, one row per blend, or of a few blends."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from blendem.inference.amplitude import Amplitudes
from blendem.inference.posterior import BlendStatistics, unpad
from blendem.inference.statistics import Settings
from blendem.io.blends import BlendSet
from blendem.io.h5 import attributes, open_h5
from blendem.survey.instruments import MAGZERO


def read_statistics(
    path: str | Path, blends: BlendSet
) -> Iterator[BlendStatistics | None]:
    """`BlendStatistics` or None of every row of `blends.blends`, without padding.

    They are read one by one, so that the memory does not grow with the number of blends.
    Blends whose statistics are not finite have none.

    Raises:
        InputError: If the file is missing or damaged.
    """
    with open_h5(path) as file:
        yield from unstack(file, blends)


# `list[tuple]` of `Amplitudes`: stacks of unequal length do not pass for one annotation.
def read_amplitudes(path: str | Path) -> tuple[list[tuple], Settings]:
    """`Amplitudes` of every stack of blends, and the settings of the statistics.

    What a sampler needs that works on pixels instead of `H` and `b`.

    Raises:
        InputError: If the file is missing or damaged.
    """
    with open_h5(path) as file:
        found = [
            Amplitudes(*(file[f"stack_{i}/{name}"][()] for name in Amplitudes._fields))
            for i in range(sum(name.startswith("stack_") for name in file))
        ]
        return found, _settings(file)


def read_settings(path: str | Path) -> Settings:
    """Settings that the statistics were computed with.

    Raises:
        InputError: If the file is missing or damaged.
    """
    with open_h5(path) as file:
        return _settings(file)


def _settings(file) -> Settings:
    values = attributes(file)["settings"]
    return Settings(**values | {"pixels": tuple(values["pixels"])})


def unstack(
    arrays: Mapping[str, Any], blends: BlendSet
) -> Iterator[BlendStatistics | None]:
    """As `read_statistics`, from arrays that have been read or are still in a file."""
    for stack, index, field in zip(
        *(blends.blends[name] for name in ("stack", "index", "field")), strict=True
    ):
        if stack < 0:
            yield None
            continue
        group, stacked = arrays[f"stack_{stack}"], blends.stacks[stack]
        values = [group[name][index] for name in ("H", "b", "r2", "log_norm", "n_data")]
        if not all(np.isfinite(v).all() for v in values):
            yield None
            continue
        zero = 0.4 * np.log(10) * (MAGZERO - blends.fields[field]["magzero"])
        scale = np.asarray(group["scale"][index], float)
        yield unpad(
            *values[:2],
            *map(float, values[2:]),
            present=np.asarray(stacked.present[index]),
            is_star=np.asarray(stacked.is_star[index]),
            n_modes=int(np.asarray(group["n_modes"])),
            log_amplitude=np.log(np.maximum(scale, np.finfo(float).tiny)) + zero,
        )


def pack(statistics: BlendStatistics) -> dict[str, Any]:
    """Arrays of one blend, for `write_h5`."""
    return {k: v for k, v in statistics._asdict().items() if v is not None}


def unpack(arrays: Mapping[str, Any]) -> BlendStatistics:
    """What `pack` gave."""
    values = {k: np.asarray(v) for k, v in arrays.items()}
    plain = {k: float(values[k]) for k in ("r2", "log_norm", "n_data")}
    return BlendStatistics(**values | plain | {"n_modes": int(values["n_modes"])})
