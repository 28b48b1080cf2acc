"""What a training reads and leaves behind: galaxies that can be learned from, its curve."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from blendem.io.atomic import atomic_path
from blendem.io.table import InputError
from blendem.prior.gaussian import Basis
from blendem.prior.stamps import prepare_stamps
from blendem.prior.train import HELD_OUT_LEVELS, Evaluation
from blendem.rng import stage_rng

CURVE = ("kind", "step", "seconds", "train_loss", "held_out")


class Galaxies(NamedTuple):
    """Training stamps with reference flux.

    Attributes:
        images: Relative to their amplitudes, `(row, band, y, x)`.
        amplitude: Reference flux, or a fixed part of it, `(row,)`.
        order: Rows in the order in which they are dealt to training and held-out sets.
        held_out: Number of rows of a held-out set.
        card: Of the stamps, for the model card.
    """

    images: Float[np.ndarray, "row band y x"]
    amplitude: Float[np.ndarray, " row"]
    order: Int[np.ndarray, " row"]
    held_out: int
    card: dict[str, Any]

    def relative_to(self, factor: float) -> "Galaxies":
        """The same relative to amplitudes that are `factor` times these."""
        images = self.images / np.float32(factor)
        return self._replace(images=images, amplitude=self.amplitude * factor)


def read_galaxies(
    stamps: Sequence[Path],
    basis: Basis,
    reference_band: str,
    colour_jitter: float,
    *,
    held_out: tuple[float, int],
    seed: int,
    where: str | None = None,
) -> Galaxies:
    """Read training stamps and deal them; they have unit reference flux.

    Args:
        stamps: Files of `simulate_stamps`.
        basis: The basis that they must fit.
        reference_band: Band of unit flux.
        colour_jitter: Standard deviation of ln(flux) per band that is added.
        held_out: Part of the stamps that a held-out set gets, and its most.
        seed: That of the run: the colours are those of `fit_basis`.
        where: Where the basis comes from, for the message.

    Raises:
        InputError: If pixels are not finite, or the stamps do not fit the basis.
    """
    parts = [np.load(path) for path in stamps]
    for path, part in zip(stamps, parts, strict=True):
        if bad := int((~np.isfinite(part).all(axis=(1, 2, 3))).sum()):
            raise InputError(
                f"{path}: {bad} of {len(part)} stamps have pixels that are not finite;"
                " simulate them again"
            )
    images = np.concatenate(parts)
    bands = basis.bands
    if images.shape[1:] != basis.mean.shape:
        raise InputError(
            f"{where}: its stamps are {basis.mean.shape} ({', '.join(bands)}), those of"
            f" the training {images.shape[1:]} (band, y, x); set frame.bands and frame.stamp"
            " to those of that prior"
        )
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    reference = bands.index(reference_band)
    flux = images[:, reference].sum((-2, -1), dtype=float)
    # The same generator as `fit_basis`: galaxies have the colours of the moments.
    images, used = prepare_stamps(
        images,
        reference,
        amplitude_jitter=0.0,
        colour_jitter=colour_jitter,
        rng=stage_rng(seed, "fit_basis"),
    )
    part, most = held_out
    n = max(1, min(int(part * len(images)), most))
    card = {
        "stamps": len(images),
        "stamps_sha256": digest,
        "held_out": n,
        "device": jax.devices()[0].device_kind,
    }
    order = stage_rng(seed, "train_prior").permutation(len(images))
    return Galaxies(images, flux[used], order, n, card)


def write_curve(
    path: str | Path,
    history: Sequence[Evaluation],
    kind: str = "mixture",
    levels: Sequence[float] = HELD_OUT_LEVELS,
) -> None:
    """Write the held-out losses of a training as CSV.

    Args:
        path: The file.
        history: Evaluations; none leaves the head of the table.
        kind: `mixture` (steps are iterations of EM), `network` or `unet`.
        levels: Noise levels of the evaluations.
    """
    rows = [
        {
            "kind": kind,
            "step": e.step,
            "seconds": e.seconds,
            "train_loss": e.train_loss,
            "held_out": e.held_out,
        }
        | {f"ratio_{s:g}": v for s, v in zip(levels, e.ratio, strict=True)}
        | {f"nll_{s:g}": v for s, v in zip(levels, e.nll, strict=True)}
        for e in history
    ]
    columns = [*CURVE]
    columns += [f"{name}_{s:g}" for name in ("ratio", "nll") for s in levels]
    with atomic_path(path) as temporary:
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False)
