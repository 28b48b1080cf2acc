"""Fit the first prior: a mixture of Gaussians and, if asked for, a network that corrects it.

A training of the network that was killed goes on.
"""

import hashlib
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from tqdm import tqdm

from blendem.config import PriorConfig
from blendem.io.atomic import atomic_path
from blendem.io.checkpoints import fingerprint, load_checkpoint, save_checkpoint
from blendem.io.priors import gaussian_of, read_prior, tier_of, write_prior
from blendem.io.table import InputError
from blendem.logs import configure_logging
from blendem.precision import single_precision
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.latent import LatentPrior, fine_variances
from blendem.prior.mixture import MixturePrior
from blendem.prior.mixture_fit import fit_mixture
from blendem.prior.network import LatentNetwork
from blendem.prior.stamps import prepare_stamps
from blendem.prior.train import (
    HELD_OUT_LEVELS,
    Evaluation,
    Settings,
    State,
    TrainingError,
    TrainingSet,
    evaluate,
    start,
    train,
    training_set,
)
from blendem.rng import stage_key, stage_rng

LOG = logging.getLogger(__name__)
# Part and number of the stamps that nothing is trained on; as many teach the variance head.
HELD_OUT, MOST_HELD_OUT = 0.1, 2000
# Of EM; it is looked at after as many iterations, and at its end.
MIXTURE_ROWS, MIXTURE_ITERATIONS, MIXTURE_LOOK = 60000, 30, 3
CURVE = ["kind", "step", "seconds", "train_loss", "held_out"]


def main(
    basis: Path,
    stamps: list[Path],
    output: Path,
    curve: Path,
    checkpoint: Path,
    config: PriorConfig,
    reference_band: str,
    seed: int,
) -> None:
    """Without stamps the prior is a given one, or the Gaussian itself."""
    gaussian, card = read_prior(basis)
    if config.start is not None and not stamps:
        given, card = read_prior(config.start)
        prior = gaussian_of(given) if config.tier == "gaussian" else given
        card = card | {"started_from": config.start}
        _write_curve(curve, [])
    elif config.tier == "gaussian":
        prior = gaussian
        _write_curve(curve, [])
    else:
        prior, history, made = _train(
            gaussian, stamps, checkpoint, config, reference_band, seed
        )
        card = card | made
        _write_curve(curve, history, "mixture" if config.network is None else "network")
    if tier_of(prior) != config.tier:
        raise InputError(
            f"{config.start}: a prior of tier {tier_of(prior)}, prior.tier is"
            f" {config.tier}; change one of them"
        )
    write_prior(output, prior, card)
    checkpoint.unlink(missing_ok=True)


def _train(
    gaussian: GaussianPrior,
    stamps: list[Path],
    checkpoint: Path,
    config: PriorConfig,
    reference_band: str,
    seed: int,
) -> tuple[LatentPrior, list[Evaluation], dict[str, Any]]:
    """The mixture, then the network if there is to be one."""
    images = [np.load(path) for path in stamps]
    for path, part in zip(stamps, images, strict=True):
        if bad := int((~np.isfinite(part).all(axis=(1, 2, 3))).sum()):
            raise InputError(
                f"{path}: {bad} of {len(part)} stamps have pixels that are not finite;"
                " simulate them again"
            )
    images = np.concatenate(images)
    bands = gaussian.basis.bands
    if images.shape[1:] != gaussian.basis.mean.shape:
        raise InputError(
            f"{config.start or config.basis}: its stamps are {gaussian.basis.mean.shape}"
            f" ({', '.join(bands)}), those of the training {images.shape[1:]} (band, y, x);"
            " set frame.bands and frame.stamp to those of that prior"
        )
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    # The same generator as `fit_basis`: galaxies have the colours of the moments.
    reference = bands.index(reference_band)
    flux = images[:, reference].sum((-2, -1), dtype=float)
    images, used = prepare_stamps(
        images,
        reference,
        amplitude_jitter=0.0,
        colour_jitter=config.colour_jitter,
        rng=stage_rng(seed, "fit_basis"),
    )
    order = stage_rng(seed, "train_prior").permutation(len(images))
    n = max(1, min(int(HELD_OUT * len(images)), MOST_HELD_OUT))
    size = min(config.latent, len(gaussian.mean))
    brightness, scale = None, None
    if config.brightness:
        # Catalogs have amplitudes with the errors of the jitter.
        value = np.log(flux[used])
        scale = np.array([value.mean(), np.hypot(value.std(), config.amplitude_jitter)])
        brightness = (value - scale[0]) / scale[1]

    def rows_of(chosen: np.ndarray) -> TrainingSet:
        if brightness is None:
            return training_set(gaussian, images[chosen])
        return training_set(
            gaussian, images[chosen], brightness[chosen], float(scale[1])
        )

    parts = [n]
    if config.network is not None:
        parts.append(2 * n)  # galaxies for the variance head
    *checks, taught = np.split(order, parts)
    held_out, *spread = (rows_of(rows).first(size) for rows in checks)
    whole = rows_of(taught)
    data = whole.first(size)
    one, two, three = jax.random.split(stage_key(seed, "train_prior"), 3)
    rows = whole.draw(MIXTURE_ROWS, config.amplitude_jitter, key=three)
    n_modes = len(gaussian.mean)
    latent = jnp.concatenate([rows[:, :size], rows[:, n_modes:]], axis=1)
    mixture, history = _fit_mixture(latent, held_out, config)
    fine = None
    if size < n_modes:
        fine = fine_variances(mixture, latent, rows[:, size:n_modes])
    card = {
        "stamps": len(images),
        "stamps_sha256": digest,
        "held_out": n,
        "mixture": {"rows": MIXTURE_ROWS, "iterations": MIXTURE_ITERATIONS},
        "mixture_seconds": history[-1].seconds,
        "levels": list(HELD_OUT_LEVELS),
        "validation": [e._asdict() for e in history],
        "seconds": history[-1].seconds,
        "device": jax.devices()[0].device_kind,
    }
    if config.network is None:
        return LatentPrior(gaussian, mixture, None, fine, scale), history, card
    network = LatentNetwork(
        latent.shape[1], config.network.width, config.network.blocks, key=one
    )
    settings = Settings(
        **config.train.model_dump(),
        amplitude_jitter=config.amplitude_jitter,
        bfloat16=jax.default_backend() == "gpu",
    )
    card |= {
        "training": settings._asdict(),
        "network": config.network.model_dump(),
    }
    state = start(network, settings, key=two)

    def result(state: State, history: list[Evaluation]):
        more = {
            "validation": [e._asdict() for e in history],
            "seconds": float(state.seconds) + card["mixture_seconds"],
        }
        return (
            LatentPrior(gaussian, mixture, state.best, fine, scale),
            history,
            card | more,
        )

    return _train_network(
        state, mixture, (data, *spread, held_out), settings, checkpoint, result
    )


