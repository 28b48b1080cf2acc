"""Numbers that say whether the Gaussian posterior and its EM are right.

    make validate

Simulates blends with the library, and writes `results/validation/summary.json`: a list of
records with `name`, `value`, `unit`, `n`, `expected` and `command`. It takes minutes on two cores.
"""

import argparse
import json
import os
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from blendem.blend import pad_observation, pad_sources, stack
from blendem.inference.em import expectation, maximization
from blendem.inference.posterior import (
    BlendStatistics,
    chi2,
    posterior,
    unpad,
)
from blendem.inference.statistics import (
    Settings,
    compute_statistics,
    render_sources,
    transform_basis,
)
from blendem.measure.calibration import coverage, coverage_fraction
from blendem.measure.shapes import measure_shapes
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.pca import fit_basis, fit_moments, normalise_stamps
from blendem.renderer import Renderer
from blendem.survey.instruments import INSTRUMENTS, effective_psf
from blendem.survey.population import draw_galaxies
from blendem.survey.simulate import draw_stamps

COMMAND = "make validate"
SEED = 20240611
BANDS = ("g", "r", "i")
REFERENCE = 2
STAMP, SIZE, PSF_SIZE, SIGMA = 33, 41, 31, 0.7
MODES = 32
SOURCES = (2, 4)  # of one blend, uniform; padded to the larger
JITTER = 0.1  # of ln(amplitude), as in `normalise_stamps`
MAGNITUDES = (21.0, 24.5)  # brightest, faintest in i
BATCH = 16
# Lowest variance of z in both priors (1 over the training set). The wrong population has one
# colour, so some directions have none at all, and EM leaves zero variance only slowly.
FLOOR = 1e-2
INSTRUMENT = INSTRUMENTS["hsc_deep"]
INDEX = [INSTRUMENT.index(band) for band in BANDS]
NOISE = np.asarray(INSTRUMENT.sky_sigma)[INDEX]


