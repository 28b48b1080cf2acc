"""The eight symmetries of the square: galaxies have no preferred direction."""

import numpy as np
from jaxtyping import Float

N_SYMMETRIES = 8


def symmetries(images: Float[np.ndarray, "*batch y x"]):
    """Yield `images` under the 8 rotations by 90 degrees and reflections."""
    for turns in range(4):
        turned = np.rot90(images, turns, (-2, -1))
        yield turned
        yield turned[..., ::-1]


def latent_symmetries(
    modes: Float[np.ndarray, "mode band y x"], dual: Float[np.ndarray, "mode band y x"]
) -> Float[np.ndarray, "symmetry mode mode"]:
    """Represent the symmetries on the coordinates z of `u = mean + sum_i z_i modes_i`.

    Args:
        modes: Modes of the basis.
        dual: `Basis.dual`: stamps whose inner products with `u - mean` are z.

    Returns:
        Matrices R with `z' = R z` for the transformed image. They are orthogonal where
        the span of the modes is invariant (see `pca.fit_basis`).
    """
    flat = np.asarray(dual, float).reshape(len(dual), -1)
    turned = (np.ascontiguousarray(t).reshape(flat.shape) for t in symmetries(modes))
    return np.stack([flat @ t.T.astype(np.float64) for t in turned])


def symmetrise_moments(
    mean: Float[np.ndarray, " mode"],
    covariance: Float[np.ndarray, "mode mode"],
    representation: Float[np.ndarray, "symmetry mode mode"],
) -> tuple[Float[np.ndarray, " mode"], Float[np.ndarray, "mode mode"]]:
    """Average first and second moments over the group.

    This is the maximum-likelihood estimate within the Gaussians that the group leaves
    invariant (Shah & Chandrasekaran 2012, Electron. J. Statist. 6, 640), so that an EM
    step which ends here still cannot lower the evidence.
    """
    second = covariance + np.outer(mean, mean)
    mean_bar = np.mean(representation @ mean, axis=0)
    second_bar = np.mean(
        representation @ second @ np.swapaxes(representation, -1, -2), axis=0
    )
    covariance_bar = second_bar - np.outer(mean_bar, mean_bar)
    return mean_bar, 0.5 * (covariance_bar + covariance_bar.T)
