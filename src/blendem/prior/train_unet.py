"""Training of the U-Net denoiser, and the calibration of its posterior variance."""

import time
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from blendem.prior.symmetry import N_SYMMETRIES
from blendem.prior.train import (
    EMA_DECAY,
    Evaluation,
    Settings,
    State,
    TrainingError,
    _cosine,
)
from blendem.prior.unet import SPREAD_LEVELS, PixelMoments, UNet, UNetPrior, denoise

# Noise levels [unit] of the held-out loss, as ratio to Wiener's.
HELD_OUT_LEVELS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# ln(sigma) in training is normal, centred where HSC deep sees a galaxy of i = 24 to 25.
LN_SIGMA_MEAN, LN_SIGMA_SD = 0.0, 2.0
HELD_OUT_STAMPS = 512
CHUNK = 64  # stamps denoised at once in an evaluation
# Settings whose steps are fewer and dearer than those of the latent tier.
DEFAULTS = Settings(steps=2000, batch=64, learning_rate=2e-3, evaluate=250, patience=4)


class StampSet(eqx.Module):
    """Stamps of unit reference flux without jitter, in network units.

    Attributes:
        x: Stamps over `PixelMoments.unit`, `(row, band, stamp, stamp)`.
    """

    x: Float[Array, "row band stamp stamp"]

    def draw(
        self, n: int, jitter: float, *, key: PRNGKeyArray
    ) -> Float[Array, "n band stamp stamp"]:
        """Draw `n` galaxies, each turned at random, with amplitudes of median 1."""
        which, turn, scale = jax.random.split(key, 3)
        rows = self.x[jax.random.randint(which, (n,), 0, len(self.x))]
        symmetry = jax.random.randint(turn, (n,), 0, N_SYMMETRIES)
        flips = [(symmetry >> bit & 1).astype(bool) for bit in range(3)]
        for flip, change in zip(
            flips,
            (
                lambda a: a[..., ::-1],
                lambda a: a[..., ::-1, :],
                lambda a: jnp.swapaxes(a, -1, -2),
            ),
            strict=True,
        ):
            rows = jnp.where(flip[:, None, None, None], change(rows), rows)
        amplitude = jnp.exp(jitter * jax.random.normal(scale, (n,), rows.dtype))
        return amplitude[:, None, None, None] * rows


def stamp_set(
    moments: PixelMoments, stamps: Float[np.ndarray, "n band y x"]
) -> StampSet:
    """Stamps of unit reference flux (no jitter) in the units of the network."""
    unit = np.asarray(moments.unit, np.float32)[:, None, None]
    return StampSet(jnp.asarray(stamps / unit, jnp.float32))


def denoising_loss(
    network: UNet,
    moments: PixelMoments,
    x: Float[Array, "n band y x"],
    sigma: Float[Array, " n"],
    noise: Float[Array, "n band y x"],
    bfloat16: bool = False,
) -> Float[Array, ""]:
    """Squared error over Wiener's expected one (of all pixels together)."""
    x_t = x + sigma[:, None, None, None] * noise
    error = jnp.mean(
        (denoise(network, moments, x_t, sigma, bfloat16) - x) ** 2, (1, 2, 3)
    )
    wiener = jnp.mean(moments.pixel_errors(sigma) ** 2, (1, 2, 3))
    return jnp.mean(error / wiener)


