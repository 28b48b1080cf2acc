"""Closed-form profile fits (maximum likelihood MAP) of some blends of a run.

    .venv/bin/python benchmarks/profiles_of_run.py results/<run> --only results/<run>/peers/X.h5

The workflow's `map/` fits all blends; this fits those that a method file has, so that a slow
comparison need not wait for the rest. Writes `results/<run>/peers/profiles.h5`
(method_results.py), with the seconds of the fits.
"""

import argparse
import runpy
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from method_results import read_map, write_method

from blendem.config import BlendsConfig, FrameConfig, InferConfig, MapConfig
from blendem.io.blends import BlendSet, read_blends, write_blends
from blendem.io.products import read_h5, write_h5
from blendem.io.table import FieldRow

META = {
    "METHOD": "closed-form Sersic MAP",
    "CONFIG": "defaults",
    "VERSION": "benchmark",
}
SCRIPT = Path(__file__).parents[1] / "workflow" / "scripts" / "fit_map.py"


def subset(data: BlendSet, statistics: dict, rows: np.ndarray) -> tuple[BlendSet, dict]:
    """The given rows of `data.blends` alone, and their statistics."""
    stacks, groups, index = [], {}, np.full(len(data.blends["stack"]), -1)
    number = np.full_like(index, -1)
    for k, stack in enumerate(data.stacks):
        mine = rows[data.blends["stack"][rows] == k]
        if not len(mine):
            continue
        chosen = data.blends["index"][mine]
        number[mine], index[mine] = len(stacks), np.arange(len(mine))
        groups[f"stack_{len(stacks)}"] = {
            name: value[chosen]
            for name, value in statistics[f"stack_{k}"].items()
            if np.ndim(value) and len(value) == len(stack.centers)
        }
        stacks.append(jax.tree.map(lambda leaf, c=chosen: leaf[c], stack))
    blends = {name: value[rows] for name, value in data.blends.items()}
    blends |= {"stack": number[rows], "index": index[rows]}
    place = np.full(len(data.blends["stack"]), -1)
    place[rows] = np.arange(len(rows))
    kept = place[data.sources["blend"]] >= 0
    sources = {name: value[kept] for name, value in data.sources.items()}
    sources["blend"] = place[sources["blend"]]
    return BlendSet(stacks, sources, blends, data.fields, data.attrs), groups


def main(run: Path, only: Path, batch: int) -> None:
    """Fit chunk after chunk in a folder of its own, then write the method file."""
    wanted = pd.DataFrame(read_h5(only)[0]["blends"])
    wanted = pd.MultiIndex.from_frame(wanted[["field", "number"]])
    fit = runpy.run_path(str(SCRIPT))["main"]
    start, count = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as name:
        part = Path(name)
        for folder in ("blends", "map", "statistics"):
            (part / folder).mkdir()
        for path in sorted((run / "blends").glob("*.h5"), key=lambda p: int(p.stem)):
            data = read_blends(path)
            names = pd.MultiIndex.from_arrays(
                [data.blends["field"], data.blends["number"]]
            )
            rows = np.flatnonzero(names.isin(wanted))
            if not len(rows):
                continue
            count += len(rows)
            some, groups = subset(
                data, read_h5(run / "statistics" / path.name)[0], rows
            )
            write_blends(part / "blends" / path.name, some)
            write_h5(part / "statistics" / path.name, groups, {})
            fields = np.unique(some.sources["field"])
            fit(
                [FieldRow(f, "", run / "fields" / f"{f}.fits") for f in fields],
                part / "blends" / path.name,
                part / "statistics" / path.name,
                run / "prior" / "basis.eqx",
                [part / "map" / f"{f}.fits" for f in fields],
                part / "map" / path.name,
                MapConfig(),
                FrameConfig(),
                BlendsConfig(batch=batch),
                InferConfig().centroid_prior,
                META,
            )
        seconds = (time.perf_counter() - start) / count
        result = read_map(part)
        fitted = [
            read_h5(p)[0]["converged"] for p in sorted((part / "map").glob("*.h5"))
        ]
    converged = np.concatenate(fitted)
    write_method(
        run / "peers" / "profiles.h5",
        replace(result, seconds={"fit": seconds}),
        wanted.to_frame(index=False),
        {"method": "closed-form Sersic MAP", "command": " ".join(sys.argv)},
    )
    print(
        f"{count} blends, {seconds:.2f} s each, compilation included;"
        f" {converged.mean():.0%} of the sources in converged fits"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run with statistics")
    parser.add_argument(
        "--only", type=Path, required=True, help="method file: fit the blends it has"
    )
    parser.add_argument("--batch", type=int, default=4, help="blends at once")
    arguments = parser.parse_args()
    main(arguments.run, arguments.only, arguments.batch)
