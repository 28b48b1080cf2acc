"""Training of the latent denoiser: symmetries, amplitude jitter, EMA, early stop, resume."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from blendem.precision import single_precision
from blendem.prior.gaussian import GaussianPrior, empty_stamp
from blendem.prior.latent import combine, denoise, skip
from blendem.prior.mixture import MixturePrior
from blendem.prior.network import LatentNetwork
from blendem.prior.schedule import training_levels
from blendem.prior.symmetry import latent_symmetries

# Noise levels [whitened] at which the held-out loss is reported, as ratio to Wiener's.
HELD_OUT_LEVELS = (0.03, 0.1, 0.3, 1.0, 3.0)
VARIANCE_WEIGHT = 0.1  # of the variance head's loss beside that of the mean
VARIANCE_PART = 4  # rows of a batch for the mean per row for the variance head
EMA_DECAY = 0.999
# Of the gradient: galaxies of rare kinds must still pull, or their mean is biased.
CLIP_NORM = 10.0


class TrainingError(RuntimeError):
    """Training met a loss that is not finite; the last good state is kept."""


class Settings(NamedTuple):
    """Choices of the training; hashable.

    Attributes:
        steps: Optimizer steps; the learning rate falls to zero over them (cosine).
        batch: Galaxies per step.
        learning_rate: Of Adam, at the start.
        amplitude_jitter: Standard deviation of ln(amplitude), drawn anew at every step.
        evaluate: Steps between two evaluations of the held-out loss.
        patience: Evaluations without a new best held-out loss before it stops.
        bfloat16: Compute the network in bfloat16 (GPU only); the loss stays in float32.
    """

    steps: int = 12000
    batch: int = 256
    learning_rate: float = 1.5e-3
    amplitude_jitter: float = 0.6
    evaluate: int = 1000
    patience: int = 6
    bfloat16: bool = False


class TrainingSet(eqx.Module):
    """Galaxies in whitened coordinates, with all their symmetric copies.

    Attributes:
        e: Coordinates of galaxies without jitter, `(row, latent)`.
        dark: Coordinates of an empty stamp: scaling a galaxy by a is
            `dark + a (e - dark)`.
        brightness: Brightness coordinate of galaxies without jitter, which follows the other
            ones in `draw`; None: they have none.
        deviation: Unit of it, in ln(amplitude).
    """

    e: Float[Array, "row mode"]
    dark: Float[Array, " mode"]
    brightness: Float[Array, " row"] | None = None
    deviation: float = eqx.field(static=True, default=1.0)

    def draw(
        self, n: int, jitter: float, *, key: PRNGKeyArray
    ) -> Float[Array, "n latent"]:
        """Draw `n` galaxies with log-normal amplitudes of median 1.

        The jitter is the error of the catalog's amplitude: a galaxy that is brighter than
        that by a has a brightness, which is the catalog's, lower by ln a than its own.
        """
        which, scale = jax.random.split(key)
        which = jax.random.randint(which, (n,), 0, len(self.e))
        log_amplitude = jitter * jax.random.normal(scale, (n, 1))
        e = self.dark[None] + jnp.exp(log_amplitude) * (self.e[which] - self.dark[None])
        if self.brightness is None:
            return e
        known = self.brightness[which][:, None] - log_amplitude / self.deviation
        return jnp.concatenate([e, known], axis=1)

    def first(self, n: int) -> "TrainingSet":
        """The same with the first `n` modes only."""
        return TrainingSet(
            self.e[:, :n], self.dark[:n], self.brightness, self.deviation
        )


class Evaluation(NamedTuple):
    """Held-out loss at one step: mean squared errors by noise level, as ratio to Wiener's.

    Attributes:
        step: Number of steps done.
        seconds: Wall time of the training so far.
        train_loss: Running mean of the training loss.
        held_out: Mean of `ratio` over the levels: what early stopping watches.
        ratio: At each of `HELD_OUT_LEVELS`.
        nll: Held-out Gaussian negative log density per coordinate, with the learned
            variance, relative to Wiener's.
    """

    step: int
    seconds: float
    train_loss: float
    held_out: float
    ratio: tuple[float, ...]
    nll: tuple[float, ...]


class State(eqx.Module):
    """Everything that a resumed training needs; a pytree of arrays.

    Attributes:
        network: Weights being trained.
        average: Their exponential moving average.
        best: The average of lowest held-out loss.
        optimizer: Moments of Adam.
        key: Random key of the next step.
        step: Steps done.
        seconds: Wall time so far.
        loss: Running mean of the training loss.
        best_loss, stale: Lowest held-out loss, evaluations since.
    """

    network: eqx.Module
    average: eqx.Module
    best: eqx.Module
    optimizer: optax.OptState
    key: PRNGKeyArray
    step: np.ndarray
    seconds: np.ndarray
    loss: np.ndarray
    best_loss: np.ndarray
    stale: np.ndarray


def training_set(
    gaussian: GaussianPrior,
    stamps: Float[np.ndarray, "n band y x"],
    brightness: Float[np.ndarray, " n"] | None = None,
    deviation: float = 1.0,
) -> TrainingSet:
    """The whitened coordinates of unit-flux stamps, under the 8 symmetries."""
    basis = gaussian.basis
    z = np.asarray(basis.encode(stamps), float)
    dark = empty_stamp(basis)
    turns = latent_symmetries(np.asarray(basis.modes), np.asarray(basis.dual))
    # The mean stamp is invariant, so coordinates turn about that of an empty stamp.
    copies = np.concatenate([dark + (z - dark) @ turn.T for turn in turns])
    return TrainingSet(
        jnp.asarray(whiten(gaussian, copies), jnp.float32),
        jnp.asarray(whiten(gaussian, dark[None])[0], jnp.float32),
        None
        if brightness is None
        else jnp.asarray(np.tile(brightness, len(turns)), jnp.float32),
        float(deviation),
    )


def whiten(
    gaussian: GaussianPrior, z: Float[np.ndarray, "n mode"]
) -> Float[np.ndarray, "n mode"]:
    """Coordinates e of unit covariance: `z = mean + cholesky e`."""
    lower = np.asarray(gaussian.cholesky, float)
    return np.linalg.solve(lower, (z - np.asarray(gaussian.mean, float)).T).T


def _cosine(settings: Settings) -> optax.GradientTransformation:
    rate = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    return optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adam(rate))


def start(network: eqx.Module, settings: Settings, *, key: PRNGKeyArray) -> State:
    """State before the first step; `network` may be warm."""
    optimizer = _cosine(settings).init(eqx.filter(network, eqx.is_array))
    zero = np.zeros((), np.float32)
    return State(
        network=network,
        average=network,
        best=network,
        optimizer=optimizer,
        key=key,
        step=np.zeros((), np.int32),
        seconds=zero,
        loss=np.asarray(np.nan, np.float32),
        best_loss=np.asarray(np.inf, np.float32),
        stale=np.zeros((), np.int32),
    )


def denoising_loss(
    network: LatentNetwork,
    mixture: MixturePrior,
    e: Float[Array, "n latent"],
    sigma: Float[Array, " n"],
    noise: Float[Array, "n latent"],
    trained: int,
    bfloat16: bool = False,
) -> Float[Array, ""]:
    """Squared error over Wiener's expected one, and the variance head's likelihood.

    The mean learns from the first `trained` rows, the variance head from the others, which
    the mean never saw: the errors of galaxies known by heart would be too small. The head
    sees the error as a constant: it must not trade accuracy for confidence.
    """
    e_t = e + sigma[:, None] * noise
    known = jax.lax.stop_gradient(skip(mixture, e_t, sigma))
    shift, log_factor = _apply(network, e_t, known, sigma, bfloat16)
    mean, variance = combine(*known, shift, log_factor, sigma)
    error = (mean - e) ** 2
    wiener = (sigma**2 / (1 + sigma**2))[:, None]
    score = jax.lax.stop_gradient(error) / variance + jnp.log(variance / wiener)
    mean_loss = jnp.mean(error[:trained] / wiener[:trained])
    return mean_loss + VARIANCE_WEIGHT * jnp.mean(score[trained:])


def _apply(network, e_t, known, sigma, bfloat16):
    if bfloat16:
        low = jax.tree.map(
            lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x, network
        )
        inputs = (x.astype(jnp.bfloat16) for x in (e_t, *known, sigma))
        out = jax.vmap(low)(*inputs)
        return tuple(x.astype(jnp.float32) for x in out)
    return jax.vmap(network)(e_t, *known, sigma)


@eqx.filter_jit
def _step(network, average, optimizer, key, step, mixture, data, spread, settings):
    keys = jax.random.split(key, 5)
    n, extra = settings.batch, max(1, settings.batch // VARIANCE_PART)
    jitter = settings.amplitude_jitter
    e = data.draw(n, jitter, key=keys[1])
    e = jnp.concatenate([e, spread.draw(extra, jitter, key=keys[4])])
    sigma = training_levels(n + extra, key=keys[2])
    noise = jax.random.normal(keys[3], e.shape)
    loss, gradient = eqx.filter_value_and_grad(denoising_loss)(
        network, mixture, e, sigma, noise, n, settings.bfloat16
    )
    updates, optimizer = _cosine(settings).update(gradient, optimizer)
    network = eqx.apply_updates(network, updates)
    decay = jnp.minimum(EMA_DECAY, (1 + step) / (10 + step))
    average = jax.tree.map(
        lambda a, b: decay * a + (1 - decay) * b if eqx.is_array(a) else a,
        average,
        network,
    )
    return network, average, optimizer, keys[0], loss


@eqx.filter_jit
def _evaluate(network, mixture, e, noise, sigma, n_modes):
    e_t = e + sigma * noise
    mean, variance = denoise(mixture, network, e_t, sigma)
    # Of the modes: the brightness is not what a galaxy looks like.
    mean, variance, e, e_t = (x[:, :n_modes] for x in (mean, variance, e, e_t))
    wiener = sigma**2 / (1 + sigma**2)
    error = (mean - e) ** 2
    linear = (e_t / (1 + sigma**2) - e) ** 2
    nll = 0.5 * jnp.mean(
        jnp.log(variance / wiener) + error / variance - linear / wiener
    )
    return jnp.mean(error) / jnp.mean(linear), nll


def evaluate(
    network: LatentNetwork | None,
    mixture: MixturePrior,
    held_out: TrainingSet,
    jitter: float,
    *,
    key: PRNGKeyArray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Held-out squared error over Wiener's, and excess log density, at `HELD_OUT_LEVELS`."""
    draw, noise = jax.random.split(key)
    n = min(4096, len(held_out.e))
    e = held_out.draw(n, jitter, key=draw)
    xi = jax.random.normal(noise, e.shape)
    pairs = [
        _evaluate(network, mixture, e, xi, jnp.float32(s), len(held_out.dark))
        for s in HELD_OUT_LEVELS
    ]
    return tuple(float(p[0]) for p in pairs), tuple(float(p[1]) for p in pairs)


