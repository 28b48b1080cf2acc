"""The truth of a simulated field, as rule `simulate` writes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.table import Table
from jaxtyping import Float

from blendem.io.h5 import read_h5


@dataclass(frozen=True)
class TrueSources:
    """Who is in a field and what they look like.

    Attributes:
        table: One row per source, `id` among its columns.
        images: At the resolution of the model [unit of the field], `(source, band, stamp, stamp)`.
        bands: Their names.
        magzero: AB zero point [mag].
        light_curves: True flux of transients, columns `id`, `host`, `epoch`, `mjd`, `band`, `flux`; None
            if there are none.
    """

    table: pd.DataFrame
    images: Float[np.ndarray, "source band stamp stamp"]
    bands: tuple[str, ...]
    magzero: float
    light_curves: pd.DataFrame | None = None

    def rows(self, ids: Sequence[int]) -> np.ndarray:
        """Rows of sources, in the order of `ids`.

        Raises:
            KeyError: If one is not in the field.
        """
        row = pd.Series(range(len(self.table)), index=self.table["id"])
        return row.loc[list(ids)].to_numpy()


def read_truth(path: str | Path) -> TrueSources:
    """Read the truth of a field.

    Raises:
        InputError: If the file is missing or damaged.
    """
    names = ("table", "model")
    arrays, attrs = read_h5(path, only=names, optional=("light_curves",))
    curves = arrays.get("light_curves")
    return TrueSources(
        Table(arrays["table"]).to_pandas(),
        arrays["model"],
        tuple(attrs["bands"]),
        float(attrs["magzero"]),
        None if curves is None else Table(curves).to_pandas(),
    )