def _fit_mixture(
    rows: jax.Array, held_out: TrainingSet, config: PriorConfig
) -> tuple[MixturePrior, list[Evaluation]]:
    """Fit with a progress bar; the mixture of lowest held-out error is kept."""
    history, best, begin = [], [], time.perf_counter()
    # Always the same galaxies and noise.
    check = jax.random.key(0)
    with tqdm(total=MIXTURE_ITERATIONS, desc="mixture", file=sys.stderr) as bar:

        def watch(number: int, score: float, mixture: MixturePrior) -> None:
            bar.update()
            if number % MIXTURE_LOOK and number < MIXTURE_ITERATIONS:
                return
            seconds = time.perf_counter() - begin
            ratio, nll = evaluate(
                None,
                single_precision(mixture),
                held_out,
                config.amplitude_jitter,
                key=check,
            )
            mean = float(np.mean(ratio))
            if mean <= min((e.held_out for e in history), default=np.inf):
                best[:] = [mixture]
            history.append(Evaluation(number, seconds, -score, mean, ratio, nll))
            LOG.info("%s", history[-1])

        fit_mixture(rows, config.components, MIXTURE_ITERATIONS, watch)
    return best[0], history


def _train_network(
    state: State,
    mixture: MixturePrior,
    sets: tuple[TrainingSet, TrainingSet, TrainingSet],
    settings: Settings,
    checkpoint: Path,
    result: Callable[[State, list[Evaluation]], tuple],
) -> tuple[LatentPrior, list[Evaluation], dict[str, Any]]:
    """Train with checkpoints and a progress bar."""
    data, spread, held_out = sets
    mark = fingerprint(settings._asdict(), mixture, data, spread, held_out, state)
    state, history = load_checkpoint(checkpoint, state, mark)
    if history:
        LOG.info("goes on after step %d", history[-1].step)
    bar = tqdm(total=settings.steps, initial=int(state.step), file=sys.stderr)
    with bar:
        try:
            training = train(state, mixture, data, spread, held_out, settings)
            for state, evaluation in training:
                history.append(evaluation)
                save_checkpoint(checkpoint, state, history, mark)
                bar.update(evaluation.step - bar.n)
                bar.set_description(f"held out {evaluation.held_out:.3f}")
                LOG.info("%s", evaluation)
        except TrainingError as error:
            if not history:
                raise
            kept = checkpoint.with_name("last_good.eqx")
            prior, _, card = result(state, history)
            write_prior(kept, prior, card)
            raise TrainingError(
                f"{error} The best weights up to step {int(state.step)} are in {kept},"
                " a prior that prior.start can name."
            ) from error
    LOG.info("stopped after step %d, %.1f s", int(state.step), float(state.seconds))
    return result(state, history)


def _write_curve(
    path: Path,
    history: list[Evaluation],
    kind: Literal["mixture", "network"] = "mixture",
) -> None:
    """Held-out losses; steps are iterations of EM, or of the optimizer."""
    rows = [
        {
            "kind": kind,
            "step": e.step,
            "seconds": e.seconds,
            "train_loss": e.train_loss,
            "held_out": e.held_out,
        }
        | {f"ratio_{s:g}": v for s, v in zip(HELD_OUT_LEVELS, e.ratio, strict=True)}
        | {f"nll_{s:g}": v for s, v in zip(HELD_OUT_LEVELS, e.nll, strict=True)}
        for e in history
    ]
    columns = CURVE + [
        f"{name}_{s:g}" for name in ("ratio", "nll") for s in HELD_OUT_LEVELS
    ]
    with atomic_path(path) as temporary:
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    params = snakemake.params
    main(
        Path(snakemake.input.basis),
        [Path(path) for path in snakemake.input.stamps],
        Path(snakemake.output.prior),
        Path(snakemake.output.curve),
        Path(params.checkpoint),
        PriorConfig(**params.prior),
        params.reference_band,
        params.seed,
    )
