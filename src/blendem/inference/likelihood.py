"""The likelihood of a blend's galaxies in whitened coordinates, nuisances marginalised.

Star fluxes, centroid shifts, sky and the last coordinates of galaxies are Gaussian a priori
and enter linearly: they are integrated out exactly before sampling, and drawn exactly
afterwards given the rest. What is left depends on the first coordinates e alone, with
`z = mean + cholesky e` in the moments of the prior: `-2 ln L = |h - L^T e|^2 + rest`.
Everything here is float64.

Where the prior has a brightness coordinate it is the last one of each galaxy, and the catalog's
amplitude is a measurement of it.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from blendem.inference.posterior import BlendStatistics, apply_prior, prior_mean
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.latent import LatentPrior

# Directions of which the data say less are left to the prior: they would lower its variance
# by less than this part. Float32 sums round eigenvalues below `RELATIVE_RANK` of the largest.
INFORMATION, RELATIVE_RANK = 5e-3, 1e-9
# Error with which amplitudes fix the brightness coordinate [sd of the training set]: well below
# the widths of components; the posterior of the flux is not in it, it is in the other ones.
BRIGHTNESS_SIGMA = 0.05


class LatentLikelihood(NamedTuple):
    """Likelihood of the galaxies of one blend.

    Attributes:
        factor: L with `H = L L^T`, columns by falling eigenvalue, only those that the
            data inform about, `(latent, rank)`; `latent = galaxy x coordinate`.
        target: h, `(rank,)`; the white residual is `h - L^T e`.
        n_galaxies, n_latent: Number of galaxies, and of coordinates of each.
        rest: `-2 ln L` at its unconstrained maximum, without `log_norm`.
        n_data: Number of unmasked pixels.
    """

    factor: Float[np.ndarray, "_ _"]
    target: Float[np.ndarray, " _"]
    n_galaxies: int
    n_latent: int
    rest: float
    n_data: float


def galaxy_likelihood(
    statistics: BlendStatistics, prior: GaussianPrior | LatentPrior
) -> LatentLikelihood:
    """Whiten, and marginalise all that is not the first coordinates of galaxies.

    Raises:
        ValueError: If the statistics are not finite, or have no amplitudes where the prior
            asks for them.
    """
    H_g, b_g, r2, _ = galaxy_information(statistics, prior)
    n_galaxies = int(np.sum(~np.asarray(statistics.is_star, bool)))
    values, vectors = np.linalg.eigh(0.5 * (H_g + H_g.T))
    values, vectors = values[::-1], vectors[:, ::-1]
    seen = values > max(INFORMATION, RELATIVE_RANK * values.max(initial=0.0))
    root, vectors = np.sqrt(values[seen]), vectors[:, seen]
    target = (vectors.T @ b_g) / root
    return LatentLikelihood(
        factor=vectors * root,
        target=target,
        n_galaxies=n_galaxies,
        n_latent=prior.n_latent,
        rest=float(r2 - target @ target),
        n_data=statistics.n_data,
    )


class GalaxyInformation(NamedTuple):
    """What the data say about the galaxies of one blend, all else marginalised.

    `-2 ln L(e) = norm + r2 - 2 b^T e + e^T H e`, without `log_norm` of the pixels.

    Attributes:
        H: `(latent, latent)`; `latent = galaxy x coordinate`.
        b: `(latent,)`.
        r2, norm: Scalars; `norm` is a log determinant.
    """

    H: Float[np.ndarray, "latent latent"]
    b: Float[np.ndarray, " latent"]
    r2: float
    norm: float


def galaxy_information(
    statistics: BlendStatistics,
    prior: GaussianPrior | LatentPrior,
    scale: Float[np.ndarray, " unknown"] | None = None,
) -> GalaxyInformation:
    """Information on the first coordinates of galaxies, with the catalog's amplitudes.

    Args:
        statistics: Of the blend.
        prior: Mean and factor of z, deviations of the last coordinates.
        scale: These deviations; None: as the statistics tell.

    Raises:
        ValueError: As `galaxy_likelihood`.
    """
    H, b, r2, _ = _whitened(statistics, prior, scale)
    sampled = sampled_unknowns(statistics, prior)
    H_g, b_g, norm = H[np.ix_(sampled, sampled)], b[sampled], 0.0
    if not sampled.all():
        # Schur complement of 1 + H_nn: marginalisation over N(0, 1) unknowns.
        cross = H[np.ix_(~sampled, sampled)]
        lower = _nuisance_factor(H, sampled)
        half = scipy.linalg.solve_triangular(lower, cross, lower=True)
        seen = scipy.linalg.solve_triangular(lower, b[~sampled], lower=True)
        H_g = H_g - half.T @ half
        b_g = b_g - half.T @ seen
        r2 = r2 - seen @ seen
        norm = 2 * float(np.sum(np.log(np.diag(lower))))
    if getattr(prior, "brightness", None) is not None:
        known = _brightness(statistics, prior)
        H_g, b_g = _with_brightness(H_g, b_g, known, prior)
        r2 = r2 + known @ known / BRIGHTNESS_SIGMA**2
    return GalaxyInformation(H_g, b_g, float(r2), norm)


def fine_scale(
    statistics: BlendStatistics, prior: GaussianPrior | LatentPrior
) -> Float[np.ndarray, " unknown"]:
    """Deviations of all unknowns, as `galaxy_information` takes them."""
    return _whitened(statistics, prior)[3]


def _brightness(statistics, prior):
    """Brightness coordinates of the galaxies, `(galaxy,)`."""
    if statistics.log_amplitude is None:
        raise ValueError(
            "the prior has a brightness coordinate and the statistics have no amplitudes:"
            " set `log_amplitude`, or train a prior with prior.brightness: false"
        )
    galaxy = ~np.asarray(statistics.is_star, bool)
    return prior.brightness_of(np.asarray(statistics.log_amplitude)[galaxy])


def _with_brightness(H, b, known, prior):
    """Information with one more coordinate per galaxy, which is measured as `known`."""
    n = prior.n_latent
    index = np.arange(len(known) * n).reshape(len(known), n)
    modes, last = index[:, : prior.n_modes].ravel(), index[:, -1]
    H_more, b_more = np.zeros((index.size, index.size)), np.zeros(index.size)
    H_more[np.ix_(modes, modes)], b_more[modes] = H, b
    H_more[last, last] = BRIGHTNESS_SIGMA**-2
    b_more[last] = known / BRIGHTNESS_SIGMA**2
    return H_more, b_more


def brightness_likelihood(
    prior: GaussianPrior | LatentPrior, log_amplitude: float
) -> LatentLikelihood:
    """Likelihood of one galaxy of which nothing but the catalog's amplitude is known.

    Raises:
        ValueError: If the prior has no brightness coordinate.
    """
    if getattr(prior, "brightness", None) is None:
        raise ValueError("the prior has no brightness coordinate")
    target = prior.brightness_of(np.array([log_amplitude])) / BRIGHTNESS_SIGMA
    factor = np.zeros((prior.n_latent, 1))
    factor[-1] = 1 / BRIGHTNESS_SIGMA
    return LatentLikelihood(factor, target, 1, prior.n_latent, 0.0, 0.0)


def galaxy_unknowns(statistics: BlendStatistics) -> np.ndarray:
    """Which unknowns of a blend are coordinates of galaxies, `(unknown,)` of bool."""
    star = np.asarray(statistics.is_star, bool)
    galaxy = np.repeat(~star, statistics.n_modes)
    return np.concatenate([galaxy, np.zeros(len(statistics.b) - len(galaxy), bool)])


def sampled_unknowns(
    statistics: BlendStatistics, prior: GaussianPrior | LatentPrior
) -> np.ndarray:
    """Which unknowns a sampler moves, `(unknown,)` of bool; the others are nuisances."""
    first = np.arange(statistics.n_modes) < prior.n_modes
    sampled = galaxy_unknowns(statistics)
    n = len(statistics.is_star)
    sampled[: n * statistics.n_modes] &= np.tile(first, n)
    return sampled


def _whitened(statistics, prior, scale=None):
    """H, b, r2 in coordinates that are N(0, 1) a priori, and their deviations s.

    For galaxies `z = mean + cholesky s e`; s is 1 but for the last coordinates.
    """
    H, b = statistics.H, statistics.b
    if not (np.isfinite(H).all() and np.isfinite(b).all()):
        raise ValueError("the statistics of the blend are not finite")
    mean = prior_mean(statistics, prior)
    pull = H @ mean
    r2 = statistics.r2 - 2 * mean @ b + mean @ pull
    factor = np.asarray(prior.cholesky, float).T
    b_e = apply_prior((b - pull)[:, None], statistics, factor)[:, 0]
    H_e = apply_prior(apply_prior(H, statistics, factor).T, statistics, factor)
    H_e = 0.5 * (H_e + H_e.T)
    if scale is None:
        scale = _fine_scale(statistics, prior, H_e, b_e)
    return scale[:, None] * H_e * scale, scale * b_e, r2, scale


def _fine_scale(statistics, prior, H, b):
    """Deviations of all unknowns, `(unknown,)`: 1 but for the last coordinates of galaxies.

    They follow the scale of the galaxy, which its first coordinates tell: those of the
    Gaussian posterior. As amplitudes, this takes the data to choose the prior; what it chooses
    is how broad unobservable detail is.
    """
    scale = np.ones(len(b))
    if getattr(prior, "fine", None) is None:
        return scale
    lower = scipy.linalg.cho_factor(np.eye(len(b)) + H, lower=True)
    e = scipy.linalg.cho_solve(lower, b)
    n = len(statistics.is_star)
    galaxy = ~np.asarray(statistics.is_star, bool)
    e = e[: n * statistics.n_modes].reshape(n, -1)[galaxy, : prior.n_modes]
    if prior.brightness is not None:
        e = np.column_stack([e, _brightness(statistics, prior)])
    blocks = np.ones((n, statistics.n_modes))
    blocks[galaxy, prior.n_modes :] = prior.fine_deviation(e)
    scale[: n * statistics.n_modes] = blocks.ravel()
    return scale


def _nuisance_factor(H, sampled):
    """Cholesky factor of the precision of the nuisances, given the sampled unknowns."""
    H_n = H[np.ix_(~sampled, ~sampled)]
    return scipy.linalg.cholesky(np.eye(len(H_n)) + H_n, lower=True)


def complete_draws(
    statistics: BlendStatistics,
    prior: GaussianPrior | LatentPrior,
    e: Float[np.ndarray, "draw galaxy latent"],
    rng: np.random.Generator | None,
) -> Float[np.ndarray, "draw unknown"]:
    """All unknowns w of a blend: galaxies from `e`, nuisances drawn given them.

    The conditional is exact: `N((1 + H_nn)^-1 (b_n - H_ng e), (1 + H_nn)^-1)`. Without
    `rng` its mean is given instead of a draw.
    """
    H, b, _, scale = _whitened(statistics, prior)
    sampled = sampled_unknowns(statistics, prior)
    w = np.zeros((len(e), len(b)))
    w[:, sampled] = np.asarray(e, float)[..., : prior.n_modes].reshape(len(e), -1)
    if not sampled.all():
        lower = _nuisance_factor(H, sampled)
        force = b[~sampled] - w[:, sampled] @ H[sampled][:, ~sampled]
        half = scipy.linalg.solve_triangular(lower, force.T, lower=True)
        if rng is not None:
            half += rng.standard_normal(half.shape)
        w[:, ~sampled] = scipy.linalg.solve_triangular(
            lower, half, lower=True, trans=1
        ).T
    cholesky = np.asarray(prior.cholesky, float)
    moved = apply_prior((scale * w).T, statistics, cholesky).T
    return prior_mean(statistics, prior) + moved
