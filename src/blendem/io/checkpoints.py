"""State of an unfinished training on disk, so that a killed run goes on where it was."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from blendem.io.atomic import atomic_path
from blendem.prior.train import Evaluation, State

FORMAT = "blendem-checkpoint-1"
LOG = logging.getLogger(__name__)


def fingerprint(settings: Mapping[str, Any], *trees: Any) -> str:
    """SHA-256 of plain settings and of all arrays of some pytrees.

    What has another fingerprint is another training.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for leaf in jax.tree.leaves(trees):
        array = np.asarray(_plain(leaf))
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save_checkpoint(
    path: str | Path, state: State, history: Sequence[Evaluation], mark: str
) -> None:
    """Write the state of a training; a former checkpoint stays until this is complete.

    Args:
        path: The file.
        state: As `train` yields it.
        history: All evaluations so far.
        mark: `fingerprint` of the training.
    """
    header = {
        "format": FORMAT,
        "fingerprint": mark,
        "history": [e._asdict() for e in history],
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write((json.dumps(header) + "\n").encode())
        eqx.tree_serialise_leaves(file, _arrays(state))


def load_checkpoint(
    path: str | Path, like: State, mark: str
) -> tuple[State, list[Evaluation]]:
    """Read the state of a training, or `like` and no history where there is none to use.

    A checkpoint of other data, settings or version, or a damaged one, is ignored with a
    warning: the training starts again.

    Args:
        path: The file; it may be missing.
        like: State before the first step.
        mark: `fingerprint` of the training.
    """
    path = Path(path)
    if not path.is_file():
        return like, []
    with open(path, "rb") as file:
        try:
            header = json.loads(file.readline())
            form, other = header["format"], header["fingerprint"]
        except (ValueError, KeyError, TypeError):
            return _ignore(path, "it is no checkpoint", like)
        if form != FORMAT:
            return _ignore(path, f"its format is {form!r}, not {FORMAT!r}", like)
        if other != mark:
            return _ignore(path, "it is of other data or settings", like)
        try:
            arrays = eqx.tree_deserialise_leaves(file, _arrays(like))
        except (RuntimeError, ValueError, EOFError, OSError) as error:
            return _ignore(path, f"it is truncated or damaged ({error})", like)
    return _restore(arrays, like), [_evaluation(e) for e in header["history"]]


def _ignore(path: Path, reason: str, like: State) -> tuple[State, list[Evaluation]]:
    LOG.warning("%s: ignored, %s; the training starts again", path, reason)
    return like, []


def _evaluation(values: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    )


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _plain(leaf: Any) -> Any:
    """Random keys as their words, everything else as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _arrays(state: State) -> list[np.ndarray]:
    """Leaves of a state as NumPy arrays, whatever holds them: files keep these exactly."""
    return [np.asarray(_plain(leaf)) for leaf in jax.tree.leaves(state)]


def _restore(arrays: Sequence[np.ndarray], like: State) -> State:
    """The state that `_arrays` came from, on the device."""
    leaves, structure = jax.tree.flatten(like)
    restored = []
    for array, leaf in zip(arrays, leaves, strict=True):
        if _is_key(leaf):
            leaf = jax.random.wrap_key_data(jax.numpy.asarray(array))
        elif isinstance(leaf, jax.Array):
            leaf = jax.numpy.asarray(array)
        else:
            leaf = array
        restored.append(leaf)
    return jax.tree.unflatten(structure, restored)
