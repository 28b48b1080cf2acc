"""Files appear under their name only when they are complete."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Temporary names start with a dot and this word, so that no pattern of results matches them.
PREFIX = ".partial-"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` when the block succeeds.

    The temporary file is in the same folder, so that the rename is atomic, and keeps the
    suffix, by which writers choose a format. Its content is flushed to disk before the
    rename. When the block fails it is removed and a former `path` stays as it was.
    Missing parent folders are made.

    Raises:
        FileNotFoundError: If the block wrote nothing to the temporary name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f"{PREFIX}{path.stem}-", suffix=path.suffix, dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    # Some writers refuse to overwrite; the unique name stays ours in practice.
    temporary.unlink()
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(
                f"nothing was written to {temporary}, which was to become {path}; write to"
                " the name that `atomic_path` yields."
            )
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        # Some network file systems cannot flush a folder; the rename stands all the same.
        if not path.is_dir():
            raise
    finally:
        os.close(handle)
