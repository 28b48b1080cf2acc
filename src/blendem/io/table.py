"""The table of fields: which files are observed, by what, and what belongs together."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

REQUIRED = ("field", "instrument", "path")
OPTIONAL = (
    "catalog",
    "survey",
    "bands",
    "magzero",
    "stars",
    "psf",
    "epoch",
    "mjd",
)
# Where `${BLENDEM_DATA}` points when the variable is not set, from the working directory.
DATA_VARIABLE, DATA_DEFAULT = "BLENDEM_DATA", "../shared/data"
FIELD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class InputError(ValueError):
    """An input file cannot be used; the message names the file, the part and a remedy."""


def input_error(where: str, problems: list[str]) -> InputError:
    """One error for all `problems` found in `where`."""
    if len(problems) == 1:
        return InputError(f"{where}: {problems[0]}")
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return InputError(f"{where} has {len(problems)} problems:\n{lines}")


@dataclass(frozen=True)
class FieldRow:
    """One observation of a field.

    Attributes:
        field: Name of the field; observations that share it are fitted jointly.
        instrument: Name of the instrument, one of `survey.instruments` or your own.
        path: FITS or NPZ file.
        catalog: Table of sources, or None: that of the file, or detection.
        survey: Free text.
        bands: Bands of the file's planes, where the file does not say it.
        magzero: AB zero point [mag], where the file does not say it.
        stars: Ids of sources to take for stars, where the catalog does not say it.
        psf: PSFEx files, one per band in their order; empty: the PSF of the file.
        epoch: Name of the exposure, which variable sources refer to; see `epochs_of`.
        mjd: When it was taken [day], or None.
    """

    field: str
    instrument: str
    path: Path
    catalog: Path | None = None
    survey: str = ""
    bands: tuple[str, ...] | None = None
    magzero: float | None = None
    stars: tuple[int, ...] = ()
    psf: tuple[Path, ...] = ()
    epoch: str = ""
    mjd: float | None = None

    def plain(self) -> dict[str, object]:
        """Values that Snakemake can hand to a script."""
        row = asdict(self) | {"path": str(self.path), "psf": [*map(str, self.psf)]}
        return row | {"catalog": None if self.catalog is None else str(self.catalog)}

    @classmethod
    def of(cls, row: Mapping[str, object]) -> "FieldRow":
        """The row that `plain` wrote."""
        catalog = row["catalog"]
        return cls(
            **{
                **row,
                "path": Path(row["path"]),
                "catalog": catalog and Path(catalog),
                "psf": tuple(map(Path, row["psf"])),
            }
        )


def epochs_of(rows: Sequence[FieldRow]) -> list[str]:
    """Name of the epoch of each observation of a field: as given, else its number from 1."""
    return [row.epoch or str(number) for number, row in enumerate(rows, 1)]


def split_bands(text: str) -> tuple[str, ...]:
    """Band names of `"g,r,i"` or `"g r i"`."""
    return tuple(re.split(r"[,\s]+", text.strip())) if text.strip() else ()


def expand(text: str, folder: Path) -> Path:
    """Path of a cell: variables expanded, relative to the folder of the table.

    Raises:
        InputError: If a variable other than BLENDEM_DATA is not set.
    """

    def value(match: re.Match) -> str:
        name = match[1] or match[2]
        if name in os.environ:
            return os.environ[name]
        if name == DATA_VARIABLE:
            return str(Path(DATA_DEFAULT).resolve())
        raise InputError(
            f"the environment variable {name} in {text!r} is not set; export it, or write"
            " the path out"
        )

    expanded = Path(re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, text)).expanduser()
    return expanded if expanded.is_absolute() else folder / expanded


def read_fields_table(path: str | Path) -> list[FieldRow]:
    """Read a table of fields.

    Tab-separated, with a header line; empty lines and lines that start with `#` are
    skipped. Columns `field`, `instrument`, `path` are needed, `catalog`, `survey`, `bands`
    (`g,r,i`), `magzero`, `stars` (ids), `psf` (a PSFEx file per band), `epoch` (a name) and
    `mjd` are optional. Several rows with one `field` are several
    observations of it; the first one sets the model grid. Relative paths start from the
    table's folder; `${BLENDEM_DATA}` and other environment variables are expanded.

    Raises:
        InputError: If the table cannot be read; it lists all bad rows.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the table of fields ({error.strerror}); check `fields` in"
            " the configuration."
        ) from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: not a text file; the table of fields is tab-separated text."
        ) from None
    lines = [
        (number, line.split("\t"))
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        raise InputError(
            f"{path}: empty; give a header line (field, instrument, path, separated by"
            " tabs) and one row per observation."
        )
    header = [cell.strip() for cell in lines[0][1]]
    _check_header(path, header)
    rows, problems, seen = [], [], {}
    for number, cells in lines[1:]:
        try:
            row = _read_row(header, [cell.strip() for cell in cells], path.parent)
        except InputError as error:
            problems.append(f"line {number}: {error}")
            continue
        if (first := seen.setdefault((row.field, row.path), number)) != number:
            problems.append(
                f"line {number}: repeats field {row.field} with {row.path} of line {first};"
                " remove one, the data would count twice"
            )
        rows.append(row)
    if not lines[1:]:
        problems.append("no rows after the header; give one row per observation")
    if problems:
        raise input_error(str(path), problems)
    return rows


def check_files(rows: Sequence[FieldRow]) -> None:
    """Make sure that every file of the rows exists.

    Raises:
        InputError: It lists all files that are missing, with their fields.
    """
    problems = [
        f"field {row.field}: {what} {path} does not exist; correct the table, or set"
        f" {DATA_VARIABLE} if it names the folder"
        for row in rows
        for what, path in (
            ("file", row.path),
            ("catalog", row.catalog),
            *(("PSF model", path) for path in row.psf),
        )
        if path is not None and not path.is_file()
    ]
    if problems:
        raise input_error("table of fields", problems)


def _check_header(path: Path, header: list[str]) -> None:
    known = REQUIRED + OPTIONAL
    problems = []
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        hint = "" if len(header) > 1 else "; are the columns separated by tabs?"
        problems.append(f"header lacks column {', '.join(missing)}, got {header}{hint}")
    for name in header:
        if name not in known and len(header) > 1:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            problems.append(
                f"unknown column {name!r}; "
                + (
                    f"did you mean {near[0]!r}?"
                    if near
                    else f"known: {', '.join(known)}"
                )
            )
        elif header.count(name) > 1:
            problems.append(f"column {name!r} appears twice; remove one")
    if problems:
        raise input_error(str(path), problems)


def _read_row(header: list[str], cells: list[str], folder: Path) -> FieldRow:
    if len(cells) > len(header):
        raise InputError(
            f"{len(cells)} cells for {len(header)} columns; remove the surplus tabs"
        )
    cell = dict.fromkeys(REQUIRED + OPTIONAL, "") | dict(
        zip(header, cells, strict=False)
    )
    empty = [name for name in REQUIRED if not cell[name]]
    if empty:
        raise InputError(f"column {', '.join(empty)} is empty; fill it")
    if not FIELD_NAME.fullmatch(cell["field"]):
        raise InputError(
            f"field {cell['field']!r} cannot name a file; use letters, digits, `_`, `.`, `-`"
        )
    magzero = _number(cell, "magzero", "the AB zero point [mag]")
    try:
        stars = tuple(int(name) for name in split_bands(cell["stars"]))
    except ValueError:
        raise InputError(
            f"stars {cell['stars']!r} are not ids; give whole numbers separated by commas"
        ) from None
    return FieldRow(
        field=cell["field"],
        instrument=cell["instrument"],
        path=expand(cell["path"], folder),
        catalog=expand(cell["catalog"], folder) if cell["catalog"] else None,
        survey=cell["survey"],
        bands=split_bands(cell["bands"]) or None,
        magzero=magzero,
        stars=stars,
        psf=tuple(
            expand(name.strip(), folder)
            for name in cell["psf"].split(",")
            if name.strip()
        ),
        epoch=cell["epoch"],
        mjd=_number(cell, "mjd", "the time of the exposure [day]"),
    )


def _number(cell: Mapping[str, str], name: str, what: str) -> float | None:
    """Number in an optional cell."""
    if not cell[name]:
        return None
    try:
        return float(cell[name])
    except ValueError:
        raise InputError(
            f"{name} {cell[name]!r} is not a number; give {what}"
        ) from None
