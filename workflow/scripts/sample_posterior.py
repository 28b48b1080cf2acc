"""Joint posterior draws of every blend of a chunk, and what the sampler says about them."""

import itertools
import logging
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from blendem.config import InferConfig
from blendem.inference.amplitude import Amplitudes
from blendem.inference.draws import (
    DIAGNOSTICS,
    BlendDraws,
    exact_draws,
    negative_flux_fraction,
    sampled_draws,
)
from blendem.inference.pixel_sampler import PixelDraws, PixelSettings, sample_blends
from blendem.inference.posterior import BlendStatistics, posterior
from blendem.inference.sampler import Draws, SamplerSettings, portion
from blendem.inference.settle import sample_settled
from blendem.inference.statistics import Settings, n_offset_unknowns
from blendem.io.blends import BlendSet, read_blends
from blendem.io.priors import Prior, read_prior
from blendem.io.products import write_h5
from blendem.io.statistics import read_amplitudes, read_settings, read_statistics
from blendem.logs import configure_logging
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.unet import UNetPrior
from blendem.rng import stage_key, stage_rng

LOG = logging.getLogger(__name__)
INSIDE = (0.0, 0.0)  # the last two, for priors whose galaxies are in the basis


def main(
    blends: Path,
    statistics: Path,
    prior: Path,
    output: Path,
    infer: InferConfig,
    batch: int,
    seed: int,
) -> None:
    """A blend whose posterior fails is marked and does not stop the others."""
    start = time.perf_counter()
    data = read_blends(blends)
    model, _ = read_prior(prior)
    d, n = len(model.mean), len(data.sources["id"])
    rows = data.blends
    n_blends = len(rows["field"])
    out = {
        "mean": np.full((n, d), np.nan),
        "z": np.full((infer.samples, n, d), np.nan, np.float32),
        "shift": np.zeros((n, 2)),
        "shift_sd": np.zeros((n, 2)),
    }
    columns = ("chi2", "effective", "log_evidence", "n_data", "chi2_draws")
    columns += ("negative_flux", *DIAGNOSTICS)
    per_blend = {name: np.full(n_blends, np.nan) for name in columns}
    sky, offsets = [np.zeros(0)] * n_blends, [np.zeros((2, 0))] * n_blends
    chosen = read_settings(statistics)
    tier = _exact if isinstance(model, GaussianPrior) else _sampled
    if isinstance(model, UNetPrior):
        amplitudes, settings = read_amplitudes(statistics)
        tier = partial(
            _from_pixels,
            data=data,
            amplitudes=amplitudes,
            settings=settings,
            batch=batch,
        )
    called = data.names
    stream = enumerate(read_statistics(statistics, data))
    while part := list(itertools.islice(stream, portion())):
        given, names = {}, {}
        for row, s in part:
            names[row] = called[row]
            if s is not None:
                given[row] = s
            elif rows["stack"][row] >= 0:
                LOG.warning("%s: statistics are not finite", names[row])
        results, notes = tier(given, names, model, infer, seed)
        for row, values in notes.items():
            for name, value in zip(DIAGNOSTICS, values, strict=True):
                per_blend[name][row] = value
        for row, p in results.items():
            members = data.members(row)
            k = len(members)
            z = p.draws[:, : k * d].reshape(-1, k, d)
            out["mean"][members] = p.mean[: k * d].reshape(k, d)
            out["z"][:, members] = z
            rest, sd = p.mean[k * d :], p.sd[k * d :]
            if len(rest) >= 2 * k:  # shift modes, in units of their prior deviation
                out["shift"][members] = rest[: 2 * k].reshape(k, 2)
                out["shift_sd"][members] = sd[: 2 * k].reshape(k, 2)
                rest, sd = rest[2 * k :], sd[2 * k :]
            seen_by = data.stacks[rows["stack"][row]].observations
            m = n_offset_unknowns(len(seen_by), chosen)
            sky[row] = rest[: len(rest) - m]
            offsets[row] = (
                chosen.offset_sigma * np.stack([rest, sd])[:, len(rest) - m :]
            )
            per_blend["chi2"][row] = p.chi2_of_mean
            per_blend["effective"][row] = p.effective
            per_blend["log_evidence"][row] = p.log_evidence
            per_blend["n_data"][row] = given[row].n_data
            per_blend["chi2_draws"][row] = p.chi2_of_draws
            per_blend["negative_flux"][row] = negative_flux_fraction(
                model.basis, z, np.asarray(given[row].is_star, bool)
            )
    width = max(map(len, sky), default=0)
    out["sky"] = np.array([np.pad(x, (0, width - len(x))) for x in sky]).reshape(
        n_blends, width
    )
    width = max((x.shape[1] for x in offsets), default=0)
    padded = [
        np.pad(x, [(0, 0), (0, width - x.shape[1])], constant_values=np.nan)
        for x in offsets
    ]
    # Mean and standard deviation of every observation but the first (y, x) [model pixel].
    pairs = np.reshape(padded, (n_blends, 2, width // 2, 2))
    out["offset"], out["offset_sd"] = pairs.swapaxes(0, 1)
    seconds = time.perf_counter() - start
    LOG.info("%d blends, %d draws each: %.1f s", n_blends, infer.samples, seconds)
    write_h5(output, out | {"blends": per_blend}, {"seconds": seconds})


def _exact(
    given: dict[int, BlendStatistics],
    names: dict[int, str],
    prior: GaussianPrior,
    infer: InferConfig,
    seed: int,
) -> tuple[dict[int, BlendDraws], dict[int, tuple]]:
    """Closed form: nothing is solved by iterations."""
    results, notes = {}, {}
    for row, s in given.items():
        try:
            p = posterior(s, prior)
        except (np.linalg.LinAlgError, ValueError) as error:
            LOG.warning("%s: no posterior: %s", names[row], error)
            continue
        rng = stage_rng(seed, f"sample_posterior/{names[row]}")
        results[row] = exact_draws(s, p, infer.samples, rng)
        notes[row] = (0.0, 0, 0, 0.0, 0, *INSIDE)
    return results, notes


def _sampled(
    given: dict[int, BlendStatistics],
    names: dict[int, str],
    prior: Prior,
    infer: InferConfig,
    seed: int,
) -> tuple[dict[int, BlendDraws], dict[int, tuple]]:
    """Reverse diffusion of the galaxies of all blends; nuisances follow exactly."""
    found, failed = sample_settled(
        prior,
        given,
        infer.samples,
        SamplerSettings(steps=infer.steps, corrector=infer.corrector),
        keys={r: stage_key(seed, f"sample_posterior/{names[r]}") for r in given},
        rngs=lambda row: stage_rng(seed, f"sample_posterior/{names[row]}"),
        reference=prior.basis.bands.index(infer.reference_band),
        tolerance=infer.amplitude_tolerance,
    )
    for row, error in failed.items():
        LOG.warning("%s: no posterior: %s", names[row], error)
    results, notes = {}, {}
    for row, one in found.items():
        notes[row] = (*_solver(one.draws), *INSIDE)
        if _usable(one.draws, names[row]) and one.w is not None:
            results[row] = sampled_draws(given[row], one.w)
        if one.moved.any():
            LOG.info(
                "%s: amplitudes moved by %s", names[row], np.exp(one.moved).round(2)
            )
    return results, notes


def _from_pixels(
    given: dict[int, BlendStatistics],
    names: dict[int, str],
    prior: UNetPrior,
    infer: InferConfig,
    seed: int,
    *,
    data: BlendSet,
    amplitudes: list[Amplitudes],
    settings: Settings,
    batch: int,
) -> tuple[dict[int, BlendDraws], dict[int, tuple]]:
    """Reverse diffusion of stamps; what the basis holds of the draws goes on."""
    pixel = PixelSettings(steps=infer.steps, corrector=infer.corrector)
    results, notes = {}, {}
    for number, stack in enumerate(data.stacks):
        rows = [r for r in given if data.blends["stack"][r] == number]
        if not rows:
            continue
        index = data.blends["index"][rows]
        blends, known = jax.tree.map(
            lambda leaf, i=index: np.asarray(leaf)[i], (stack, amplitudes[number])
        )
        found = sample_blends(
            prior,
            blends,
            known,
            infer.samples,
            settings,
            pixel,
            keys=[stage_key(seed, f"sample_posterior/{names[r]}") for r in rows],
            # A batch is filled up, and these are dear.
            batch=min(batch, len(rows)),
        )
        LOG.info("stack %d: %d blends drawn", number, len(rows))
        for row, present, star, one in zip(
            rows, blends.present, blends.is_star, found, strict=True
        ):
            if not _usable(one, names[row]):
                notes[row] = (*_solver(one), np.nan, np.nan)
                continue
            results[row] = sampled_draws(given[row], one.unknowns(present))
            outside = one.outside[:, present & ~star]
            notes[row] = (
                *_solver(one),
                float(outside.mean()) if outside.size else 0.0,
                results[row].chi2_of_draws - float(one.chi2.mean()),
            )
    return results, notes


def _solver(draws: Draws | PixelDraws) -> tuple:
    """What the sampler says: the first values of `DIAGNOSTICS`."""
    return (
        draws.residual,
        draws.unconverged,
        draws.guards,
        draws.iterations,
        int(draws.failed.sum()),
    )


def _usable(draws: Draws | PixelDraws, name: str) -> bool:
    """Whether all draws are finite; what went wrong goes to the log."""
    if draws.failed.any():
        LOG.warning(
            "%s: no posterior: %d of %d draws are not finite",
            name,
            draws.failed.sum(),
            len(draws.failed),
        )
        return False
    if draws.unconverged or draws.guards:
        LOG.info(
            "%s: %d solves above the tolerance, worst residual %.1e, %d guards",
            name,
            draws.unconverged,
            draws.residual,
            draws.guards,
        )
    return True


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.blends),
        Path(snakemake.input.statistics),
        Path(snakemake.input.prior),
        Path(snakemake.output.posterior),
        InferConfig(**snakemake.params.infer),
        snakemake.params.batch,
        snakemake.params.seed,
    )
