"""Several observations of one blend: correlated noise and astrometric offsets, against the truth.

    make multi

1. Noise alone, correlated as a coadd's, and stars in it: chi2 over its expectation and pulls of fluxes,
   with the correlation and without it.
2. Blends of the HSC population seen twice, the second time with a WCS that is off by 0.3 pixels: the offset
   with its error, and chi2 of the second image with and without an unknown offset.

Writes records with `name`, `value`, `unit`, `n`, `expected` and `command` to
`results/multi/observations.json`.
"""

import argparse
from pathlib import Path

import numpy as np
from records import Report

from blendem.blend import Bucket, pad_observation, pad_sources, stack
from blendem.inference.batch import statistics_of
from blendem.inference.posterior import posterior, unpad
from blendem.inference.rescale import refine_stack
from blendem.inference.statistics import STAR_SPREAD, Settings
from blendem.io.blends import signature
from blendem.io.priors import gaussian_of, read_prior
from blendem.noise import draw_noise, estimate_correlation
from blendem.rng import stage_rng
from blendem.survey.extract import CutBlend, Plane, extract_blends
from blendem.survey.instruments import INSTRUMENTS, effective_psf
from blendem.survey.simulate import observe_again, simulate_field

SEED, SIDE, REACH = 41, 41, 3
BUCKETS = [Bucket(4, 64), Bucket(8, 64), Bucket(8, 112)]


def coadd_correlation() -> np.ndarray:
    """Of white noise that was resampled by half a pixel with a Lanczos-3 kernel, along both axes."""
    x = np.arange(-3, 4) + 0.5
    line = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    whole = np.correlate(line, line, "full")
    middle = len(whole) // 2
    line = whole[middle - REACH : middle + REACH + 1] / whole[middle]
    # Drizzling adds neighbours: a box of 1.4 pixels.
    line *= np.maximum(1 - np.abs(np.arange(-REACH, REACH + 1)) / 4, 0)
    line[REACH - 1] = line[REACH + 1] = 0.4
    return np.outer(line, line)


def cut_field(field, images, buckets, **settings) -> list[CutBlend]:
    """Blends of a simulated field, as these images with all bands of the model see it."""
    planes = [
        Plane(
            o.image,
            o.variance,
            o.psf,
            o.wcs,
            tuple(range(len(o.instrument.bands))),
            o.instrument.pixel_scale,
        )
        for o in images
    ]
    positions = np.stack([field.catalog["y"], field.catalog["x"]], axis=-1)
    return extract_blends(
        planes,
        np.asarray(positions, float),
        np.zeros(len(positions), bool),
        buckets,
        group="footprint",
        threshold=3.0,
        max_sources=8,
        margin=4,
        **settings,
    )


def posteriors(blends, basis, prior, settings: Settings):
    """Statistics and Gaussian posterior of every blend, stacked by shape."""
    groups = {}
    for blend in blends:
        groups.setdefault(signature(blend), []).append(blend)
    for group in groups.values():
        together = stack(group, len(group))
        sums = statistics_of(together, basis, settings, 4)
        sums = refine_stack(sums, together, prior, settings.reference)
        for i in range(len(group)):
            known = unpad(
                *(sums[name][i] for name in ("H", "b")),
                *(float(sums[name][i]) for name in ("r2", "log_norm", "n_data")),
                present=together.present[i],
                is_star=together.is_star[i],
                n_modes=len(basis.modes),
            )
            one = {name: value[i] for name, value in sums.items()}
            yield group[i], one, known, posterior(known, prior)


