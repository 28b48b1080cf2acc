"""Galaxies behind dust: are the errors of their flux and of A_V right?

    python benchmarks/dust.py

Trains both priors on simulations, simulates dusty galaxies as HSC sees them, draws from the joint posterior
of each galaxy and its dust, before and after Metropolis steps with the exact likelihood, and
writes `results/multi/dust.json`, records with `name`, `value`, `unit`, `n`, `expected` and
`command`, and `results/multi/dust.png`.

*A_V of a galaxy* is the mean of the map weighted with the intrinsic i-band light of the galaxy,
`sum_p x_i(p) A(p) / sum_p x_i(p)`. Truth and draws go through the same function.
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

from blendem.inference.dust import DustSettings, correct, sample
from blendem.inference.dust_model import MAGNITUDE, DustLikelihood, DustModel, compress
from blendem.measure.calibration import coverage, coverage_fraction
from blendem.observation import Observation
from blendem.plot.pictures import lupton
from blendem.plot.style import DIVERGING, SEQUENTIAL, STYLE, TWO_COLUMNS
from blendem.precision import single_precision
from blendem.prior.dust import calzetti, draw_dust_maps, fit_dust_prior, fit_latent
from blendem.prior.pca import Metric, fit_basis
from blendem.renderer import Renderer
from blendem.rng import stage_key
from blendem.survey.instruments import INSTRUMENTS, MAGZERO, effective_psf
from blendem.survey.population import draw_galaxies
from blendem.survey.sed import wavelengths
from blendem.survey.simulate import draw_stamps

COMMAND = f"python {' '.join(sys.argv)}"
SEED = 20240611
INSTRUMENT = INSTRUMENTS["hsc_wide"]
BANDS = INSTRUMENT.bands
REFERENCE = BANDS.index("i")
SIGMA = np.array(INSTRUMENT.sky_sigma)
STAMP, BORDER, PSF_SIGMA = 27, 4, 0.7
MAGNITUDES = (21.0, 23.0)  # of the galaxies without their dust [AB, i]
# One amplitude for all: that of a catalog would come from dimmed pixels, and the prior
# of A_V would enter twice. Number counts are in the prior of galaxies.
SCALE = 10 ** (-0.4 * (22.0 - MAGZERO))
GALAXY_MODES, DUST_MODES, COMPONENTS, SHRINK = 48, 20, 16, 30.0
RANK = 40  # numbers per band that the data are compressed to
GOAL = (0.60, 0.76)


class Sky(NamedTuple):
    """Simulated galaxies: intrinsic stamps [`SCALE`], maps of A_V, law of every galaxy."""

    galaxy: np.ndarray
    dust: np.ndarray
    law: np.ndarray
    tilt: np.ndarray

    @property
    def dimmed(self) -> np.ndarray:
        """Attenuated stamps [flux unit]."""
        depth = MAGNITUDE * self.law[:, :, None, None] * self.dust[:, None]
        return SCALE * self.galaxy * np.exp(-depth)


def simulate(n: int, rng: np.random.Generator, aligned: bool = False) -> Sky:
    """Galaxies with the dust of other ones of the population, or `aligned` with their own."""
    table = draw_galaxies(n, rng, mag_bright=MAGNITUDES[0], mag_limit=MAGNITUDES[1])
    stamps = draw_stamps(table, INSTRUMENT, stamp=STAMP, psf_sigma=PSF_SIGMA)
    other = np.arange(n) if aligned else rng.permutation(n)
    shape = (table[c].to_numpy()[other] for c in ("hlr_disk", "q_disk", "beta"))
    dust = draw_dust_maps(
        *shape,
        rng,
        stamp=STAMP,
        pixel_scale=INSTRUMENT.pixel_scale,
        psf_sigma=PSF_SIGMA,
    )
    wave = np.array([wavelengths()[b] for b in BANDS])
    law = np.array([calzetti(wave, z) for z in table["z"]])
    tilt = np.log(wave / (1 + table["z"].to_numpy()[:, None]) / 550)
    return Sky((stamps / SCALE).astype(np.float32), dust, law, tilt)


def train(sky: Sky, rng: np.random.Generator, link: str, slope_sd: float) -> DustModel:
    """Both priors."""
    flux = sky.galaxy[:, REFERENCE].sum((-2, -1))
    width = min(INSTRUMENT.psf_fwhm) / INSTRUMENT.pixel_scale / 2.355
    metric = Metric(np.sqrt(width**2 - PSF_SIGMA**2), 1 / SIGMA, flux**-1.25)
    known = dict(pixel_scale=INSTRUMENT.pixel_scale, psf_sigma=PSF_SIGMA, rng=rng)
    basis = fit_basis(sky.galaxy, GALAXY_MODES, bands=BANDS, metric=metric, **known)
    galaxy = fit_latent(basis, sky.galaxy, COMPONENTS, 20, SHRINK)
    light = sky.galaxy[:, REFERENCE].mean(axis=0)
    dust = fit_dust_prior(
        sky.dust, light, DUST_MODES, link=link, components=COMPONENTS, **known
    )
    return DustModel.of(galaxy, dust, slope_sd)


def observe(stamps: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Images of stamps over the noise sigma, `(n, band, side, side)`; None: without noise."""
    observation, center = template()
    renderer = Renderer.of(observation, STAMP, jnp.asarray(PSF_SIGMA))
    one = jax.jit(lambda x: renderer.render_stamps(x, jnp.asarray(center[0])))
    images = np.array([one(jnp.asarray(x, jnp.float32)) for x in stamps])
    images = images / SIGMA[:, None, None]
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


