"""Preparing training stamps."""

import numpy as np
import pytest

from blendem.prior.stamps import prepare_stamps


def prepare(stamps, seed=3, **changes):
    options = {"amplitude_jitter": 0.0, "colour_jitter": 0.0} | changes
    return prepare_stamps(stamps, 1, rng=np.random.default_rng(seed), **options)


def test_stamps_have_unit_flux_in_the_reference_band_and_keep_their_shape(rng):
    stamps = rng.uniform(1, 2, (6, 3, 5, 5)).astype(np.float32)
    stamps[2, 1] *= -1
    out, used = prepare(stamps)
    np.testing.assert_array_equal(used, [True, True, False, True, True, True])
    np.testing.assert_allclose(out[:, 1].sum((-2, -1)), 1, rtol=1e-6)
    ratio = out / stamps[used]
    np.testing.assert_allclose(ratio, ratio[:, :1, :1, :1] * np.ones_like(ratio), 1e-5)
    with pytest.raises(ValueError, match="none of 6 training stamps has flux"):
        prepare(-np.abs(stamps))


def test_colours_are_broadened_as_asked_and_do_not_follow_the_amplitudes(rng):
    stamps = np.ones((4000, 3, 1, 1), np.float32)
    out, _ = prepare(stamps, colour_jitter=0.2)
    ln = np.log(out[:, :, 0, 0])
    assert (ln[:, 1] == 0).all()
    # Five standard errors of a standard deviation, sd / sqrt(2 n).
    np.testing.assert_allclose(ln[:, [0, 2]].std(axis=0), 0.2, atol=5 * 0.2 / 89)
    assert abs(np.corrcoef(ln[:, 0], ln[:, 2])[0, 1]) < 5 / np.sqrt(4000)
    both, _ = prepare(stamps, colour_jitter=0.2, amplitude_jitter=0.6)
    scale = both[:, 1, 0, 0]
    np.testing.assert_allclose(np.log(scale).std(), 0.6, atol=5 * 0.6 / 89)
    np.testing.assert_allclose(both[:, 0, 0, 0] / scale, out[:, 0, 0, 0], rtol=1e-5)
