"""M step of EM for the latent tier: the mixture that posterior draws of galaxies follow.

Rozet et al. 2024 (arXiv 2405.13712) retrain a denoiser on draws of the last E step. Here the
prior is a mixture of Gaussians, so that the M step is the fit of a mixture to the draws, warm:
it begins with the prior that they were drawn with, and cannot lower their likelihood.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from blendem.prior.gaussian import GaussianPrior
from blendem.prior.latent import LatentPrior, fine_variances
from blendem.prior.mixture import MixturePrior
from blendem.prior.mixture_fit import fit_mixture
from blendem.prior.symmetry import N_SYMMETRIES, latent_symmetries
from blendem.prior.train import whiten


class RefitSettings(NamedTuple):
    """Choices of the M step.

    Attributes:
        rows: Draws, each under a random symmetry, that the mixture is fitted to.
        iterations: Of the fit.
        symmetric: Turn the draws: galaxies have no preferred direction.
    """

    rows: int = 60000
    iterations: int = 8
    symmetric: bool = True


class Turns:
    """The 8 symmetries on coordinates z of a basis."""

    def __init__(self, gaussian: GaussianPrior):
        basis = gaussian.basis
        self.matrices = latent_symmetries(
            np.asarray(basis.modes), np.asarray(basis.dual)
        )
        empty = np.zeros_like(np.asarray(basis.mean))[None]
        # The mean stamp is invariant, so coordinates turn about that of an empty stamp.
        self.dark = np.asarray(basis.encode(empty), float)[0]

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


def refit(
    prior: LatentPrior,
    z: Float[np.ndarray, "draw mode"],
    log_amplitude: Float[np.ndarray, " draw"],
    settings: RefitSettings,
    rng: np.random.Generator,
) -> tuple[LatentPrior, float]:
    """Fit the mixture and the variances of the fine coordinates to draws of galaxies.

    Args:
        prior: What they were drawn with; the fit begins with its mixture.
        z: Draws of all galaxies, in the basis.
        log_amplitude: ln of their amplitudes.
        settings: Choices.
        rng: Chooses rows and symmetries.

    Returns:
        The prior, and the mean log density of the rows before the last iteration, up to a
        constant.

    Raises:
        ValueError: If there are no draws, or fewer than components.
    """
    if len(z) == 0:
        raise ValueError(
            "EM has no galaxy to learn from: every source is a star or flagged, or no blend"
            " fits the first prior. Check the catalog's `type` column, raise em.max_chi2, or"
            " set em.laps to 0."
        )
    rows = rng.integers(0, len(z), settings.rows)
    chosen = np.asarray(z, float)[rows]
    if settings.symmetric:
        turns = Turns(prior.gaussian)
        chosen = turns(chosen, rng.integers(0, N_SYMMETRIES, len(rows)))
    e, fine = latent_rows(prior, chosen, np.asarray(log_amplitude, float)[rows])
    e = jnp.asarray(e, jnp.float32)
    scores = []
    mixture = fit_mixture(
        e,
        len(prior.mixture.weights),
        settings.iterations,
        lambda number, score, fitted: scores.append(score),
        start=prior.mixture,
    )
    variances = None if fine.shape[1] == 0 else fine_variances(mixture, e, fine)
    return (
        LatentPrior(prior.gaussian, mixture, None, variances, prior.brightness),
        scores[-1],
    )
