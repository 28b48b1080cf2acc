"""M step of EM for the latent tier: the mixture that posterior draws of galaxies follow.

Rozet et al. 2024 (arXiv 2405.13712) retrain a denoiser on draws of the last E step. Here the
prior is a mixture of Gaussians, so that the M step is the fit of a mixture to the draws, warm:
it begins with the prior that they were drawn with. Draws of a few thousand galaxies do not
determine 64 full covariances: each is drawn towards the shape that all have in common.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from blendem.prior.gaussian import GaussianPrior, empty_stamp
from blendem.prior.latent import LatentPrior, fine_variances
from blendem.prior.mixture import MixturePrior
from blendem.prior.mixture_fit import (
    beyond,
    fit_mixture,
    longer,
    mean_log_density,
)
from blendem.prior.symmetry import N_SYMMETRIES, latent_symmetries
from blendem.prior.train import whiten

RIGHT = 4.0  # misfit of a right prior [nat per galaxy]
SHORTEST = 0.1  # part of a step that is worth drawing all blends for
PORTION = 4096  # draws of a prior that are made at once


class DrawnGalaxies(Protocol):
    """What the M step needs of draws of galaxies; see `inference.em.GalaxyDraws`."""

    z: Float[np.ndarray, "row mode"]
    galaxy: Int[np.ndarray, " row"]
    center: Float[np.ndarray, "galaxy mode"]
    log_amplitude: Float[np.ndarray, " galaxy"]


class RefitSettings(NamedTuple):
    """Choices of the M step.

    Attributes:
        rows: Draws, each under a random symmetry, that the mixture is fitted to, those of the
            first prior (`keep`) included.
        iterations: Of the fit.
        symmetric: Turn the draws: galaxies have no preferred direction.
        shrink: Weight of what all components have in common in the covariance of each
            [galaxies].
        mend: Weight, 0 to 1, of one shape in that; the rest is the change of all since the
            prior before.
        amplitude_jitter: Standard deviation of ln(amplitude) about the true ones: what the
            fields' amplitudes may be wrong by.
        keep: Galaxies that the first prior counts for.
        relax: Length of the step from the prior before; 0: none, 1: to the fit.
    """

    rows: int = 40000
    iterations: int = 4
    symmetric: bool = True
    shrink: float = 30.0
    amplitude_jitter: float = 0.6
    keep: float = 100.0
    relax: float = 1.0
    mend: float = 1.0


class Turns:
    """The 8 symmetries on coordinates z of a basis."""

    def __init__(self, gaussian: GaussianPrior):
        basis = gaussian.basis
        self.matrices = latent_symmetries(
            np.asarray(basis.modes), np.asarray(basis.dual)
        )
        # The mean stamp is invariant, so coordinates turn about that of an empty stamp.
        self.dark = empty_stamp(basis)

    def __call__(
        self, z: Float[np.ndarray, "row mode"], which: np.ndarray
    ) -> Float[np.ndarray, "row mode"]:
        """Turn every row by its own symmetry, 0 to 7."""
        out = np.empty_like(z)
        for turn, matrix in enumerate(self.matrices):
            rows = which == turn
            out[rows] = self.dark + (z[rows] - self.dark) @ matrix.T
        return out


def latent_rows(
    prior: LatentPrior,
    z: Float[np.ndarray, "row mode"],
    log_amplitude: Float[np.ndarray, " row"],
) -> tuple[Float[np.ndarray, "row latent"], Float[np.ndarray, "row fine"]]:
    """Coordinates that the diffusion moves, brightness included, and the fine ones."""
    e = whiten(prior.gaussian, np.asarray(z, float))
    first, fine = e[:, : prior.n_modes], e[:, prior.n_modes :]
    if prior.brightness is not None:
        first = np.column_stack([first, prior.brightness_of(log_amplitude)])
    return first, fine


def broaden(prior: LatentPrior, variance: float) -> LatentPrior:
    """Add a variance to every shape and colour coordinate of every component.

    A first prior that excludes what is true would never learn it: its draws stay inside.
    """
    mixture = prior.mixture
    covariances = np.array(mixture.covariances, float)
    index = np.arange(prior.n_modes)
    covariances[:, index, index] += variance
    return LatentPrior(
        prior.gaussian,
        MixturePrior.of(mixture.weights, mixture.centers, covariances),
        None,
        None if prior.fine is None else np.asarray(prior.fine) + variance,
        prior.brightness,
    )


def fit_rows(
    prior: LatentPrior,
    draws: DrawnGalaxies,
    settings: RefitSettings,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "row latent"], Float[np.ndarray, "row fine"]]:
    """Random draws, turned and with errors of their amplitudes, as `refit` uses them.

    The error scales a galaxy's posterior mean. The mean of n draws scatters itself by 1/n of
    the variance; the draws are drawn towards it so that the variance is kept.
    """
    n = np.maximum(np.bincount(draws.galaxy, minlength=len(draws.center)), 1)
    second = np.exp(2 * settings.amplitude_jitter**2)  # moment of the errors
    keep = np.maximum(1 - second / n, 0) / np.maximum(1 - 1 / n, 0.5)
    rows = rng.integers(0, len(draws.z), settings.rows)
    galaxy, turns = draws.galaxy[rows], Turns(prior.gaussian)
    center = np.asarray(draws.center, float)[galaxy]
    # As in the training of the first prior: catalogs know amplitudes with this error.
    jitter = settings.amplitude_jitter * rng.standard_normal(len(rows))
    chosen = turns.dark + np.exp(jitter)[:, None] * (center - turns.dark)
    about = np.asarray(draws.z, float)[rows] - center
    chosen += np.sqrt(keep)[galaxy][:, None] * about
    if settings.symmetric:
        chosen = turns(chosen, rng.integers(0, N_SYMMETRIES, len(rows)))
    known = np.asarray(draws.log_amplitude, float)[galaxy] - jitter
    return latent_rows(prior, chosen, known)


def check_some(galaxies: int) -> None:
    """Refuse to learn from nothing.

    Raises:
        ValueError: If there is no galaxy.
    """
    if galaxies == 0:
        raise ValueError(
            "EM has no galaxy to learn from: every source is a star or flagged, or no blend"
            " fits the first prior. Check the catalog's `type` column, raise em.max_chi2, or"
            " set em.laps to 0."
        )


def misfit(
    prior: LatentPrior,
    draws: DrawnGalaxies,
    settings: RefitSettings,
    rng: np.random.Generator,
) -> float:
    """How much less likely galaxies are under a prior than its own draws are [nat per galaxy].

    Where the prior is right, posterior draws of many galaxies follow it, and this is 0. It is
    seen in what data constrain; elsewhere draws are the prior's.

    Args:
        prior: What they were drawn with.
        draws: Of all galaxies.
        settings: Number of rows.
        rng: Chooses rows and draws of the prior.

    Raises:
        ValueError: If there are no draws.
    """
    check_some(len(draws.z))
    # As they were drawn: a mixture of few galaxies is not quite the same after a turn.
    as_drawn = settings._replace(symmetric=False)
    e, _ = fit_rows(prior, draws, as_drawn, rng)
    own, _ = _prior_rows(prior, len(e), rng)
    found, expected = (mean_log_density(prior.mixture, x) for x in (e, own))
    return expected - found


def mend_weight(misfit: float) -> float:
    """Weight of one shape for all components (`RefitSettings.mend`)."""
    return _wrongness(misfit, RIGHT)


def _wrongness(misfit: float, right: float) -> float:
    """0 up to the misfit of a right prior, 1 from three times that on."""
    return float(np.clip((misfit - right) / (2 * right), 0.0, 1.0))


def step_length(misfit: float, stop: float) -> float:
    """Part of a step, 0 to 1, that draws justify (`RefitSettings.relax`).

    A prior that is right within what a mixture can follow is moved by EM all the same: along
    coordinates that data leave open nothing holds it. It is right if galaxies are as likely
    under it as its own draws.

    Args:
        misfit: Of the prior before [nat per galaxy].
        stop: Misfit of a right prior; from three times that on steps are whole. 0: all are.

    Returns:
        0 where less than `SHORTEST` is left: EM has converged.
    """
    if stop == 0:
        return 1.0
    step = _wrongness(misfit, stop)
    return step if step >= SHORTEST else 0.0


def _prior_rows(prior, n, rng):
    """Rows of galaxies of a prior, as `fit_rows` gives them of draws."""
    key = jax.random.key(rng.integers(2**31))
    # In portions: a draw gathers a matrix per row.
    keys = jax.random.split(key, -(-n // PORTION))
    sizes = np.minimum(PORTION, n - PORTION * np.arange(len(keys)))
    e = np.concatenate(
        [
            np.asarray(prior.mixture.sample(int(size), key=one), float)
            for one, size in zip(keys, sizes, strict=True)
        ]
    )
    deviation = prior.fine_deviation(e)
    return e, deviation * rng.standard_normal(deviation.shape)


def refit(
    prior: LatentPrior,
    draws: DrawnGalaxies,
    settings: RefitSettings,
    rng: np.random.Generator,
    components: int | None = None,
    first: LatentPrior | None = None,
) -> tuple[LatentPrior, float]:
    """Fit the mixture and the variances of the fine coordinates to draws of galaxies.

    Args:
        prior: What they were drawn with; the fit begins with its mixture.
        draws: Of all galaxies.
        settings: Choices.
        rng: Chooses rows and symmetries.
        components: Of a mixture that is fitted from its beginning, without that of `prior`.
        first: Prior that counts for `settings.keep` galaxies; None: there is none.

    Returns:
        The prior, and the mean log density of the rows before the last iteration, up to a
        constant.

    Raises:
        ValueError: If there are no draws, or fewer than components.
    """
    check_some(len(draws.z))
    kept = 0.0 if first is None else settings.keep
    galaxies = len(draws.center) + kept
    n = round(settings.rows * kept / galaxies)
    few = settings._replace(rows=settings.rows - n)
    e, fine = fit_rows(prior, draws, few, rng)
    if n:
        more = _prior_rows(first, n, rng)
        e, fine = np.concatenate([e, more[0]]), np.concatenate([fine, more[1]])
    e = jnp.asarray(e, jnp.float32)
    scores = []
    mixture = fit_mixture(
        e,
        components or len(prior.mixture.weights),
        settings.iterations,
        lambda number, score, fitted: scores.append(score),
        start=prior.mixture if components is None else None,
        shrink=settings.shrink * settings.rows / galaxies,
        scaling=prior.n_modes,
        mend=settings.mend,
    )
    variances = None if fine.shape[1] == 0 else fine_variances(mixture, e, fine)
    if components is None and settings.relax != 1:
        mixture = beyond(prior.mixture, mixture, settings.relax)
        if variances is not None:
            variances = prior.fine * longer(variances / prior.fine, settings.relax)
    return (
        LatentPrior(prior.gaussian, mixture, None, variances, prior.brightness),
        scores[-1],
    )


def first_prior(
    gaussian: GaussianPrior,
    n_modes: int,
    components: int,
    draws: DrawnGalaxies,
    settings: RefitSettings,
    rng: np.random.Generator,
    brightness: bool = True,
) -> LatentPrior:
    """Prior of galaxies that were found without one: where EM may start.

    Args:
        gaussian: Basis, and moments that whiten z.
        n_modes: How many of the modes the diffusion moves.
        components: Of the mixture.
        draws, settings, rng: As in `refit`.
        brightness: Whether the brightness is a coordinate.

    Raises:
        ValueError: If there are no draws, or fewer than components.
    """
    scale = None
    if brightness and len(draws.z):
        spread = np.hypot(np.std(draws.log_amplitude), settings.amplitude_jitter)
        scale = np.array([np.mean(draws.log_amplitude), spread])
    n_modes = min(n_modes, len(gaussian.mean))
    n_latent = n_modes + (scale is not None)
    white = MixturePrior.of([1.0], np.zeros((1, n_latent)), np.eye(n_latent)[None])
    empty = LatentPrior(gaussian, white, None, None, scale)
    return refit(empty, draws, settings, rng, components)[0]
