"""The U-Net tier beside the latent and the Gaussian tier: loss, posterior, cost.

    python benchmarks/unet_tier.py

Trains both priors on the same simulated stamps, and samples the same simulated blends with
all three tiers. Writes a list of records `name, value, unit, n, command`.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from blendem.blend import pad_observation, pad_sources, stack
from blendem.inference.amplitude import Amplitudes
from blendem.inference.batch import statistics_of
from blendem.inference.likelihood import complete_draws, galaxy_likelihood
from blendem.inference.pixel_sampler import PixelSettings, sample_blends
from blendem.inference.posterior import chi2, posterior, unpad
from blendem.inference.sampler import SamplerSettings, sample
from blendem.inference.statistics import Settings, render_sources
from blendem.precision import single_precision
from blendem.prior import train_unet
from blendem.prior.gaussian import GaussianPrior
from blendem.prior.latent import LatentPrior
from blendem.prior.mixture_fit import fit_mixture
from blendem.prior.pca import fit_basis, fit_moments, normalise_stamps
from blendem.prior.train import HELD_OUT_LEVELS as LATENT_LEVELS
from blendem.prior.train import evaluate, start, training_set
from blendem.prior.unet import UNet, UNetPrior, fit_pixel_moments
from blendem.survey.instruments import INSTRUMENTS, effective_psf
from blendem.survey.population import draw_galaxies
from blendem.survey.simulate import draw_stamps

SEED = 20240611
INSTRUMENT = INSTRUMENTS["hsc_deep"]
REFERENCE = INSTRUMENT.index("i")
STAMP, SIZE, PSF_SIZE, SIGMA = 49, 64, 41, 0.7
MODES, JITTER, COMPONENTS = 64, 0.6, 64
BASIS_STAMPS = 2000  # of the training stamps, for the principal components
MAGNITUDES = (20.0, 25.0)
SOURCES = (2, 4)
SPREAD, GAP = 8.0, 3.0  # of the sources of a blend, and their least distance [pixel]


def draw_population(n: int, rng: np.random.Generator) -> np.ndarray:
    """Stamps [image unit] with positive reference flux."""
    bright, faint = MAGNITUDES
    galaxies = draw_galaxies(n, rng, mag_limit=faint, mag_bright=bright)
    return draw_stamps(galaxies, INSTRUMENT, stamp=STAMP, psf_sigma=SIGMA)


def simulate(n_blends: int, rng: np.random.Generator):
    """Stack of noisy blends, their true stamps and images on the pixels."""
    psf = effective_psf(INSTRUMENT, PSF_SIZE)
    sky = np.asarray(INSTRUMENT.sky_sigma)[:, None, None]
    variance = np.broadcast_to(sky**2, (len(sky), SIZE, SIZE))
    blends, truth = [], []
    for _ in range(n_blends):
        n = int(rng.integers(*SOURCES, endpoint=True))
        while True:
            at = SIZE // 2 + rng.uniform(-SPREAD, SPREAD, (n, 2))
            gap = np.hypot(*(at[:, None] - at[None]).T)[np.triu_indices(n, 1)]
            if gap.min() > GAP:
                break
        stamps = np.zeros((SOURCES[1], len(sky), STAMP, STAMP), np.float32)
        stamps[:n] = draw_population(n, rng)
        observation = pad_observation(
            np.zeros(variance.shape),
            variance,
            psf,
            size=SIZE,
            jacobian=np.eye(2),
            offset=np.zeros(2),
            band_index=tuple(range(len(sky))),
            same_grid=True,
        )
        blends.append(pad_sources((observation,), at, np.zeros(n, bool), SOURCES[1]))
        truth.append(stamps)
    truth = np.array(truth)
    render = jax.jit(
        jax.vmap(lambda x, b: render_sources(x, b.centers, b, jnp.float32(SIGMA))[0])
    )
    together = stack(blends, n_blends)
    seen = np.asarray(render(jnp.asarray(truth), together))
    image = seen.sum(1) + sky * rng.standard_normal(seen.sum(1).shape)
    together = eqx.tree_at(
        lambda b: b.observations[0].image, together, image.astype(np.float32)
    )
    return together, truth, seen


def blendedness(seen: np.ndarray) -> np.ndarray:
    """Light of the neighbours at each source: `1 - (S S) / (S total)`, band i."""
    band = seen[:, :, REFERENCE]
    own = np.sum(band**2, axis=(-2, -1))
    mixed = np.sum(band * band.sum(1, keepdims=True), axis=(-2, -1))
    return 1 - own / np.where(mixed > 0, mixed, 1.0)


def main(
    out: Path,
    seconds: float,
    steps: int,
    stamps: int,
    blends: int,
    draws: int,
    levels: int,
) -> None:
    """Train, sample, compare; write every number."""
    began, records = time.time(), []
    command = "python benchmarks/unet_tier.py " + " ".join(sys.argv[1:])

    def say(name, value, unit, n):
        value = float(value)
        records.append(dict(name=name, value=value, unit=unit, n=n, command=command))
        print(f"{time.time() - began:6.0f} s  {name}: {value:.4g} {unit}", flush=True)

    data_rng, basis_rng, blend_rng, draw_rng = np.random.default_rng(SEED).spawn(4)
    held = max(stamps // 10, 200)
    images = normalise_stamps(
        draw_population(stamps + held, data_rng), REFERENCE, 0.0, data_rng
    )
    fit, held_out = images[:stamps], images[stamps:]
    jittered = normalise_stamps(fit[:BASIS_STAMPS], REFERENCE, JITTER, basis_rng)
    basis = fit_basis(
        jittered,
        MODES,
        bands=INSTRUMENT.bands,
        psf_sigma=SIGMA,
        pixel_scale=INSTRUMENT.pixel_scale,
        rng=basis_rng,
    )
    gaussian = GaussianPrior.from_moments(basis, *fit_moments(basis, jittered))
    say("training stamps", stamps, "1", stamps)

    moments = fit_pixel_moments(basis, fit, JITTER)
    network = UNet(len(basis.bands), key=jax.random.key(1))
    leaves = jax.tree.leaves(eqx.filter(network, eqx.is_array))
    say("U-Net: parameters", sum(x.size for x in leaves), "1", 1)
    say("stamps prepared", time.time() - began, "s", 1)
    settings = train_unet.DEFAULTS._replace(steps=steps, evaluate=max(steps // 4, 1))
    held_set = train_unet.stamp_set(moments, held_out)
    cpu = time.process_time()
    for last, e in train_unet.train_unet(  # noqa: B007
        start(network, settings, key=jax.random.key(2)),
        moments,
        train_unet.stamp_set(moments, fit),
        held_set,
        settings,
        seconds,
    ):
        print(f"{time.time() - began:6.0f} s  {e}", flush=True)
    say("U-Net: training", e.seconds, "s", e.step)
    say("U-Net: training, CPU", time.process_time() - cpu, "s", e.step)
    unet = UNetPrior.wiener(gaussian, moments, last.best)
    unet = train_unet.calibrate(unet, held_set, JITTER, key=jax.random.key(3))
    # The model that is kept, on noise that early stopping did not see.
    n = train_unet.HELD_OUT_STAMPS
    ratio, _, _ = train_unet.errors_by_level(
        last.best,
        jax.tree.map(jnp.asarray, moments),
        held_set,
        JITTER,
        train_unet.HELD_OUT_LEVELS,
        key=jax.random.key(4),
    )
    for sigma, value in zip(train_unet.HELD_OUT_LEVELS, ratio, strict=True):
        say(f"U-Net: held-out MSE over Wiener, sigma {sigma:g}", value, "1", n)

    cpu, begin = time.process_time(), time.time()
    galaxies = training_set(gaussian, fit)
    rows = galaxies.draw(40000, JITTER, key=jax.random.key(7))
    mixture = fit_mixture(rows, COMPONENTS, 30)
    latent = LatentPrior(gaussian, mixture)
    say("latent: training", time.time() - begin, "s", len(rows))
    say("latent: training, CPU", time.process_time() - cpu, "s", len(rows))
    ratio, _ = evaluate(
        None,
        single_precision(mixture),
        training_set(gaussian, held_out),
        JITTER,
        key=jax.random.key(0),
    )
    for sigma, value in zip(LATENT_LEVELS, ratio, strict=True):
        say(f"latent: held-out MSE over Wiener, sigma {sigma:g}", value, "1", held)

    together, truth, seen = simulate(blends, blend_rng)
    mixed = blendedness(seen)
    choice = Settings(reference=REFERENCE, stamp=STAMP)
    cpu = time.process_time()
    sums = statistics_of(together, basis, choice, 4)
    say("statistics, CPU per blend", (time.process_time() - cpu) / blends, "s", blends)
    amplitudes = Amplitudes(*(sums[k] for k in Amplitudes._fields))
    pixel = PixelSettings(steps=levels)
    keys = list(jax.random.split(jax.random.key(7), blends))
    tiers = {}

    def run(few):  # once for compilation
        return sample_blends(unet, together, amplitudes, draws, choice, few, keys=keys)

    one = jax.tree.map(lambda x: x[:1], (together, amplitudes))
    sample_blends(unet, *one, draws, choice, pixel._replace(steps=1), keys=keys[:1])
    wall, cpu = time.time(), time.process_time()
    result = run(pixel)
    tiers["U-Net"] = (
        [d.images for d in result],
        [d.chi2.mean() / d.n_data for d in result],
        time.time() - wall,
        time.process_time() - cpu,
    )
    say(
        "U-Net: largest relative residual of a solve",
        max(d.residual for d in result),
        "1",
        blends,
    )
    say(
        "U-Net: solves above the tolerance",
        sum(d.unconverged for d in result),
        "1",
        blends * draws * (levels + 1),
    )
    say(
        "U-Net: negative curvature met",
        sum(d.guards for d in result),
        "1",
        blends * draws * (levels + 1),
    )
    say(
        "U-Net: iterations of a solve",
        np.mean([d.iterations for d in result]),
        "1",
        blends,
    )
    galaxy = [
        d.outside[:, present]
        for d, present in zip(result, together.present, strict=True)
    ]
    say(
        "U-Net: energy outside the basis, median",
        np.median(np.concatenate([g.ravel() for g in galaxy])),
        "1",
        blends,
    )

    each = [
        unpad(
            sums["H"][i],
            sums["b"][i],
            sums["r2"][i],
            sums["log_norm"][i],
            sums["n_data"][i],
            present=together.present[i],
            is_star=together.is_star[i],
            n_modes=len(basis.modes),
        )
        for i in range(blends)
    ]

    def images_of(w, i):
        n = int(together.present[i].sum())
        z = np.zeros((len(w), SOURCES[1], len(basis.modes)), np.float32)
        z[:, :n] = w[:, : n * len(basis.modes)].reshape(len(w), n, -1)
        x = np.asarray(basis.decode(z)) * sums["scale"][i][None, :, None, None, None]
        return x * together.present[i][None, :, None, None, None]

    def latent_draws():
        found = sample(
            latent,
            [galaxy_likelihood(s, latent) for s in each],
            draws,
            SamplerSettings(steps=64),
            keys=keys,
        )
        return [
            complete_draws(s, latent, d.e, draw_rng)
            for s, d in zip(each, found, strict=True)
        ]

    latent_draws()
    for name, sampler in {
        "latent": latent_draws,
        "Gaussian": lambda: [
            posterior(s, gaussian).draw(draws, draw_rng) for s in each
        ],
    }.items():
        wall, cpu = time.time(), time.process_time()
        found = sampler()
        tiers[name] = (
            [images_of(w, i) for i, w in enumerate(found)],
            [chi2(s, w).mean() / s.n_data for s, w in zip(each, found, strict=True)],
            time.time() - wall,
            time.process_time() - cpu,
        )

    true_flux = truth[:, :, REFERENCE].sum((-2, -1))
    kept = np.asarray(together.present)
    for name, (drawn, chi, wall, cpu) in tiers.items():
        mean = np.array([x.mean(0) for x in drawn])
        flux = np.array([x[:, :, REFERENCE].sum((-2, -1)).mean(0) for x in drawn])
        off = np.abs(flux / np.where(kept, true_flux, 1.0) - 1)
        for where, part in {
            "all": kept,
            "blendedness > 0.2": kept & (mixed > 0.2),
        }.items():
            say(
                f"{name}: mean |i flux residual|, {where}",
                off[part].mean(),
                "1",
                int(part.sum()),
            )
        square = np.sum((mean - truth) ** 2, axis=(2, 3, 4))
        share = square / np.sum(
            np.where(kept[..., None, None, None], truth, 1.0) ** 2, axis=(2, 3, 4)
        )
        say(
            f"{name}: image error (square, part of the energy), median",
            np.median(share[kept]),
            "1",
            int(kept.sum()),
        )
        say(f"{name}: chi2 / N of draws", np.mean(chi), "1", blends)
        say(f"{name}: wall time per blend, {draws} draws", wall / blends, "s", blends)
        say(f"{name}: CPU time per blend, {draws} draws", cpu / blends, "s", blends)
    say("wall time", time.time() - began, "s", 1)

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(records, indent=1))
    os.replace(temporary, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default="results/benchmarks/unet_tier.json")
    parser.add_argument("--seconds", type=float, default=480, help="training of U-Net")
    parser.add_argument("--steps", type=int, default=1200, help="most, of the U-Net")
    parser.add_argument("--stamps", type=int, default=6000)
    parser.add_argument("--blends", type=int, default=8)
    parser.add_argument("--draws", type=int, default=8, help="per blend")
    parser.add_argument("--levels", type=int, default=32, help="of the U-Net sampler")
    main(**vars(parser.parse_args()))
