"""Galaxies behind dust: are the errors of their flux and of A_V right?

    python benchmarks/dust.py

Trains both priors on simulations, simulates dusty galaxies as HSC sees them, draws from the joint posterior
of each galaxy and its dust, before and after Metropolis steps with the exact likelihood, and
writes `results/multi/dust.json`, records with `name`, `value`, `unit`, `n`, `expected` and
`command`, and `results/multi/dust.png`.

*A_V of a galaxy* is that of `measure.dusty`, weighted with the intrinsic i-band light. The workflow
(`config/dust.yaml`) fits fields and blends with the same functions; here every galaxy is alone at
a known place, so that only priors and sampler are tested.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from records import Report

from blendem.config import DustConfig
from blendem.inference.dust import DustSettings, correct, sample
from blendem.inference.dust_model import (
    DustLikelihood,
    DustModel,
    compress,
    see,
    spanning,
)
from blendem.measure.calibration import coverage, coverage_fraction
from blendem.measure.dusty import dusty_quantities, dusty_source, quantity_names
from blendem.observation import Observation
from blendem.plot.dust import plot_dust_row
from blendem.plot.pictures import lupton
from blendem.plot.style import STYLE, TWO_COLUMNS
from blendem.precision import single_precision
from blendem.prior.dust import unit_flux
from blendem.rng import stage_key
from blendem.survey.dusty import DustyGalaxies, draw_dusty_galaxies, fit_priors
from blendem.survey.instruments import INSTRUMENTS, effective_psf

COMMAND = f"python {' '.join(sys.argv)}"
SEED = 20240611
INSTRUMENT = INSTRUMENTS["hsc_wide"]
BANDS = INSTRUMENT.bands
REFERENCE = INSTRUMENT.index("i")
SIGMA = np.array(INSTRUMENT.sky_sigma)
STAMP, BORDER, PSF_SIGMA = 27, 4, 0.7
MAGNITUDES = (21.0, 23.0)  # of the galaxies without their dust [AB, i]
SCALE = unit_flux(INSTRUMENT.magzero)
CONFIG = DustConfig()  # the defaults of a run
GOAL = (0.60, 0.76)
SHOWN_OF = 40  # galaxies that the figure chooses from


def simulate(n: int, rng: np.random.Generator, aligned: bool = False) -> DustyGalaxies:
    """Galaxies with the dust of other ones of the population, or `aligned` with their own."""
    return draw_dusty_galaxies(
        n,
        rng,
        INSTRUMENT,
        stamp=STAMP,
        psf_sigma=PSF_SIGMA,
        mag_bright=MAGNITUDES[0],
        mag_limit=MAGNITUDES[1],
        aligned=aligned,
    )


def train(
    sky: DustyGalaxies, rng: np.random.Generator, link: str, components: int
) -> DustModel:
    """Both priors."""
    priors = fit_priors(
        sky,
        INSTRUMENT,
        reference=REFERENCE,
        modes=CONFIG.modes,
        dust_modes=CONFIG.dust_modes,
        components=components,
        shrink=CONFIG.shrink,
        link=link,
        psf_sigma=PSF_SIGMA,
        rng=rng,
    )
    return DustModel.of(*priors)


def observe(stamps: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Images of stamps over the noise sigma, `(n, band, side, side)`; None: without noise."""
    observation, center = template()
    side = observation.image.shape[-1]
    images = see(observation, center[0], stamps, PSF_SIGMA)
    images = images.reshape(len(stamps), len(BANDS), side, side)
    return images if rng is None else images + rng.standard_normal(images.shape)


