"""Statistics and posteriors of blends on disk, one row per blend."""

from pathlib import Path
from typing import Any

import numpy as np

from blendem.inference.posterior import unpad
from blendem.io.blends import BlendSet
from blendem.io.h5 import read_h5
from blendem.survey.instruments import MAGZERO


def read_statistics(path: str | Path, blends: BlendSet) -> list:
    """`BlendStatistics` or None of every row of `blends.blends`, without padding.

    Blends whose statistics are not finite have none.

    Raises:
        InputError: If the file is missing or damaged.
    """
    return unstack(read_h5(path)[0], blends)


def unstack(arrays: dict[str, Any], blends: BlendSet) -> list:
    """As `read_statistics`, from arrays that have been read."""
    result = []
    for stack, index, field in zip(
        *(blends.blends[name] for name in ("stack", "index", "field")), strict=True
    ):
        if stack < 0:
            result.append(None)
            continue
        group, stacked = arrays[f"stack_{stack}"], blends.stacks[stack]
        values = [group[name][index] for name in ("H", "b", "r2", "log_norm", "n_data")]
        if not all(np.isfinite(v).all() for v in values):
            result.append(None)
            continue
        zero = 0.4 * np.log(10) * (MAGZERO - blends.fields[field]["magzero"])
        scale = np.asarray(group["scale"][index], float)
        result.append(
            unpad(
                *values[:2],
                *map(float, values[2:]),
                present=np.asarray(stacked.present[index]),
                is_star=np.asarray(stacked.is_star[index]),
                n_modes=int(group["n_modes"]),
                log_amplitude=np.log(np.maximum(scale, np.finfo(float).tiny)) + zero,
            )
        )
    return result
