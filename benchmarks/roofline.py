"""Arithmetic and memory that the statistics of blends need, against what they take.

    python benchmarks/roofline.py results/field

For the stacks of a chunk, alone on one core and without compilation: operations of the symmetric
product H = A' A (its upper blocks) and of the shifts that render A, bytes of A written once and read
once per block, and the seconds that both would take at the speed of one product of matrices and one
copy in memory, measured in the same process.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from blendem.blend import Blend
from blendem.inference.batch import by_shape, statistics_of
from blendem.inference.statistics import BLOCKS, Settings
from blendem.io.atomic import atomic_path
from blendem.io.blends import read_blends
from blendem.io.priors import read_prior
from blendem.io.statistics import read_settings
from blendem.renderer import Renderer

REPEATS = 3
MOST = 24  # blends of a stack that are timed


def main() -> None:
    """Time the stacks of a chunk, print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--chunk", type=int, default=0)
    given = parser.parse_args()
    data = read_blends(given.run / f"blends/{given.chunk}.h5")
    basis = read_prior(given.run / "prior/basis.eqx")[0].basis
    settings = read_settings(given.run / f"statistics/{given.chunk}.h5")
    flops, copies = product_speed(), copy_speed()
    rows = []
    for stack in sorted(data.stacks, key=lambda s: -len(s.centers)):
        if stack.zoom is not None or len(stack.observations) > 1:
            continue
        few = jax.tree.map(lambda leaf: leaf[:MOST], stack)
        need, bytes_ = needed(few, len(basis.modes), settings)
        seconds = fastest(lambda s=few: statistics_of(s, basis, settings, 1))
        n = len(few.centers)
        rows.append(
            {
                "sources": few.present.shape[1],
                "size": few.observations[0].image.shape[-1],
                "blends": len(stack.centers),
                "gflop": need / n / 1e9,
                "mbyte": bytes_ / n / 1e6,
                "s_arithmetic": need / n / flops,
                "s_memory": bytes_ / n / copies,
                "s_measured": seconds / n,
            }
        )
    table = pd.DataFrame(rows)
    table["part_of_roof"] = table[["s_arithmetic", "s_memory"]].max(axis=1)
    table["part_of_roof"] /= table["s_measured"]
    out = {"gflop_per_s": flops / 1e9, "gbyte_per_s": copies / 1e9, "stacks": rows}
    with atomic_path(given.run / "roofline.json") as temporary:
        temporary.write_text(json.dumps(out, indent=1) + "\n")
    print(
        f"{flops / 1e9:.0f} Gflop/s in a product, {copies / 1e9:.1f} Gbyte/s in a copy"
    )
    print(table.round(3).to_string(index=False))


def needed(stack: Blend, n_modes: int, settings: Settings) -> tuple[float, float]:
    """Operations and bytes of the statistics of a stack."""
    (observation,) = stack.observations
    n_bands, size = observation.image.shape[-3], observation.image.shape[-1]
    first = jax.tree.map(lambda leaf: leaf[0], observation)
    low = jax.eval_shape(
        lambda o: Renderer.of(o, settings.stamp, np.float32(0.7)), first
    ).n_low
    # A shift along y, then one along x, of modes, mean and templates.
    render = 2 * (n_modes + 3) * size * low * (low + size)
    operations = bytes_ = 0.0
    for group, n_sources, pixels in by_shape(stack):
        blocks = np.ceil(n_sources / np.ceil(n_sources / BLOCKS))
        upper = (n_sources * n_modes) ** 2 * (1 + 1 / blocks) / 2
        operations += (
            len(group) * n_bands * (2 * pixels[0] * upper + n_sources * render)
        )
        # Columns are written once, and read once by every block.
        a = 4 * pixels[0] * n_sources * n_modes
        bytes_ += len(group) * n_bands * a * (1 + (blocks + 1) / 2)
    return operations, bytes_


def fastest(program: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls, after one that compiles."""
    program()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        program()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def product_speed(n: int = 1024) -> float:
    """Operations per second of a float32 product in XLA."""
    a = jax.numpy.ones((n, n), np.float32)
    product = jax.jit(lambda x: x @ x)
    return 2 * n**3 / fastest(lambda: product(a).block_until_ready())


def copy_speed(n: int = 2**26) -> float:
    """Bytes per second that are read and written when memory is copied."""
    a = np.ones(n // 4, np.float32)
    b = np.empty_like(a)
    return 2 * n / fastest(lambda: np.copyto(b, a))


if __name__ == "__main__":
    main()
