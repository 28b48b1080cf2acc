"""Files of galaxies behind dust: redshifts that users give, priors, training stamps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blendem.io.fields import ObservedField, read_observation
from blendem.io.h5 import read_h5, write_h5
from blendem.io.priors import read_prior, write_prior
from blendem.io.table import FieldRow, InputError, input_error
from blendem.prior.dust import DustPrior, greatest_redshift
from blendem.prior.latent import LatentPrior
from blendem.survey.dusty import DustyGalaxies, band_wavelengths


def read_dusty(row: FieldRow, column: str, bands: Sequence[str]) -> ObservedField:
    """Read an observation whose galaxies have redshifts, and check these.

    Args:
        row: Of the table of fields.
        column: Of the catalog, with the redshifts; that of stars is not used.
        bands: Those of the model, which the observation must have in this order.

    Raises:
        InputError: It names file, field and what to do.
    """
    observed = read_observation(row, (column,))
    where, problems = f"{row.path} (field {row.field})", []
    if observed.bands != tuple(bands):
        problems.append(
            f"it has the bands {','.join(observed.bands)}, the model of galaxies and dust"
            f" {','.join(bands)}: give these in this order, or set simulate.instrument"
        )
    if observed.catalog is None:
        problems.append(
            f"no catalog: galaxies behind dust need known redshifts; give one with a column"
            f" {column}"
        )
    else:
        galaxies = observed.catalog[np.asarray(observed.catalog["type"]) == "galaxy"]
        z = np.asarray(galaxies[column], float)
        limit = greatest_redshift(band_wavelengths(tuple(bands)))
        bad = galaxies["id"][~((z >= 0) & (z <= limit))]
        if len(bad):
            problems.append(
                f"catalog: column {column} of source {', '.join(map(str, bad[:5]))}"
                f"{' and others' if len(bad) > 5 else ''} is not within 0 to {limit:.2f},"
                f" where the law of dust reaches band {bands[0]}: correct it, or leave the"
                " source out"
            )
    if problems:
        raise input_error(where, problems)
    return observed


def check_dusty(rows: Sequence[FieldRow], column: str, bands: Sequence[str]) -> None:
    """Check what galaxies behind dust need of all observations.

    Raises:
        InputError: It lists the problems of all files.
    """
    problems, seen = [], set()
    for row in rows:
        if row.field in seen:
            problems.append(
                f"{row.path} (field {row.field}): a second observation; galaxies behind dust"
                " are fitted to one: leave this row out"
            )
        seen.add(row.field)
        try:
            read_dusty(row, column, bands)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise input_error(f"{len(rows)} observations", problems)


def write_dust_prior(path: str | Path, prior: DustPrior, card: dict[str, Any]) -> None:
    """Write the prior of maps of A_V; the file appears only when complete."""
    write_prior(path, prior.latent, card | {"link": prior.link})


def read_dust_priors(
    galaxy: str | Path, dust: str | Path
) -> tuple[LatentPrior, DustPrior]:
    """Read the priors of galaxies and of the dust in front of them.

    Raises:
        InputError: If a file is missing, damaged, or no such prior.
    """
    first, (second, card) = read_prior(galaxy)[0], read_prior(dust)
    if "link" not in card:
        raise InputError(
            f"{dust}: no prior of dust (its card has no link); run rule fit_dust again"
        )
    return first, DustPrior(second, card["link"])


def write_dusty(path: str | Path, galaxies: DustyGalaxies) -> None:
    """Write galaxies behind dust as HDF5; the file appears only when complete."""
    arrays = galaxies._asdict()
    arrays["dust"] = galaxies.dust.astype(np.float32)
    write_h5(path, arrays)


def read_dusty_stamps(paths: Sequence[str | Path]) -> DustyGalaxies:
    """Read and join the files of `write_dusty`.

    Raises:
        InputError: If a file is missing or damaged.
    """
    parts = [read_h5(path, only=DustyGalaxies._fields)[0] for path in paths]
    names = DustyGalaxies._fields
    return DustyGalaxies(*(np.concatenate([p[name] for p in parts]) for name in names))
