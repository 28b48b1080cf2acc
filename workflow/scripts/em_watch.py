"""How good the prior of one lap is, on blends that EM never sees."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from blendem.inference.draws import sampled_draws
from blendem.inference.em import sound
from blendem.inference.posterior import BlendStatistics
from blendem.inference.predictive import log_score, log_score_of_labels
from blendem.inference.sampler import SamplerSettings
from blendem.inference.settle import sample_settled
from blendem.io.atomic import atomic_path
from blendem.io.blends import read_blends
from blendem.io.priors import read_prior
from blendem.io.products import read_h5
from blendem.io.statistics import read_statistics, unpack
from blendem.io.truth import read_truth
from blendem.logs import configure_logging
from blendem.measure.em import (
    Whitening,
    denoising_loss,
    open_directions,
    posterior_scores,
    posterior_table,
    prior_variance,
    sliced_wasserstein,
)
from blendem.measure.multivariate import CELL_COUNTS, two_sample_test
from blendem.measure.quantities import posterior_quantities, truth_quantities
from blendem.prior.gaussian import empty_stamp
from blendem.prior.latent import LatentPrior
from blendem.prior.refit import Turns, latent_rows
from blendem.prior.symmetry import N_SYMMETRIES
from blendem.rng import stage_key, stage_rng

LOG = logging.getLogger(__name__)
DRAWS = 32
TURNED = 4  # copies of a true galaxy, each under a random symmetry
CELLS = 64  # of the two-sample test


class Drawn(NamedTuple):
    """Draws of one blend: coordinates that the diffusion moves, for the last amplitudes, and all
    unknowns, for those of the statistics."""

    e: Float[np.ndarray, "draw galaxy latent"]
    w: Float[np.ndarray, "draw unknown"]


def main(
    blends: list[Path],
    statistics: list[Path],
    split: list[Path],
    truths: list[Path],
    prior: Path,
    output: tuple[Path, Path],
    sources: Path | None,
    lap: int,
    steps: int,
    reference_band: str,
    amplitude_jitter: float,
    amplitude_tolerance: float,
    seed: int,
) -> None:
    """One row of the lap, and one of every blend (source) for paired differences between laps."""
    model, card = read_prior(prior)
    truth = {path.stem: read_truth(path) for path in truths}
    watched = _read_watched(blends, statistics, split)
    if not watched:
        raise ValueError(
            "no blend watches EM: raise em.held_out or the number of fields"
        )
    names = list(watched)
    reference = model.basis.bands.index(reference_band)
    whole, seen = (
        _draw(
            model, {n: watched[n][s] for n in names}, steps, s, seed, reference, limit
        )
        # Held-out pixels have the amplitudes of those that are seen.
        for s, limit in (("all", amplitude_tolerance), ("seen", 0.0))
    )
    if not whole:
        raise ValueError(
            f"none of the {len(names)} blends that watch EM has a posterior under {prior}; the"
            " log says why"
        )
    rows = []
    for name in names:
        row = {"blend": name, "n_unseen": watched[name]["unseen"].n_data}
        if name in seen:
            row["log_score"] = _log_score(model, watched[name], seen[name], name, seed)
        if name in whole:
            fit = sampled_draws(watched[name]["all"], whole[name].w)
            row |= {
                "chi2": fit.chi2_of_mean,
                "chi2_of_draws": fit.chi2_of_draws,
                "effective": fit.effective,
                "n_data": watched[name]["all"].n_data,
            }
        rows.append(row)
    table = pd.DataFrame(rows)
    good = table.dropna()
    laps = card.get("laps", [])
    numbers = (laps[-1] if laps else {}) | {
        "lap": lap,
        "watched": len(good),
        "without_result": len(table) - len(good),
    }
    numbers |= {
        "log_score": good["log_score"].sum() / good["n_unseen"].sum(),
        "log_score_error": good["log_score"].std()
        * len(good) ** 0.5
        / good["n_unseen"].sum(),
        "chi2_of_draws": good["chi2_of_draws"].sum() / good["n_data"].sum(),
        "chi2_over_expected": (
            good["chi2"] / (good["n_data"] - good["effective"])
        ).median(),
        "open_variance": prior_variance(
            model, open_directions(_information(model, watched))
        ),
    }
    if sources:
        distances, galaxies = _against_truth(
            model, watched, whole, truth, reference_band, amplitude_jitter, seed
        )
        numbers |= distances
        with atomic_path(sources) as temporary:
            galaxies.to_csv(temporary, index=False)
    LOG.info("%s", numbers)
    for path, frame in zip(output, (pd.DataFrame([numbers]), table), strict=True):
        with atomic_path(path) as temporary:
            frame.to_csv(temporary, index=False)


def _read_watched(blends, statistics, split) -> dict[str, dict]:
    """Statistics of the blends that watch: all pixels, seen and unseen ones; and who they are."""
    out = {}
    for b, s, p in zip(blends, statistics, split, strict=True):
        data, (parts, _) = read_blends(b), read_h5(p)
        wanted = {int(row) for row in parts}
        for row, one in enumerate(read_statistics(s, data)):
            if row not in wanted or one is None:
                continue
            members = data.members(row)
            out[data.names[row]] = {
                "all": one,
                "seen": unpack(parts[str(row)]["seen"]),
                "unseen": unpack(parts[str(row)]["unseen"]),
                "field": data.blends["field"][row],
                "ids": data.sources["id"][members],
            }
    return out


def _draw(
    model: LatentPrior,
    given: dict[str, BlendStatistics],
    steps: int,
    stage: str,
    seed: int,
    reference: int,
    tolerance: float = 0.0,
) -> dict[str, Drawn]:
    """Draws of every blend that has sound ones; the same seed in all laps."""
    found, failed = sample_settled(
        model,
        given,
        DRAWS,
        SamplerSettings(steps=steps),
        keys={n: stage_key(seed, f"em_watch/{stage}/{n}") for n in given},
        rngs=lambda name: stage_rng(seed, f"em_watch/{stage}/{name}"),
        reference=reference,
        tolerance=tolerance,
    )
    for name, error in failed.items():
        LOG.warning("%s: no posterior: %s", name, error)
    out = {}
    for name, one in found.items():
        good = sound(one.draws)
        if not good.all() or one.w is None:
            LOG.warning("%s: %d draws are not sound", name, (~good).sum())
            continue
        out[name] = Drawn(np.asarray(one.draws.e), one.w)
    return out


def _log_score(model, one: dict, drawn: Drawn, name: str, seed: int) -> float:
    """Exact given the labels of a mixture; a network leaves only the draws."""
    if model.network is not None:
        return log_score(one["unseen"], drawn.w)
    rng = stage_rng(seed, f"em_watch/labels/{name}")
    return log_score_of_labels(one["seen"], one["unseen"], model, drawn.e, rng)


def _information(model: LatentPrior, watched: dict) -> np.ndarray:
    """Mean information of the data on one galaxy, in coordinates that the diffusion moves."""
    d, n = len(model.mean), model.n_modes
    lower = np.asarray(model.cholesky, float)
    blocks = []
    for one in watched.values():
        H = one["all"].H
        for k, star in enumerate(one["all"].is_star):
            if not star:
                block = H[k * d : (k + 1) * d, k * d : (k + 1) * d]
                blocks.append((lower.T @ block @ lower)[:n, :n])
    return np.mean(blocks, axis=0)


def _against_truth(
    model, watched, whole, truth, band, amplitude_jitter, seed
) -> tuple[dict[str, float], pd.DataFrame]:
    """Denoising loss, distance of draws of the prior, errors of posteriors; these by galaxy."""
    basis, d = model.basis, len(model.mean)
    images, amplitude, who, z = [], [], [], []
    for name, one in watched.items():
        if name not in whole:
            continue
        known = truth[one["field"]]
        rows = known.rows(one["ids"])
        galaxy = np.flatnonzero(~np.asarray(one["all"].is_star, bool))
        images.append(known.images[rows][galaxy])
        columns = ["id", f"blendedness_{band}"]
        who.append(known.table[columns].iloc[rows].iloc[galaxy].assign(blend=name))
        amplitude.append(one["all"].log_amplitude[galaxy])
        w = whole[name].w[:, : len(one["ids"]) * d].reshape(DRAWS, -1, d)
        z.append(w[:, galaxy].astype(np.float32))
    images, z = np.concatenate(images), np.concatenate(z, axis=1)
    amplitude = np.concatenate(amplitude)
    scale = np.exp(amplitude)  # simulated images are in the unit of `MAGZERO`
    draws = posterior_quantities(basis, scale, z, band)
    true = truth_quantities(images, basis.bands, float(basis.pixel_scale), band)
    table = posterior_table(true, draws)
    galaxies = pd.concat(who, ignore_index=True)
    scores = posterior_scores(table, galaxies[f"blendedness_{band}"])
    # Galaxies as EM should learn them: relative to the amplitudes of the catalog.
    known = np.asarray(basis.encode(images / scale[:, None, None, None]), float)
    rng = stage_rng(seed, "em_watch/truth")
    turns = Turns(model.gaussian)
    every = np.concatenate(
        [turns(known, np.full(len(known), i)) for i in range(N_SYMMETRIES)]
    )
    moments, _ = latent_rows(model, every, np.tile(amplitude, N_SYMMETRIES))
    whitening = Whitening(moments[:, : model.n_modes])
    which = rng.integers(0, N_SYMMETRIES, TURNED * len(known))
    turned = turns(np.repeat(known, TURNED, axis=0), which)
    e, _ = latent_rows(model, turned, np.repeat(amplitude, TURNED))
    mixture, e = whitening.mixture(model.mixture), whitening(e)
    # The prior itself is one of galaxies whose amplitudes have these errors.
    reference = basis.bands.index(band)
    flux = images[:, reference].sum((-2, -1), dtype=float)
    flux /= model.gaussian.mean_flux(reference)
    unit = np.asarray(basis.encode(images / flux[:, None, None, None]), float)
    jitter = amplitude_jitter * rng.standard_normal(len(which))
    dark = empty_stamp(basis)
    turned = turns(np.repeat(unit, TURNED, axis=0), which)
    turned = dark + np.exp(jitter)[:, None] * (turned - dark)
    measured = np.repeat(np.log(flux), TURNED) - jitter
    like_prior = whitening(latent_rows(model, turned, measured)[0])
    key = stage_key(seed, "em_watch/truth")
    n = model.n_modes
    prior_draws = np.asarray(mixture.sample(len(e), key=key), float)
    distances = {
        **scores,
        **denoising_loss(mixture, e, n, key=key),
        "sliced_wasserstein": sliced_wasserstein(
            prior_draws[:, :n], like_prior[:, :n], rng
        ),
        "two_sample_chi2": _two_samples(
            prior_draws[:, :n], like_prior[::TURNED, :n], rng
        ),
        "energy_outside": _outside(basis, images / scale[:, None, None, None], known),
    }
    return distances, pd.concat([galaxies, table], axis=1)


def _two_samples(draws, true, rng) -> float:
    """Chi2 of counts in Voronoi cells per degree of freedom: 1 for equal distributions."""
    cells = min(CELLS, len(true) // CELL_COUNTS)
    if cells < 2:
        return np.nan
    test = two_sample_test(draws, true, cells, rng=rng)
    return test.chi2 / test.dof if test.dof else np.nan


def _outside(basis, images, z) -> float:
    """Part of the squared light of true galaxies that the basis cannot hold, median."""
    rest = images - np.asarray(basis.decode(z))
    return float(
        np.median(np.sum(rest**2, axis=(1, 2, 3)) / np.sum(images**2, axis=(1, 2, 3)))
    )


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    given, params = snakemake.input, snakemake.params
    main(
        [Path(path) for path in given.blends],
        [Path(path) for path in given.statistics],
        [Path(path) for path in given.split],
        [Path(path) for path in given.truths],
        Path(given.prior),
        (Path(snakemake.output.lap), Path(snakemake.output.blends)),
        Path(snakemake.output.sources) if given.truths else None,
        params.lap,
        params.steps,
        params.reference_band,
        params.amplitude_jitter,
        params.amplitude_tolerance,
        params.seed,
    )
