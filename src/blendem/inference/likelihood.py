"""The likelihood of a blend's galaxies in whitened coordinates, nuisances marginalised.

Star fluxes, centroid shifts and sky are Gaussian a priori and enter linearly: they are
integrated out exactly before sampling, and drawn exactly afterwards given the galaxies. What
is left depends on e alone, with `z = mean + cholesky e` in the moments of the prior:
`-2 ln L = |h - L^T e|^2 + rest`. Everything here is float64.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from blendem.inference.posterior import BlendStatistics
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.latent import LatentPrior

# Directions of which the data say less are left to the prior: they would lower its variance
# by less than this part. Float32 sums round eigenvalues below `RELATIVE_RANK` of the largest.
INFORMATION, RELATIVE_RANK = 5e-3, 1e-9


class LatentLikelihood(NamedTuple):
    """Likelihood of the galaxies of one blend.

    Attributes:
        factor: L with `H = L L^T`, columns by falling eigenvalue, only those that the
            data inform about, `(latent, rank)`; `latent = galaxy x mode`.
        target: h, `(rank,)`; the white residual is `h - L^T e`.
        n_galaxies, n_modes: Sizes.
        rest: `-2 ln L` at its unconstrained maximum, without `log_norm`.
        n_data: Number of unmasked pixels.
    """

    factor: Float[np.ndarray, "_ _"]
    target: Float[np.ndarray, " _"]
    n_galaxies: int
    n_modes: int
    rest: float
    n_data: float


def galaxy_likelihood(
    statistics: BlendStatistics, prior: GaussianPrior | LatentPrior
) -> LatentLikelihood:
    """Marginalise the nuisances and whiten.

    Raises:
        ValueError: If the statistics are not finite.
    """
    H, b = statistics.H, statistics.b
    if not (np.isfinite(H).all() and np.isfinite(b).all()):
        raise ValueError("the statistics of the blend are not finite")
    galaxy = galaxy_unknowns(statistics)
    d, n = statistics.n_modes, int(np.sum(~np.asarray(statistics.is_star, bool)))
    r2 = statistics.r2
    H_g, b_g = H[np.ix_(galaxy, galaxy)], b[galaxy]
    if not galaxy.all():
        # Schur complement of 1 + H_nn: marginalisation over N(0, 1) unknowns.
        H_n, b_n = H[np.ix_(~galaxy, ~galaxy)], b[~galaxy]
        cross = H[np.ix_(~galaxy, galaxy)]
        lower = scipy.linalg.cholesky(np.eye(len(b_n)) + H_n, lower=True)
        half = scipy.linalg.solve_triangular(lower, cross, lower=True)
        seen = scipy.linalg.solve_triangular(lower, b_n, lower=True)
        H_g = H_g - half.T @ half
        b_g = b_g - half.T @ seen
        r2 = r2 - seen @ seen
    mean = np.tile(np.asarray(prior.mean, float), n)
    C = np.asarray(prior.cholesky, float)
    r2 = r2 - 2 * mean @ b_g + mean @ H_g @ mean
    b_e = ((b_g - H_g @ mean).reshape(n, d) @ C).ravel()
    H_e = np.einsum("kilj,ia,jb->kalb", H_g.reshape(n, d, n, d), C, C, optimize=True)
    H_e = H_e.reshape(n * d, n * d)
    values, vectors = np.linalg.eigh(0.5 * (H_e + H_e.T))
    values, vectors = values[::-1], vectors[:, ::-1]
    seen = values > max(INFORMATION, RELATIVE_RANK * values.max(initial=0.0))
    root, vectors = np.sqrt(values[seen]), vectors[:, seen]
    target = (vectors.T @ b_e) / root
    return LatentLikelihood(
        factor=vectors * root,
        target=target,
        n_galaxies=n,
        n_modes=d,
        rest=float(r2 - target @ target),
        n_data=statistics.n_data,
    )


def galaxy_unknowns(statistics: BlendStatistics) -> np.ndarray:
    """Which unknowns of a blend are coordinates of galaxies, `(unknown,)` of bool."""
    star = np.asarray(statistics.is_star, bool)
    galaxy = np.repeat(~star, statistics.n_modes)
    return np.concatenate([galaxy, np.zeros(len(statistics.b) - len(galaxy), bool)])


def complete_draws(
    statistics: BlendStatistics,
    prior: GaussianPrior | LatentPrior,
    e: Float[np.ndarray, "draw galaxy mode"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "draw unknown"]:
    """All unknowns w of a blend: galaxies from `e`, nuisances drawn given them.

    The conditional is exact: `N((1 + H_nn)^-1 (b_n - H_ng z), (1 + H_nn)^-1)`.
    """
    galaxy = galaxy_unknowns(statistics)
    z = (
        np.asarray(prior.mean, float)
        + np.asarray(e, float) @ np.asarray(prior.cholesky, float).T
    )
    w = np.zeros((len(z), len(statistics.b)))
    w[:, galaxy] = z.reshape(len(z), -1)
    if not galaxy.all():
        H_n = statistics.H[np.ix_(~galaxy, ~galaxy)]
        lower = scipy.linalg.cholesky(np.eye(len(H_n)) + H_n, lower=True)
        force = statistics.b[~galaxy] - w[:, galaxy] @ statistics.H[galaxy][:, ~galaxy]
        half = scipy.linalg.solve_triangular(lower, force.T, lower=True)
        half += rng.standard_normal(half.shape)
        w[:, ~galaxy] = scipy.linalg.solve_triangular(
            lower, half, lower=True, trans=1
        ).T
    return w
