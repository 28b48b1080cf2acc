"""Laps of EM as the workflow runs them: when it stops."""

from types import SimpleNamespace

import numpy as np
import pytest
from tests.inference.test_em_latent import make_blends, make_prior

from blendem.config import EMConfig
from blendem.inference.em import draw_galaxies
from blendem.io.priors import read_prior, write_prior
from blendem.io.products import read_h5, write_h5


def write_draws(path, prior, blends):
    """Most of them teach; a lap compares the others with these."""
    parts, draws = {"taught": blends[:-10], "unseen": blends[-10:]}, {}
    for kind, some in parts.items():
        names = [f"{kind}/{i}" for i in range(len(some))]
        found = draw_galaxies(some, names, prior, 4, 16, "em/1", 3)
        fields = ("z", "galaxy", "center", "log_amplitude")
        draws[kind] = {name: getattr(found, name) for name in fields}
    counts = {"blends": 50, "galaxies": 100, "failed": 0, "diverged": 0, "seconds": 1.0}
    write_h5(path, draws, counts)


def lap(files, number, stop):
    config = EMConfig(rows=2000, keep=0, symmetric=False, stop=stop, broaden=0.1)
    before, after = (files.folder / f"{n:02d}.eqx" for n in (number - 1, number))
    files.script("em_maximization").main(
        [files.draws], before, files.folder / "00.eqx", after, number, config, 3
    )
    return read_prior(after)


@pytest.fixture
def files(tmp_path, rng, key, script):
    """A right prior, and draws under it."""
    prior = make_prior(rng)
    blends, _ = make_blends(prior, 60, rng, key)
    write_prior(tmp_path / "00.eqx", prior, {"made": "by hand"})
    write_draws(tmp_path / "draws.h5", prior, blends)
    return SimpleNamespace(
        folder=tmp_path,
        draws=tmp_path / "draws.h5",
        prior=prior,
        script=script,
    )


def test_a_right_prior_is_left_as_it_is(files):
    prior, card = lap(files, 1, stop=4.0)
    for name in ("weights", "centers", "covariances"):
        same = getattr(files.prior.mixture, name)
        np.testing.assert_array_equal(getattr(prior.mixture, name), same)
    np.testing.assert_array_equal(prior.fine, files.prior.fine)
    assert card["laps"][-1]["step"] == 0 and card["made"] == "by hand"
    moved, card = lap(files, 1, stop=0.0)
    assert card["laps"][-1]["step"] == 1
    assert not np.allclose(moved.mixture.covariances, prior.mixture.covariances)


def test_later_laps_draw_nothing(files):
    """The blends are not even read: their files do not exist."""
    first, _ = lap(files, 1, stop=4.0)
    missing = files.folder / "missing.h5"
    files.script("em_expectation").main(
        missing, missing, files.folder / "01.eqx", files.draws, 2, EMConfig(), 0.6, 3
    )
    assert read_h5(files.draws) == ({}, {"converged": True})
    prior, card = lap(files, 2, stop=4.0)
    np.testing.assert_array_equal(prior.mixture.centers, first.mixture.centers)
    assert card["lap"] == 2 and [row["lap"] for row in card["laps"]] == [1, 2]
    assert "expectation_seconds" not in card["laps"][1]  # it took none


def test_a_prior_fitted_to_draws_of_a_wrong_one_is_fitted_once_more(files):
    """Its own draws are the first that a right prior made."""
    wrong_before = {"laps": [{"lap": 1, "misfit": 75.0, "step": 1.0}]}
    write_prior(files.folder / "01.eqx", files.prior, wrong_before)
    moved, card = lap(files, 2, stop=4.0)
    assert card["laps"][-1]["misfit"] < 4 and card["laps"][-1]["step"] == 1
    assert not np.allclose(moved.mixture.covariances, files.prior.mixture.covariances)
    # The draws are still those of a right prior, and so were the ones before.
    write_prior(files.folder / "02.eqx", files.prior, card)
    kept, card = lap(files, 3, stop=4.0)
    assert card["laps"][-1]["step"] == 0
    np.testing.assert_array_equal(
        kept.mixture.covariances, files.prior.mixture.covariances
    )
