"""Priors on disk: one JSON line that rebuilds the model, then its Equinox leaves."""

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from blendem.io.atomic import atomic_path
from blendem.io.headers import FORMAT, read_header
from blendem.io.table import InputError
from blendem.prior.gaussian import Basis, GaussianPrior
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior
from blendem.prior.network import LatentNetwork
from blendem.prior.unet import UNetPrior, unet_like

Prior = GaussianPrior | LatentPrior | UNetPrior
TIERS = {"gaussian": GaussianPrior, "latent": LatentPrior, "unet": UNetPrior}
SCALE_TOLERANCE = 0.01  # relative, of pixel scales and PSFs: rounding of a WCS


def write_prior(
    path: str | Path, prior: Prior, card: dict[str, Any], *, compact: bool = False
) -> None:
    """Write a prior and its model card; the file appears only when complete.

    Args:
        path: The file.
        prior: A prior of any tier.
        card: How it was made, plain values: settings of the training, SHA-256 of the
            data, validation curve, seconds, device.
        compact: For priors that are shipped: modes in half precision, everything else in
            single precision, compressed; stamps are projected by least squares.
    """
    if compact:
        prior = _reduced(prior)
    basis = prior.basis
    header = {
        "format": FORMAT,
        "tier": tier_of(prior),
        "bands": list(basis.bands),
        "stamp": int(basis.mean.shape[-1]),
        "modes": len(basis.modes),
        "analysis": basis.analysis is not None,
        "network": _network_header(prior),
        "compact": compact,
        "card": card,
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write((json.dumps(header) + "\n").encode())
        if compact:
            leaves = jax.tree.leaves(prior)
            np.savez_compressed(file, **{f"{i}": x for i, x in enumerate(leaves)})
        else:
            eqx.tree_serialise_leaves(file, prior)


def read_prior(path: str | Path) -> tuple[Prior, dict[str, Any]]:
    """Read a prior of any tier and its model card.

    Raises:
        InputError: If the file is missing, no prior, truncated or longer than it should
            be, or of another version.
    """
    path = Path(path)
    header = read_header(path)
    like = _like(path, header)
    with open(path, "rb") as file:
        file.seek(header["start"])
        try:
            if header.get("compact"):
                prior = _restored(like, file.read())
            else:
                prior = eqx.tree_deserialise_leaves(file, like)
        except (
            RuntimeError,
            ValueError,
            KeyError,
            EOFError,
            OSError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise InputError(
                f"{path}: truncated or damaged ({error}); train the prior again"
            ) from None
        if file.read(1):
            raise InputError(
                f"{path}: damaged, it goes on after the last weight; train the prior again"
            )
    if getattr(prior, "network", None) is not None:
        network = jax.tree.map(jnp.asarray, prior.network)
        prior = eqx.tree_at(lambda p: p.network, prior, network)
    return prior, header["card"]


def _reduced(prior: Prior) -> Prior:
    """The same prior with fewer bits, without what can be computed from the rest."""
    where = lambda p: gaussian_of(p).basis.analysis  # noqa: E731
    if where(prior) is not None:
        prior = eqx.tree_at(where, prior, None)
    modes = lambda p: gaussian_of(p).basis.modes  # noqa: E731
    low = jax.tree.map(lambda x: np.asarray(x, np.float32), prior)
    return eqx.tree_at(modes, low, np.asarray(modes(prior), np.float16))


def _restored(like: Prior, content: bytes) -> Prior:
    """A prior from the leaves of `_reduced`, with the types of `like`."""
    leaves, structure = jax.tree.flatten(like)
    with np.load(io.BytesIO(content)) as file:
        found = [file[f"{i}"] for i in range(len(leaves))]
        if len(file.files) != len(leaves):
            raise ValueError(f"{len(file.files)} arrays instead of {len(leaves)}")
    for one, model in zip(found, leaves, strict=True):
        if one.shape != np.shape(model):
            raise ValueError(f"an array of {one.shape} instead of {np.shape(model)}")
    prior = structure.unflatten(
        [x.astype(model.dtype) for x, model in zip(found, leaves, strict=True)]
    )
    modes = np.asarray(prior.basis.modes, float)
    flat = modes.reshape(len(modes), -1)
    dual = np.linalg.solve(flat @ flat.T, flat).reshape(modes.shape)
    return eqx.tree_at(
        lambda p: gaussian_of(p).basis.analysis,
        prior,
        dual.astype(np.float32),
        is_leaf=lambda x: x is None,
    )


def tier_of(prior: Prior) -> str:
    """Name of a prior's tier, as in the configuration.

    Raises:
        TypeError: If it is no prior.
    """
    for tier, kind in TIERS.items():
        if isinstance(prior, kind):
            return tier
    raise TypeError(f"{type(prior).__name__} is no prior that can be written")


def gaussian_of(prior: Prior) -> GaussianPrior:
    """The Gaussian that a prior of any tier builds on."""
    return prior if isinstance(prior, GaussianPrior) else prior.gaussian


def check_prior(
    path: str | Path,
    prior: Prior,
    *,
    where: str,
    bands: Sequence[str] | None = None,
    stamp: int | None = None,
    pixel_scale: float | None = None,
    psf_sigma: float | None = None,
) -> None:
    """Check that a prior fits what it is to be used with; None is not checked.

    Args:
        path: File of the prior, for the message.
        prior: The prior.
        where: What it is to be used with, for the message: a field or the configuration.
        bands: Bands that the prior must have, in any order and with others between.
        stamp: Side of the stamps [model pixel].
        pixel_scale: Side of a model pixel [arcsec].
        psf_sigma: Sigma of the model PSF [model pixel].

    Raises:
        InputError: With every difference: file, what it has, what is needed, what to do.
    """
    basis, problems = prior.basis, []
    if missing := [b for b in bands or () if b not in basis.bands]:
        problems.append(
            f"it has the bands {', '.join(basis.bands)}, {where} needs"
            f" {', '.join(missing)}: set frame.bands, or train a prior with"
            f" {'it' if len(missing) == 1 else 'them'}"
        )
    side = int(basis.mean.shape[-1])
    if stamp is not None and stamp != side:
        problems.append(
            f"its stamps are {side} pixels wide, {where} needs {stamp}: set frame.stamp:"
            f" {side}, or train a prior with stamps of {stamp}"
        )
    for name, value, has, unit in (
        ("pixel_scale", pixel_scale, float(basis.pixel_scale), "arcsec"),
        ("psf_sigma", psf_sigma, float(basis.psf_sigma), "pixel"),
    ):
        if value is not None and abs(value - has) > SCALE_TOLERANCE * has:
            problems.append(
                f"its {name} is {has:.4g} {unit}, {where} has {value:.4g}: set"
                f" frame.{name}: {has:.4g}, or train a prior with {value:.4g}"
            )
    if problems:
        raise InputError(f"prior {path}: " + "; ".join(problems))


def _network_header(prior: Prior) -> dict[str, Any]:
    if isinstance(prior, GaussianPrior):
        return {}
    network = prior.network
    names, sizes = (), {}
    if isinstance(prior, UNetPrior):
        names = ("channels", "patch", "blocks")
    if isinstance(prior, LatentPrior):
        sizes = {"components": len(prior.mixture.weights), "modes": prior.n_latent}
        sizes["fine"] = prior.fine is not None
        sizes["brightness"] = prior.brightness is not None
        names = ("width", "blocks")
        if network is None:
            return sizes
    leaf = jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))[0]
    sizes |= {name: getattr(network, name) for name in names}
    return sizes | {"dtype": str(leaf.dtype)}