def population(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `n` stamps of a population; those without positive flux do not occur."""
    bright, faint = MAGNITUDES
    galaxies = draw_galaxies(
        n, rng, mag_limit=faint, mag_bright=bright, population=name
    )
    return draw_stamps(galaxies, INSTRUMENT, stamp=STAMP, psf_sigma=SIGMA, bands=BANDS)


def place(n: int, rng: np.random.Generator) -> np.ndarray:
    """Positions (y, x) of the sources of one blend, at least 3 pixels apart."""
    while True:
        at = SIZE // 2 + rng.uniform(-8, 8, (n, 2))
        gap = np.hypot(*(at[:, None] - at[None]).T)
        if n == 1 or gap[np.triu_indices(n, 1)].min() > 3:
            return at


def empty_blend(n: int, psf: np.ndarray, rng: np.random.Generator):
    """Blend of `n` galaxies at random positions, without light or noise."""
    variance = np.broadcast_to(NOISE[:, None, None] ** 2, (len(BANDS), SIZE, SIZE))
    observation = pad_observation(
        np.zeros(variance.shape),
        variance,
        psf,
        size=SIZE,
        jacobian=np.eye(2),
        offset=np.zeros(2),
        band_index=(0, 1, 2),
        same_grid=True,
    )
    return pad_sources((observation,), place(n, rng), np.zeros(n, bool), SOURCES[1])


def with_image(blend, image):
    """The same blend with another image."""
    return eqx.tree_at(lambda b: b.observations[0].image, blend, image)


@eqx.filter_jit
def render(images, blends):
    """Noise-free image of every source of a batch of blends."""
    sigma = jnp.float32(SIGMA)
    return jax.vmap(lambda x, b: render_sources(x, b.centers, b, sigma)[0])(
        images, blends
    )


@eqx.filter_jit
def columns(transform, blends):
    """Unit-amplitude images of every mode and of the mean, whitened."""

    def one(blend):
        observation = blend.observations[0]
        renderer = Renderer.of(observation, STAMP, jnp.float32(SIGMA))
        root = jnp.sqrt(observation.weight)
        modes = jax.vmap(lambda c: renderer.render_transform(transform, c))(
            blend.centers
        )
        return modes * root[None, None]

    return jax.vmap(one)(blends)


def batches(n: int):
    """Slices of a list of `n` blends."""
    return [slice(i, min(i + BATCH, n)) for i in range(0, n, BATCH)]


def conjugate(basis, n_blends: int, draws: int, psf, rng, say) -> list[dict]:
    """Truths from the prior itself: coverage, pulls and chi2 of exact posteriors."""
    prior = GaussianPrior.standard(basis)
    blends = [
        empty_blend(rng.integers(*SOURCES, endpoint=True), psf, rng)
        for _ in range(n_blends)
    ]
    renderer = Renderer.of(blends[0].observations[0], STAMP, jnp.float32(SIGMA))
    transform = transform_basis(basis, renderer)
    both = jnp.concatenate([jnp.swapaxes(transform.modes, 0, 1), transform.mean[None]])
    flat = np.asarray(basis.modes, float).reshape(len(basis.modes), -1)
    mean = np.asarray(basis.mean, float)
    inside = {"flux": [], "colour g-i": [], "size": []}
    ratio, drawn_chi2, n_data, standard = 0.0, 0.0, 0, []
    size_truth, size_draws = [], []
    for part in batches(n_blends):
        group = blends[part]
        all_columns = np.asarray(columns(both, stack(group, BATCH)))
        for blend, column in zip(group, all_columns, strict=False):
            k = int(blend.present.sum())
            # Amplitudes of i = 21 to 24.5 at the survey's noise, known to the fit.
            s = 10 ** (0.4 * (27 - rng.uniform(*MAGNITUDES, k)))
            column = column[:k].astype(float).reshape(k, len(flat) + 1, -1)
            A = (column[:, :-1] * s[:, None, None]).reshape(k * len(flat), -1)
            z = rng.standard_normal((k, len(flat)))
            noise = rng.standard_normal(A.shape[1])
            r = z.ravel() @ A + noise  # data minus the prior-mean model
            statistics = BlendStatistics(
                A @ A.T, A @ r, r @ r, 0.0, r.size, np.zeros(k, bool), len(flat)
            )
            p = posterior(statistics, prior)
            ratio += p.chi2_of_mean + p.effective_parameters
            n_data += r.size
            w = p.draw(draws, rng)
            drawn_chi2 += chi2(statistics, w).mean()
            standard.append(np.linalg.solve(p.root, z.ravel() - p.mean))
            images = mean + (w.reshape(-1, len(flat)) @ flat).reshape(-1, *mean.shape)
            images = images.reshape(draws, k, *mean.shape)
            truth = mean + (z @ flat).reshape(k, *mean.shape)
            flux, true_flux = images.sum((-2, -1)), truth.sum((-2, -1))
            inside["flux"].append(
                coverage(true_flux[:, REFERENCE], flux[..., REFERENCE], (0.68,))[0]
            )
            good = (true_flux[:, [0, 2]] > 0).all(-1)
            drawn = (flux[..., [0, 2]] > 0).all(-1)
            with np.errstate(all="ignore"):
                colour = np.where(
                    drawn, -2.5 * np.log10(flux[..., 0] / flux[..., 2]), np.nan
                )
                true_colour = -2.5 * np.log10(true_flux[:, 0] / true_flux[:, 2])
            good &= np.isfinite(colour).sum(0) > draws / 2
            inside["colour g-i"].append(coverage(true_colour, colour, (0.68,))[0][good])
            size_truth.append(truth[:, REFERENCE].astype(np.float32))
            size_draws.append(images[:, :, REFERENCE].astype(np.float32))
    scale = INSTRUMENT.pixel_scale
    shape = (STAMP, STAMP)
    true_size = measure_shapes(np.concatenate(size_truth), scale)["size"]
    stacked = np.concatenate(size_draws, axis=1).reshape(-1, *shape)
    size = measure_shapes(stacked, scale, chunk=1024)["size"].reshape(draws, -1)
    good = np.isfinite(true_size) & (np.isfinite(size).sum(0) > draws / 2)
    inside["size"].append(coverage(true_size, size, (0.68,))[0][good])
    for name, parts in inside.items():
        hits = np.concatenate(parts)
        value, error = coverage_fraction(hits)
        say(
            f"coverage of 68 % intervals, {name}",
            value,
            "1",
            len(hits),
            "0.66 to 0.70",
            error=float(error),
        )
    standard = np.concatenate(standard)
    say(
        "variance of whitened truth minus posterior mean",
        standard.var(),
        "1",
        standard.size,
        "1",
    )
    say(
        "posterior-predictive chi2 / N, closed form",
        ratio / n_data,
        "1",
        n_blends,
        "0.98 to 1.02",
    )
    say(
        "posterior-predictive chi2 / N, draws",
        drawn_chi2 / n_data,
        "1",
        n_blends,
        "0.98 to 1.02",
    )


def simulate(stamps, n_blends: int, psf, rng) -> list:
    """Noisy blends of stamps drawn without replacement where there are enough."""
    blends, chosen = [], []
    order = rng.permutation(len(stamps))
    first = 0
    for _ in range(n_blends):
        n = int(rng.integers(*SOURCES, endpoint=True))
        blends.append(empty_blend(n, psf, rng))
        pick = np.zeros((SOURCES[1], *stamps.shape[1:]), np.float32)
        pick[:n] = stamps[np.take(order, np.arange(first, first + n), mode="wrap")]
        first += n
        chosen.append(pick)
    out = []
    for part in batches(n_blends):
        group = stack(blends[part], BATCH)
        images = np.stack(
            chosen[part] + [chosen[part][-1]] * (BATCH - len(chosen[part]))
        )
        clean = np.asarray(render(images, group)).sum(1)
        noisy = clean + NOISE[:, None, None] * rng.standard_normal(clean.shape)
        for blend, image in zip(blends[part], noisy, strict=False):
            out.append(with_image(blend, image.astype(np.float32)))
    return out


def statistics_of(blends, basis) -> list[BlendStatistics]:
    """Sufficient statistics by the library, amplitudes fitted."""
    settings = Settings(
        reference=REFERENCE, stamp=STAMP, iterations=0, centroid_sigma=0.0
    )
    sigma = jnp.float32(SIGMA)
    renderer = Renderer.of(blends[0].observations[0], STAMP, sigma)
    transforms = (transform_basis(basis, renderer),)
    run = eqx.filter_jit(
        lambda batch: jax.vmap(
            lambda b: compute_statistics(b, transforms, len(BANDS), sigma, settings)
        )(batch)
    )
    out = []
    for part in batches(len(blends)):
        result = jax.tree.map(np.asarray, run(stack(blends[part], BATCH)))
        for i, blend in enumerate(blends[part]):
            out.append(
                unpad(
                    result.H[i],
                    result.b[i],
                    result.r2[i],
                    result.log_norm[i],
                    result.n_data[i],
                    present=blend.present,
                    is_star=blend.is_star,
                    n_modes=len(basis.modes),
                )
            )
    return out


def recover(basis, true_prior, wrong_prior, train, held, laps: int, say) -> dict:
    """EM from the wrong prior; the part of the evidence gap that it closes."""
    start, _ = expectation(train, wrong_prior)
    goal, _ = expectation(train, true_prior)
    start_h, _ = expectation(held, wrong_prior)
    goal_h, _ = expectation(held, true_prior)
    prior, curve = wrong_prior, []
    for lap in range(laps + 1):
        total, _ = expectation(train, prior)
        total_h, _ = expectation(held, prior)
        curve.append(
            {
                "lap": lap,
                "train": total.log_evidence,
                "held_out": total_h.log_evidence,
                "recovered_train": (total.log_evidence - start.log_evidence)
                / (goal.log_evidence - start.log_evidence),
                "recovered_held_out": (total_h.log_evidence - start_h.log_evidence)
                / (goal_h.log_evidence - start_h.log_evidence),
            }
        )
        print(json.dumps(curve[-1]), flush=True)
        if lap < laps:
            prior = maximization(total, prior)
    gap = goal.log_evidence - start.log_evidence
    gap_h = goal_h.log_evidence - start_h.log_evidence
    say(
        "evidence gap, true minus wrong prior, training",
        gap / len(train),
        "nat / blend",
        len(train),
        "> 0",
    )
    say(
        "evidence gap, true minus wrong prior, held out",
        gap_h / len(held),
        "nat / blend",
        len(held),
        "> 0",
    )
    say(
        "gap recovered by EM, training",
        curve[-1]["recovered_train"],
        "1",
        len(train),
        ">= 0.9",
    )
    say(
        "gap recovered by EM, held out",
        curve[-1]["recovered_held_out"],
        "1",
        len(held),
        ">= 0.9",
    )
    steps = np.diff([c["train"] for c in curve])
    say("smallest gain of evidence in a lap", steps.min(), "nat", laps, ">= 0")
    for part in ("train", "held_out"):
        first = next((c["lap"] for c in curve if c[f"recovered_{part}"] >= 0.9), None)
        say(f"laps to 90 % of the gap, {part}", first, "lap", laps, "<= laps")
    return curve


def main(out: Path, sources: int, draws: int, train: int, held: int, laps: int):
    """Run both parts; write and print every number."""
    began, records = time.time(), []

    def say(name, value, unit, n, expected, **more):
        value = None if value is None else float(value)
        record = dict(
            name=name,
            value=value,
            unit=unit,
            n=int(n),
            expected=expected,
            command=COMMAND,
        )
        records.append(record | more)
        print(
            f"{time.time() - began:6.0f} s  {name}: {value} {unit} (n = {n})",
            flush=True,
        )

    rng = np.random.default_rng(SEED)
    basis_rng, real_rng, wrong_rng, conjugate_rng, em_rng = rng.spawn(5)
    psf = effective_psf(INSTRUMENT, PSF_SIZE)[INDEX]
    real = population("realistic", 2000 + 3 * (train + held), real_rng)
    wrong = population("wrong", 1500, wrong_rng)
    blended, real = real[2000:], real[:2000]
    unit = [normalise_stamps(x, REFERENCE, JITTER, basis_rng) for x in (real, wrong)]
    basis = fit_basis(
        np.concatenate(unit),
        MODES,
        bands=BANDS,
        psf_sigma=SIGMA,
        pixel_scale=INSTRUMENT.pixel_scale,
        rng=basis_rng,
    )
    share = float(basis.eigenvalues.sum() / (basis.eigenvalues.sum() + basis.residual))
    say(
        "variance of the training stamps in the basis",
        share,
        "1",
        len(real) + len(wrong),
        "",
    )
    say("modes", len(basis.modes), "1", 1, "")

    true_prior, wrong_prior = (
        GaussianPrior.from_moments(basis, *fit_moments(basis, u), floor=FLOOR)
        for u in unit
    )
    conjugate(basis, round(sources / np.mean(SOURCES)), draws, psf, conjugate_rng, say)
    split = round(len(blended) * train / (train + held))
    training = statistics_of(simulate(blended[:split], train, psf, em_rng), basis)
    held_out = statistics_of(simulate(blended[split:], held, psf, em_rng), basis)
    print(f"{time.time() - began:6.0f} s  statistics", flush=True)
    curve = recover(basis, true_prior, wrong_prior, training, held_out, laps, say)
    say("wall time", time.time() - began, "s", 1, "<= 480")

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps({"numbers": records, "em_curve": curve}, indent=1))
    os.replace(temporary, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default="results/validation/summary.json")
    parser.add_argument("--sources", type=int, default=4000, help="for coverage")
    parser.add_argument("--draws", type=int, default=63, help="per source")
    parser.add_argument("--train", type=int, default=512, help="blends of the EM")
    parser.add_argument("--held", type=int, default=128, help="blends kept out")
    parser.add_argument("--laps", type=int, default=30)
    main(**vars(parser.parse_args()))