@eqx.filter_jit
def _step(network, average, optimizer, key, step, data, moments, settings):
    keys = jax.random.split(key, 4)
    x = data.draw(settings.batch, settings.amplitude_jitter, key=keys[1])
    sigma = jax.random.normal(keys[2], (settings.batch,), x.dtype)
    sigma = jnp.exp(LN_SIGMA_MEAN + LN_SIGMA_SD * sigma)
    noise = jax.random.normal(keys[3], x.shape, x.dtype)
    loss, gradient = eqx.filter_value_and_grad(denoising_loss)(
        network, moments, x, sigma, noise, settings.bfloat16
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
def _errors(network, moments, x, noise, sigma):
    """Sums over a chunk: squared errors of network and Wiener, and both by direction.

    By direction: over Wiener's expected variance, along each mode and (last) outside.
    """
    x_t = x + sigma * noise
    levels = jnp.full(len(x), sigma, x.dtype)
    along, outside = moments.variances(levels[:1])
    count = x[0].size - along.shape[1]

    def sums(mean):
        error = mean - x
        c = moments.project(error)
        rest = error - moments.expand(c)
        square = jnp.sum(rest**2, axis=(1, 2, 3))
        # What P diag(w) P is expected to give: the trace, to first order in the modes.
        left = jnp.maximum(1 - jnp.sum(moments.modes**2, axis=0), 0)
        square = square / jnp.sum(outside[0] * left)
        parts = jnp.concatenate([c**2 / along, square[:, None]], axis=1)
        return jnp.sum(error**2), jnp.sum(parts, axis=0)

    return (
        sums(denoise(network, moments, x_t, levels)),
        sums(moments.wiener(x_t, levels)),
        count,
    )


def errors_by_level(
    network: UNet,
    moments: PixelMoments,
    held_out: StampSet,
    jitter: float,
    levels: tuple[float, ...],
    *,
    key: PRNGKeyArray,
    n: int = HELD_OUT_STAMPS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Held-out errors at noise levels.

    Returns:
        Squared errors of the network over those of the Wiener denoiser, `(level,)`; the
        network's squared errors over Wiener's *expected* variance along each mode and
        outside, `(level, mode + 1)`; the excess of the Gaussian negative log density per
        pixel over Wiener's, each with its best variance per direction, `(level,)`.
    """
    draw, noise = jax.random.split(key)
    x = held_out.draw(n, jitter, key=draw)
    xi = jax.random.normal(noise, x.shape, x.dtype)
    ratio, parts, nll = [], [], []
    for sigma in levels:
        total = None
        for first in range(0, n, CHUNK):
            part = slice(first, first + CHUNK)
            one = _errors(network, moments, x[part], xi[part], jnp.float32(sigma))
            one, count = jax.tree.map(np.asarray, one[:2]), one[2]
            total = one if total is None else jax.tree.map(np.add, total, one)
        (square, along), (linear, linear_along) = total
        weight = np.append(np.ones(len(along) - 1), count)
        gain = np.log(along / linear_along)
        ratio.append(float(square / linear))
        parts.append(along / n)
        nll.append(float(0.5 * np.sum(weight * gain) / weight.sum()))
    return np.array(ratio), np.array(parts), np.array(nll)


def calibrate(
    prior: UNetPrior, held_out: StampSet, jitter: float, *, key: PRNGKeyArray
) -> UNetPrior:
    """Fit the posterior variance to held-out errors: `UNetPrior.spread`."""
    _, parts, _ = errors_by_level(
        prior.network, prior.moments, held_out, jitter, SPREAD_LEVELS, key=key
    )
    return eqx.tree_at(
        lambda p: p.spread, prior, np.log(np.maximum(parts, 1e-6)).astype(np.float32)
    )


def train_unet(
    state: State,
    moments: PixelMoments,
    data: StampSet,
    held_out: StampSet,
    settings: Settings = DEFAULTS,
    seconds: float = np.inf,
) -> Iterator[tuple[State, Evaluation]]:
    """Train from `state` to the end, yielding after every evaluation.

    What it yields can be saved and given back later as `state`.

    Args:
        state: Of `train.start` or of an earlier training.
        moments: Of the training set.
        data, held_out: Stamps.
        settings: Choices.
        seconds: Wall time after which no further steps are begun; the learning rate
            follows the steps, so a training cut short this way ends at a high rate.

    Raises:
        TrainingError: If the loss is not finite. The last yielded state is the last good
            one.
    """
    moments = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), moments)
    network, average, optimizer = state.network, state.average, state.optimizer
    key, step = state.key, int(state.step)
    best, best_loss = state.best, float(state.best_loss)
    stale, before = int(state.stale), float(state.seconds)
    check = jax.random.key(0)  # always the same galaxies and noise
    begin = time.perf_counter()
    while (
        step < settings.steps
        and stale < settings.patience
        and before + time.perf_counter() - begin < seconds
    ):
        losses = []
        for _ in range(min(settings.evaluate, settings.steps - step)):
            network, average, optimizer, key, value = _step(
                network,
                average,
                optimizer,
                key,
                jnp.float32(step),
                data,
                moments,
                settings,
            )
            losses.append(value)
            step += 1
        loss = float(jnp.mean(jnp.stack(losses)))
        ratio, _, nll = errors_by_level(
            average,
            moments,
            held_out,
            settings.amplitude_jitter,
            HELD_OUT_LEVELS,
            key=check,
            n=min(HELD_OUT_STAMPS, 8 * len(held_out.x)),
        )
        score = float(np.mean(ratio))
        if not np.isfinite(loss + score):
            raise TrainingError(
                f"the training loss is not finite between steps {step - len(losses)} and"
                f" {step} (training {loss}, held out {score}); the weights before are"
                " kept. Lower prior.unet.learning_rate, or look for stamps that are not"
                " finite."
            )
        if score < best_loss:
            best, best_loss, stale = average, score, 0
        else:
            stale += 1
        taken = before + time.perf_counter() - begin
        yield (
            State(
                network=network,
                average=average,
                best=best,
                optimizer=optimizer,
                key=key,
                step=np.asarray(step, np.int32),
                seconds=np.asarray(taken, np.float32),
                loss=np.asarray(loss, np.float32),
                best_loss=np.asarray(best_loss, np.float32),
                stale=np.asarray(stale, np.int32),
            ),
            Evaluation(
                step, taken, loss, score, tuple(ratio.tolist()), tuple(nll.tolist())
            ),
        )
