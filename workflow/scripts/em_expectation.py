"""E step of one lap: draws of the galaxies of all blends of a chunk."""

import itertools
import logging
import time
from pathlib import Path

from blendem.config import EMConfig
from blendem.inference.em import converged, draw_galaxies, is_held_out, join
from blendem.inference.sampler import portion
from blendem.io.blends import read_blends
from blendem.io.priors import read_prior
from blendem.io.products import read_h5, write_h5
from blendem.io.statistics import read_statistics
from blendem.logs import configure_logging
from blendem.prior.refit import broaden

LOG = logging.getLogger(__name__)


def main(
    blends: Path,
    statistics: Path,
    prior: Path,
    output: Path,
    lap: int,
    config: EMConfig,
    amplitude_jitter: float,
    seed: int,
) -> None:
    """Draws that are not sound are left out and counted.

    The blends that watch are drawn too: what a prior gives their galaxies tells whether it
    memorised those that it was taught.
    """
    start = time.perf_counter()
    model, card = read_prior(prior)
    if converged(card, lap):
        write_h5(output, {}, {"converged": True})
        return
    if lap == 1:
        model = broaden(model, config.broaden)
    data = read_blends(blends)
    names = data.names
    use = read_h5(statistics, only=("in_em",))[0]["in_em"]
    held_out = is_held_out(names, config.held_out, seed)
    arrays, attrs = {}, {}
    for kind, chosen in (("taught", use & ~held_out), ("unseen", use & held_out)):
        rows = (
            (s, names[row])
            for row, s in enumerate(read_statistics(statistics, data))
            if chosen[row]
        )
        parts = []
        while part := list(itertools.islice(rows, portion())):
            parts.append(
                draw_galaxies(
                    *zip(*part, strict=True),
                    model,
                    config.draws,
                    config.steps,
                    f"em/{lap}",
                    seed,
                    amplitude_jitter,
                )
            )
        draws = join(parts, len(model.mean))
        names_of = ("z", "galaxy", "center", "log_amplitude")
        arrays[kind] = {name: getattr(draws, name) for name in names_of}
        if kind == "taught":
            attrs = {
                "galaxies": len(draws.center),
                "failed": draws.failed,
                "diverged": draws.diverged,
                "blends": int(chosen.sum()),
                "seconds": time.perf_counter() - start,
            }
    LOG.info("%s", attrs)
    write_h5(output, arrays, attrs)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.blends),
        Path(snakemake.input.statistics),
        Path(snakemake.input.prior),
        Path(snakemake.output.draws),
        snakemake.params.lap,
        EMConfig(**snakemake.params.em),
        snakemake.params.amplitude_jitter,
        snakemake.params.seed,
    )
