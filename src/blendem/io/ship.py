"""Write a prior in the compact form in which it is shipped; its card names the command.

python -m blendem.io.ship results/prior_hsc/prior/00.eqx priors/hsc_grizy.eqx "make priors"
"""

import argparse
from pathlib import Path

from blendem.io.atomic import atomic_path
from blendem.io.priors import read_prior, write_prior
from blendem.io.table import InputError

LARGEST = 5e6  # of a shipped file [byte]


def ship(source: Path, path: Path, command: str) -> None:
    """Write a prior in compact form, with the command that makes it.

    Raises:
        InputError: If it is larger than a shipped prior may be.
    """
    prior, card = read_prior(source)
    with atomic_path(path) as temporary:
        write_prior(temporary, prior, card | {"command": command}, compact=True)
        if (size := temporary.stat().st_size) > LARGEST:
            raise InputError(
                f"{source}: {size / 1e6:.1f} MB in compact form, at most"
                f" {LARGEST / 1e6:.0f} MB are shipped; train a prior of fewer modes,"
                " components or pixels"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a prior as it is shipped.")
    parser.add_argument("source", type=Path)
    parser.add_argument("path", type=Path)
    parser.add_argument("command")
    arguments = parser.parse_args()
    ship(arguments.source, arguments.path, arguments.command)
