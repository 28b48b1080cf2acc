"""Which modules stand behind a script: Snakemake sees the script, not what it imports."""

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

PACKAGE = "blendem"
# A change of these moves no number. Rules whose work is files name modules of `io` themselves.
PASSED_OVER = ("config", "logs", "provenance", "io/")


def modules_behind(script: Path, src: Path, without: Sequence[str] = ()) -> list[Path]:
    """Source files of the package that a script imports, and what these import in turn.

    Imports inside of functions are left out, as those of what most runs do not need.

    Args:
        script: Python file.
        src: Folder that holds the package.
        without: Beginnings of names such as `prior/` that are neither taken nor followed.
    """
    found, waiting = set(), [script]
    while waiting:
        for path in _imported(waiting.pop(), src):
            name = path.relative_to(src / PACKAGE).with_suffix("").as_posix()
            if path not in found and not name.startswith((*PASSED_OVER, *without)):
                found.add(path)
                waiting.append(path)
    return sorted(found)


@cache
def _imported(path: Path, src: Path) -> tuple[Path, ...]:
    """Modules of the package that one file names at its top level."""
    return tuple(
        file
        for node in ast.parse(path.read_text()).body
        for name in _names(node)
        if (file := _file_of(name, src)) is not None
    )


def _names(node: ast.AST) -> Iterator[str]:
    """Dotted names that a statement may import; some are functions of modules."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file_of(name: str, src: Path) -> Path | None:
    """File of a module or of a package below ours; None: it is a function, or not ours."""
    package, *parts = name.split(".")
    if package != PACKAGE or not parts:
        return None
    path = src.joinpath(package, *parts)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file() and file.stat().st_size:
            return file
    return None
