"""Draws of blends whose amplitudes agree with them.

A latent prior describes galaxies relative to an amplitude that the data gave before
(`inference.amplitude`, `inference.rescale`), with an error of `prior.amplitude_jitter`. In strong
blends that amplitude can be wrong by more: a galaxy that was taken for its neighbour's light is
then far in the wings of the prior, and is drawn with little flux and a small error. Where draws
move away from the amplitude, the amplitude follows and the blend is drawn again, from statistics
that `rescale` gives exactly: the Gaussian refinement of `inference.rescale`, continued with the
prior itself.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from blendem.inference.likelihood import complete_draws, galaxy_likelihood
from blendem.inference.posterior import BlendStatistics
from blendem.inference.rescale import rescale
from blendem.inference.sampler import Draws, SamplerSettings, sample
from blendem.prior.gaussian import empty_stamp
from blendem.prior.latent import LatentPrior

ATTEMPTS = 2  # times that a blend is drawn again
MAX_STEP = 1.5  # of the logarithm of an amplitude, each time
LEAST = 1e-3  # lowest flux over the amplitude that is taken for one


class Settled(NamedTuple):
    """Draws of one blend.

    Attributes:
        draws: What the sampler said of the last attempt.
        w: All unknowns, relative to the amplitudes that were *given*, `(draw, unknown)`; None
            where draws are not finite.
        moved: Logarithm of the last amplitudes over those given, `(source,)`.
    """

    draws: Draws
    w: Float[np.ndarray, "draw unknown"] | None
    moved: Float[np.ndarray, " source"]


# `dict[..., tuple]` of `Settled`: blends of unequal size do not pass for one annotation.
def sample_settled(
    prior: LatentPrior,
    given: Mapping[Hashable, BlendStatistics],
    n_draws: int,
    settings: SamplerSettings,
    *,
    keys: Mapping[Hashable, PRNGKeyArray],
    rngs: Callable[[Hashable], np.random.Generator],
    reference: int,
    tolerance: float,
) -> tuple[dict[Hashable, tuple], dict[Hashable, str]]:
    """Draw from the posterior of every blend, again where amplitudes are wrong.

    Args:
        prior: Any latent prior.
        given: Statistics of the blends.
        n_draws: Draws per blend.
        settings: Choices of the sampler.
        keys: For the sampler, one per blend.
        rngs: Random numbers for what the sampler leaves out, by the name of a blend.
        reference: Index of the band whose flux is the amplitude.
        tolerance: Largest |ln| of the mean flux of a galaxy over its amplitude; 0: any.

    Returns:
        `Settled` by name, and why others have none.
    """
    dark = empty_stamp(prior.basis)
    found, failed = {}, {}
    state = dict(given)
    moved = {name: np.zeros(len(s.is_star)) for name, s in given.items()}
    for attempt in range(ATTEMPTS + 1 if tolerance > 0 else 1):
        likelihoods = {}
        for name, statistics in state.items():
            try:
                likelihoods[name] = galaxy_likelihood(statistics, prior)
            except (np.linalg.LinAlgError, ValueError) as error:
                if attempt == 0:
                    failed[name] = str(error)
        drawn = sample(
            prior,
            list(likelihoods.values()),
            n_draws,
            settings,
            keys=[
                jax.random.fold_in(keys[name], attempt) if attempt else keys[name]
                for name in likelihoods
            ],
        )
        following = {}
        for name, one in zip(likelihoods, drawn, strict=True):
            statistics = state[name]
            if one.failed.any():
                # A blend that was drawn before keeps what it has.
                found.setdefault(name, Settled(one, None, moved[name]))
                continue
            w = complete_draws(statistics, prior, one.e, rngs(name))
            step = _away(prior, statistics, w, reference)
            found[name] = Settled(one, _given(w, moved[name], dark), moved[name])
            if np.abs(step).max(initial=0.0) > tolerance > 0:
                # What is beside a galaxy that moves far is off by less.
                step = np.where(np.abs(step) > tolerance / 2, step, 0.0)
                step = np.clip(step, -MAX_STEP, MAX_STEP)
                following[name] = rescale(statistics, np.exp(step), dark)
                moved[name] = moved[name] + step
        state = following
        if not state:
            break
    return found, failed


def _away(
    prior: LatentPrior,
    statistics: BlendStatistics,
    w: Float[np.ndarray, "draw unknown"],
    reference: int,
) -> Float[np.ndarray, " source"]:
    """Logarithm of the mean flux of every source over its amplitude; 0 for stars."""
    star = np.asarray(statistics.is_star, bool)
    d = statistics.n_modes
    z = w.mean(axis=0)[: len(star) * d].reshape(-1, d)
    ratio = prior.basis.flux(z, reference) / prior.gaussian.mean_flux(reference)
    return np.where(star, 0.0, np.log(np.maximum(ratio, LEAST)))


def _given(
    w: Float[np.ndarray, "draw unknown"],
    moved: Float[np.ndarray, " source"],
    dark: Float[np.ndarray, " mode"],
) -> Float[np.ndarray, "draw unknown"]:
    """Unknowns relative to amplitudes that are those of `w` over `exp(moved)`."""
    if not moved.any():
        return w
    n, d = len(moved), len(dark)
    z = w[:, : n * d].reshape(-1, n, d)
    scaled = dark + np.exp(moved)[:, None] * (z - dark)
    # Fluxes of stars never move.
    galaxies = np.where((moved == 0)[:, None], z, scaled).reshape(-1, n * d)
    return np.concatenate([galaxies, w[:, n * d :]], axis=1)
