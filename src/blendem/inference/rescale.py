"""Better amplitudes from the data, without touching pixels again.

An amplitude s only sets the scale of the coordinates: with `dark` the coordinates of an empty
stamp, `s (mean + B z) = s' (mean + B z')` for `z' = dark + (s / s') (z - dark)`. Statistics for
other amplitudes follow by algebra, exactly where the mean stamp lies in the span of the modes.
"""

import numpy as np
from jaxtyping import Float

from blendem.blend import Blend
from blendem.inference.posterior import BlendStatistics, posterior, unpad
from blendem.prior.gaussian import GaussianPrior, empty_stamp

ITERATIONS = 3
MAX_RATIO = 3.0  # of one iteration, either way
FLOOR = 2.0  # lowest amplitude, in units of its noise for an isolated source


def rescale(
    statistics: BlendStatistics,
    ratio: Float[np.ndarray, " source"],
    dark: Float[np.ndarray, " mode"],
) -> BlendStatistics:
    """Statistics with the amplitudes multiplied by `ratio`; those of stars stay."""
    d = statistics.n_modes
    factor, shift = np.ones(len(statistics.b)), np.zeros(len(statistics.b))
    for k, star in enumerate(statistics.is_star):
        if not star:
            block = slice(k * d, (k + 1) * d)
            factor[block] = ratio[k]
            shift[block] = (1 - ratio[k]) * dark
    pull = statistics.H @ shift
    known = statistics.log_amplitude
    return statistics._replace(
        H=factor[:, None] * statistics.H * factor[None],
        b=factor * (statistics.b - pull),
        r2=float(statistics.r2 - 2 * statistics.b @ shift + shift @ pull),
        log_amplitude=None
        if known is None
        else known + np.where(statistics.is_star, 0.0, np.log(ratio)),
    )


def refine_amplitudes(
    statistics: BlendStatistics,
    prior: GaussianPrior,
    reference: int,
    minimum: Float[np.ndarray, " source"],
    iterations: int = ITERATIONS,
) -> tuple[BlendStatistics, Float[np.ndarray, " source"]]:
    """Move the amplitudes to where the Gaussian posterior puts the fluxes.

    Templates know two shapes; the basis knows all. A galaxy that the data do not constrain
    keeps its amplitude: the flux is compared with that of the prior's mean.

    Args:
        statistics: Of one blend.
        prior: Broad Gaussian prior, the one that was trained with amplitude jitter.
        reference: Index of the band whose flux is the amplitude.
        minimum: Lowest amplitude over the present one.
        iterations: Times that the posterior is computed.

    Returns:
        Statistics for the new amplitudes, and these over the old ones.
    """
    basis, d = prior.basis, statistics.n_modes
    dark = empty_stamp(basis)
    expected = prior.mean_flux(reference)
    total = np.ones(len(statistics.is_star))
    star = np.asarray(statistics.is_star, bool)
    current = statistics
    for _ in range(iterations):
        z = posterior(current, prior).mean[: len(star) * d].reshape(-1, d)
        ratio = basis.flux(z, reference) / expected
        ratio = np.clip(ratio, 1 / MAX_RATIO, MAX_RATIO)
        goal = np.where(star, 1.0, np.maximum(total * ratio, minimum))
        current, total = rescale(current, goal / total, dark), goal
    return current, total


def refine_stack(
    statistics: dict[str, np.ndarray],
    stack: Blend,
    prior: GaussianPrior,
    reference: int,
) -> dict[str, np.ndarray]:
    """Refine the amplitudes of stacked blends (`batch.statistics_of`).

    A blend whose statistics are not finite, or whose posterior fails, stays as it is.
    """
    result = {name: np.array(value) for name, value in statistics.items()}
    dark = empty_stamp(prior.basis)
    d = len(prior.mean)
    for i in range(len(stack.centers)):
        present, is_star = (
            np.asarray(x[i], bool) for x in (stack.present, stack.is_star)
        )
        padded = BlendStatistics(
            *(np.asarray(statistics[name][i], float) for name in ("H", "b")),
            *(float(statistics[name][i]) for name in ("r2", "log_norm", "n_data")),
            is_star | ~present,  # what is not present must not move
            d,
        )
        if not (np.isfinite(padded.H).all() and np.isfinite(padded.b).all()):
            continue
        scale = np.asarray(statistics["scale"][i], float)
        error = np.asarray(statistics["flux_error"][i], float)[:, reference]
        minimum = np.where(np.isfinite(error), FLOOR * error / scale, 0.0)[present]
        blend = unpad(*padded[:5], present=present, is_star=is_star, n_modes=d)
        try:
            _, found = refine_amplitudes(blend, prior, reference, minimum)
        except np.linalg.LinAlgError:
            continue
        ratio = np.ones(len(present))
        ratio[present] = found
        better = rescale(padded, ratio, dark)
        result["H"][i], result["b"][i], result["r2"][i] = better.H, better.b, better.r2
        result["scale"][i] = scale * ratio
    return result