def train(
    state: State,
    mixture: MixturePrior,
    data: TrainingSet,
    spread: TrainingSet,
    held_out: TrainingSet,
    settings: Settings,
) -> Iterator[tuple[State, Evaluation]]:
    """Train from `state` to the end, yielding after every evaluation.

    What it yields can be saved and given back later as `state`: the rest of the training
    is then the same as if it had never stopped.

    Args:
        state: Where to begin.
        mixture: Its denoiser is corrected by the network.
        data: What the mean learns from.
        spread: What the variance head learns from: galaxies that are not in `data`.
        held_out: What early stopping watches.
        settings: Choices of the training.

    Raises:
        TrainingError: If the loss is not finite. The last yielded state is the last good
            one.
    """
    network, average, optimizer = state.network, state.average, state.optimizer
    key, step = state.key, int(state.step)
    loss, best, best_loss = float(state.loss), state.best, float(state.best_loss)
    stale, before = int(state.stale), float(state.seconds)
    # Always the same galaxies and noise: changes of the loss are those of the weights.
    check = jax.random.key(0)
    mixture = single_precision(mixture)  # as the training sets
    begin = time.perf_counter()
    while step < settings.steps and stale < settings.patience:
        losses = []
        for _ in range(min(settings.evaluate, settings.steps - step)):
            network, average, optimizer, key, value = _step(
                network,
                average,
                optimizer,
                key,
                jnp.float32(step),
                mixture,
                data,
                spread,
                settings,
            )
            losses.append(value)
            step += 1
        loss = float(jnp.mean(jnp.stack(losses)))
        ratio, nll = evaluate(
            average, mixture, held_out, settings.amplitude_jitter, key=check
        )
        score = float(np.mean(ratio))
        if not np.isfinite(loss + score):
            raise TrainingError(
                f"the training loss is not finite between steps {step - len(losses)} and"
                f" {step} (training {loss}, held out {score}); the weights before are"
                " kept. Lower prior.train.learning_rate, or look for stamps that are not"
                " finite."
            )
        if score < best_loss:
            best, best_loss, stale = average, score, 0
        else:
            stale += 1
        seconds = before + time.perf_counter() - begin
        yield (
            State(
                network=network,
                average=average,
                best=best,
                optimizer=optimizer,
                key=key,
                step=np.asarray(step, np.int32),
                seconds=np.asarray(seconds, np.float32),
                loss=np.asarray(loss, np.float32),
                best_loss=np.asarray(best_loss, np.float32),
                stale=np.asarray(stale, np.int32),
            ),
            Evaluation(step, seconds, loss, score, ratio, nll),
        )
