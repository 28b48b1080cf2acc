"""The first line of a prior's file: what it is, readable without the numerics."""

import json
from pathlib import Path
from typing import Any

from blendem.io.table import InputError

FORMAT = "blendem-prior-3"
GAUSSIAN_1 = "blendem-gaussian-prior-1"  # before there were tiers
MAX_HEADER = 16 * 2**20  # a longer first line is no header [byte]


def read_header(path: str | Path) -> dict[str, Any]:
    """Read the JSON line that a prior's file begins with.

    Returns:
        `tier`, `bands`, `stamp`, `modes`, `analysis`, `network` and `card`, see
        `priors.write_prior`; `start`, the byte where the leaves begin.

    Raises:
        InputError: If the file is missing, no prior, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such prior; run the rule that makes it")
    with open(path, "rb") as file:
        line = file.readline(MAX_HEADER)
        start = file.tell()
    try:
        header = json.loads(line)
        form = header["format"]
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}: not a prior of blendem (no JSON header); train it again"
        ) from None
    if form not in (FORMAT, GAUSSIAN_1):
        raise InputError(
            f"{path}: format {form!r}, this version reads {FORMAT!r} and {GAUSSIAN_1!r};"
            " train the prior again or use the version that wrote it"
        )
    if form == GAUSSIAN_1:
        header = {"tier": "gaussian", "analysis": False, "network": {}} | header
    missing = {"tier", "bands", "stamp", "modes", "analysis", "network", "card"}
    if missing := missing - set(header):
        raise InputError(
            f"{path}: its header lacks {', '.join(sorted(missing))}; train the prior again"
        )
    return header | {"start": start}
