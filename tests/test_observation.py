"""The likelihood against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from blendem.observation import Observation, chi2_per_band, log_likelihood


@pytest.fixture
def parts(rng):
    return {
        "image": rng.normal(size=(2, 6, 7)),
        "variance": rng.uniform(0.5, 2.0, (2, 6, 7)),
        "psf": np.full((2, 3, 3), 1 / 9),
        "jacobian": np.array([[1.2, 0.3], [-0.1, 0.9]]),
        "offset": np.array([2.0, -1.0]),
        "band_index": (0, 2),
        "same_grid": False,
    }


def spoil(parts):
    """Mask three pixels, one of them NaN."""
    variance, image = parts["variance"].copy(), parts["image"].copy()
    for at in [(0, 1, 2), (0, 5, 6), (1, 0, 0)]:
        variance[at] = np.inf
    image[0, 1, 2] = np.nan
    return Observation(**parts | {"image": image, "variance": variance})


def test_log_likelihood_is_that_of_scipy_without_masked_pixels(parts, rng):
    observation = spoil(parts)
    model = rng.normal(size=(2, 6, 7))
    good = np.isfinite(observation.variance)
    assert good.sum() == 84 - 3
    expected = norm.logpdf(
        observation.image[good], model[good], np.sqrt(observation.variance[good])
    ).sum()
    with jax.debug_nans(False):  # the image holds one
        value, slope = jax.value_and_grad(log_likelihood)(
            jnp.asarray(model), observation
        )
    assert float(value) == pytest.approx(expected, rel=1e-12)
    residual = np.where(good, observation.image - model, 0.0)
    np.testing.assert_allclose(slope, residual / observation.variance, atol=1e-12)


def test_chi2_and_weight_leave_out_masked_pixels(parts, rng):
    observation = spoil(parts)
    model = rng.normal(size=(2, 6, 7))
    with jax.debug_nans(False):  # the image holds one
        chi2, pixels = chi2_per_band(jnp.asarray(model), observation)
    for b in range(2):
        good = np.isfinite(observation.variance[b])
        pull = (observation.image[b] - model[b])[good] ** 2
        assert float(chi2[b]) == pytest.approx(
            (pull / observation.variance[b][good]).sum()
        )
        assert int(pixels[b]) == good.sum()
    np.testing.assert_allclose(observation.weight, 1 / observation.variance)
    assert float(observation.weight[0, 1, 2]) == 0.0


def test_to_observed_inverts_the_affine_map(parts):
    observed = np.array([3.0, 4.5])
    model = parts["jacobian"] @ observed + parts["offset"]
    result = Observation(**parts).to_observed(jnp.asarray(model))
    np.testing.assert_allclose(result, observed, atol=1e-12)
    same = Observation(**parts | {"jacobian": np.eye(2), "same_grid": True})
    np.testing.assert_allclose(
        same.to_observed(jnp.asarray(model)), model - [2.0, -1.0]
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"variance": np.ones((2, 6, 8))}, "same shape"),
        ({"band_index": (0,)}, "names 1 bands"),
        ({"psf": np.ones((2, 4, 4))}, "odd sides"),
    ],
)
def test_shapes_that_disagree_are_named(parts, change, match):
    # jaxtyping may find the mismatch first; both are errors.
    with pytest.raises((ValueError, TypeError)) as error:
        Observation(**parts | change)
    if error.type is ValueError:
        assert match in str(error.value)
