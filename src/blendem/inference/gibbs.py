"""Split Gibbs sampling of the joint posterior: the reference for `sampler`.

An auxiliary u carries the data and e the prior, tied by `N(u; e, rho^2)` (Vono et al. 2019,
IEEE TSP 67, 1648; PnP-DM: Wu et al. 2024, arXiv 2405.18782). Two draws alternate, while rho
falls to a small value:

    u | e, y: Gaussian, exact with the factor of the likelihood;
    e | u:    the prior given u = e + rho n: the reverse diffusion from u at sigma = rho.

Neither approximates the likelihood of a noisy state, as moment matching does, and only the
denoiser's mean is used: nothing is shared with `sampler` but the prior. The price is some
thousands of denoiser calls per draw.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from blendem.inference.likelihood import LatentLikelihood
from blendem.inference.sampler import LatentTier, check_modes

# The reverse diffusion from rho ends at this part of rho, or at this level if it is lower.
LAST_PART, LAST_LEVEL = 0.03, 0.01


class GibbsSettings(NamedTuple):
    """Choices of the split Gibbs sampler; hashable.

    Attributes:
        sweeps: Sweeps while rho falls, equally spaced in its logarithm.
        hold: Further sweeps at the last rho.
        rho_max, rho_min: First and last coupling, in units of the whitened coordinates.
        steps: Steps of the reverse diffusion in each sweep, two denoiser calls each.
        resample: Weight the chains of a blend by what every fall of rho does to the target
            and resample them when the effective number is below half: a sequential
            Monte Carlo sampler. It mends the weights of modes between which the
            chains no longer move; chains then share ancestors.
    """

    sweeps: int = 150
    hold: int = 20
    rho_max: float = 5.0
    rho_min: float = 0.05
    steps: int = 8
    resample: bool = False


DEFAULT = GibbsSettings()


class GibbsDraws(NamedTuple):
    """Draws of the galaxies of one blend: one chain per draw.

    Attributes:
        e: The auxiliary u after the last sweep, `(draw, galaxy, mode)`: the exact
            likelihood times the prior smoothed by `rho_min`.
        clean: Its partner e: the exact prior, seen by the data through extra noise
            `rho_min`. As rho falls both are draws of the posterior.
        rho: Coupling of every sweep, `(sweep,)`.
        chi2: Mean of `|h - L^T u|^2` over the chains, per sweep: flat at the end when
            the chains have arrived.
        gap: Mean of `(u - e)^2 / rho^2`, per sweep; at most 1, plus what the data pull.
        ancestors: Chains of the first sweep that the draws descend from; the number of
            draws without resampling.
        failed: Draws that are not finite, `(draw,)`; they are NaN in `e` and `clean`.
    """

    e: Float[np.ndarray, "_ _ _"]
    clean: Float[np.ndarray, "_ _ _"]
    rho: Float[np.ndarray, " _"]
    chi2: Float[np.ndarray, " _"]
    gap: Float[np.ndarray, " _"]
    ancestors: int
    failed: Bool[np.ndarray, " _"]


def couplings(settings: GibbsSettings) -> Float[np.ndarray, " sweep"]:
    """The coupling rho of every sweep.

    Raises:
        ValueError: If there is no sweep or step, or the limits are not positive and falling.
    """
    s = settings
    if s.sweeps < 1 or s.hold < 0 or s.steps < 1 or not 0 < s.rho_min < s.rho_max:
        raise ValueError(
            "split Gibbs needs sweeps >= 1, hold >= 0, steps >= 1 and"
            f" 0 < rho_min < rho_max; got {s}"
        )
    falling = np.geomspace(s.rho_max, s.rho_min, s.sweeps)
    return np.concatenate([falling, np.full(s.hold, s.rho_min)])


def draw_auxiliary(
    factor: Float[Array, "latent rank"],
    target: Float[Array, " rank"],
    e: Float[Array, "draw latent"],
    rho: Float[Array, ""],
    *,
    key: PRNGKeyArray,
) -> Float[Array, "draw latent"]:
    """Draw u from `exp(-|h - L^T u|^2 / 2) N(u; e, rho^2)`, exact.

    A draw of the prior and one of the noise are corrected by the residual (Matheron's
    rule); `1 + rho^2 L^T L` is diagonal, because the columns of L are orthogonal.
    """
    one, two = jax.random.split(key)
    u = e + rho * jax.random.normal(one, e.shape, e.dtype)
    noise = jax.random.normal(two, (len(e), len(target)), e.dtype)
    gain = rho**2 / (1 + rho**2 * jnp.sum(factor**2, axis=0))
    return u + ((target[None] + noise - u @ factor) * gain[None]) @ factor.T


def draw_clean(
    prior: LatentTier,
    u: Float[Array, "*n mode"],
    rho: Float[Array, ""],
    steps: int,
    *,
    key: PRNGKeyArray,
) -> Float[Array, "*n mode"]:
    """Draw e from the prior given `u = e + rho n`, by the reverse diffusion from rho.

    With q = sigma^2 the reverse SDE is `dx = (x / (1 + q) - c / q) dq + dw`, where
    `c = D - x / (1 + q)` is what the denoiser adds to Wiener's. The linear part and its
    noise are integrated exactly, the rest by an exponential midpoint rule whose two
    stages share their noise: exact for a Gaussian prior, of second order for others.
    """
    last = jnp.minimum(LAST_PART * rho, LAST_LEVEL)
    q = rho**2 * (last / rho) ** (2 * jnp.linspace(0, 1, steps + 1, dtype=u.dtype))

    def excess(x, at):
        return prior.denoise_latent(x, jnp.sqrt(at))[0] - x / (1 + at)

    def step(x, inputs):
        start, stop, key = inputs
        one, two = jax.random.split(key)
        middle = jnp.sqrt(start * stop)
        spread = jnp.sqrt((start - middle) * (1 + middle) / (1 + start))
        noise = spread * jax.random.normal(one, x.shape, x.dtype)
        mean = x * (1 + middle) / (1 + start)
        half = mean + (1 - middle / start) * excess(x, start) + noise
        # The integral of (1 + stop) / (1 + q) / q over the step.
        weight = (1 + stop) * jnp.log(start / stop * (1 + stop) / (1 + start))
        fresh = jnp.sqrt((middle - stop) * (1 + stop) / (1 + middle))
        new = x * (1 + stop) / (1 + start) + weight * excess(half, middle)
        new = new + noise * (1 + stop) / (1 + middle)
        return new + fresh * jax.random.normal(two, x.shape, x.dtype), None

    keys = jax.random.split(key, steps)
    x, _ = jax.lax.scan(step, u, (q[:-1], q[1:], keys))
    return prior.denoise_latent(x, jnp.sqrt(q[-1]))[0]


def systematic(
    log_weights: Float[Array, " draw"], *, key: PRNGKeyArray
) -> Int[Array, " draw"]:
    """Indices of a systematic resampling: weight w of n is drawn n w times, give or take 1.

    References:
        Douc, Cappe & Moulines 2005, arXiv:cs/0507025, section 2.
    """
    n = len(log_weights)
    top = jnp.cumsum(jax.nn.softmax(log_weights))
    at = (jnp.arange(n) + jax.random.uniform(key, (), top.dtype)) / n
    return jnp.minimum(jnp.searchsorted(top, at), n - 1)


@eqx.filter_jit
def _chains(prior, factor, target, keys, rhos, first, steps, resample):
    """All sweeps of a batch of blends of equal size."""
    n_draws, shape = first.shape[1], first.shape[1:]
    before = jnp.concatenate([rhos[:1], rhos[:-1]])

    def one(factor, target, key, e):
        e = e.reshape(n_draws, -1)
        eigenvalues = jnp.sum(factor**2, axis=0)

        def reweigh(u, e, ancestor, log_w, rho, old, key, always):
            # e has the density p(e) N(h; L^T e, 1 + rho^2 L^T L); what changes with rho.
            change = 1 / (1 + rho**2 * eigenvalues) - 1 / (1 + old**2 * eigenvalues)
            square = (target[None] - e @ factor) ** 2
            log_w = log_w - 0.5 * jnp.sum(square * change[None], axis=1)
            w = jax.nn.softmax(log_w)
            few = always | (1 / jnp.sum(w**2) < 0.5 * n_draws)
            index = jnp.where(few, systematic(log_w, key=key), jnp.arange(n_draws))
            return u[index], e[index], ancestor[index], jnp.where(few, 0.0, log_w)

        def sweep(carry, inputs):
            u, e, ancestor, log_w = carry
            rho, old, key = inputs
            first, second, third = jax.random.split(key, 3)
            if resample:
                moved = reweigh(u, e, ancestor, log_w, rho, old, third, False)
                u, e, ancestor, log_w = moved
            u = draw_auxiliary(factor, target, e, rho, key=first)
            e = draw_clean(prior, u.reshape(shape), rho, steps, key=second)
            e = e.reshape(u.shape)
            residual = target[None] - u @ factor
            chi2 = jnp.mean(jnp.sum(residual**2, axis=1))
            return (u, e, ancestor, log_w), (chi2, jnp.mean((u - e) ** 2) / rho**2)

        last, loop = jax.random.split(key)
        keys = jax.random.split(loop, len(rhos))
        ancestor, log_w = jnp.arange(n_draws), jnp.zeros(n_draws, factor.dtype)
        start = (e, e, ancestor, log_w)
        state, traces = jax.lax.scan(sweep, start, (rhos, before, keys))
        u, e, ancestor, log_w = state
        if resample:
            moved = reweigh(u, e, ancestor, log_w, rhos[-1], rhos[-1], last, True)
            u, e, ancestor, _ = moved
        return u.reshape(shape), e.reshape(shape), *traces, ancestor

    return jax.vmap(one)(factor, target, keys, first)


def sample_gibbs(
    prior: LatentTier,
    likelihoods: Sequence[LatentLikelihood],
    n_draws: int,
    settings: GibbsSettings = DEFAULT,
    *,
    keys: Sequence[PRNGKeyArray],
    batch: int = 1,
    start: Sequence[Float[np.ndarray, "_ _ _"]] | None = None,
) -> list[GibbsDraws]:
    """Draw from the joint posterior of the galaxies of every blend by split Gibbs.

    Blends with the same number of galaxies share a program, `batch` at once. The draws of
    a blend depend on its own key and data only.

    Args:
        prior: Any latent prior.
        likelihoods: One per blend.
        n_draws: Chains per blend; one draw each.
        settings: Choices of the sampler.
        keys: One per blend.
        batch: Blends computed at once.
        start: Where the chains of every blend start, `(draw, galaxy, mode)`: draws of
            another sampler, to be refined from a `rho_max` at which modes still
            mix. Default: the mean of the prior.

    Returns:
        Draws, in the order of `likelihoods`.

    Raises:
        ValueError: If a likelihood has other modes than the prior, keys are missing, a
            start has another shape than the draws, or the settings are impossible.
    """
    if len(keys) != len(likelihoods):
        raise ValueError(f"{len(likelihoods)} blends, but {len(keys)} keys")
    check_modes(prior, likelihoods)
    shapes = [(n_draws, one.n_galaxies, one.n_latent) for one in likelihoods]
    start = [np.zeros(shape) for shape in shapes] if start is None else start
    if [np.shape(one) for one in start] != shapes:
        raise ValueError(
            f"`start` has shapes {[np.shape(one) for one in start]}; give"
            f" (draw, galaxy, mode) per blend: {shapes}"
        )
    rho = couplings(settings)
    low = as_arrays(prior)
    out: list[GibbsDraws | None] = [None] * len(likelihoods)
    for rows, count in equal_sizes(likelihoods, batch):
        factor, target = stack_likelihoods([likelihoods[i] for i in rows])
        chosen = jnp.stack([keys[i] for i in rows])
        levels = jnp.asarray(rho, factor.dtype)
        first = jnp.asarray(np.stack([start[i] for i in rows]), factor.dtype)
        result = _chains(
            low,
            factor,
            target,
            chosen,
            levels,
            first,
            settings.steps,
            settings.resample,
        )
        u, e, chi2, gap, ancestor = (np.asarray(x) for x in result)
        for j, i in enumerate(rows[:count]):
            failed = ~(np.isfinite(u[j]) & np.isfinite(e[j])).all(axis=(1, 2))
            gone = failed[:, None, None]
            out[i] = GibbsDraws(
                e=np.where(gone, np.nan, u[j]),
                clean=np.where(gone, np.nan, e[j]),
                rho=rho,
                chi2=chi2[j],
                gap=gap[j],
                ancestors=len(np.unique(ancestor[j])),
                failed=failed,
            )
    return out


def equal_sizes(
    likelihoods: Sequence[LatentLikelihood], batch: int
) -> list[tuple[np.ndarray, int]]:
    """Cut blends into batches of one number of galaxies.

    Returns:
        Per batch the indices of its blends, the last one repeated to fill up, and how many
        of them count.
    """
    sizes = np.array([one.n_galaxies for one in likelihoods], int)
    out = []
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        for start in range(0, len(rows), batch):
            index = np.minimum(np.arange(start, start + batch), len(rows) - 1)
            out.append((rows[index], min(batch, len(rows) - start)))
    return out


def stack_likelihoods(
    likelihoods: Sequence[LatentLikelihood],
) -> tuple[Float[Array, "blend latent rank"], Float[Array, "blend rank"]]:
    """Factors and targets of blends of equal size, in the default precision.

    Columns are added up to full rank, so that data of any rank share a program; what is
    added carries no information.
    """
    latent = likelihoods[0].n_galaxies * likelihoods[0].n_latent
    factor = np.zeros((len(likelihoods), latent, latent))
    target = np.zeros((len(likelihoods), latent))
    for i, one in enumerate(likelihoods):
        factor[i, :, : len(one.target)] = one.factor
        target[i, : len(one.target)] = one.target
    dtype = jnp.result_type(float)
    return jnp.asarray(factor, dtype), jnp.asarray(target, dtype)


def as_arrays(prior: LatentTier) -> LatentTier:
    """The prior with all numbers on the device, in the default precision."""
    dtype = jnp.result_type(float)
    return jax.tree.map(
        lambda x: jnp.asarray(x, dtype) if eqx.is_inexact_array_like(x) else x, prior
    )
