"""Priors on disk: one JSON line that rebuilds the model, then its Equinox leaves."""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from blendem.io.atomic import atomic_path
from blendem.io.table import InputError
from blendem.prior.gaussian import Basis, GaussianPrior

FORMAT = "blendem-gaussian-prior-1"


def write_prior(path: str | Path, prior: GaussianPrior, card: dict[str, Any]) -> None:
    """Write a prior and its model card; the file appears only when complete."""
    basis = prior.basis
    header = {
        "format": FORMAT,
        "bands": list(basis.bands),
        "stamp": int(basis.mean.shape[-1]),
        "modes": len(basis.modes),
        "card": card,
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write((json.dumps(header) + "\n").encode())
        eqx.tree_serialise_leaves(file, prior)


def read_prior(path: str | Path) -> tuple[GaussianPrior, dict[str, Any]]:
    """Read a prior and its model card.

    Raises:
        InputError: If the file is missing, truncated, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such prior; run the rule that makes it")
    with open(path, "rb") as file:
        try:
            header = json.loads(file.readline())
            known = header["format"] == FORMAT
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}: not a prior of blendem (no JSON header); train it again"
            ) from None
        if not known:
            raise InputError(
                f"{path}: format {header['format']!r}, this version reads {FORMAT!r};"
                " train the prior again or use the version that wrote it"
            )
        d, n, bands = header["modes"], header["stamp"], tuple(header["bands"])
        scalar, shape = np.zeros((), np.float32), (len(bands), n, n)
        basis = Basis(
            mean=np.zeros(shape, np.float32),
            modes=np.zeros((d, *shape), np.float32),
            eigenvalues=np.zeros(d, np.float32),
            residual=scalar,
            psf_sigma=scalar,
            pixel_scale=scalar,
            bands=bands,
        )
        like = GaussianPrior(basis, np.zeros(d), np.zeros((d, d)))
        try:
            prior = eqx.tree_deserialise_leaves(file, like)
        except (RuntimeError, ValueError, EOFError) as error:
            raise InputError(
                f"{path}: truncated or damaged ({error}); train the prior again"
            ) from None
    return prior, header["card"]
