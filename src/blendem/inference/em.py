"""Expectation-maximization of the Gaussian prior from blended observations, exact.

Rozet et al. 2024 (arXiv 2405.13712) iterate posterior samples (E) and retraining (M); for a
Gaussian prior both steps are closed form, and the evidence cannot fall (Dempster, Laird &
Rubin 1977). For the diffusion tier the E step draws (`draw_galaxies`) and the M step is a fit
(`prior.refit`).
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from blendem.inference.likelihood import complete_draws, galaxy_likelihood
from blendem.inference.posterior import BlendStatistics, posterior
from blendem.inference.rescale import rescale
from blendem.inference.sampler import Draws, SamplerSettings, sample
from blendem.prior.gaussian import GaussianPrior, empty_stamp
from blendem.prior.latent import LatentPrior
from blendem.prior.refit import check_some
from blendem.prior.symmetry import latent_symmetries, symmetrise_moments
from blendem.rng import stage_key, stage_rng

# Draws whose solves ended with a larger relative residual teach nothing.
MAX_RESIDUAL = 0.1
# Nor do those farther out than this, in units of the deviations of the Gaussian prior: the
# longest of 20000 true galaxies has coordinates up to 60.
MAX_COORDINATE = 100.0
# By how much an amplitude can be mended: fluxes of galaxies that are hardly seen are no amplitudes.
MOST_MENDED = 2.5


class Expectation(NamedTuple):
    """Sums of the E step over the galaxies of some blends; sums of sums add up.

    Attributes:
        count: Number of galaxies.
        first: Sum of posterior means of z, `(mode,)`.
        second: Sum of `E[z z^T]`, `(mode, mode)`.
        log_evidence: Sum of the log evidence.
        n_data: Sum of the number of unmasked pixels.
    """

    count: float
    first: Float[np.ndarray, " mode"]
    second: Float[np.ndarray, "mode mode"]
    log_evidence: float
    n_data: float


def add(a: Expectation, b: Expectation) -> Expectation:
    """Sum of two expectations."""
    return Expectation(*(x + y for x, y in zip(a, b, strict=True)))


def expectation(
    blends: Iterable[BlendStatistics], prior: GaussianPrior
) -> tuple[Expectation, Float[np.ndarray, " blend"]]:
    """E step: posterior moments of every galaxy, and the log evidence of every blend."""
    d = len(prior.mean)
    count, n_data, evidence = 0, 0.0, []
    first, second = np.zeros(d), np.zeros((d, d))
    for statistics in blends:
        p = posterior(statistics, prior)
        evidence.append(p.log_evidence)
        n_data += statistics.n_data
        for k, star in enumerate(statistics.is_star):
            if star:
                continue
            block = slice(k * d, (k + 1) * d)
            z, root = p.mean[block], p.root[block]
            count += 1
            first += z
            second += np.outer(z, z) + root @ root.T
    evidence = np.asarray(evidence)
    return Expectation(count, first, second, float(evidence.sum()), n_data), evidence


def maximization(
    total: Expectation,
    prior: GaussianPrior,
    *,
    symmetric: bool = True,
    floor: float = 1e-8,
) -> GaussianPrior:
    """M step: the Gaussian of highest expected log density, in the same basis.

    Args:
        total: Sums over all blends.
        prior: The prior of the E step (its basis is kept).
        symmetric: Restrict the prior to those that the 8 symmetries leave invariant.
        floor: Smallest variance of a direction [variance of the training set].

    Raises:
        ValueError: If there is no galaxy to learn from.
    """
    check_some(total.count)
    mean = total.first / total.count
    covariance = total.second / total.count - np.outer(mean, mean)
    if symmetric:
        basis = prior.basis
        representation = latent_symmetries(
            np.asarray(basis.modes), np.asarray(basis.dual)
        )
        mean, covariance = symmetrise_moments(mean, covariance, representation)
    return GaussianPrior.from_moments(prior.basis, mean, covariance, floor)


class GalaxyDraws(NamedTuple):
    """Draws of the galaxies of some blends.

    Attributes:
        z: `(row, mode)`; a row is one draw of one galaxy.
        galaxy: Which galaxy it is a draw of, `(row,)`.
        center: Mean of the draws of each galaxy, `(galaxy, mode)`.
        log_amplitude: ln of the amplitudes that z is relative to, `(galaxy,)`.
        failed: Blends without a posterior.
        diverged: Draws of blends that were dropped: not finite, not converged or far out.
    """

    z: Float[np.ndarray, "row mode"]
    galaxy: Int[np.ndarray, " row"]
    center: Float[np.ndarray, "galaxy mode"]
    log_amplitude: Float[np.ndarray, " galaxy"]
    failed: int = 0
    diverged: int = 0

    @classmethod
    def empty(cls, n_modes: int) -> "GalaxyDraws":
        """No draws."""
        z = np.zeros((0, n_modes), np.float32)
        return cls(z, np.zeros(0, np.int64), z, np.zeros(0))

    @classmethod
    def of(
        cls,
        z: Float[np.ndarray, "draw galaxy mode"],
        log_amplitude: Float[np.ndarray, " galaxy"],
    ) -> "GalaxyDraws":
        """Draws of the galaxies of one blend, relative to `log_amplitude`."""
        center = z.mean(axis=0)
        n, galaxies, d = z.shape
        return cls(
            z.reshape(-1, d).astype(np.float32),
            np.tile(np.arange(galaxies), n),
            center.astype(np.float32),
            log_amplitude,
        )


def join(parts: Iterable[GalaxyDraws], n_modes: int) -> GalaxyDraws:
    """All draws of some parts; galaxies are numbered on."""
    parts = [GalaxyDraws.empty(n_modes), *parts]
    first = np.cumsum([0, *(len(part.center) for part in parts)])
    return GalaxyDraws(
        np.concatenate([part.z for part in parts]),
        np.concatenate([p.galaxy + n for p, n in zip(parts, first, strict=False)]),
        np.concatenate([part.center for part in parts]),
        np.concatenate([part.log_amplitude for part in parts]),
        sum(part.failed for part in parts),
        sum(part.diverged for part in parts),
    )


def gaussian_galaxies(
    statistics: BlendStatistics,
    prior: GaussianPrior,
    n_draws: int,
    reference: int | None,
    rng: np.random.Generator,
) -> GalaxyDraws:
    """Galaxies of a blend as a Gaussian prior finds them: where EM of a diffusion may start.

    Args:
        statistics: Of the blend.
        prior: The Gaussian.
        n_draws: Posterior draws; 0: the posterior mean, which is the closed-form MAP.
        reference: Index of the band whose flux is the amplitude; None: amplitudes are right.
        rng: Of the draws.
    """
    p, d = posterior(statistics, prior), len(prior.mean)
    w = p.draw(n_draws, rng) if n_draws else p.mean[None]
    galaxy = np.flatnonzero(~np.asarray(statistics.is_star, bool))
    z = w[:, : len(statistics.is_star) * d].reshape(len(w), -1, d)[:, galaxy]
    amplitude = statistics.log_amplitude[galaxy]
    if reference is not None:
        center = z.mean(axis=0)
        mended, more = of_mean_flux(prior, center, reference)
        # What the data leave open is the prior's, and no brighter for a brighter galaxy.
        z, amplitude = z - center + mended, amplitude + more
    return GalaxyDraws.of(z, amplitude)


def draw_galaxies(
    blends: Sequence[BlendStatistics],
    names: Sequence[str],
    prior: LatentPrior,
    n_draws: int,
    steps: int,
    stage: str,
    seed: int,
    amplitude_jitter: float = 0.0,
) -> GalaxyDraws:
    """E step of the diffusion tier: joint posterior draws, and which of them are sound.

    The amplitudes of the statistics come from the same pixels as the draws. A prior of
    galaxies relative to these would learn their errors, and count the data twice. So they are
    taken to have the errors that the first prior was trained with (`with_errors`), anew in
    every lap. Draws given these amplitudes are what the next prior is to follow, as they are.

    Args:
        blends: Statistics of the blends.
        names: Of the blends; random numbers follow from them.
        prior: What the draws are made with.
        n_draws: Per blend.
        steps: Noise levels.
        stage: Names the use of the random numbers.
        seed: Of the run.
        amplitude_jitter: Standard deviation of ln(amplitude) about the true ones that the
            prior is made for.
    """
    blends = [
        with_errors(
            one,
            prior.gaussian,
            amplitude_jitter,
            stage_rng(seed, f"{stage}/amplitudes/{name}"),
        )
        for one, name in zip(blends, names, strict=True)
    ]
    likelihoods, kept, failed = [], [], 0
    for i, statistics in enumerate(blends):
        try:
            likelihoods.append(galaxy_likelihood(statistics, prior))
            kept.append(i)
        except (np.linalg.LinAlgError, ValueError):
            failed += 1
    found = sample(
        prior,
        likelihoods,
        n_draws,
        SamplerSettings(steps=steps),
        keys=[stage_key(seed, f"{stage}/{names[i]}") for i in kept],
    )
    d, parts, diverged = len(prior.mean), [], 0
    for i, one in zip(kept, found, strict=True):
        galaxy = np.flatnonzero(~np.asarray(blends[i].is_star, bool))
        good = sound(one)
        diverged += int((~good).sum())
        if not good.any():
            continue
        rng = stage_rng(seed, f"{stage}/{names[i]}")
        w = complete_draws(blends[i], prior, one.e[good], rng)
        z = w[:, : len(blends[i].is_star) * d].reshape(len(w), -1, d)[:, galaxy]
        amplitude = blends[i].log_amplitude[galaxy]
        parts.append(GalaxyDraws.of(z, amplitude))
    return join(parts, d)._replace(failed=failed, diverged=diverged)


def with_errors(
    statistics: BlendStatistics,
    prior: GaussianPrior,
    jitter: float,
    rng: np.random.Generator,
) -> BlendStatistics:
    """Statistics for amplitudes with errors of our own.

    Args:
        statistics: Of one blend.
        prior: Has the basis.
        jitter: Standard deviation of ln(amplitude).
        rng: Of the errors.
    """
    errors = jitter * rng.standard_normal(len(statistics.is_star))
    return rescale(statistics, np.exp(-errors), empty_stamp(prior.basis))


def of_mean_flux(
    prior: GaussianPrior, z: Float[np.ndarray, "galaxy mode"], reference: int
) -> tuple[Float[np.ndarray, "galaxy mode"], Float[np.ndarray, " galaxy"]]:
    """Give galaxies relative to amplitudes with which they have the flux of the prior's mean.

    That is what `rescale.refine_amplitudes` does where data are good.

    Args:
        prior: What the amplitudes were refined with.
        z: Galaxies relative to their amplitudes.
        reference: Index of the band whose flux is the amplitude.

    Returns:
        The galaxies, and ln of the factors of the amplitudes; those whose flux is far from
        that are as they were, and have 0.
    """
    ratio = prior.basis.flux(z, reference) / prior.mean_flux(reference)
    known = (ratio > 1 / MOST_MENDED) & (ratio < MOST_MENDED)
    ratio = np.where(known, ratio, 1.0)
    dark = empty_stamp(prior.basis)
    return dark + (z - dark) / ratio[:, None], np.log(ratio)


def sound(draws: Draws) -> np.ndarray:
    """Which draws of a blend may teach a prior, `(draw,)` of bool."""
    if not draws.residual <= MAX_RESIDUAL:
        return np.zeros(len(draws.e), bool)
    far = np.abs(draws.e).max(axis=(1, 2), initial=0.0) > MAX_COORDINATE
    return ~draws.failed & ~far


def converged(card: Mapping[str, Any], lap: int) -> bool:
    """Whether the lap before left the prior as it was: this one would too.

    Args:
        card: Of the prior that `lap` begins with.
        lap: Its number. The first one begins anew, whatever blends its prior comes from.
    """
    return _lap_before(card, lap).get("step", 1.0) == 0


def misfit_before(card: Mapping[str, Any], lap: int) -> float:
    """Misfit that the lap before found [nat per galaxy], arguments as of `converged`.

    Returns:
        Minus infinity in the first lap.
    """
    return _lap_before(card, lap).get("misfit", -math.inf)


def _lap_before(card, lap):
    """What the lap before noted; nothing in the first one."""
    laps = card.get("laps", []) if lap > 1 else []
    return laps[-1] if laps else {}


def is_held_out(names: Sequence[str], part: float, seed: int) -> np.ndarray:
    """Choose blends by their names: others that come or go change nothing."""
    digests = (hashlib.sha256(f"{seed}/held_out/{n}".encode()) for n in names)
    numbers = [int.from_bytes(digest.digest()[:4], "big") for digest in digests]
    return np.asarray(numbers, float) / 2**32 < part
