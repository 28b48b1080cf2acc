"""How well a prior predicts pixels that it has not seen.

The log score of held-out pixels, under posterior draws given the other pixels of the blend, is a
proper score (Gneiting & Raftery 2007, JASA 102, 359): only the right prior has the highest
expected one. It needs no truth, so it watches EM on real data.
"""

from typing import NamedTuple

import equinox as eqx
import numpy as np
import scipy.special
from jaxtyping import Float

from blendem.blend import Blend
from blendem.inference.posterior import BlendStatistics, chi2


class Split(NamedTuple):
    """The pixels of stacked blends in two parts: each masks what the other one has.

    Attributes:
        seen: What posteriors are given.
        unseen: What they predict.
    """

    seen: Blend
    unseen: Blend


def split_pixels(stack: Blend, part: float, rng: np.random.Generator) -> Split:
    """Hold out a random part of the pixels, in every band for itself.

    Raises:
        ValueError: If `part` is not between 0 and 1.
    """
    if not 0 < part < 1:
        raise ValueError(f"part: must be between 0 and 1, got {part}")

    def masked(variance, out):
        return np.where(out, np.float32(np.inf), np.asarray(variance))

    held = [rng.random(np.shape(o.variance)) < part for o in stack.observations]
    where = lambda blend: [o.variance for o in blend.observations]  # noqa: E731
    variances = where(stack)
    return Split(
        *(
            eqx.tree_at(
                where,
                stack,
                [masked(v, h ^ flip) for v, h in zip(variances, held, strict=True)],
            )
            for flip in (False, True)
        )
    )


def log_score(
    unseen: BlendStatistics, draws: Float[np.ndarray, "draw unknown"]
) -> float:
    """Log mean density of the held-out pixels of a blend over posterior draws.

    Args:
        unseen: Statistics of the held-out pixels, for the amplitudes and centres of the draws.
        draws: All unknowns w, given the other pixels.

    Returns:
        `ln mean_s N(y; A w_s, S)`, all held-out pixels together.
    """
    log_p = -0.5 * (chi2(unseen, draws) + unseen.log_norm)
    return float(scipy.special.logsumexp(log_p) - np.log(len(draws)))
