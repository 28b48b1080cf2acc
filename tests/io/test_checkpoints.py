"""A training that was interrupted goes on as if it had not been."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blendem.io.checkpoints import fingerprint, load_checkpoint, save_checkpoint
from blendem.prior.mixture import MixturePrior
from blendem.prior.network import LatentNetwork
from blendem.prior.train import Settings, TrainingSet, start, train

MIXTURE = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float32),
    MixturePrior.of([0.4, 0.6], np.zeros((2, 3)), [0.2, 1.5]),
)
SETTINGS = Settings(steps=12, batch=16, learning_rate=1e-2, evaluate=4, patience=9)


@pytest.fixture
def data(rng):
    sets = [
        TrainingSet(
            jnp.asarray(rng.normal(size=(n, 3)) ** 3, jnp.float32),
            jnp.asarray([-1.0, 0.0, 0.0], jnp.float32),
        )
        for n in (64, 48, 32)
    ]
    return MIXTURE, *sets


@pytest.fixture
def first(key):
    one, two = jax.random.split(key)
    network = LatentNetwork(3, 8, 1, key=one)
    network = jax.tree.map(
        lambda x: x.astype(jnp.float32) if eqx.is_array(x) else x, network
    )
    return start(network, SETTINGS, key=two)


def leaves(state):
    plain = eqx.tree_at(lambda s: s.key, state, jax.random.key_data(state.key))
    plain = eqx.tree_at(lambda s: s.seconds, plain, np.zeros(()))
    return [np.asarray(x) for x in jax.tree.leaves(plain)]


def test_a_resumed_training_ends_with_the_same_bits(first, data, tmp_path):
    whole = list(train(first, *data, SETTINGS))
    assert [e.step for _, e in whole] == [4, 8, 12]

    path, mark = tmp_path / "train.ckpt", fingerprint(SETTINGS._asdict(), data)
    for state, evaluation in train(first, *data, SETTINGS):
        save_checkpoint(path, state, [evaluation], mark)
        break  # killed after the first evaluation
    resumed, history = load_checkpoint(path, first, mark)
    assert [e.step for e in history] == [4] and history[0].ratio == whole[0][1].ratio
    rest = list(train(resumed, *data, SETTINGS))
    assert [e.step for _, e in rest] == [8, 12]
    assert rest[-1][1].ratio == whole[-1][1].ratio
    last, expected = leaves(rest[-1][0]), leaves(whole[-1][0])
    for a, b in zip(last, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    # The weights did move after the checkpoint.
    moved = [(a != b).any() for a, b in zip(last, leaves(resumed), strict=True)]
    assert any(moved)


def test_other_data_and_settings_have_another_fingerprint(first, data):
    mark = fingerprint(SETTINGS._asdict(), data)
    assert mark == fingerprint(SETTINGS._asdict(), data)
    assert mark != fingerprint(SETTINGS._replace(steps=13)._asdict(), data)
    one = data[1].e.at[5, 1].add(1e-3)
    other = (data[0], eqx.tree_at(lambda d: d.e, data[1], one), *data[2:])
    assert mark != fingerprint(SETTINGS._asdict(), other)
    assert fingerprint({}, first) != fingerprint(
        {}, eqx.tree_at(lambda s: s.key, first, jax.random.key(9))
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda b: b[:-20], "truncated or damaged"),
        (lambda b: b"no json\n" + b, "no checkpoint"),
        (lambda b: b.replace(b"blendem-checkpoint-1", b"blendem-checkpoint-9"), "form"),
        (lambda b: b, "other data or settings"),
    ],
)
def test_what_cannot_be_used_is_ignored_with_a_warning(
    first, tmp_path, caplog, damage, reason
):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, first, [], "abc")
    path.write_bytes(damage(path.read_bytes()))
    mark = "other" if "settings" in reason else "abc"
    state, history = load_checkpoint(path, first, mark)
    assert state is first and history == []
    assert reason in caplog.text and "a.ckpt" in caplog.text


def test_no_file_is_no_news(first, tmp_path, caplog):
    assert load_checkpoint(tmp_path / "none.ckpt", first, "abc") == (first, [])
    assert caplog.text == ""
