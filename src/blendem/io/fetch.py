"""Downloading public data sets, checked against a known sum."""

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from blendem.io.atomic import atomic_path

BLOCK = 1 << 20  # bytes read at once


class DataSet(NamedTuple):
    """A public file.

    Attributes:
        url: Where it is.
        sha256: Sum of its content.
        licence: As stated by its publisher.
    """

    url: str
    sha256: str
    licence: str


# The scene that scarlet's tutorials start with: HSC COSMOS, 5 x 58 x 48 pixels.
DATA_SETS = {
    "hsc_cosmos_35": DataSet(
        url="https://raw.githubusercontent.com/pmelchior/scarlet/master/data/hsc_cosmos_35.npz",
        sha256="d829803f7896698e394cbc7ab78b54d8845587243154d09420c44bb1425c754e",
        licence="MIT (pmelchior/scarlet)",
    ),
}


class FetchError(OSError):
    """A file could not be downloaded, or is not the one that was expected."""


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, path: str | Path, sha256: str, *, timeout: float = 60.0) -> bool:
    """Download `url` to `path` unless a file with that sum is there already.

    Args:
        url: Address; `http(s)://` and `file://` work.
        path: Where the file goes; it appears there only once its sum is right.
        sha256: Expected SHA-256, 64 hexadecimal digits.
        timeout: Longest silence of the server [s].

    Returns:
        True if something was downloaded.

    Raises:
        FetchError: If the address cannot be reached, or the sum is another one.
    """
    path = Path(path)
    if path.exists() and sha256_of(path) == sha256.lower():
        return False
    remedy = (
        f"If this machine is offline, copy the file to {path} by hand; its sha256 must be"
        f" {sha256}."
    )
    with atomic_path(path) as temporary:
        digest = hashlib.sha256()
        try:
            with (
                urllib.request.urlopen(url, timeout=timeout) as source,
                open(temporary, "wb") as target,
            ):
                expected = source.headers.get("Content-Length")
                while block := source.read(BLOCK):
                    digest.update(block)
                    target.write(block)
                size = target.tell()
        except urllib.error.HTTPError as error:
            raise FetchError(
                f"{url} answered {error.code} {error.reason}. {remedy}"
            ) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise FetchError(f"cannot reach {url}: {reason}. {remedy}") from None
        if expected is not None and size != int(expected):
            raise FetchError(
                f"{url} broke off after {size} of {expected} bytes. Try again. {remedy}"
            )
        if digest.hexdigest() != sha256.lower():
            raise FetchError(
                f"{url} has sha256 {digest.hexdigest()}, expected {sha256}: the file was"
                " changed or damaged, and is not used. Check the address and the sum."
            )
    return True
