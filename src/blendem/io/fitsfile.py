"""Opening FITS files so that a damaged one is recognised at once."""

import warnings
import zlib
from pathlib import Path

from astropy.io import fits

from blendem.io.table import InputError

FITS_SUFFIXES = (".fits", ".fit", ".fits.gz", ".fit.gz", ".fits.fz")


def is_fits(path: Path) -> bool:
    """Whether the name of a file says that it is FITS."""
    return path.name.lower().endswith(FITS_SUFFIXES)


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
        except (
            OSError,
            EOFError,
            ValueError,
            TypeError,
            IndexError,
            zlib.error,
        ) as error:
            kind = (
                "truncated or damaged" if _starts_as_fits(path) else "not a FITS file"
            )
            raise InputError(f"{path}: {kind} ({error}); copy it again") from None
    # astropy passes over a header that is cut off: bytes are left behind the last HDU.
    leftover = not path.name.endswith(".gz") and (
        path.stat().st_size > last["datLoc"] + last["datSpan"]
    )
    if leftover or any("truncated" in str(w.message).lower() for w in caught):
        raise InputError(f"{path}: truncated or damaged; copy it again")
    return hdus


def _starts_as_fits(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(9)
    return start == b"SIMPLE  =" or start[:2] == b"\x1f\x8b"