def template() -> tuple[Observation, np.ndarray]:
    """Noise and PSF of all images, and the centre of the galaxy."""
    side = STAMP + 2 * BORDER
    shape = (len(BANDS), side, side)
    observation = Observation(
        image=jnp.zeros(shape, jnp.float32),
        variance=jnp.asarray(
            np.broadcast_to(SIGMA[:, None, None] ** 2, shape), jnp.float32
        ),
        psf=jnp.asarray(effective_psf(INSTRUMENT, 25), jnp.float32),
        jacobian=jnp.eye(2),
        offset=jnp.full(2, -float(BORDER)),
        band_index=tuple(range(len(BANDS))),
        same_grid=True,
    )
    return observation, np.full((1, 2), STAMP // 2, float)


class Fits(NamedTuple):
    """Quantities of the draws of every galaxy before and after correction, and diagnostics."""

    linear: np.ndarray
    exact: np.ndarray
    acceptance: np.ndarray
    chi2: np.ndarray
    first: list
    seconds: float


def fit(model, sky, operator, data, settings, draws, steps, stage):
    """Draw for one galaxy after the other."""
    model = single_precision(model)
    linear, exact, acceptance, chi2, first = [], [], [], [], []
    begin = time.perf_counter()
    for k, y in enumerate(data):
        law, tilt = sky.law[k], sky.tilt[k]
        like = single_precision(
            DustLikelihood(operator, y, np.array([SCALE]), law[None], tilt[None])
        )
        one, two = jax.random.split(stage_key(SEED, stage, k))
        made = sample(model, like, draws, settings, key=one)
        e, after, accepted = correct(model, like, made.e, steps, key=two)
        known = (law, tilt, SCALE, REFERENCE)
        linear.append(dusty_source(model, made.e[:, 0], *known).values)
        found = dusty_source(model, np.asarray(e)[:, 0], *known)
        exact.append(found.values)
        acceptance.append(accepted.mean())
        chi2.append(float(after.mean()))
        first.append(found if k < SHOWN_OF else None)
    seconds = (time.perf_counter() - begin) / len(data)
    return Fits(*map(np.array, (linear, exact, acceptance, chi2)), first, seconds)


NAMES = quantity_names(BANDS)


def report(out: Report, label: str, truth: np.ndarray, fits: Fits, goal: bool) -> None:
    """Coverage, accuracy, and what the Metropolis steps changed."""
    n = len(truth)
    expected = f"{GOAL[0]} to {GOAL[1]}" if goal else ""
    for which in ("exact", "linear"):
        q = getattr(fits, which).swapaxes(0, 1)
        inside = coverage(truth, q)
        fraction = np.array([coverage_fraction(inside[0].T)[0]]).ravel()
        wide = np.array([coverage_fraction(inside[1].T)[0]]).ravel()
        for name, value, more in zip(NAMES, fraction, wide, strict=True):
            what = f"{label}, {which}: coverage of the {{}} % interval, {name}"
            given = expected if which == "exact" else ""
            out.say(what.format(68), value, n=n, expected=given)
            out.say(what.format(95), more, n=n)
    exact, linear = fits.exact, fits.linear
    mean, sd = exact.mean(axis=1), exact.std(axis=1)
    out.say(f"{label}: binomial error of a coverage", np.sqrt(0.68 * 0.32 / n), n=n)
    out.say(
        f"{label}: rms error of A_V",
        np.sqrt(np.mean((mean - truth)[:, -1] ** 2)),
        "mag",
        n,
    )
    out.say(f"{label}: median error of A_V given", np.median(sd[:, -1]), "mag", n)
    out.say(f"{label}: mean error of A_V", np.mean((mean - truth)[:, -1]), "mag", n)
    out.say(f"{label}: sd of the true A_V", truth[:, -1].std(), "mag", n)
    ratio = np.median(exact, axis=1) / truth
    for b, name in enumerate(NAMES[:-1]):
        out.say(f"{label}: median flux over truth, {name}", np.median(ratio[:, b]), n=n)
        part = np.median(np.abs(ratio[:, b] - 1))
        out.say(f"{label}: median abs error of the flux, {name}", part, n=n)
    shift = (np.median(linear, axis=1) - np.median(exact, axis=1)) / sd
    width = linear.std(axis=1) / sd
    for b, name in enumerate(NAMES):
        what = f"{label}: cost of linearisation, {{}}, {name}"
        out.say(
            what.format("median abs shift"), np.median(np.abs(shift[:, b])), "sd", n
        )
        out.say(what.format("mean shift"), np.mean(shift[:, b]), "sd", n)
        out.say(what.format("median ratio of widths"), np.median(width[:, b]), n=n)
    out.say(f"{label}: accepted Metropolis steps", fits.acceptance.mean(), n=n)
    per = fits.chi2 / (CONFIG.rank * len(BANDS))
    out.say(f"{label}: median chi2 of a draw per datum", np.median(per), n=n)
    out.say(f"{label}: time per galaxy", fits.seconds, "s", n)


def draw_figure(path: Path, sky, images, fits, rows) -> None:
    """One galaxy per row."""
    crop = slice(BORDER, BORDER + STAMP)
    unit = SIGMA[:, None, None]
    matplotlib.use("Agg")
    with plt.rc_context(STYLE | {"axes.titlesize": 7}):
        fig, axes = plt.subplots(
            len(rows), 8, figsize=(TWO_COLUMNS, 0.92 * len(rows) + 0.3), squeeze=False
        )
        for line, k in zip(axes, rows, strict=True):
            found, seen = fits.first[k], images[k][:, crop, crop]
            fitted = observe(found.dimmed[None], None)[0][:, crop, crop]
            stretch = float(np.quantile(sky.galaxy[k].mean(0), 0.95))

            def picture(image, stretch=stretch):
                return lupton(image, BANDS, rgb=("i", "r", "g"), stretch=stretch)

            plot_dust_row(
                line,
                picture(seen * unit),
                picture(fitted * unit),
                (seen - fitted)[REFERENCE],
                picture(found.mean),
                found.dust_mean,
                found.dust_std,
                truth_rgb=picture(sky.galaxy[k]),
                truth=sky.dust[k],
                pixel_scale=INSTRUMENT.pixel_scale,
                titles=k == rows[0],
            )
            given = fits.exact[k][:, -1]
            true = true_quantities(sky)[k, -1]
            line[0].set_ylabel(
                f"$A_V$ {true:.2f}\nfit {given.mean():.2f} $\\pm$ {given.std():.2f}",
                fontsize=6,
            )
        fig.savefig(path, dpi=200)
        plt.close(fig)


def true_quantities(sky: DustyGalaxies) -> np.ndarray:
    """Fluxes and A_V of the truth."""
    return dusty_quantities(sky.galaxy, sky.dust, REFERENCE)


def draw_truths(model: DustModel, sky: DustyGalaxies) -> DustyGalaxies:
    """Galaxies and dust drawn from the priors, at the redshifts of simulated ones."""
    e = model.prior_draw(len(sky.law), key=stage_key(SEED, "prior"))
    x, a = np.asarray(model.intrinsic(e)), np.asarray(model.attenuation(e))
    return sky._replace(
        galaxy=SCALE * x.reshape(sky.galaxy.shape), dust=a.reshape(sky.dust.shape)
    )


def main(
    out: Path,
    n: int,
    draws: int,
    steps: int,
    aligned: int,
    link: str,
    components: int,
    from_prior: int,
) -> None:
    """Train, simulate, fit, score."""
    begin = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    taught = simulate(4000, rng)
    model = train(taught, rng, link, components)
    observation, center = template()
    span = spanning(taught.dimmed, CONFIG.rank)
    operator, projection = compress(observation, center, span, PSF_SIGMA, CONFIG.rank)
    rows = Report(COMMAND)
    rows.say("training of both priors", time.perf_counter() - begin, "s")
    settings = DustSettings(corrections=0)
    for label, number in (
        ("independent", n),
        ("aligned", aligned),
        ("drawn from the priors", from_prior),
    ):
        if not number:
            continue
        sky = simulate(number, rng, label == "aligned")
        if label == "drawn from the priors":
            sky = draw_truths(model, sky)
        images = observe(sky.dimmed, rng)
        flat = images.reshape(number, len(BANDS), -1)
        data = np.einsum("brp,nbp->nbr", projection, flat)
        fits = fit(model, sky, operator, data, settings, draws, steps, label)
        truth = true_quantities(sky)
        report(rows, label, truth, fits, label == "independent")
        if label == "independent" and number >= SHOWN_OF:
            # Bright ones, of little and of much dust.
            bright = np.argsort(-sky.dimmed[:SHOWN_OF].sum((1, 2, 3)))[:12]
            order = bright[np.argsort(truth[bright, -1])]
            draw_figure(out / "dust.png", sky, images, fits, order[[1, 4, 7, 9, 11]])
        rows.say("time so far", time.perf_counter() - begin, "s")
        rows.write(out / "dust.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/multi"))
    parser.add_argument("--galaxies", type=int, default=200)
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--corrections", type=int, default=16)
    parser.add_argument("--aligned", type=int, default=40)
    parser.add_argument("--link", default="softplus")
    parser.add_argument("--components", type=int, default=CONFIG.components)
    parser.add_argument("--from-prior", type=int, default=0)
    given = parser.parse_args()
    main(
        given.out,
        given.galaxies,
        given.draws,
        given.corrections,
        given.aligned,
        given.link,
        given.components,
        given.from_prior,
    )
