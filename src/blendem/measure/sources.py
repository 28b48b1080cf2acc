"""From posterior draws in the latent basis to numbers per source."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from blendem.inference.statistics import STAR_SPREAD
from blendem.measure.photometry import (
    magnitude_errors,
    magnitudes,
    signal_to_noise,
    summarise_samples,
)
from blendem.measure.shapes import measure_shapes
from blendem.prior.gaussian import Basis
from blendem.prior.magnify import LargeStamps


class SourceImages(NamedTuple):
    """Model images of one source.

    Attributes:
        mean: Posterior mean [flux unit], `(band, stamp, stamp)`.
        std: Posterior standard deviation from the draws, same shape.
        flux: Flux of every draw, `(draw, band)`.
        reference: Draws in the reference band, `(draw, stamp, stamp)`.
    """

    mean: Float[np.ndarray, "band stamp stamp"]
    std: Float[np.ndarray, "band stamp stamp"]
    flux: Float[np.ndarray, "draw band"]
    reference: Float[np.ndarray, "draw stamp stamp"]


def point_image(stamp: int, sigma: float) -> Float[np.ndarray, "stamp stamp"]:
    """The Gaussian model PSF sampled at pixel centres, sum 1."""
    r = np.arange(stamp) - stamp // 2
    profile = np.exp(-0.5 * (r / sigma) ** 2)
    return np.outer(profile, profile) / profile.sum() ** 2


def source_images(
    basis: Basis | LargeStamps,
    scale: float,
    is_star: bool,
    mean: Float[np.ndarray, " mode"],
    draws: Float[np.ndarray, "draw mode"],
    reference: int,
) -> SourceImages:
    """Turn coordinates of one source into images.

    Args:
        basis: Basis of the coordinates, magnified for a galaxy larger than its stamp.
        scale: Amplitude `s_k` [flux unit].
        is_star: The coordinates are fluxes of a point source.
        mean: Posterior mean of z.
        draws: Posterior draws of z.
        reference: Index of the band whose draws are kept.
    """
    n_bands, stamp = basis.mean.shape[0], basis.mean.shape[-1]
    if is_star:
        point = point_image(stamp, float(basis.psf_sigma))
        flux = scale * (1 + STAR_SPREAD * draws[:, :n_bands])
        flux_mean = scale * (1 + STAR_SPREAD * mean[:n_bands])
        return SourceImages(
            flux_mean[:, None, None] * point,
            flux.std(axis=0, ddof=1)[:, None, None] * point,
            flux,
            flux[:, reference, None, None] * point,
        )
    modes = np.asarray(basis.modes).reshape(len(basis.modes), -1)
    base = np.asarray(basis.mean).ravel()
    images = (scale * (base + draws.astype(np.float32) @ modes)).reshape(
        len(draws), n_bands, stamp, stamp
    )
    average = scale * (base + mean.astype(np.float32) @ modes)
    return SourceImages(
        average.reshape(n_bands, stamp, stamp),
        images.std(axis=0, ddof=1),
        images.sum((-2, -1), dtype=np.float64),
        images[:, reference],
    )


def observed_bands(
    variances: Sequence[Float[np.ndarray, "blend _ _ _"]],
    band_index: Sequence[Sequence[int]],
    n_bands: int,
) -> Bool[np.ndarray, "blend band"]:
    """Model bands of which a blend has any data.

    Args:
        variances: Of each observation; infinite where masked.
        band_index: Model band of each plane of each observation.
        n_bands: Number of model bands.
    """
    seen = np.zeros((len(variances[0]), n_bands), bool)
    for variance, index in zip(variances, band_index, strict=True):
        for plane, band in enumerate(index):
            seen[:, band] |= np.isfinite(variance[:, plane]).any((-2, -1))
    return seen


def photometry_columns(
    flux: Float[np.ndarray, "draw source band"],
    mean_flux: Float[np.ndarray, "source band"],
    bands: tuple[str, ...],
    magzero: Float[np.ndarray, " source"],
) -> dict[str, np.ndarray]:
    """Flux, magnitude and S/N columns of the catalog.

    The flux is the exact posterior mean; errors and quantiles come from the draws.
    """
    columns = {}
    summary = summarise_samples(flux)
    for i, b in enumerate(bands):
        value, error = mean_flux[:, i], summary["std"][:, i]
        columns[f"flux_{b}"], columns[f"flux_err_{b}"] = value, error
        columns[f"flux_q16_{b}"] = summary["q16"][:, i]
        columns[f"flux_q84_{b}"] = summary["q84"][:, i]
        columns[f"mag_{b}"] = magnitudes(value, magzero)
        columns[f"mag_err_{b}"] = magnitude_errors(value, error)
        columns[f"snr_{b}"] = signal_to_noise(value, error)
    return columns


def shape_columns(
    images: Float[np.ndarray, "source draw stamp stamp"],
    is_star: Bool[np.ndarray, " source"],
    pixel_scale: float,
) -> dict[str, np.ndarray]:
    """Size and ellipticity of every source from its draws; NaN for stars.

    Faint sources have draws without a shape, because a Gaussian prior allows negative
    light. The columns describe the other draws, if at least one in eight could be
    measured; `no_shape` marks galaxies with fewer than half.
    """
    n, draws = images.shape[:2]
    names = ("size", "e1", "e2")
    columns = {name: np.full(n, np.nan) for name in names}
    columns |= {f"{name}_err": np.full(n, np.nan) for name in names}
    columns |= {f"{name}_q16": np.full(n, np.nan) for name in names}
    columns |= {f"{name}_q84": np.full(n, np.nan) for name in names}
    columns["no_shape"] = np.zeros(n, bool)
    galaxies = np.flatnonzero(~is_star & np.isfinite(images).all((1, 2, 3)))
    if not len(galaxies):
        return columns
    flat = images[galaxies].reshape(-1, *images.shape[2:])
    measured = measure_shapes(flat, pixel_scale)
    for name in names:
        values = np.asarray(measured[name]).reshape(len(galaxies), draws)
        measured_draws = np.isfinite(values).sum(axis=1)
        good = measured_draws >= max(2, draws // 8)
        columns["no_shape"][galaxies[measured_draws < draws // 2]] = True
        summary = summarise_samples(values[good].T)
        chosen = galaxies[good]
        columns[name][chosen] = summary["mean"]
        columns[f"{name}_err"][chosen] = summary["std"]
        columns[f"{name}_q16"][chosen] = summary["q16"]
        columns[f"{name}_q84"][chosen] = summary["q84"]
    return columns
