"""Posterior draws in compact form: coordinates in the basis of the prior, not pixels."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from blendem.inference.statistics import STAR_SPREAD
from blendem.io.h5 import read_h5, write_h5
from blendem.measure.sources import point_image
from blendem.prior.gaussian import Basis
from blendem.prior.magnify import magnify

FORMAT = "blendem-samples-1"


@dataclass(frozen=True)
class Samples:
    """Joint posterior draws of the sources of a field.

    A galaxy is `scale * (basis.mean + z . basis.modes)`. A star is a point of flux
    `scale * (1 + STAR_SPREAD * z[band])`. Sources of one blend are correlated: sample i of
    one belongs to sample i of the other.

    Attributes:
        ids: As in the catalog, `(source,)`.
        blend: Number of the blend of each source, `(source,)`.
        is_star: `(source,)`.
        centers: Centre (y, x) [model pixel of the field], `(source, 2)`.
        scale: Amplitude `s_k` [flux unit], `(source,)`.
        mean: Posterior mean of z, `(source, mode)`.
        z: Draws, `(sample, source, mode)` float32.
        prior_sha256: Sum of the prior file whose basis z refers to.
        attrs: Anything else about the run: hashes, versions.
        light_curves: Draws of the fluxes of variable sources, `(sample, row)` with the rows of HDU
            LIGHTCURVES of the catalog; None where nothing varies. In `z` such a source is a star
            of its mean flux while it shines.
        zoom: Galaxies that the basis, magnified by 2^zoom, describes (`prior.magnify`), `(source,)`;
            None: none is magnified.
    """

    ids: Int[np.ndarray, " source"]
    blend: Int[np.ndarray, " source"]
    is_star: Bool[np.ndarray, " source"]
    centers: Float[np.ndarray, "source 2"]
    scale: Float[np.ndarray, " source"]
    mean: Float[np.ndarray, "source mode"]
    z: Float[np.ndarray, "sample source mode"]
    prior_sha256: str
    attrs: dict[str, Any] = field(default_factory=dict)
    light_curves: Float[np.ndarray, "sample row"] | None = None
    zoom: Int[np.ndarray, " source"] | None = None

    def __post_init__(self):
        n, modes = len(self.ids), self.z.shape[-1]
        expected = {
            "blend": (n,),
            "is_star": (n,),
            "centers": (n, 2),
            "scale": (n,),
            "mean": (n, modes),
            "z": (len(self.z), n, modes),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"`{name}` must have shape {shape} for {n} sources and {modes} modes;"
                    f" got {getattr(self, name).shape}."
                )

    def images(
        self, basis: Basis, source: int, *, prior_sha256: str | None = None
    ) -> Float[np.ndarray, "sample band stamp stamp"]:
        """Draws of the model image of one source [flux unit]; `source` is its row.

        One source at a time, because all draws of a field need not fit in memory.

        Raises:
            ValueError: If `basis` is not the one that z refers to.
        """
        self._check_basis(basis, prior_sha256)
        return self._decode(basis, source, self.z[:, source])

    def mean_image(
        self, basis: Basis, source: int, *, prior_sha256: str | None = None
    ) -> Float[np.ndarray, "band stamp stamp"]:
        """Posterior mean of the model image of one source [flux unit].

        Raises:
            ValueError: If `basis` is not the one that z refers to.
        """
        self._check_basis(basis, prior_sha256)
        return self._decode(basis, source, self.mean[source][None])[0]

    def _check_basis(self, basis: Basis, prior_sha256: str | None) -> None:
        if self.z.shape[-1] != len(basis.modes):
            raise ValueError(
                f"the samples have {self.z.shape[-1]} modes, the basis {len(basis.modes)};"
                " read the prior that the run used."
            )
        if prior_sha256 is not None and prior_sha256 != self.prior_sha256:
            raise ValueError(
                f"the samples refer to prior {self.prior_sha256[:12]}, got"
                f" {prior_sha256[:12]}; read the prior that the run used."
            )

    def _decode(self, basis: Basis, source: int, z: np.ndarray) -> np.ndarray:
        if self.zoom is not None:
            basis = magnify(basis, int(self.zoom[source]))
        mean = np.asarray(basis.mean)
        if self.is_star[source]:
            flux = 1 + STAR_SPREAD * z[:, : len(mean)]
            point = point_image(mean.shape[-1], float(basis.psf_sigma))
            return self.scale[source] * flux[:, :, None, None] * point
        modes = np.asarray(basis.modes)
        return self.scale[source] * (mean + np.tensordot(z, modes, axes=1))


def write_samples(path: str | Path, samples: Samples) -> None:
    """Write draws as HDF5; the file appears only when complete."""
    names = ("ids", "blend", "is_star", "centers", "scale", "mean", "z")
    arrays = {name: getattr(samples, name) for name in names}
    none = np.zeros(len(samples.ids), int)
    arrays["zoom"] = none if samples.zoom is None else samples.zoom
    arrays["z"] = arrays["z"].astype(np.float32)
    if samples.light_curves is not None:
        arrays["light_curves"] = samples.light_curves
    attrs = {"format": FORMAT, "prior_sha256": samples.prior_sha256}
    write_h5(path, arrays, attrs | {"run": samples.attrs})


def read_samples(path: str | Path) -> Samples:
    """Read draws that `write_samples` wrote.

    Raises:
        InputError: If the file is missing or damaged, or holds something else.
    """
    names = ("ids", "blend", "is_star", "centers", "scale", "mean", "z", "zoom")
    arrays, attrs = read_h5(path, only=names, optional=("light_curves",))
    return Samples(**arrays, prior_sha256=attrs["prior_sha256"], attrs=attrs["run"])
