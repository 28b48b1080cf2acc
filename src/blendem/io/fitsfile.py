"""Opening FITS files so that a damaged one is recognised at once."""

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from astropy.io import fits

from blendem.io.table import InputError

FITS_SUFFIXES = (".fits", ".fit", ".fits.gz", ".fit.gz", ".fits.fz")


def is_fits(path: Path) -> bool:
    """Whether the name of a file says that it is FITS."""
    return path.name.lower().endswith(FITS_SUFFIXES)


# What astropy raises for a file that is none of FITS, or cut off.
DAMAGE = (OSError, EOFError, ValueError, TypeError, IndexError, zlib.error)


def open_fits(path: Path) -> fits.HDUList:
    """Open a FITS file with all its data in memory.

    Raises:
        InputError: If it is not FITS, or truncated.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with fits.open(path, memmap=False) as hdus:
                for hdu in hdus:
                    _ = hdu.data  # reads, so that a truncated file fails here
                last = hdus[-1].fileinfo()
        except DAMAGE as error:
            raise _damaged(path, error) from None
    _check_end(path, last, caught)
    return hdus


@contextmanager
def browse_fits(path: Path) -> Iterator[fits.HDUList]:
    """A FITS file whose data are read when they are asked for, by `section` in part.

    Raises:
        InputError: If it is not FITS, or truncated.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # Memory maps refuse BZERO, which unsigned masks have; sections are read in part anyway.
            hdus = fits.open(path, memmap=False)
            last = hdus[-1].fileinfo()  # reads all headers
        except DAMAGE as error:
            raise _damaged(path, error) from None
    with hdus:
        _check_end(path, last, caught, unread=True)
        yield hdus


def _damaged(path: Path, error: Exception) -> InputError:
    kind = "truncated or damaged" if _starts_as_fits(path) else "not a FITS file"
    return InputError(f"{path}: {kind} ({error}); copy it again")


def _check_end(
    path: Path, last: dict, caught: list[warnings.WarningMessage], unread: bool = False
) -> None:
    """Whether a file ends with its last HDU, given what astropy says of that one.

    astropy passes over a header that is cut off: bytes are left behind the last HDU. Data that were
    not read (`unread`) may be cut off, too.
    """
    missing = last["datLoc"] + last["datSpan"] - path.stat().st_size
    wrong = missing < 0 or (unread and missing > 0)
    if (wrong and not path.name.endswith(".gz")) or any(
        "truncated" in str(w.message).lower() for w in caught
    ):
        raise InputError(f"{path}: truncated or damaged; copy it again")


def _starts_as_fits(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(9)
    return start == b"SIMPLE  =" or start[:2] == b"\x1f\x8b"
