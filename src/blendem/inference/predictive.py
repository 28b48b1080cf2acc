"""How well a prior predicts pixels that it has not seen.

The log score of held-out pixels, under posterior draws given the other pixels of the blend, is a
proper score (Gneiting & Raftery 2007, JASA 102, 359): only the right prior has the highest
expected one. It needs no truth, so it watches EM on real data.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Float

from blendem.blend import Blend
from blendem.inference.likelihood import (
    GalaxyInformation,
    fine_scale,
    galaxy_information,
)
from blendem.inference.posterior import BlendStatistics, chi2
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior


class Split(NamedTuple):
    """The pixels of stacked blends in two parts: each masks what the other one has.

    Attributes:
        seen: What posteriors are given.
        unseen: What they predict.
    """

    seen: Blend
    unseen: Blend


def split_pixels(
    stack: Blend, part: float, rngs: Sequence[np.random.Generator]
) -> Split:
    """Hold out a random part of the pixels, in every band for itself.

    Args:
        stack: Stacked blends.
        part: Of their pixels.
        rngs: One for each blend, so that its pixels do not depend on the others.

    Raises:
        ValueError: If `part` is not between 0 and 1.
    """
    if not 0 < part < 1:
        raise ValueError(f"part: must be between 0 and 1, got {part}")

    def masked(variance, out):
        return np.where(out, np.float32(np.inf), np.asarray(variance))

    shapes = [np.shape(o.variance)[1:] for o in stack.observations]
    held = [np.stack([rng.random(s) for rng in rngs]) < part for s in shapes]
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


def log_score_of_labels(
    seen: BlendStatistics,
    unseen: BlendStatistics,
    prior: LatentPrior,
    e: Float[np.ndarray, "draw galaxy latent"],
    rng: np.random.Generator,
) -> float:
    """The same under a mixture, of which only the labels are drawn.

    Given the components of all galaxies everything is Gaussian, so that the density of the
    held-out pixels is a quotient of two evidences. Its mean over labels has far less noise than
    that over draws of all unknowns (Rao-Blackwell), which are hundreds.

    Args:
        seen, unseen: Statistics of both parts, for the same amplitudes and centres.
        prior: A mixture.
        e: Draws given the seen pixels.
        rng: Draws the labels given these.

    Returns:
        `ln mean_s p(unseen | seen, labels_s)`.

    Raises:
        ValueError: If the prior is no mixture, or as `galaxy_likelihood`.
    """
    if prior.network is not None:
        raise ValueError("a network corrects the mixture: use `log_score`")
    labels = _draw_labels(prior.mixture, e, rng)
    whole = seen._replace(
        H=seen.H + unseen.H, b=seen.b + unseen.b, r2=seen.r2 + unseen.r2
    )
    # What is broad is chosen by the seen pixels, for both.
    scale = fine_scale(seen, prior)
    parts = [galaxy_information(one, prior, scale) for one in (whole, seen)]
    combinations, counts = np.unique(labels, axis=0, return_counts=True)
    gains = [
        np.subtract(*(_log_evidence(one, prior.mixture, chosen) for one in parts))
        for chosen in combinations
    ]
    total = scipy.special.logsumexp(gains, b=counts / counts.sum())
    return float(total - 0.5 * unseen.log_norm)


def _draw_labels(mixture: MixturePrior, e, rng) -> np.ndarray:
    """Components of galaxies given their coordinates, `(draw, galaxy)`."""
    flat = e.reshape(-1, e.shape[-1]).astype(float)
    centers = np.asarray(mixture.centers, float)
    vectors, values = np.asarray(mixture.vectors, float), np.asarray(mixture.values)
    log_p = np.log(np.asarray(mixture.weights, float)) - 0.5 * np.log(values).sum(-1)
    log_p = np.tile(log_p, (len(flat), 1))
    for c, (center, axes, value) in enumerate(
        zip(centers, vectors, values, strict=True)
    ):
        log_p[:, c] -= 0.5 * np.sum(((flat - center) @ axes) ** 2 / value, axis=1)
    # Gumbel's trick: the largest of log p plus noise is a draw.
    chosen = np.argmax(log_p + rng.gumbel(size=log_p.shape), axis=1)
    return chosen.reshape(e.shape[:2])


def _log_evidence(data: GalaxyInformation, mixture: MixturePrior, labels) -> float:
    """Of the galaxies' data, given the component of each; without `log_norm`."""
    if not len(labels):  # stars only
        return -0.5 * float(data.norm + data.r2)
    n = len(mixture.mean)
    centers = np.asarray(mixture.centers, float)[labels].ravel()
    values = np.asarray(mixture.values, float)[labels]
    roots = np.asarray(mixture.vectors, float)[labels] * np.sqrt(values)[:, None, :]
    pull, size = data.b - data.H @ centers, len(centers)
    b = (roots.swapaxes(1, 2) @ pull.reshape(-1, n, 1)).ravel()
    # R^T H R with the block-diagonal R of the roots.
    half = (data.H.reshape(size, -1, n).swapaxes(0, 1) @ roots).swapaxes(0, 1)
    inner = roots.swapaxes(1, 2) @ half.reshape(-1, n, size)
    inner = inner.reshape(size, size)
    lower = scipy.linalg.cholesky(
        np.eye(size) + 0.5 * (inner + inner.T), lower=True, check_finite=False
    )
    found = scipy.linalg.solve_triangular(lower, b, lower=True, check_finite=False)
    r2 = data.r2 - centers @ (data.b + pull)
    determinant = 2 * np.sum(np.log(np.diag(lower)))
    return -0.5 * float(data.norm + r2 + determinant - found @ found)
