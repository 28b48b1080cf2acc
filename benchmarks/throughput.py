"""blendem and scarlet2 on the same blends in one process, compilation included.

    .venv-peers/bin/python benchmarks/throughput.py results/<latent run> --blends 1000 --peer 1000

Blends are drawn by `--seed` from all of the run. Every stage is what its rule of the workflow does, files
and all, without cached programs; scarlet2 by the recipe of peer_scarlet2.py. Wall and CPU seconds are
of the stage over its blends; `compile_seconds` is what of the wall time went into compiling, once per
shape for blendem, so that `seconds_of_1000` is the time per blend with 1000 of them. The MAP of blendem is the closed form: the mean of the Gaussian tier, which is its
maximum too, or the profile fit, both with the statistics they need. Writes `throughput.csv` and `.json`.
"""

import argparse
import resource
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from astropy.io import fits
from method_results import Cutouts, read_cutouts
from profiles_of_run import META, subset
from records import Report

from blendem.config import BlendsConfig, FrameConfig, InferConfig, MapConfig
from blendem.io.blends import BlendSet, write_blends
from blendem.io.table import FieldRow

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"
DRAWS = 64


# What JAX reports of its one-off work, wall time; not tracing, which is reported at every level.
ONCE = ("jaxpr_to_mlir_module", "backend_compile")


class Stopwatch:
    """Wall, processor and compilation time since it was made [s]."""

    compiled = 0.0

    def __init__(self):
        self.start = self._now()

    @classmethod
    def _now(cls) -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time(), cls.compiled])

    def read(self) -> np.ndarray:
        """The three of them."""
        return self._now() - self.start

    @classmethod
    def listen(cls, event: str, seconds: float, **_) -> None:
        """Add what JAX says that it spent."""
        if event.removesuffix("_duration").endswith(ONCE):
            cls.compiled += seconds


def script(name: str) -> Callable:
    """The `main` of a script of the workflow."""
    return runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"]


def parts(run: Path, cutouts: Cutouts, chosen: np.ndarray) -> list[BlendSet]:
    """The chosen rows of `cutouts.blends`, chunk after chunk."""
    found = []
    for begin, data in cutouts.chunks:
        rows = chosen - begin
        rows = np.sort(rows[(rows >= 0) & (rows < len(data.blends["field"]))])
        if len(rows):
            # The statistics are computed anew.
            empty = {f"stack_{k}": {} for k in range(len(data.stacks))}
            found.append(subset(data, empty, rows)[0])
    return found


def time_blendem(run: Path, data: list[BlendSet], settings: InferConfig, say) -> None:
    """Statistics, then what follows from them."""
    batching = BlendsConfig()
    basis, prior = run / "prior" / "basis.eqx", run / "prior" / "00.eqx"
    n = sum(len(d.blends["field"]) for d in data)

    def timed(what: str, stage: Callable[[int], None]) -> np.ndarray:
        watch = Stopwatch()
        for k in range(len(data)):
            stage(k)
        spent = watch.read()
        say(what, spent, n)
        return spent

    with tempfile.TemporaryDirectory() as name:
        part = Path(name)
        (part / "map").mkdir()
        for k, d in enumerate(data):
            write_blends(part / f"blends_{k}.h5", d)
        main = script("compute_statistics")
        statistics = timed(
            "statistics",
            lambda k: main(
                part / f"blends_{k}.h5",
                basis,
                part / f"statistics_{k}.h5",
                settings,
                batching,
                1.3,
            ),
        )
        draw = script("sample_posterior")

        def posterior(model: Path, samples: int) -> Callable[[int], None]:
            return lambda k: draw(
                part / f"blends_{k}.h5",
                part / f"statistics_{k}.h5",
                model,
                part / f"posterior_{k}.h5",
                settings.model_copy(update={"samples": samples}),
                batching.batch,
                0,
            )

        exact = timed("gaussian mean", posterior(basis, 2))
        say("blendem MAP, Gaussian tier", statistics + exact, n)
        draws = timed(f"latent, {DRAWS} draws", posterior(prior, DRAWS))
        say(f"blendem posterior, {DRAWS} draws", statistics + draws, n)
        fit = script("fit_map")

        def profiles(k: int) -> None:
            fields = np.unique(data[k].sources["field"])
            fit(
                [FieldRow(f, "", run / "fields" / f"{f}.fits") for f in fields],
                part / f"blends_{k}.h5",
                part / f"statistics_{k}.h5",
                basis,
                [part / "map" / f"{f}.fits" for f in fields],
                part / f"map_{k}.h5",
                MapConfig(),
                FrameConfig(),
                batching,
                settings.centroid_prior,
                META,
            )

        fitted = timed("profile fit", profiles)
        say("blendem MAP, profiles", statistics + fitted, n)


