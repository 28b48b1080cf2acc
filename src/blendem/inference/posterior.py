"""Exact posterior and evidence of a blend under a Gaussian prior, in closed form.

Everything here is small dense algebra in float64 (NumPy and LAPACK): the unknowns of one
blend are its `source x mode` coordinates, shifts and sky. No pixels, no compilation.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float

from blendem.prior.gaussian import GaussianPrior
from blendem.prior.latent import LatentPrior


class BlendStatistics(NamedTuple):
    """Statistics of one blend without padding, in float64 (see `unpad`).

    Attributes:
        H, b, r2, log_norm, n_data: As in `statistics.Statistics`.
        is_star: `(source,)`.
        n_modes: Number of modes per source.
        log_amplitude: ln of the amplitudes [image unit at `MAGZERO`], `(source,)`; None where
            they are not known. Only a prior with a brightness coordinate asks for them.
    """

    H: Float[np.ndarray, "unknown unknown"]
    b: Float[np.ndarray, " unknown"]
    r2: float
    log_norm: float
    n_data: float
    is_star: np.ndarray
    n_modes: int
    log_amplitude: Float[np.ndarray, " source"] | None = None


class Posterior(NamedTuple):
    """Posterior of the unknowns w of one blend: N(mean, root root^T).

    Attributes:
        mean: `(unknown,)`.
        root: Square root of the covariance, `(unknown, unknown)`.
        log_evidence: Log marginal likelihood of all unmasked pixels.
        chi2_of_mean: `(y - A mean)^T S^-1 (y - A mean)`.
        effective_parameters: `tr(H covariance)`; the posterior-predictive chi2, averaged
            over draws, is `chi2_of_mean + effective_parameters`.
    """

    mean: Float[np.ndarray, " unknown"]
    root: Float[np.ndarray, "unknown unknown"]
    log_evidence: float
    chi2_of_mean: float
    effective_parameters: float

    @property
    def covariance(self) -> Float[np.ndarray, "unknown unknown"]:
        """Posterior covariance."""
        return self.root @ self.root.T

    def draw(self, n: int, rng: np.random.Generator) -> Float[np.ndarray, "n unknown"]:
        """Draw `n` exact joint samples of all unknowns."""
        return self.mean + rng.standard_normal((n, len(self.mean))) @ self.root.T


def own_unknowns(
    present: Bool[np.ndarray, " padded"], n_modes: int, shifts: bool, others: int
) -> Bool[np.ndarray, " unknown"]:
    """Which unknowns of a padded blend are not those of padding (order as in `Statistics`).

    Args:
        present: False for padding.
        n_modes: Unknowns of a source, without its shift.
        shifts: Whether every source has a shift (y, x).
        others: Unknowns that belong to no source.
    """
    widths = [n_modes, 2] if shifts else [n_modes]
    mine = [np.repeat(present, width) for width in widths]
    return np.concatenate([*mine, np.ones(others, bool)])


def unpad(
    H: Float[np.ndarray, "padded padded"],
    b: Float[np.ndarray, " padded"],
    r2: float,
    log_norm: float,
    n_data: float,
    *,
    present: np.ndarray,
    is_star: np.ndarray,
    n_modes: int,
    log_amplitude: np.ndarray | None = None,
) -> BlendStatistics:
    """Drop the unknowns of padding sources."""
    padded = len(present)
    extra = len(b) - padded * n_modes
    shifts = 2 * padded if extra >= 2 * padded else 0
    keep = own_unknowns(present, n_modes, shifts > 0, extra - shifts)
    return BlendStatistics(
        np.asarray(H, float)[np.ix_(keep, keep)],
        np.asarray(b, float)[keep],
        float(r2),
        float(log_norm),
        float(n_data),
        np.asarray(is_star)[present],
        n_modes,
        None if log_amplitude is None else np.asarray(log_amplitude, float)[present],
    )


def apply_prior(
    matrix: Float[np.ndarray, "unknown n"],
    statistics: BlendStatistics,
    factor: Float[np.ndarray, "mode mode"],
) -> Float[np.ndarray, "unknown n"]:
    """Multiply by the block-diagonal factor of the prior of all unknowns.

    Galaxies follow the prior; star fluxes, shifts and sky are N(0, 1) by construction.
    """
    out = matrix.copy()
    d = statistics.n_modes
    for k, star in enumerate(statistics.is_star):
        if not star:
            block = slice(k * d, (k + 1) * d)
            out[block] = factor @ matrix[block]
    return out


def prior_product(
    statistics: BlendStatistics, factor: Float[np.ndarray, "mode mode"]
) -> Float[np.ndarray, "unknown unknown"]:
    """`C^T H C` with the block-diagonal factor C of the prior."""
    # On one side at a time; H is symmetric.
    half = apply_prior(statistics.H, statistics, factor.T)
    return apply_prior(half.T, statistics, factor.T)


def prior_mean(
    statistics: BlendStatistics, prior: GaussianPrior | LatentPrior
) -> Float[np.ndarray, " unknown"]:
    """Prior mean of all unknowns."""
    mean, d = np.zeros(len(statistics.b)), statistics.n_modes
    for k, star in enumerate(statistics.is_star):
        if not star:
            mean[k * d : (k + 1) * d] = prior.mean
    return mean


def posterior(statistics: BlendStatistics, prior: GaussianPrior) -> Posterior:
    """Closed-form posterior of a blend.

    With `w = m + C e`, `e ~ N(0, 1)`: precision of e is `1 + C^T H C`, and
    `log p(y) = -[log_norm + r2' + log det(1 + C^T H C) - b'^T (1 + C^T H C)^-1 b'] / 2`
    (Rasmussen & Williams 2006, section A.3: matrix inversion and determinant lemmas).

    Raises:
        ValueError: If the statistics are not finite.
        numpy.linalg.LinAlgError: If `1 + C^T H C` is not positive definite, which
            rounding of `H` can cause at extreme signal-to-noise.
    """
    H, b = statistics.H, statistics.b
    if not (np.isfinite(H).all() and np.isfinite(b).all()):
        raise ValueError("the statistics of the blend are not finite")
    m, factor = prior_mean(statistics, prior), np.asarray(prior.cholesky, float)
    Hm = H @ m
    r2 = statistics.r2 - 2 * m @ b + m @ Hm
    b_e = apply_prior((b - Hm)[:, None], statistics, factor.T)[:, 0]
    precision = prior_product(statistics, factor)
    precision[np.diag_indices_from(precision)] += 1.0
    lower = scipy.linalg.cholesky(precision, lower=True, check_finite=False)
    half = scipy.linalg.solve_triangular(lower, b_e, lower=True, check_finite=False)
    e = scipy.linalg.solve_triangular(
        lower, half, lower=True, trans=1, check_finite=False
    )
    inverse, _ = scipy.linalg.lapack.dtrtri(lower, lower=1)
    inverse = inverse.T
    mean = m + apply_prior(e[:, None], statistics, factor)[:, 0]
    root = apply_prior(inverse, statistics, factor)
    quadratic = r2 - half @ half
    log_det = 2 * np.log(np.diag(lower)).sum()
    # tr(H cov) = n - tr(cov_e), because cov_e (1 + C^T H C) = 1.
    return Posterior(
        mean=mean,
        root=root,
        log_evidence=-0.5 * (statistics.log_norm + quadratic + log_det),
        chi2_of_mean=r2 - 2 * e @ b_e + e @ ((precision @ e) - e),
        effective_parameters=len(b) - float(np.sum(inverse**2)),
    )


def chi2(statistics: BlendStatistics, w: Float[np.ndarray, "n unknown"]) -> np.ndarray:
    """Chi-square of draws of the unknowns against the data, without touching pixels."""
    quadratic = np.einsum("ni,ij,nj->n", w, statistics.H, w, optimize=True)
    return statistics.r2 - 2 * w @ statistics.b + quadratic