def correlated_noise(prior, n: int, report: Report) -> None:
    """A star of S/N 20 in the middle of correlated noise; and the noise without it."""
    basis, hsc = prior.basis, INSTRUMENTS["hsc_deep"]
    rho, psf = coadd_correlation(), effective_psf(hsc, SIDE)
    sigma = np.asarray(hsc.sky_sigma)[:, None, None]
    rng = stage_rng(SEED, "multi/noise")
    bands = len(hsc.bands)
    flux = 20 * sigma[:, 0, 0] / np.sqrt(np.sum(psf**2, axis=(1, 2)))
    images = []
    for _ in range(n):
        noise = np.stack([draw_noise(rho, (SIDE, SIDE), rng) for _ in range(bands)])
        images.append(sigma * noise)
    found = [
        estimate_correlation(i[0] / sigma[0], np.ones((SIDE, SIDE), bool), REACH)
        for i in images
    ]
    error = np.abs(np.mean([f[0] for f in found], axis=0) - rho).max()
    report.say("noise: largest error of the estimated correlation", error, n=n)
    middle = np.array([[SIDE // 2, SIDE // 2]], float)
    for name, correlation in (("taken", rho), ("ignored", None)):
        pulls, chi2, empty = [], [], []
        blends = [
            pad_sources(
                (
                    pad_observation(
                        image + with_star * flux[:, None, None] * psf,
                        np.broadcast_to(sigma**2, image.shape),
                        psf,
                        size=SIDE,
                        jacobian=np.eye(2),
                        offset=np.zeros(2),
                        band_index=tuple(range(bands)),
                        same_grid=True,
                        correlation=None
                        if correlation is None
                        else np.broadcast_to(rho, (bands, *rho.shape)),
                    ),
                ),
                middle,
                np.array([True]),
                1,
            )
            for image in images
            for with_star in (True, False)
        ]
        settings = Settings(2, basis.mean.shape[-1], 0, centroid_sigma=0.0)
        results = posteriors(blends, basis, prior, settings)
        for number, (_, one, known, p) in enumerate(results):
            if number % 2:
                empty.append(p.chi2_of_mean / (known.n_data - p.effective_parameters))
                continue
            scale = float(one["scale"][0]) * STAR_SPREAD
            mean = float(one["scale"][0]) + scale * p.mean[:bands]
            sd = scale * np.sqrt(np.diag(p.covariance)[:bands])
            pulls.append((mean - flux) / sd)
            chi2.append(p.chi2_of_mean / (known.n_data - p.effective_parameters))
        pulls, count = np.array(pulls), n * bands
        expected = "0.98 to 1.02" if correlation is not None else ""
        label = f"noise, correlation {name}"
        report.say(
            f"{label}: chi2 over its expectation, noise alone",
            np.mean(empty),
            n=n,
            expected=expected,
        )
        report.say(
            f"{label}: the same, with a star", np.mean(chi2), n=n, expected=expected
        )
        expected = "0.9 to 1.1" if correlation is not None else ""
        report.say(f"{label}: mean pull of a flux", pulls.mean(), n=count)
        report.say(
            f"{label}: sd of the pulls of fluxes",
            pulls.std(),
            n=count,
            expected=expected,
        )


def offsets(prior, n_fields: int, report: Report) -> None:
    """The same sky twice, the second image off by (0.3, -0.2) pixel against its WCS."""
    basis, hsc = prior.basis, INSTRUMENTS["hsc_deep"]
    true = np.array([0.3, -0.2])
    blends = []
    for number in range(n_fields):
        rng = stage_rng(SEED, "multi/offset", number)
        field = simulate_field(
            hsc,
            (400, 400),
            rng=rng,
            mode="blends",
            n_blends=25,
            mag_limit=25.0,
            mag_bright=21.0,
            star_density=0.0,
        )
        (noise,) = rng.spawn(1)
        again = observe_again(
            field,
            hsc,
            rng=noise,
            observed_size=89,
            offset=tuple(true * hsc.pixel_scale),
        )
        cuts = cut_field(field, [field, again], BUCKETS)
        blends += [cut.blend for cut in cuts if cut.blend is not None and not cut.flags]
    for sigma in (0.5, 0.0):
        settings = Settings(2, basis.mean.shape[-1], 0, offset_sigma=sigma)
        found, errors, chi2 = [], [], []
        for _, _, known, p in posteriors(blends, basis, prior, settings):
            chi2.append(p.chi2_of_mean / (known.n_data - p.effective_parameters))
            if sigma:
                found.append(sigma * p.mean[-2:])
                errors.append(sigma * np.sqrt(np.diag(p.covariance)[-2:]))
        label = "offset fitted" if sigma else "offset not fitted"
        report.say(
            f"{label}: median chi2 over its expectation", np.median(chi2), n=len(chi2)
        )
        if not sigma:
            continue
        pull = (np.array(found) - true) / np.array(errors)
        weight = np.array(errors) ** -2.0
        mean = np.sum(weight * found, axis=0) / weight.sum(axis=0)
        for axis, name in enumerate("yx"):
            report.say(
                f"offset along {name}: weighted mean of all blends",
                mean[axis],
                "pixel",
                len(pull),
                f"{true[axis]} +- {weight[:, axis].sum() ** -0.5:.4f}",
            )
            report.say(
                f"offset along {name}: median error of a blend",
                np.median(np.array(errors)[:, axis]),
                "pixel",
                len(pull),
            )
            report.say(
                f"offset along {name}: mean pull",
                pull[:, axis].mean(),
                n=len(pull),
                expected="-0.1 to 0.1",
            )
            report.say(
                f"offset along {name}: sd of pulls",
                pull[:, axis].std(),
                n=len(pull),
                expected="0.9 to 1.1",
            )


def main(prior: Path, stars: int, fields: int, out: Path) -> None:
    """All experiments, one after the other."""
    gaussian = gaussian_of(read_prior(prior)[0])
    report = Report("make multi")
    correlated_noise(gaussian, stars, report)
    offsets(gaussian, fields, report)
    report.write(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", type=Path, default=Path("priors/hsc_grizy.eqx"))
    parser.add_argument("--stars", type=int, default=200)
    parser.add_argument("--fields", type=int, default=4)
    parser.add_argument(
        "--out", type=Path, default=Path("results/multi/observations.json")
    )
    arguments = parser.parse_args()
    main(arguments.prior, arguments.stars, arguments.fields, arguments.out)
