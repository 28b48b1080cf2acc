"""Fit the first prior: a mixture of Gaussians and, if asked for, a network that corrects it,
or a U-Net.

A training of a network that was killed goes on.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from blendem.config import PriorConfig
from blendem.io.checkpoints import fingerprint, load_checkpoint, save_checkpoint
from blendem.io.priors import Prior, gaussian_of, read_prior, tier_of, write_prior
from blendem.io.table import InputError
from blendem.io.training import Galaxies, read_galaxies, write_curve
from blendem.logs import configure_logging
from blendem.precision import single_precision
from blendem.prior import train_unet
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.latent import LatentPrior, fine_variances
from blendem.prior.mixture import MixturePrior
from blendem.prior.mixture_fit import fit_mixture
from blendem.prior.network import LatentNetwork
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
from blendem.prior.unet import UNet, UNetPrior, fit_pixel_moments
from blendem.rng import stage_key

LOG = logging.getLogger(__name__)
# Part and number of the stamps that nothing is trained on; as many teach the variance head.
HELD_OUT, MOST_HELD_OUT = 0.1, 2000
# Of EM; it is looked at after as many iterations, and at its end.
MIXTURE_ROWS, MIXTURE_ITERATIONS, MIXTURE_LOOK = 60000, 30, 3
Made = tuple[Prior, list[Evaluation], dict[str, Any]]  # with its curve and model card


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
        write_curve(curve, [])
    elif config.tier == "gaussian":
        prior = gaussian
        write_curve(curve, [])
    else:
        galaxies = read_galaxies(
            stamps,
            gaussian.basis,
            reference_band,
            config.colour_jitter,
            held_out=(HELD_OUT, MOST_HELD_OUT),
            seed=seed,
            where=config.start or config.basis,
        )
        # Fields give galaxies relative to such amplitudes (`rescale.refine_amplitudes`).
        reference = gaussian.basis.bands.index(reference_band)
        galaxies = galaxies.relative_to(1 / gaussian.mean_flux(reference))
        fit = _train_unet if config.tier == "unet" else _train
        prior, history, made = fit(gaussian, galaxies, checkpoint, config, seed)
        card = card | made
        write_curve(curve, history, made["kind"], made["levels"])
    if tier_of(prior) != config.tier:
        raise InputError(
            f"{config.start}: a prior of tier {tier_of(prior)}, prior.tier is"
            f" {config.tier}; change one of them"
        )
    write_prior(output, prior, card)
    checkpoint.unlink(missing_ok=True)


def _train_unet(
    gaussian: GaussianPrior,
    galaxies: Galaxies,
    checkpoint: Path,
    config: PriorConfig,
    seed: int,
) -> Made:
    """The U-Net, then its posterior variance."""
    images, n, jitter = galaxies.images, galaxies.held_out, config.amplitude_jitter
    unseen, taught = np.split(galaxies.order, [2 * n])
    moments = fit_pixel_moments(gaussian.basis, images[taught], jitter)
    data, spread, held_out = (
        train_unet.stamp_set(moments, images[rows])
        for rows in (taught, unseen, unseen[:n])
    )
    one, two, three = jax.random.split(stage_key(seed, "train_prior"), 3)
    choice = config.unet.model_dump()
    sizes = {name: choice.pop(name) for name in ("channels", "patch", "blocks")}
    # As the stamps.
    network = single_precision(UNet(len(gaussian.basis.bands), **sizes, key=one))
    settings = Settings(
        **choice,
        amplitude_jitter=jitter,
        bfloat16=jax.default_backend() == "gpu",
    )

    def result(state: State, history: list[Evaluation]) -> Made:
        prior = UNetPrior.wiener(gaussian, moments, state.best)
        # Early stopping saw half of these galaxies, the weights none.
        prior = train_unet.calibrate(prior, spread, jitter, key=three)
        card = {
            "kind": "unet",
            "levels": list(train_unet.HELD_OUT_LEVELS),
            "network": sizes,
            "training": settings._asdict(),
            "validation": [e._asdict() for e in history],
            "seconds": float(state.seconds),
        }
        return prior, history, galaxies.card | card

    state = start(network, settings, key=two)
    return _resume(
        state,
        lambda state: train_unet.train_unet(state, moments, data, held_out, settings),
        fingerprint(settings._asdict(), moments, data, spread, state),
        settings.steps,
        checkpoint,
        result,
    )


def _train(
    gaussian: GaussianPrior,
    galaxies: Galaxies,
    checkpoint: Path,
    config: PriorConfig,
    seed: int,
) -> Made:
    """The mixture, then the network if there is to be one."""
    images, n = galaxies.images, galaxies.held_out
    size = min(config.latent, len(gaussian.mean))
    brightness, scale = None, None
    if config.brightness:
        # Catalogs have amplitudes with the errors of the jitter.
        value = np.log(galaxies.amplitude)
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
    *checks, taught = np.split(galaxies.order, parts)
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
    card = galaxies.card | {
        "kind": "mixture",
        "mixture": {"rows": MIXTURE_ROWS, "iterations": MIXTURE_ITERATIONS},
        "mixture_seconds": history[-1].seconds,
        "levels": list(HELD_OUT_LEVELS),
        "validation": [e._asdict() for e in history],
        "seconds": history[-1].seconds,
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
        "kind": "network",
        "training": settings._asdict(),
        "network": config.network.model_dump(),
    }
    state = start(network, settings, key=two)

    def result(state: State, history: list[Evaluation]) -> Made:
        more = {
            "validation": [e._asdict() for e in history],
            "seconds": float(state.seconds) + card["mixture_seconds"],
        }
        return (
            LatentPrior(gaussian, mixture, state.best, fine, scale),
            history,
            card | more,
        )

    sets = (data, *spread, held_out)
    return _resume(
        state,
        lambda state: train(state, mixture, *sets, settings),
        fingerprint(settings._asdict(), mixture, *sets, state),
        settings.steps,
        checkpoint,
        result,
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


def _resume(
    state: State,
    training: Callable[[State], Iterator[tuple[State, Evaluation]]],
    mark: str,
    steps: int,
    checkpoint: Path,
    result: Callable[[State, list[Evaluation]], Made],
) -> Made:
    """Train with checkpoints and a progress bar."""
    state, history = load_checkpoint(checkpoint, state, mark)
    if history:
        LOG.info("goes on after step %d", history[-1].step)
    with tqdm(total=steps, initial=int(state.step), file=sys.stderr) as bar:
        try:
            for newest, evaluation in training(state):
                state = newest
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
