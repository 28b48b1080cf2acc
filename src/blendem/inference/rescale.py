"""Better amplitudes from the data, without touching pixels again.

An amplitude s only sets the scale of the coordinates: with `dark` the coordinates of an empty
stamp, `s (mean + B z) = s' (mean + B z')` for `z' = dark + (s / s') (z - dark)`. Statistics for
other amplitudes follow by algebra, exactly where the mean stamp lies in the span of the modes.
"""

import numpy as np
import scipy.linalg
from jaxtyping import Float

from blendem.blend import Blend
from blendem.inference.posterior import (
    BlendStatistics,
    apply_prior,
    prior_mean,
    prior_product,
    unpad,
)
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
    factor, shift = _change(statistics, ratio, dark)
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


def _change(statistics, ratio, dark):
    """Scale and shift of all unknowns, w = shift + scale w', for amplitudes times `ratio`."""
    d = statistics.n_modes
    scale, shift = np.ones(len(statistics.b)), np.zeros(len(statistics.b))
    for k, star in enumerate(statistics.is_star):
        if not star:
            block = slice(k * d, (k + 1) * d)
            scale[block] = ratio[k]
            shift[block] = (1 - ratio[k]) * dark
    return scale, shift


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
    star = np.asarray(statistics.is_star, bool)
    total, factor = np.ones(len(star)), np.asarray(prior.cholesky, float)
    mean = prior_mean(statistics, prior)
    # Scales of galaxies commute with the factor of their prior: the product C^T H C is made once.
    once = prior_product(statistics, factor)
    for _ in range(iterations):
        scale, shift = _change(statistics, total, dark)
        pull = statistics.b - statistics.H @ (shift + scale * mean)
        precision = scale[:, None] * once * scale[None]
        precision[np.diag_indices_from(precision)] += 1.0
        lower = scipy.linalg.cho_factor(
            precision, lower=True, overwrite_a=True, check_finite=False
        )
        target = scale * apply_prior(pull[:, None], statistics, factor.T)[:, 0]
        e = scipy.linalg.cho_solve(lower, target, check_finite=False)
        w = mean + apply_prior(e[:, None], statistics, factor)[:, 0]
        ratio = basis.flux(w[: len(star) * d].reshape(-1, d), reference) / expected
        ratio = np.clip(ratio, 1 / MAX_RATIO, MAX_RATIO)
        total = np.where(star, 1.0, np.maximum(total * ratio, minimum))
    return rescale(statistics, total, dark), total


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
