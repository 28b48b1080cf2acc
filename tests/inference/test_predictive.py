"""Held-out pixels: how they are chosen and how they are scored."""

import jax
import numpy as np
import pytest
import scipy.linalg
from tests.inference.test_posterior import D, make_prior, problem
from tests.inference.test_statistics import SIGMA, make_basis, make_blend

from blendem.inference.amplitude import Amplitudes
from blendem.inference.batch import statistics_of
from blendem.inference.likelihood import galaxy_likelihood
from blendem.inference.posterior import posterior
from blendem.inference.predictive import (
    log_score,
    log_score_of_labels,
    split_pixels,
)
from blendem.inference.sampler import sample
from blendem.inference.statistics import Settings
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture import MixturePrior


@pytest.fixture(scope="module")
def stacked():
    blend = make_blend(np.random.default_rng(5))
    return jax.tree.map(lambda x: np.asarray(x)[None], blend)


def rngs(*seeds):
    return [np.random.default_rng(seed) for seed in seeds]


def test_the_two_parts_make_up_the_whole(stacked):
    settings = Settings(reference=1, stamp=9, iterations=0)
    basis = make_basis()
    whole = statistics_of(stacked, basis, settings, 1)
    amplitudes = Amplitudes(*(whole[name] for name in Amplitudes._fields))
    split = split_pixels(stacked, 0.2, rngs(1))
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


def test_pixels_of_a_blend_do_not_depend_on_its_neighbours(stacked):
    def held(split):
        return [np.isinf(o.variance) for o in split.seen.observations]

    three = jax.tree.map(lambda x: np.repeat(x, 3, axis=0), stacked)
    alone = held(split_pixels(stacked, 0.2, rngs(2)))
    for one, many in zip(
        alone, held(split_pixels(three, 0.2, rngs(1, 2, 3))), strict=True
    ):
        np.testing.assert_array_equal(many[1], one[0])
        assert (many[0] != many[1]).any()


def test_a_part_must_be_between_none_and_all(stacked):
    with pytest.raises(ValueError, match="part: must be between 0 and 1, got 1"):
        split_pixels(stacked, 1.0, rngs(0))


def exposures(whole):
    """Two exposures: one that is seen, and another with a third of the information."""
    names = ("H", "b", "r2", "log_norm", "n_data")
    third = {name: getattr(whole, name) / 3 for name in names}
    rest = {name: getattr(whole, name) - third[name] for name in names}
    return whole._replace(**rest), whole._replace(**third)


def test_the_score_is_the_conditional_evidence(rng):
    """For a Gaussian prior `p(unseen | seen)` is a quotient of two evidences."""
    prior = make_prior(rng)
    whole = problem(rng, 2, 3.0, prior)[0]
    rest, third = exposures(whole)
    seen = posterior(rest, prior)
    exact = posterior(whole, prior).log_evidence - seen.log_evidence
    draws = seen.draw(20000, rng)
    assert log_score(third, draws) == pytest.approx(exact, abs=0.1)
    # Draws of a wrong prior predict worse.
    assert log_score(third, draws + 1.0) < exact - 1


def test_labels_give_the_conditional_evidence_of_a_mixture(rng, key):
    """All choices of components, one Gaussian each; stars and a fine mode on top."""
    gaussian = make_prior(rng)
    latent = D - 1
    centers = rng.normal(size=(2, latent))
    covariances = [np.diag(v) for v in rng.uniform(0.3, 1.5, (2, latent))]
    weights, fine = np.array([0.3, 0.7]), np.array([[0.4], [1.3]])
    prior = LatentPrior(
        gaussian, MixturePrior.of(weights, centers, np.array(covariances)), fine=fine
    )
    whole = problem(rng, 3, 1.0, gaussian, stars=(1,))[0]
    seen, unseen = exposures(whole)
    likelihood = galaxy_likelihood(seen, prior)
    (draws,) = sample(prior, [likelihood], 512, keys=[key])
    score = log_score_of_labels(seen, unseen, prior, draws.e, rng)
    # By hand: the fine deviations as chosen by the seen part, galaxies of every kind.
    z = posterior(seen, gaussian).mean[: 3 * D].reshape(3, D)
    e = np.linalg.solve(np.asarray(gaussian.cholesky), (z - gaussian.mean).T).T
    deviation = prior.fine_deviation(e[[0, 2], :latent])
    total = []
    for evidence in (whole, seen):
        terms = []
        for a in (0, 1):
            for b in (0, 1):
                log_p = np.log(weights[a] * weights[b])
                terms.append(log_p + by_hand(evidence, prior, (a, b), deviation))
        total.append(np.logaddexp.reduce(terms))
    assert score == pytest.approx(total[0] - total[1], abs=0.02)


def by_hand(statistics, prior, kinds, deviation):
    """Evidence of a galaxy, a star and a galaxy of given kinds."""
    lower = np.asarray(prior.gaussian.cholesky)
    mean, root = [], []
    for kind, fine in zip(kinds, deviation, strict=True):
        center = np.append(np.asarray(prior.mixture.centers)[kind], 0.0)
        spread = np.diag(np.asarray(prior.mixture.covariances)[kind])
        mean.append(np.asarray(prior.gaussian.mean) + lower @ center)
        root.append(lower @ np.diag(np.append(np.sqrt(spread), fine)))
    extra = len(statistics.b) - 3 * D
    mean = np.concatenate([mean[0], np.zeros(D), mean[1], np.zeros(extra)])
    root = scipy.linalg.block_diag(root[0], np.eye(D), root[1], np.eye(extra))
    inner = np.eye(len(mean)) + root.T @ statistics.H @ root
    b = root.T @ (statistics.b - statistics.H @ mean)
    r2 = statistics.r2 - 2 * mean @ statistics.b + mean @ statistics.H @ mean
    r2 = r2 - b @ np.linalg.solve(inner, b) + statistics.log_norm
    return -0.5 * (r2 + np.linalg.slogdet(inner)[1])


def test_a_blend_of_stars_has_a_score_too(rng):
    """Its fluxes are Gaussian: again a quotient of two evidences."""
    gaussian = make_prior(rng)
    white = MixturePrior.of([1.0], np.zeros((1, D - 1)), np.eye(D - 1)[None])
    prior = LatentPrior(gaussian, white, fine=np.ones((1, 1)))
    whole = problem(rng, 2, 3.0, gaussian, stars=(0, 1))[0]
    seen, unseen = exposures(whole)
    exact = (
        posterior(whole, gaussian).log_evidence - posterior(seen, gaussian).log_evidence
    )
    e = np.zeros((4, 0, D - 1))
    found = log_score_of_labels(seen, unseen, prior, e, rng)
    assert found == pytest.approx(exact, abs=1e-6)