def time_scarlet2(run: Path, cutouts: Cutouts, rows: np.ndarray, say) -> None:
    """Its documented recipe on every blend; each compiles anew."""
    import peer_scarlet2
    import scarlet2

    scarlet2.set_validation(False)
    watch, failed = Stopwatch(), 0
    for count, row in enumerate(rows, 1):
        b = cutouts.blends.loc[row]
        with fits.open(run / "fields" / f"{b['field']}.fits") as file:
            field = [np.array(file[hdu].data, float) for hdu in ("SCI", "VAR")]
        members = cutouts.sources[cutouts.sources["blend"] == row].sort_values("slot")
        image, weight, low = peer_scarlet2.wide_cutout(cutouts, row, *field, 16)
        try:
            peer_scarlet2.fit_blend(
                image,
                weight,
                np.asarray(cutouts.blend(row).observations[0].psf),
                cutouts.bands,
                members[["y", "x"]].to_numpy() - low,
                (members["type"] == "star").to_numpy(),
                1000,
                1e-4,
                timed=False,
            )
        except (ValueError, AssertionError, RuntimeError, IndexError) as error:
            failed += 1
            print(f"{b['field']}/{b['number']}: {error}"[:200], flush=True)
        if count % peer_scarlet2.CLEAR_EVERY == 0:
            jax.clear_caches()
    spent = watch.read()
    print(f"scarlet2: {failed} of {len(rows)} blends failed")
    say("scarlet2 MAP", spent, len(rows))


def main(options: argparse.Namespace) -> None:
    """Time all, write."""
    run, numbers = options.run, []
    cutouts = read_cutouts(run)
    usable = np.flatnonzero(cutouts.blends["stack"] >= 0)
    order = np.random.default_rng(options.seed).permutation(usable)
    chosen = order[: options.blends]

    def say(what: str, spent: np.ndarray, n: int) -> None:
        wall, cpu, _ = spent / n
        once = spent[2]
        # scarlet2 compiles for every blend.
        many = (
            wall if what.startswith("scarlet2") else (spent[0] - once) / n + once / 1000
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        row = {"what": what, "n": n, "seconds": wall, "cpu_seconds": cpu}
        row |= {"compile_seconds": once, "seconds_of_1000": many}
        numbers.append(row | {"peak_gib": peak})
        print(
            f"{what}: {wall:.3f} s, CPU {cpu:.3f} s per blend (n = {n}),"
            f" {once:.1f} s compilation",
            flush=True,
        )

    # The mean number of sources of both sets is close, that of pixels too.
    settings = InferConfig(reference_band=options.band)
    time_blendem(run, parts(run, cutouts, chosen), settings, say)
    if options.peer:
        time_scarlet2(run, cutouts, chosen[: options.peer], say)
    options.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(numbers)
    table.to_csv(options.out / "throughput.csv", index=False)
    report = Report(" ".join(sys.argv))
    for row in numbers:
        for kind in ("seconds", "cpu_seconds", "seconds_of_1000"):
            report.say(f"throughput/{row['what']}/{kind}", row[kind], "s", row["n"])
    if options.peer:
        by = table.set_index("what")
        for mine in (
            "blendem MAP, Gaussian tier",
            "blendem MAP, profiles",
            f"blendem posterior, {DRAWS} draws",
        ):
            for kind in ("seconds", "cpu_seconds", "seconds_of_1000"):
                ratio = by.loc["scarlet2 MAP", kind] / by.loc[mine, kind]
                report.say(
                    f"throughput/scarlet2 over {mine}/{kind}", ratio, n=options.peer
                )
    report.write(options.out / "throughput.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder results/<run> of a latent run")
    parser.add_argument("--blends", type=int, default=1000)
    parser.add_argument("--peer", type=int, default=1000, help="of them for scarlet2")
    parser.add_argument("--band", default="i", help="as `infer.reference_band`")
    parser.add_argument("--seed", type=int, default=1, help="chooses the blends")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark"))
    arguments = parser.parse_args()
    # Cached programs would make compilation look free.
    jax.config.update("jax_enable_compilation_cache", False)
    jax.monitoring.register_event_duration_secs_listener(Stopwatch.listen)
    main(arguments)
