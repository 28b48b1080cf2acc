"""Statistics of the blends that watch EM, with a part of their pixels held out."""

import logging
from pathlib import Path

import jax
import numpy as np

from blendem.config import BlendsConfig, InferConfig
from blendem.inference.amplitude import Amplitudes
from blendem.inference.batch import statistics_of
from blendem.inference.em import is_held_out
from blendem.inference.posterior import unpad
from blendem.inference.predictive import split_pixels
from blendem.inference.rescale import refine_stack, rescale
from blendem.io.blends import read_blends
from blendem.io.priors import gaussian_of, read_prior
from blendem.io.products import read_h5, write_h5
from blendem.io.statistics import pack, read_settings
from blendem.logs import configure_logging
from blendem.prior.gaussian import empty_stamp
from blendem.rng import stage_rng
from blendem.survey.instruments import MAGZERO

LOG = logging.getLogger(__name__)


def main(
    blends: Path,
    statistics: Path,
    prior: Path,
    output: Path,
    infer: InferConfig,
    config: BlendsConfig,
    held_out: float,
    pixels_out: float,
    seed: int,
) -> None:
    """Amplitudes come from the pixels that are seen, and hold for the others."""
    model, _ = read_prior(prior)
    gaussian, dark = gaussian_of(model), empty_stamp(model.basis)
    data = read_blends(blends)
    known = read_h5(statistics, only=("in_em",))[0]["in_em"]
    settings = read_settings(statistics)
    chosen = known & is_held_out(data.names, held_out, seed)
    out = {}
    for number, stack in enumerate(data.stacks):
        rows = np.flatnonzero(chosen & (data.blends["stack"] == number))
        if not len(rows):
            continue
        index = data.blends["index"][rows]
        part = jax.tree.map(lambda leaf, i=index: np.asarray(leaf)[i], stack)
        names = [data.names[row] for row in rows]
        rngs = [stage_rng(seed, f"em_split/{name}") for name in names]
        split = split_pixels(part, pixels_out, rngs)
        if any(o.correlation is not None for o in part.observations):
            LOG.warning(
                "noise is correlated: seen and unseen pixels are scored as if they were"
                " independent; gains of the log score are rough"
            )
        first = statistics_of(split.seen, model.basis, settings, config.batch)
        amplitudes = Amplitudes(*(first[name] for name in Amplitudes._fields))
        unseen = statistics_of(
            split.unseen, model.basis, settings, config.batch, amplitudes
        )
        seen = first
        if infer.refine_amplitudes:
            seen = refine_stack(first, part, gaussian, settings.reference)
        for i, row in enumerate(rows):
            field = data.fields[data.blends["field"][row]]
            zero = 0.4 * np.log(10) * (MAGZERO - field["magzero"])
            present = np.asarray(part.present[i], bool)
            both = [
                unpad(
                    *(s[name][i] for name in ("H", "b", "r2", "log_norm", "n_data")),
                    present=present,
                    is_star=np.asarray(part.is_star[i]),
                    n_modes=len(model.basis.modes),
                    log_amplitude=np.log(np.maximum(s["scale"][i], 1e-30)) + zero,
                )
                for s in (seen, unseen)
            ]
            ratio = np.exp(both[0].log_amplitude - both[1].log_amplitude)
            both[1] = rescale(both[1], ratio, dark)
            out[str(row)] = dict(zip(("seen", "unseen"), map(pack, both), strict=True))
    LOG.info("%d of %d blends watch EM", len(out), known.sum())
    write_h5(output, out)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.blends),
        Path(snakemake.input.statistics),
        Path(snakemake.input.basis),
        Path(snakemake.output.split),
        InferConfig(**snakemake.params.infer),
        BlendsConfig(**snakemake.params.blends),
        **snakemake.params.held_out,
        seed=snakemake.params.seed,
    )