def _like(path: Path, header: dict[str, Any]) -> Prior:
    """A prior of the shapes that a header tells, for the leaves to be read into."""
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
        analysis=np.zeros((d, *shape), np.float32) if header["analysis"] else None,
    )
    gaussian = GaussianPrior(basis, np.zeros(d), np.zeros((d, d)))
    if header["tier"] == "gaussian":
        return gaussian
    sizes = header["network"]
    if header["tier"] == "unet":
        return unet_like(
            basis,
            channels=tuple(sizes["channels"]),
            patch=sizes["patch"],
            blocks=sizes["blocks"],
            dtype=sizes["dtype"],
        )
    if header["tier"] == "latent":
        components, first = sizes["components"], sizes["modes"]
        mixture = _mixture_like(components, first)
        scale = np.zeros(2) if sizes.get("brightness") else None
        rest = d - (first - (scale is not None))
        fine = np.zeros((components, rest)) if sizes.get("fine") else None
        if "width" not in sizes:
            return LatentPrior(gaussian, mixture, None, fine, scale)
        shapes = eqx.filter_eval_shape(
            LatentNetwork,
            sizes["modes"],
            sizes["width"],
            sizes["blocks"],
            key=jax.random.key(0),
        )
        return LatentPrior(
            gaussian,
            mixture,
            jax.tree.map(lambda x: np.zeros(x.shape, sizes["dtype"]), shapes),
            fine,
            scale,
        )
    raise InputError(
        f"{path}: tier {header['tier']!r} is unknown to this version; use the version that"
        " wrote it"
    )


def _mixture_like(components: int, modes: int) -> MixturePrior:
    return MixturePrior(
        basis=None,
        mean=np.zeros(modes),
        cholesky=np.zeros((modes, modes)),
        weights=np.zeros(components),
        centers=np.zeros((components, modes)),
        values=np.zeros((components, modes)),
        vectors=np.zeros((components, modes, modes)),
    )
