"""Galaxies that are larger than their stamp: magnified stamps against the prior's own.

    make benchmark-large

Simulated HSC deep fields with three times the real density of galaxies of i = 18 to 22, the shipped
prior (stamps of 8.2 arcsec) and the exact posterior of its Gaussian, once with `blends.magnify: 1` and
once with 2. Fluxes are compared with the true ones *to infinity*, chi2 of blends with its
expectation. Writes records with `name`, `value`, `unit`, `n`, `expected` and `command` to
`results/large_sources/large_sources.json`.
"""

import argparse
from pathlib import Path

import numpy as np
from multi import cut_field, posteriors
from records import Report

from blendem.blend import Bucket
from blendem.inference.statistics import Settings
from blendem.io.priors import gaussian_of, read_prior
from blendem.rng import stage_rng
from blendem.survey.extract import SourceFlag
from blendem.survey.instruments import INSTRUMENTS
from blendem.survey.simulate import simulate_field

SEED, SHAPE, REFERENCE = 47, (720, 720), 2
BUCKETS = [Bucket(1, 64), Bucket(1, 112), Bucket(4, 112), Bucket(8, 160)]
Z_68 = 0.994458  # half width of the 68 % interval of N(0, 1)
# Share of the light inside the stamp of the prior, over all bands.
CLASSES = {"more than 2 % outside": (0.0, 0.98), "less": (0.98, 1.01)}


def measure(fields: list, basis, prior, magnify: int) -> tuple[dict, dict]:
    """Fluxes of every galaxy against its total flux, and chi2 of every blend."""
    light = np.asarray(basis.modes, float).sum((-2, -1))
    base = np.asarray(basis.mean, float).sum((-2, -1))
    settings = Settings(REFERENCE, basis.mean.shape[-1], 0)
    owner = {}
    for number, field in enumerate(fields):
        stamp = basis.mean.shape[-1]
        cuts = cut_field(field, [field], BUCKETS, stamp=stamp, magnify=magnify)
        # The same for every `magnify`: blends that fit no bucket have no result.
        for cut in filter(lambda cut: cut.blend is not None, cuts):
            owner[id(cut.blend)] = (number, cut)
    blends = [cut.blend for _, cut in owner.values()]
    rows, chi2 = [], []
    for blend, sums, known, p in posteriors(blends, basis, prior, settings):
        number, cut = owner[id(blend)]
        chi2.append(p.chi2_of_mean / (known.n_data - p.effective_parameters))
        truth = fields[number].truth
        for slot, k in enumerate(cut.members):
            own = slice(slot * len(light), (slot + 1) * len(light))
            scale = float(sums["scale"][slot])
            flux = scale * (base + p.mean[own] @ light)
            error = scale * np.sqrt(np.sum((p.root[own].T @ light) ** 2, axis=0))
            true = np.array([truth[f"flux_{b}"][k] for b in basis.bands])
            zoom = 0 if blend.zoom is None else blend.zoom[slot]
            beyond = bool(cut.flags & SourceFlag.BEYOND_STAMP)
            inside = float(truth["stamp_fraction"][k])
            rows.append((flux / true - 1, (flux - true) / error, inside, zoom, beyond))
    names = ("residual", "pull", "inside", "zoom", "beyond")
    return {
        n: np.array(v) for n, v in zip(names, zip(*rows, strict=True), strict=True)
    }, chi2


def main(out: Path, path: Path, n_fields: int) -> None:
    """Both runs, side by side."""
    report = Report(f"python benchmarks/large_sources.py --fields {n_fields}")
    prior = gaussian_of(read_prior(path)[0])
    fields = [
        simulate_field(
            INSTRUMENTS["hsc_deep"],
            SHAPE,
            rng=stage_rng(SEED, f"large/{number}"),
            mode="scatter",
            density=3.0,
            mag_limit=22.0,
            mag_bright=18.0,
            star_density=0.0,
        )
        for number in range(n_fields)
    ]
    for magnify in (1, 2):
        found, chi2 = measure(fields, prior.basis, prior, magnify)
        label = f"magnify {magnify}"
        report.say(f"{label}: chi2 over expectation, mean", np.mean(chi2), n=len(chi2))
        report.say(f"{label}: median", np.median(chi2), n=len(chi2))
        report.say(f"{label}: above 1.5", np.mean(np.array(chi2) > 1.5), n=len(chi2))
        for name, (low, high) in CLASSES.items():
            used = (found["inside"] >= low) & (found["inside"] < high)
            n, what = used.sum(), f"{label}, {name}"
            residual, pull = found["residual"][used], found["pull"][used]
            report.say(f"{what}: magnified", np.mean(found["zoom"][used] > 0), n=n)
            report.say(f"{what}: flagged", np.mean(found["beyond"][used]), n=n)
            i = residual[:, REFERENCE]
            report.say(f"{what}: median flux residual in i", np.median(i), n=n)
            report.say(f"{what}: mean absolute one", np.abs(i).mean(), n=n)
            report.say(f"{what}: mean pull", pull.mean(), n=n)
            report.say(f"{what}: sd of pulls", pull.std(), n=n)
            mad = 1.4826 * np.median(np.abs(pull - np.median(pull)))
            report.say(f"{what}: the same from the median deviation", mad, n=n)
            inside = np.mean(np.abs(pull) < Z_68)
            report.say(f"{what}: 68 % intervals hold", inside, n=n, expected="0.68")
    report.write(out / "large_sources.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/large_sources"))
    parser.add_argument("--prior", type=Path, default=Path("priors/hsc_grizy.eqx"))
    parser.add_argument("--fields", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.out, arguments.prior, arguments.fields)
