"""The workflow as a command, in a folder of its own."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def snakemake(
    folder: Path, configfile: Path, *options: str, cores: int | None = 2
) -> list[str]:
    """Arguments of a run whose results go to `folder`; `options` come last.

    Without `cores` a profile says where jobs run.
    """
    program = Path(sys.executable).parent / "snakemake"
    words = [program, "--snakefile", ROOT / "Snakefile", "--directory", folder]
    if cores is not None:
        words += ["--cores", cores]
    words += ["--configfile", configfile, *options]
    return [str(word) for word in words]
