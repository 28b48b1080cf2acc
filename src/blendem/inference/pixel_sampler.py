"""Joint posterior draws of all sources of a blend under a pixel-space prior.

The system of moment matching (Rozet et al. 2024, arXiv 2405.13712) is solved in data space,
whitened by the noise:

    C v = y - sum_k A_k D_k,   C = 1 + sum_k A_k V_k A_k^T + G^T G,   D_y,k = D_k + V_k A_k^T v

by conjugate gradients with one scalar per draw. V is the prior's own covariance given x_t
(`UNetPrior.variances`), so that no step pulls back through the network; the rows of G are what
enters linearly with prior N(0, 1): star fluxes, shifts and sky, as in `statistics`. A step draws
(D, V) perturbed with a perturbed right side, which gives an exact draw of the Gaussian
(Matheron's rule), and then moves to the next noise level; see `PixelSettings.predictor`.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from blendem.blend import Blend
from blendem.inference.amplitude import Amplitudes
from blendem.inference.batch import batches
from blendem.inference.conjugate import conjugate_gradients
from blendem.inference.pixel_problem import pixel_problem
from blendem.inference.statistics import Settings
from blendem.precision import single_precision
from blendem.prior.schedule import noise_levels
from blendem.prior.unet import PixelMoments, UNetPrior

# Added to the unit diagonal of the preconditioner, where float32 ends; it changes how many
# iterations a solve takes, not where it ends.
DIAGONAL = 3e-6
# First noise level in units of the deviation of the prior's strongest mode.
TOP = 10.0


class PixelSettings(NamedTuple):
    """Choices of the reverse process; hashable.

    Attributes:
        steps: Noise levels.
        sigma_max: First level [unit of the prior]; 0: 10 times the deviation of the
            strongest mode, where x_t says nothing about x.
        sigma_min: Last level.
        predictor: "draw": x_0 from the Gaussian given x_t and the data, then x_t' from the
            known Gaussian between them: exact for a Gaussian prior, however few steps.
            "ddim": its mean, and the noise scaled down; needs the corrector.
        corrector: Step of one Langevin corrector per level, in units of sigma^2; 0: none.
        iterations: Most conjugate-gradient iterations of a solve.
        bright_iterations: The same where the peak S/N of a pixel exceeds 100.
        tolerance: Relative residual at which a solve ends.
    """

    steps: int = 64
    sigma_max: float = 0.0
    sigma_min: float = 0.02
    predictor: Literal["draw", "ddim"] = "draw"
    corrector: float = 0.0
    iterations: int = 30
    bright_iterations: int = 60
    tolerance: float = 1e-3


DEFAULTS = PixelSettings()


class PixelDraws(NamedTuple):
    """Posterior draws of one blend, and how they were come by. Padding sources are left in.

    Attributes:
        images: Galaxies [flux unit] at the model resolution, `(draw, source, band, stamp,
            stamp)`; 0 for stars (their fluxes are in z) and padding.
        z: Coordinates of the galaxies in the basis, `basis.encode(images / scale)`; of a
            star its fluxes in units of `STAR_SPREAD`, first; `(draw, source, mode)`.
        other: Shifts and sky, in the order of `statistics.Statistics`, `(draw, _)`.
        outside: Part of a galaxy's energy that z does not hold, `(draw, source)`.
        scale: Amplitudes, `(source,)`.
        centers: Centres (y, x) [model pixel], `(source, 2)`.
        chi2: Of each draw, `(draw,)`.
        n_data: Number of unmasked pixels.
        residual: Largest relative residual of all solves.
        unconverged: Solves (draw times level) that ended above the tolerance.
        guards: Solves that met a direction of negative curvature and stopped there; 0 in
            exact arithmetic.
        iterations: Mean number of iterations of a solve.
        failed: Draws that are not finite, `(draw,)`; they are NaN everywhere.
    """

    images: Float[np.ndarray, "_ _ _ _ _"]
    z: Float[np.ndarray, "_ _ _"]
    other: Float[np.ndarray, "_ _"]
    outside: Float[np.ndarray, "_ _"]
    scale: Float[np.ndarray, " _"]
    centers: Float[np.ndarray, "_ 2"]
    chi2: Float[np.ndarray, " _"]
    n_data: float
    residual: float
    unconverged: int
    guards: int
    iterations: float
    failed: Bool[np.ndarray, " _"]

    def unknowns(self, present: Bool[np.ndarray, " _"]) -> Float[np.ndarray, "_ _"]:
        """All unknowns without those of padding sources, `(draw, unknown)`.

        In the order of `posterior.unpad`. Galaxies are what z holds of them.
        """
        n_draws, n = self.z.shape[:2]
        shifts = 2 * n if self.other.shape[1] >= 2 * n else 0
        shift = self.other[:, :shifts].reshape(n_draws, -1, 2)
        parts = [self.z[:, present], shift[:, present] if shifts else shift]
        parts = [p.reshape(n_draws, -1) for p in parts]
        return np.concatenate([*parts, self.other[:, shifts:]], axis=1)


def _solve(problem, prior, sigma, rhs, settings):
    """`C^-1 rhs` for every draw at one noise level, and what V is."""
    moments = prior.moments
    along, outside = prior.variances(sigma)
    n_sources = len(problem.scale)
    shape = (n_sources, *moments.mean.shape)
    forward = jax.vmap(problem.forward)
    example = jax.ShapeDtypeStruct((len(rhs), *shape), rhs.dtype)
    transpose = jax.linear_transpose(forward, example)

    def backward(p):
        """`V A^T p`."""
        (a,) = transpose(p)
        a = a.reshape(-1, *shape[1:])
        return moments.combine(a, along[None], outside[None]).reshape(-1, *shape)

    def apply(p):
        return p + forward(backward(p)) + (p @ problem.nuisance.T) @ problem.nuisance

    # Woodbury's inverse of C without the remainder: V of rank `mode` per source.
    root = jnp.sqrt(
        jnp.concatenate(
            [jnp.tile(along, n_sources), jnp.ones(len(problem.nuisance), rhs.dtype)]
        )
    )
    inner = root[:, None] * problem.gram * root[None]
    inner = inner + jnp.eye(len(inner), dtype=rhs.dtype)
    unit = 1 / jnp.sqrt(jnp.diagonal(inner))
    inner = unit[:, None] * inner * unit[None]
    inner = inner + DIAGONAL * jnp.eye(len(inner), dtype=rhs.dtype)
    lower = jnp.linalg.cholesky(inner)
    inverse = jax.scipy.linalg.solve_triangular(
        lower, jnp.eye(len(inner), dtype=rhs.dtype), lower=True
    )
    inverse = inverse * (unit * root)[None]

    def precondition(r):
        c = r @ problem.columns.T
        c = jnp.concatenate([c, r @ problem.nuisance.T], axis=1)
        c = (c @ inverse.T) @ inverse
        m = len(problem.columns)
        return r - (c[:, :m] @ problem.columns + c[:, m:] @ problem.nuisance)

    solution = conjugate_gradients(
        apply, precondition, rhs, problem.limit, settings.tolerance
    )
    return solution, backward


def _perturb(prior, sigma, shape, key, dtype):
    """Draws of N(0, V), `(n, band, stamp, stamp)`."""
    moments = prior.moments
    along, outside = prior.variances(sigma)
    one, two = jax.random.split(key)
    rest = jax.random.normal(two, shape, dtype) * jnp.sqrt(outside)[None]
    c = jax.random.normal(one, (shape[0], len(along)), dtype) * jnp.sqrt(along)[None]
    return rest + moments.expand(c - moments.project(rest))


def _conditional(problem, prior, x_t, sigma, settings, key=None):
    """Mean of x given x_t and the data; with a key a draw, also of the nuisances."""
    flat = x_t.reshape(-1, *x_t.shape[2:])
    x = prior.denoise(flat, sigma)
    w = jnp.zeros((len(x_t), len(problem.nuisance)), x.dtype)
    white = 0.0
    if key is not None:
        one, two, three = jax.random.split(key, 3)
        x = x + _perturb(prior, sigma, flat.shape, one, x.dtype)
        w = jax.random.normal(two, w.shape, x.dtype)
        white = jax.random.normal(three, (len(x_t), len(problem.target)), x.dtype)
        used = jnp.concatenate([(w.root > 0).ravel() for w in problem.whitenings])
        white = white * used[None].astype(x.dtype)
    x = x.reshape(x_t.shape)
    model = jax.vmap(problem.forward)(x) + w @ problem.nuisance
    rhs = problem.target[None] + white - model
    solution, backward = _solve(problem, prior, sigma, rhs, settings)
    x = x + backward(solution.x)
    return x, w + solution.x @ problem.nuisance.T, solution


@eqx.filter_jit
def _step(problems, prior, x_t, sigma, lower, keys, settings):
    """One level down for a batch of blends."""

    def one(problem, x_t, key):
        first, bridge, correct = jax.random.split(key, 3)
        noise = jax.random.normal(bridge, x_t.shape, x_t.dtype)
        if settings.predictor == "draw":
            x_0, _, solution = _conditional(problem, prior, x_t, sigma, settings, first)
            keep = (lower / sigma) ** 2
            x_t = keep * x_t + (1 - keep) * x_0 + lower * jnp.sqrt(1 - keep) * noise
        else:
            x_0, _, solution = _conditional(problem, prior, x_t, sigma, settings)
            x_t = x_0 + (lower / sigma) * (x_t - x_0)
        notes = [_notes(solution, settings)]
        if settings.corrector > 0:
            mean, _, more = _conditional(problem, prior, x_t, lower, settings)
            kick = jax.random.normal(correct, x_t.shape, x_t.dtype)
            delta = settings.corrector
            x_t = x_t - delta * (x_t - mean) + lower * jnp.sqrt(2 * delta) * kick
            notes.append(_notes(more, settings))
        return x_t, jnp.stack(notes)

    return jax.vmap(one)(problems, x_t, keys)


def _notes(solution, settings):
    """Largest residual, solves above the tolerance, guards, iterations."""
    values = (
        jnp.max(solution.residual),
        jnp.sum(solution.residual > settings.tolerance),
        solution.guards,
        solution.iterations,
    )
    return jnp.stack([jnp.asarray(v, solution.residual.dtype) for v in values])


@eqx.filter_jit
def _last(problems, prior, x_t, sigma, keys, settings):
    """Draws given the last x_t, nuisances, chi2."""

    def one(problem, x_t, key):
        x, w, solution = _conditional(problem, prior, x_t, sigma, settings, key)
        model = jax.vmap(problem.forward)(x) + w @ problem.nuisance
        chi2 = jnp.sum((problem.target[None] - model) ** 2, axis=1)
        return x, w, chi2, _notes(solution, settings)[None]

    return jax.vmap(one)(problems, x_t, keys)


@eqx.filter_jit
def _problems(blends, amplitudes, basis, moments, settings, limits):
    def one(blend, a):
        return pixel_problem(blend, a, basis, moments, settings, *limits)

    return jax.vmap(one)(blends, amplitudes)


def sample_blends(
    prior: UNetPrior,
    stack: Blend,
    amplitudes: Amplitudes,
    n_draws: int,
    settings: Settings,
    pixel_settings: PixelSettings = DEFAULTS,
    *,
    keys: Sequence[PRNGKeyArray],
    batch: int = 1,
) -> list[PixelDraws]:
    """Draw from the joint posterior of all sources of every blend of a stack.

    Args:
        prior: The prior, calibrated (`train_unet.calibrate`).
        stack: Padded blends of one bucket on a leading axis, as `io.blends` reads them.
        amplitudes: With the same leading axis: of `amplitudes_of`, or the fields `scale`,
            `flux`, `flux_error`, `centers` of `batch.statistics_of`.
        n_draws: Draws per blend.
        settings: Those of the statistics: nuisances, stamp side, reference band.
        pixel_settings: Choices of the reverse process.
        keys: One per blend.
        batch: Blends computed at once.

    Returns:
        Draws in the order of the stack. Those of a blend depend on its own data and key.

    Raises:
        ValueError: If the stamps of the prior have another side than `settings.stamp`, or
            keys are missing.
    """
    n = len(stack.centers)
    side = int(prior.basis.mean.shape[-1])
    if settings.stamp != side:
        raise ValueError(
            f"the stamps of the prior are {side} pixels wide, settings.stamp is"
            f" {settings.stamp}; use the frame that the prior was trained in"
        )
    if len(keys) != n:
        raise ValueError(f"{n} blends, but {len(keys)} keys")
    low = single_precision(prior)
    words = np.stack([np.asarray(jax.random.key_data(k)) for k in keys])
    out = []
    for count, (blends, a, key_words) in batches(
        (stack, tuple(amplitudes), words), n, batch
    ):
        problems = _problems(
            jax.tree.map(jnp.asarray, blends),
            Amplitudes(*(jnp.asarray(x, low.moments.mean.dtype) for x in a)),
            low.basis,
            low.moments,
            settings,
            (pixel_settings.iterations, pixel_settings.bright_iterations),
        )
        result = _run(low, problems, key_words, n_draws, pixel_settings)
        for i in range(count):
            row = jax.tree.map(lambda x, i=i: np.asarray(x[i]), (blends, a, result))
            out.append(_finish(prior.basis, low.moments, *row, pixel_settings))
    return out


def sample_blend(
    prior: UNetPrior,
    blend: Blend,
    amplitudes: Amplitudes,
    n_draws: int,
    settings: Settings,
    pixel_settings: PixelSettings = DEFAULTS,
    *,
    key: PRNGKeyArray,
) -> PixelDraws:
    """`sample_blends` of one padded blend, without a leading axis anywhere."""
    stack = jax.tree.map(lambda leaf: np.asarray(leaf)[None], blend)
    each = Amplitudes(*(np.asarray(x)[None] for x in amplitudes))
    return sample_blends(
        prior, stack, each, n_draws, settings, pixel_settings, keys=[key]
    )[0]


def _levels(moments: PixelMoments, settings: PixelSettings) -> np.ndarray:
    top = settings.sigma_max or TOP * float(np.sqrt(np.max(moments.variance)))
    return noise_levels(settings.steps, top, settings.sigma_min)


@eqx.filter_jit
def _begin(moments, words, sigma, n_draws, n_sources, n_levels):
    """x_t at the first level, and the keys of all levels, of every blend."""
    shape, dtype = (n_draws, n_sources, *moments.mean.shape), moments.mean.dtype

    def one(words):
        first, rest = jax.random.split(jax.random.wrap_key_data(words))
        noise = jax.random.normal(first, shape, dtype)
        return moments.mean[None, None] + sigma * noise, jax.random.split(
            rest, n_levels
        )

    return jax.vmap(one)(words)


def _run(prior, problems, words, n_draws, settings):
    """The reverse process; one program per level: loops slow down convolutions on a CPU."""
    levels = _levels(prior.moments, settings)
    moments, dtype = prior.moments, prior.moments.mean.dtype
    x_t, keys = _begin(
        moments,
        jnp.asarray(words),
        jnp.asarray(levels[0], dtype),
        n_draws,
        problems.scale.shape[1],
        len(levels),
    )
    sigmas, notes = jnp.asarray(levels, dtype), []
    for i in range(len(levels) - 1):
        x_t, note = _step(
            problems, prior, x_t, sigmas[i], sigmas[i + 1], keys[:, i], settings
        )
        notes.append(note)
    x, w, chi2, note = _last(problems, prior, x_t, sigmas[-1], keys[:, -1], settings)
    used = sum(
        jnp.sum(w.root > 0, axis=tuple(range(1, w.root.ndim)))
        for w in problems.whitenings
    )
    return x, w, chi2, used, jnp.concatenate([*notes, note], axis=1)


def _finish(basis, moments, blend, amplitudes, result, settings) -> PixelDraws:
    """From stamps x to images and coordinates."""
    x, w, chi2, n_data, notes = result
    known = Amplitudes(*amplitudes)
    scale, centers = known.scale, known.centers
    n_draws, n, n_bands = x.shape[:3]
    failed = ~(np.isfinite(x).all((1, 2, 3, 4)) & np.isfinite(w).all(1))
    galaxy = (blend.present & ~blend.is_star)[None, :]
    u = x * np.asarray(moments.unit)[:, None, None]
    z = np.asarray(basis.encode(u))
    lost = u - np.asarray(basis.decode(z))
    energy = np.sum(u**2, axis=(2, 3, 4))
    outside = np.sum(lost**2, axis=(2, 3, 4)) / np.where(energy > 0, energy, 1.0)
    star_flux = w[:, : n * n_bands].reshape(n_draws, n, n_bands)
    z = np.where(galaxy[..., None], z, 0.0)
    # Fewer modes than bands cannot be: the statistics put star fluxes in the same slots.
    z[..., :n_bands] += np.where(blend.is_star[None, :, None], star_flux, 0.0)
    images = np.where(galaxy[..., None, None, None], u, 0.0)
    images = images * scale[None, :, None, None, None]
    blank = np.where(failed, np.nan, 1.0).astype(x.dtype)
    return PixelDraws(
        images=images * blank[:, None, None, None, None],
        z=z * blank[:, None, None],
        other=w[:, n * n_bands :] * blank[:, None],
        outside=np.where(galaxy, outside, 0.0) * blank[:, None],
        scale=scale,
        centers=centers,
        chi2=chi2 * blank,
        n_data=float(n_data),
        residual=float(notes[:, 0].max()),
        unconverged=int(notes[:, 1].sum()),
        guards=int(notes[:, 2].sum()),
        iterations=float(notes[:, 3].mean()),
        failed=failed,
    )


def sample_prior_stamps(
    prior: UNetPrior,
    n: int,
    settings: PixelSettings = DEFAULTS,
    *,
    key: PRNGKeyArray,
) -> Float[np.ndarray, "n band stamp stamp"]:
    """Draw `n` galaxies of unit reference flux (times the jitter) from the prior."""
    low = single_precision(prior)
    moments, dtype = low.moments, low.moments.mean.dtype
    levels = _levels(moments, settings)
    sigmas = jnp.asarray(levels, dtype)
    keys = jax.random.split(key, len(levels) + 1)
    noise = jax.random.normal(keys[-1], (n, *moments.mean.shape), dtype)
    x_t = moments.mean[None] + sigmas[0] * noise
    for i in range(len(levels) - 1):
        x_t = _prior_step(low, x_t, sigmas[i], sigmas[i + 1], keys[i])
    x, _ = _prior_draw(low, x_t, sigmas[-1], keys[-2])
    return np.asarray(x) * np.asarray(moments.unit)[:, None, None]


@eqx.filter_jit
def _prior_draw(prior, x_t, sigma, key):
    one, two = jax.random.split(key)
    noise = _perturb(prior, sigma, x_t.shape, one, x_t.dtype)
    return prior.denoise(x_t, sigma) + noise, two


@eqx.filter_jit
def _prior_step(prior, x_t, sigma, lower, key):
    x_0, key = _prior_draw(prior, x_t, sigma, key)
    keep = (lower / sigma) ** 2
    noise = jax.random.normal(key, x_t.shape, x_t.dtype)
    return keep * x_t + (1 - keep) * x_0 + lower * jnp.sqrt(1 - keep) * noise