def quantities(galaxy: np.ndarray, dust: np.ndarray) -> np.ndarray:
    """Intrinsic flux in every band, then A_V: `(n, band + 1)`."""
    galaxy = np.asarray(galaxy, float).reshape(*galaxy.shape[:-2], -1)
    galaxy = galaxy.reshape(len(galaxy), len(BANDS), -1)
    dust = np.asarray(dust, float).reshape(len(dust), -1)
    flux, light = galaxy.sum(-1), galaxy[:, REFERENCE]
    mean = (light * dust).sum(-1) / light.sum(-1)
    return np.column_stack([SCALE * flux, mean])


class Fits(NamedTuple):
    """Quantities of the draws of every galaxy before and after correction, and diagnostics."""

    linear: np.ndarray
    exact: np.ndarray
    acceptance: np.ndarray
    chi2: np.ndarray
    first: list
    seconds: float


def fit(model: DustModel, sky: Sky, operator, data, settings, draws, steps, stage):
    """Draw for one galaxy after the other."""
    model, linear, exact, acceptance, chi2, first = (
        single_precision(model),
        [],
        [],
        [],
        [],
        [],
    )

    def measure(e):
        e = jnp.asarray(e)[:, 0]
        x, a = np.asarray(model.intrinsic(e)), np.asarray(model.attenuation(e))
        return quantities(x, a)

    begin = time.perf_counter()
    for k, y in enumerate(data):
        like = single_precision(
            DustLikelihood(
                operator, y, np.array([SCALE]), sky.law[k][None], sky.tilt[k][None]
            )
        )
        one, two = jax.random.split(stage_key(SEED, stage, k))
        made = sample(model, like, draws, settings, key=one)
        e, after, accepted = correct(model, like, made.e, steps, key=two)
        linear.append(measure(made.e))
        exact.append(measure(e))
        acceptance.append(accepted.mean())
        chi2.append(float(after.mean()))
        first.append(np.asarray(e)[:, 0] if k < 40 else None)
    seconds = (time.perf_counter() - begin) / len(data)
    return Fits(*map(np.array, (linear, exact, acceptance, chi2)), first, seconds)


NAMES = (*(f"flux_{b}" for b in BANDS), "A_V")


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
    per = fits.chi2 / (RANK * len(BANDS))
    out.say(f"{label}: median chi2 of a draw per datum", np.median(per), n=n)
    out.say(f"{label}: time per galaxy", fits.seconds, "s", n)


