"""Held-out pixels: how they are chosen and how they are scored."""

import jax
import numpy as np
import pytest
from tests.inference.test_posterior import make_prior, problem
from tests.inference.test_statistics import SIGMA, make_basis, make_blend

from blendem.inference.amplitude import Amplitudes
from blendem.inference.batch import statistics_of
from blendem.inference.posterior import posterior
from blendem.inference.predictive import log_score, split_pixels
from blendem.inference.statistics import Settings


@pytest.fixture(scope="module")
def stacked():
    blend = make_blend(np.random.default_rng(5))
    return jax.tree.map(lambda x: np.asarray(x)[None], blend)


def test_the_two_parts_make_up_the_whole(stacked):
    settings = Settings(reference=1, stamp=9, iterations=0)
    basis = make_basis()
    whole = statistics_of(stacked, basis, settings, 1)
    amplitudes = Amplitudes(*(whole[name] for name in Amplitudes._fields))
    split = split_pixels(stacked, 0.2, np.random.default_rng(1))
    parts = [
        statistics_of(part, basis, settings, 1, amplitudes)
        for part in (split.seen, split.unseen)
    ]
    for name in ("H", "b", "r2", "log_norm", "n_data"):
        total = parts[0][name] + parts[1][name]
        np.testing.assert_allclose(total, whole[name], rtol=1e-5, atol=1e-5)
    for part in parts:
        np.testing.assert_array_equal(part["scale"], whole["scale"])
    held = parts[1]["n_data"] / whole["n_data"]
    assert 0.15 < held[0] < 0.25
    assert float(SIGMA) == pytest.approx(0.7)


def test_a_part_must_be_between_none_and_all(stacked):
    with pytest.raises(ValueError, match="part: must be between 0 and 1, got 1"):
        split_pixels(stacked, 1.0, np.random.default_rng(0))


def test_the_score_is_the_conditional_evidence(rng):
    """For a Gaussian prior `p(unseen | seen)` is a quotient of two evidences."""
    prior = make_prior(rng)
    whole = problem(rng, 2, 3.0, prior)[0]
    # Two exposures of which one is not seen: a third of the information.
    third = whole._replace(
        H=whole.H / 3,
        b=whole.b / 3,
        r2=whole.r2 / 3,
        log_norm=whole.log_norm / 3,
        n_data=whole.n_data / 3,
    )
    rest = whole._replace(
        H=whole.H - third.H,
        b=whole.b - third.b,
        r2=whole.r2 - third.r2,
        log_norm=whole.log_norm - third.log_norm,
        n_data=whole.n_data - third.n_data,
    )
    seen = posterior(rest, prior)
    exact = posterior(whole, prior).log_evidence - seen.log_evidence
    draws = seen.draw(20000, rng)
    assert log_score(third, draws) == pytest.approx(exact, abs=0.1)
    # Draws of a wrong prior predict worse.
    assert log_score(third, draws + 1.0) < exact - 1
