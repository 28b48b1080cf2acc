"""How long posteriors of blends of four galaxies take, beside scarlet2's fit of the same blends.

    make calibration && make benchmark-speed

One process times, per blend and without compilation: sufficient statistics, draws (`--draws`)
with 20, 48 and 64 levels and 16 sweeps, and the MAP of scarlet2 on the same pixels, by the recipe of
peer_scarlet2.py (its compilation apart). Then the same with few draws for 10, 100 and 1000
blends, read in portions as the workflow does: seconds per galaxy, and the peak of the memory.
Writes `results/speed/speed.csv`.
"""

import argparse
import resource
import sys
import time
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from astropy.io import fits

from blendem.inference.batch import statistics_of
from blendem.inference.likelihood import galaxy_likelihood
from blendem.inference.posterior import unpad
from blendem.inference.rescale import refine_stack
from blendem.inference.sampler import SamplerSettings, sample
from blendem.io.blends import read_blends
from blendem.io.priors import gaussian_of, read_prior
from blendem.io.statistics import read_settings, read_statistics
from blendem.rng import stage_key

GALAXIES, PORTION, FEW_DRAWS = 4, 64, 4
REPEATS = 3


def timed(program, n: int) -> float:
    """Fastest of some runs after one that compiles [s / n]."""
    program()
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        program()
        seconds.append(time.perf_counter() - begin)
    return min(seconds) / n


def four_galaxies(run: Path, chunk: str) -> tuple:
    """The blends of a chunk, and which stack and rows of it have exactly four galaxies."""
    data = read_blends(run / "blends" / f"{chunk}.h5")
    for number, stack in enumerate(data.stacks):
        present = np.asarray(stack.present)
        rows = np.flatnonzero(
            (present.sum(axis=1) == GALAXIES)
            & ~(present & np.asarray(stack.is_star)).any(axis=1)
        )
        if present.shape[1] == GALAXIES and len(rows):
            return data, number, rows
    raise SystemExit(f"{run}: chunk {chunk} has no blend of {GALAXIES} galaxies")


def time_posterior(run: Path, prior, n: int, draws: int, say) -> None:
    """Statistics and draws of `n` blends of one shape."""
    data, number, rows = four_galaxies(run, "0")
    rows = rows[:n]
    stack = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], data.stacks[number])
    settings = read_settings(run / "statistics" / "0.h5")
    gaussian = gaussian_of(prior)

    def statistics():
        # The same calls as workflow/scripts/compute_statistics.py.
        result = statistics_of(stack, prior.basis, settings, 8)
        return refine_stack(result, stack, gaussian, settings.reference)

    say("statistics", timed(statistics, len(rows)), len(rows))
    result = statistics()
    blends = [
        unpad(
            *(result[name][i] for name in ("H", "b", "r2", "log_norm", "n_data")),
            present=np.asarray(stack.present[i]),
            is_star=np.asarray(stack.is_star[i]),
            n_modes=len(prior.basis.modes),
            log_amplitude=np.log(np.asarray(result["scale"][i], float)),
        )
        for i in range(len(rows))
    ]
    keys = [stage_key(0, "speed", i) for i in range(len(rows))]
    default = SamplerSettings()
    # The second takes 64 steps, sweeps included.
    for levels in (default.steps, 64 - default.sweeps, 64):
        settings = default._replace(steps=levels)

        def draw(settings=settings):
            each = [galaxy_likelihood(s, prior) for s in blends]
            sample(prior, each, draws, settings, keys=keys)

        what = f"{draws} draws, {levels} levels, {settings.sweeps} sweeps"
        say(what, timed(draw, len(rows)), len(rows))


def time_scarlet2(run: Path, n: int, say) -> None:
    """Documented recipe on the same blends; each compiles anew."""
    import peer_scarlet2
    import scarlet2
    from method_results import read_cutouts

    jax.config.update("jax_enable_compilation_cache", False)
    scarlet2.set_validation(False)
    cutouts = read_cutouts(run)
    data, number, rows = four_galaxies(run, "0")
    chosen = np.flatnonzero(
        (data.blends["stack"] == number) & np.isin(data.blends["index"], rows[:n])
    )
    notes = []
    for row in chosen:
        b = cutouts.blends.loc[row]
        with fits.open(run / "fields" / f"{b['field']}.fits") as file:
            field = [np.array(file[hdu].data, float) for hdu in ("SCI", "VAR")]
        blend = cutouts.blend(row)
        members = cutouts.sources[cutouts.sources["blend"] == row].sort_values("slot")
        image, weight, begin = peer_scarlet2.wide_cutout(cutouts, row, *field, 16)
        notes.append(
            peer_scarlet2.fit_blend(
                image,
                weight,
                np.asarray(blend.observations[0].psf),
                cutouts.bands,
                members[["y", "x"]].to_numpy() - begin,
                (members["type"] == "star").to_numpy(),
                1000,
                1e-4,
                timed=True,
            )[2]
        )
    jax.config.update("jax_enable_compilation_cache", True)
    table = pd.DataFrame(notes)
    say("scarlet2 MAP, compilation", table["compile"].mean(), len(table))
    say("scarlet2 MAP, fit", (table["call"] - table["compile"]).mean(), len(table))


def time_many(run: Path, prior, sizes: list[int], say) -> None:
    """Blends of all sizes from disk, portion by portion; the run's are taken again and again."""

    def stream():
        while True:
            for path in sorted((run / "blends").glob("*.h5")):
                data = read_blends(path)
                for s in read_statistics(run / "statistics" / path.name, data):
                    if s is not None:
                        yield s

    def draw(n: int) -> int:
        blends, galaxies = islice(stream(), n), 0
        while portion := list(islice(blends, PORTION)):
            each = [galaxy_likelihood(s, prior) for s in portion]
            keys = [stage_key(0, "many", i) for i in range(len(each))]
            sample(prior, each, FEW_DRAWS, keys=keys)
            galaxies += sum(one.n_galaxies for one in each)
        return galaxies

    draw(100)  # compiles
    for n in sizes:
        begin = time.perf_counter()
        galaxies = draw(n)
        say(
            f"{FEW_DRAWS} draws of {n} blends of 2 to 6 galaxies, per galaxy",
            (time.perf_counter() - begin) / galaxies,
            n,
        )


def main(run: Path, out: Path, options: argparse.Namespace) -> None:
    """Print each number as it comes, write all at the end."""
    numbers = []

    def say(what: str, seconds: float, n: int) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        numbers.append({"what": what, "seconds": seconds, "n": n, "peak_gib": peak})
        print(f"{what}: {seconds:.3f} s (n = {n}), peak {peak:.2f} GiB", flush=True)

    prior, _ = read_prior(run / "prior" / "00.eqx")
    print(f"{jax.devices()[0].device_kind}, {jax.local_device_count()} device(s)")
    time_posterior(run, prior, options.blends, options.draws, say)
    if options.peer:
        time_scarlet2(run, options.peer, say)
    time_many(run, prior, options.many, say)
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(numbers).assign(command=" ".join(sys.argv)).to_csv(
        out / "speed.csv", index=False
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder results/<run> of a latent run")
    parser.add_argument("--blends", type=int, default=16, help="blends that are timed")
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument(
        "--peer", type=int, default=4, help="blends for scarlet2; 0: none"
    )
    parser.add_argument("--many", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    arguments = parser.parse_args()
    main(arguments.run, arguments.out, arguments)
