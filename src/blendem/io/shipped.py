"""Priors that come with the project: which of them has the bands of a run."""

from collections.abc import Sequence
from pathlib import Path

from blendem.io.headers import read_header
from blendem.io.table import InputError


def shipped_prior(folder: Path, bands: Sequence[str]) -> Path:
    """The prior of fewest bands that has all of a run's.

    Raises:
        InputError: If there is none; the message lists those that there are.
    """
    known = {path: read_header(path)["bands"] for path in sorted(folder.glob("*.eqx"))}
    fitting = [path for path, has in known.items() if set(bands) <= set(has)]
    if not fitting:
        has = "; ".join(f"{p.name}: {', '.join(b)}" for p, b in known.items())
        raise InputError(
            f"prior.start: no shipped prior has the bands {', '.join(bands)}"
            f" ({has or f'{folder} is empty'}); set frame.bands, or train a prior:"
            " prior.start: null"
        )
    return min(fitting, key=lambda path: len(known[path]))
