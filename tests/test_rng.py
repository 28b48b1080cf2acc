"""Keys and generators against the published algorithms, written out here."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from blendem.rng import stage_key, stage_rng

# The check value of CRC-32 (IEEE 802.3): the sum of the nine digits.
STAGE, STAGE_CRC = "123456789", 0xCBF43926


def threefry(key: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011, SC11, section 3.3)."""
    word = 2**32
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    a, b = (block[0] + keys[0]) % word, (block[1] + keys[1]) % word
    for i in range(20):
        turn = ((13, 15, 26, 6), (17, 29, 16, 24))[i // 4 % 2][i % 4]
        a = (a + b) % word
        b = ((b << turn) % word | b >> (32 - turn)) ^ a
        if i % 4 == 3:
            n = i // 4 + 1
            a = (a + keys[n % 3]) % word
            b = (b + keys[(n + 1) % 3] + n) % word
    return a, b


def test_the_threefry_of_this_test_is_the_published_one():
    # Known answers of Random123 (kat_vectors: threefry2x32 20).
    assert threefry((0, 0), (0, 0)) == (0x6B200159, 0x99BA4EFE)
    ones = 2**32 - 1
    assert threefry((ones, ones), (ones, ones)) == (0x1CB996FC, 0xBB002BE7)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("seed, index", [(0, 0), (1, 7), (2**32 - 1, 2**32 - 1)])
def test_key_folds_seed_stage_and_index(seed, index, x64):
    expected = threefry(threefry((0, seed), (0, STAGE_CRC)), (0, index))
    with jax.enable_x64(x64):
        data = jax.random.key_data(stage_key(seed, STAGE, index))
    assert tuple(int(word) for word in data) == expected


def test_generator_is_spawned_by_stage_and_index():
    sequence = np.random.SeedSequence(5, spawn_key=(STAGE_CRC, 3))
    expected = np.random.Generator(np.random.PCG64(sequence)).random(4)
    np.testing.assert_array_equal(stage_rng(5, STAGE, 3).random(4), expected)


def test_every_argument_matters():
    arguments = [(1, "fit", 0), (2, "fit", 0), (1, "sample", 0), (1, "fit", 1)]
    keys = {tuple(jax.random.key_data(stage_key(*a)).tolist()) for a in arguments}
    draws = {stage_rng(*a).random() for a in arguments}
    assert len(keys) == len(draws) == len(arguments)


def test_another_process_draws_the_same():
    code = (
        "import jax; from blendem.rng import stage_key, stage_rng;"
        "print(jax.random.key_data(stage_key(3, 'sample', 4)).tolist(),"
        " stage_rng(3, 'sample', 4).random())"
    )
    # Python salts `hash` of strings by PYTHONHASHSEED.
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "12345", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    key = jax.random.key_data(stage_key(3, "sample", 4)).tolist()
    assert out.split("] ") == [str(key)[:-1], f"{stage_rng(3, 'sample', 4).random()}\n"]


@pytest.mark.parametrize("bad", [-1, 2**32])
@pytest.mark.parametrize("make", [stage_key, stage_rng])
def test_numbers_beyond_a_word_are_refused(make, bad):
    with pytest.raises(ValueError, match=f"`seed` must be .* got {bad}"):
        make(bad, "fit")
    with pytest.raises(ValueError, match=f"`index` must be .* got {bad}"):
        make(0, "fit", bad)
