"""What to watch while EM improves a prior: distances to the truth, and what data leave open."""

import warnings
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.spatial
import scipy.stats
from jaxtyping import Float, PRNGKeyArray

from blendem.measure.calibration import coverage
from blendem.precision import single_precision
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior

LEVELS = (0.05, 0.1, 0.3, 1.0, 3.0)  # noise of the denoising loss
PROJECTIONS = 256
OPEN = 8  # directions that the data constrain least
BLENDED = 0.2  # blendedness above which a source counts as blended
FLAT = 1e-3  # smallest variance of a direction over the mean one, in `Whitening`
ROWS = 2048  # galaxies denoised at once


class Whitening:
    """Coordinates in which the true galaxies have unit covariance, the first ones of a prior.

    They are the same for all laps and runs on the same galaxies, so that noise levels mean the
    same everywhere.
    """

    def __init__(self, e: Float[np.ndarray, "row mode"]):
        """Take mean and covariance of `e`, the coordinates of true galaxies."""
        self.mean = e.mean(axis=0)
        covariance = np.cov(e, rowvar=False)
        values, vectors = np.linalg.eigh(covariance)
        floor = FLAT * values.mean()
        if values[0] < floor:  # fewer galaxies than modes: some direction shows none
            covariance = (vectors * np.maximum(values, floor)) @ vectors.T
        self.matrix = np.linalg.inv(np.linalg.cholesky(covariance))

    def __call__(
        self, e: Float[np.ndarray, "row latent"]
    ) -> Float[np.ndarray, "row latent"]:
        """Move coordinates; those behind the modes (brightness) stay."""
        n = len(self.mean)
        return np.concatenate(
            [(e[:, :n] - self.mean) @ self.matrix.T, e[:, n:]], axis=1
        )

    def mixture(self, mixture: MixturePrior) -> MixturePrior:
        """The same prior in these coordinates."""
        n = len(self.mean)
        matrix = np.eye(len(mixture.mean))
        matrix[:n, :n] = self.matrix
        covariances = matrix @ np.asarray(mixture.covariances, float) @ matrix.T
        return MixturePrior.of(
            mixture.weights, self(np.asarray(mixture.centers, float)), covariances
        )


def denoising_loss(
    mixture: MixturePrior,
    e: Float[np.ndarray, "row latent"],
    n_modes: int,
    *,
    key: PRNGKeyArray,
) -> dict[str, float]:
    """Mean squared error per mode of denoised true galaxies, at `LEVELS`.

    The same galaxies get the same noise whatever the prior, so that differences are its own.
    """
    low = single_precision(mixture)
    e = jnp.asarray(e, jnp.float32)
    noise = jax.random.normal(key, e.shape)
    losses = {}
    for sigma in LEVELS:
        errors = [
            _denoised(low, e[i : i + ROWS], noise[i : i + ROWS], jnp.float32(sigma))
            for i in range(0, len(e), ROWS)
        ]
        errors = np.concatenate([np.asarray(x) for x in errors])
        losses[f"loss_{sigma:g}"] = float(np.mean(errors[:, :n_modes] ** 2))
    return losses


@jax.jit
def _denoised(mixture, e, noise, sigma):
    return mixture.denoise_latent(e + sigma * noise, sigma)[0] - e


def sliced_wasserstein(
    a: Float[np.ndarray, "n mode"],
    b: Float[np.ndarray, "m mode"],
    rng: np.random.Generator,
) -> float:
    """Mean 1-Wasserstein distance over random directions (Bonneel et al. 2015)."""
    directions = rng.standard_normal((PROJECTIONS, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return float(
        np.mean([scipy.stats.wasserstein_distance(a @ v, b @ v) for v in directions])
    )


def nearest_ratio(
    draws: Float[np.ndarray, "n mode"],
    unseen: Float[np.ndarray, "m mode"],
    taught: Float[np.ndarray, "row mode"],
) -> float:
    """How close draws of a prior are to what it was taught, relative to unseen galaxies.

    Ratio of the median distances to the nearest taught row. A prior that copies its
    galaxies has a ratio far below 1 (Carlini et al. 2023, arXiv 2301.13188, use such distances).
    """
    tree = scipy.spatial.cKDTree(np.asarray(taught, float))
    near = [np.median(tree.query(np.asarray(x, float))[0]) for x in (draws, unseen)]
    return float(near[0] / near[1])


def open_directions(
    information: Float[np.ndarray, "mode mode"],
) -> Float[np.ndarray, "mode direction"]:
    """The directions that the mean information of the data constrains least."""
    return np.linalg.eigh(information)[1][:, :OPEN]


def prior_variance(
    prior: LatentPrior, directions: Float[np.ndarray, "mode direction"]
) -> float:
    """Mean variance of a prior along orthonormal directions of its first coordinates."""
    mixture, n = prior.mixture, len(directions)
    weights = np.asarray(mixture.weights, float)
    centers = np.asarray(mixture.centers, float)[:, :n]
    covariances = np.asarray(mixture.covariances, float)[:, :n, :n]
    away = (centers - weights @ centers) @ directions
    within = np.einsum("cij,id,jd->cd", covariances, directions, directions)
    return float(np.mean(weights @ (within + away**2)))


def posterior_table(
    truth: Mapping[str, Float[np.ndarray, " source"]],
    draws: Mapping[str, Float[np.ndarray, "draw source"]],
) -> pd.DataFrame:
    """Errors of posteriors of known galaxies, a row each.

    Returns:
        True flux `flux_<b>`; `flux_residual_<b>`, relative, of the posterior mean; `flux_within68_<b>`,
        whether the central 68 % interval holds the truth; errors `size_residual` (relative), `e1_error`, `e2_error`.
    """
    out = {}
    for name in (name for name in truth if name.startswith("flux_")):
        band = name.removeprefix("flux_")
        out[f"flux_{band}"] = truth[name]
        out[f"flux_residual_{band}"] = draws[name].mean(axis=0) / truth[name] - 1
        out[f"flux_within68_{band}"] = coverage(truth[name], draws[name], (0.68,))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # shapes that no draw has
        mean = {name: np.nanmean(draws[name], axis=0) for name in ("size", "e1", "e2")}
    out["size_residual"] = mean["size"] / truth["size"] - 1
    for name in ("e1", "e2"):
        out[f"{name}_error"] = mean[name] - truth[name]
    return pd.DataFrame(out)


def posterior_scores(
    table: pd.DataFrame, blendedness: Float[np.ndarray, " source"]
) -> dict[str, float]:
    """Flux residuals, coverage and shape errors, from the rows of `posterior_table`."""
    ratio = table.filter(like="flux_residual_").to_numpy(float)
    inside = table.filter(like="flux_within68_").to_numpy(bool)
    good = np.isfinite(ratio).all(axis=1)
    blended = good & (np.asarray(blendedness) > BLENDED)
    out = {
        "sources": int(good.sum()),
        "flux_residual_blended": _mean(np.abs(ratio[blended])),
        "flux_residual_other": _mean(np.abs(ratio[good & ~blended])),
        "flux_bias": float(np.median(ratio[good])),
        "flux_within68": _mean(inside[good]),
    }
    for name, column in (
        ("size", "size_residual"),
        ("e1", "e1_error"),
        ("e2", "e2_error"),
    ):
        error = table[column].to_numpy(float)
        out[f"{name}_bias"] = float(np.nanmedian(error))
        out[f"{name}_error"] = float(np.sqrt(np.nanmean(error**2)))
    return out


def _mean(values: np.ndarray) -> float:
    """Nothing has no mean, and that is no reason to warn."""
    return float(values.mean()) if values.size else np.nan