def draw_figure(path: Path, model, sky, images, fits, truth, rows) -> None:
    """One galaxy per row."""
    extent = np.array([-0.5, STAMP - 0.5] * 2)
    crop = slice(BORDER, BORDER + STAMP)
    titles = (
        "intrinsic, truth",
        "observed",
        "intrinsic, mean",
        "$A_V$, truth [mag]",
        "$A_V$, mean [mag]",
        "$A_V$, sd [mag]",
        "residual / $\\sigma$, i",
    )
    matplotlib.use("Agg")
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(
            len(rows), 7, figsize=(TWO_COLUMNS, 0.92 * len(rows) + 0.3), squeeze=False
        )
        for ax, title in zip(axes[0], titles, strict=True):
            ax.set_title(title, fontsize=7)
        for line, k in zip(axes, rows, strict=True):
            e = jnp.asarray(fits.first[k])
            x = np.asarray(model.intrinsic(e)).reshape(len(e), len(BANDS), STAMP, STAMP)
            a = np.asarray(model.attenuation(e)).reshape(len(e), STAMP, STAMP)
            depth = MAGNITUDE * sky.law[k][None, :, None, None] * a[:, None]
            fitted = observe((SCALE * x * np.exp(-depth)).mean(0)[None], None)[0]
            pull = (images[k] - fitted)[REFERENCE, crop, crop]
            observed = images[k][:, crop, crop] * SIGMA[:, None, None] / SCALE
            stretch = float(np.quantile(sky.galaxy[k].mean(0), 0.95))
            for ax, image in zip(
                line[:3], (sky.galaxy[k], observed, x.mean(0)), strict=True
            ):
                ax.imshow(
                    lupton(image, BANDS, rgb=("i", "r", "g"), stretch=stretch),
                    extent=extent,
                )
            top = float(max(sky.dust[k].max(), a.mean(0).max()))
            for ax, image, high in (
                (line[3], sky.dust[k], top),
                (line[4], a.mean(0), top),
                (line[5], a.std(0), float(a.std(0).max())),
            ):
                shown = ax.imshow(
                    image, vmin=0, vmax=high, cmap=SEQUENTIAL, extent=extent
                )
                fig.colorbar(shown, ax=ax, shrink=0.8, pad=0.02).ax.tick_params(
                    labelsize=5
                )
            shown = line[6].imshow(pull, vmin=-5, vmax=5, cmap=DIVERGING, extent=extent)
            fig.colorbar(shown, ax=line[6], shrink=0.8, pad=0.02).ax.tick_params(
                labelsize=5
            )
            given = fits.exact[k][:, -1]
            line[0].set_ylabel(
                f"$A_V$ {truth[k, -1]:.2f}\nfit {given.mean():.2f} $\\pm$ {given.std():.2f}",
                fontsize=6,
            )
            for ax in line:
                ax.set(xticks=[], yticks=[])
        bar = 1 / INSTRUMENT.pixel_scale
        axes[0, 0].plot([1, 1 + bar], [1.5, 1.5], color="white", lw=1)
        axes[0, 0].annotate('1"', (1, 2.5), color="white", size=6)
        fig.savefig(path, dpi=200)
        plt.close(fig)


def main(out: Path, n: int, draws: int, steps: int, aligned: int, link: str) -> None:
    """Train, simulate, fit, score."""
    begin = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    taught = simulate(4000, rng)
    model = train(taught, rng, link, 0.0)
    observation, center = template()
    operator, projection = compress(
        observation, center, taught.dimmed[:1500], PSF_SIGMA, RANK
    )
    rows = Report(COMMAND)
    rows.say("training of both priors", time.perf_counter() - begin, "s")
    settings = DustSettings(corrections=0)
    for label, number, own in (("independent", n, False), ("aligned", aligned, True)):
        if not number:
            continue
        sky = simulate(number, rng, own)
        images = observe(sky.dimmed, rng)
        flat = images.reshape(number, len(BANDS), -1)
        data = np.einsum("brp,nbp->nbr", projection, flat)
        fits = fit(model, sky, operator, data, settings, draws, steps, label)
        truth = quantities(sky.galaxy, sky.dust)
        report(rows, label, truth, fits, not own)
        if not own:
            # Bright ones, of little and of much dust.
            bright = np.argsort(-sky.dimmed[:40].sum((1, 2, 3)))[:12]
            order = bright[np.argsort(truth[bright, -1])]
            draw_figure(
                out / "dust.png",
                model,
                sky,
                images,
                fits,
                truth,
                order[[1, 4, 7, 9, 11]],
            )
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
    given = parser.parse_args()
    main(
        given.out,
        given.galaxies,
        given.draws,
        given.corrections,
        given.aligned,
        given.link,
    )
