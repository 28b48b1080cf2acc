"""Nested dictionaries of arrays as HDF5 files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.table import Table

from blendem.io.atomic import atomic_path
from blendem.io.table import InputError

# Smaller datasets are stored as they are: the filter would cost more than it saves.
COMPRESSED_FROM = 4096  # bytes
# Whole rows are stored together, about as much at once, so that reading a row reads no other.
CHUNK = 2**18  # bytes
# Attributes that HDF5 has no type for are stored as JSON behind this mark.
JSON_MARK = "json:"


def write_h5(
    path: str | Path,
    arrays: Mapping[str, Any],
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Write arrays, nested dictionaries and tables; the file appears only when complete.

    Args:
        path: HDF5 file.
        arrays: Array-likes, strings included; dictionaries and astropy tables become
            groups (units of columns are kept as attribute `unit` of their dataset).
        attrs: Attributes of the file: numbers, strings, and what JSON can hold.

    Raises:
        ValueError: If a name is empty or holds `/`.
        TypeError: If a value is no array of numbers, booleans or strings.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        _write_group(file, arrays, "")
        for key, value in (attrs or {}).items():
            plain = isinstance(value, str | bool | int | float | np.generic)
            file.attrs[key] = value if plain else JSON_MARK + json.dumps(value)


def read_h5(
    path: str | Path,
    only: Sequence[str] | None = None,
    optional: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `write_h5` wrote.

    Args:
        path: HDF5 file.
        only: Names at the top level to read; None reads everything.
        optional: More names, which are read where they exist.

    Returns:
        Arrays (groups are dictionaries, strings are NumPy `U` arrays) and attributes.

    Raises:
        InputError: If the file is missing or damaged, or lacks one of `only`.
    """
    with open_h5(path) as file:
        missing = [key for key in only or () if key not in file]
        if missing:
            raise InputError(
                f"{path}: lacks {', '.join(missing)}, it has {', '.join(file)}; it was"
                " made by another version: remove it and run again"
            )
        there = [key for key in optional if key in file]
        names = file if only is None else [*only, *there]
        arrays = {key: _read(file[key]) for key in names}
        attrs = attributes(file)
    return arrays, attrs


def attributes(file: h5py.File) -> dict[str, Any]:
    """Attributes of an open file, as `write_h5` got them."""
    return {key: _attribute(value) for key, value in file.attrs.items()}


@contextmanager
def open_h5(path: str | Path) -> Iterator[h5py.File]:
    """A file to read from, closed at the end.

    Raises:
        InputError: If the file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the rule that makes it")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise InputError(
            f"{path}: damaged or not HDF5 ({error}); remove it and run again"
        ) from None


def _write_group(group: h5py.Group, arrays: Mapping[str, Any], where: str) -> None:
    for key, value in arrays.items():
        name = f"{where}/{key}"
        if not isinstance(key, str) or not key or "/" in key:
            raise ValueError(f"{name!r} cannot name a dataset; use text without `/`")
        if isinstance(value, Table):
            units = {c: str(value[c].unit or "") for c in value.colnames}
            child = group.create_group(key)
            _write_group(child, {c: np.asarray(value[c]) for c in value.colnames}, name)
            for column, unit in units.items():
                if unit:
                    child[column].attrs["unit"] = unit
        elif isinstance(value, Mapping):
            _write_group(group.create_group(key), value, name)
        else:
            _write_array(group, key, np.asarray(value), name)


def _write_array(group: h5py.Group, key: str, array: np.ndarray, name: str) -> None:
    if array.dtype.kind in "SU":
        text = array.astype("U").astype(object)
        group.create_dataset(key, data=text, dtype=h5py.string_dtype())
        return
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"{name} holds {array.dtype}, which HDF5 cannot store; convert it to numbers or"
            " strings"
        )
    options = {}
    if array.nbytes >= COMPRESSED_FROM and array.ndim:
        # lzf is fast; shuffling bytes is what makes floats compressible at all.
        rows = max(1, min(len(array), CHUNK // max(1, array[0].nbytes)))
        options = {
            "compression": "lzf",
            "shuffle": True,
            "chunks": (rows, *array.shape[1:]),
        }
    group.create_dataset(key, data=array, **options)


def _read(item: h5py.Group | h5py.Dataset) -> Any:
    if isinstance(item, h5py.Group):
        return {key: _read(child) for key, child in item.items()}
    if h5py.check_string_dtype(item.dtype):
        return np.asarray(item.asstr()[()], dtype=str)
    return item[()] if item.ndim else np.asarray(item[()])


def _attribute(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(JSON_MARK):
        return json.loads(value.removeprefix(JSON_MARK))
    return value.item() if isinstance(value, np.generic) else value
