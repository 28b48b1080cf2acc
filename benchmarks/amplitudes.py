"""What it changes that amplitudes follow the draws (`infer.amplitude_tolerance`).

    python benchmarks/amplitudes.py results/em_oracle_22

Draws the blends of a simulated run whose statistics are there, under its first prior, and again where a
galaxy is further from its amplitude than each tolerance; compares fluxes with the truth: all bands,
galaxies alone. Writes `amplitudes.json` into the run, a list of records.
"""

import argparse
import time
from collections.abc import Hashable
from pathlib import Path

import numpy as np
from records import Report

from blendem.inference.posterior import BlendStatistics
from blendem.inference.sampler import SamplerSettings
from blendem.inference.settle import sample_settled
from blendem.io.blends import read_blends
from blendem.io.priors import read_prior
from blendem.io.statistics import read_statistics
from blendem.io.truth import read_truth
from blendem.measure.calibration import coverage
from blendem.measure.em import BLENDED
from blendem.measure.quantities import posterior_quantities, truth_quantities
from blendem.prior.latent import LatentPrior
from blendem.rng import stage_key, stage_rng

COMMAND = "python benchmarks/amplitudes.py"
DRAWS, SEED, FAR = 64, 5, 5.0


class Blends:
    """Statistics and true fluxes of some blends of a run."""

    def __init__(self, run: Path, model: LatentPrior, most: int, band: str):
        """Read the first `most` blends."""
        self.model, self.band = model, band
        self.given: dict[Hashable, BlendStatistics] = {}
        self.truth, self.blendedness = {}, {}
        known = {p.stem: read_truth(p) for p in sorted((run / "truth").glob("*.h5"))}
        for path in sorted((run / "blends").glob("*.h5")):
            data = read_blends(path)
            rows = read_statistics(run / "statistics" / path.name, data)
            for row, one in enumerate(rows):
                if one is None or len(self.given) == most:
                    continue
                name = data.names[row]
                truth = known[data.blends["field"][row]]
                at = truth.rows(data.sources["id"][data.members(row)])
                galaxy = ~np.asarray(one.is_star, bool)
                self.given[name] = one
                self.truth[name] = self._fluxes(
                    truth_quantities(
                        truth.images[at][galaxy],
                        model.basis.bands,
                        float(model.basis.pixel_scale),
                        band,
                    )
                )
                column = truth.table[f"blendedness_{band}"].to_numpy(float)
                self.blendedness[name] = column[at][galaxy]

    def _fluxes(self, quantities: dict) -> np.ndarray:
        return np.stack(
            [quantities[f"flux_{b}"] for b in self.model.basis.bands], axis=-1
        )

    def draw(self, names: list[Hashable], tolerance: float) -> dict:
        """Fluxes (draw, galaxy, band) by blend, and which blends moved."""
        d = len(self.model.mean)
        found, _ = sample_settled(
            self.model,
            {name: self.given[name] for name in names},
            DRAWS,
            SamplerSettings(),
            keys={n: stage_key(SEED, f"amplitudes/{n}") for n in names},
            rngs=lambda name: stage_rng(SEED, f"amplitudes/{name}"),
            reference=self.model.basis.bands.index(self.band),
            tolerance=tolerance,
        )
        fluxes = {}
        for name, one in found.items():
            statistics = self.given[name]
            galaxy = ~np.asarray(statistics.is_star, bool)
            z = one.w[:, : len(galaxy) * d].reshape(DRAWS, -1, d)[:, galaxy]
            scale = np.exp(statistics.log_amplitude[galaxy])
            fluxes[name] = self._fluxes(
                posterior_quantities(
                    self.model.basis, scale, z.astype(np.float32), self.band
                )
            )
        return fluxes, [name for name, one in found.items() if one.moved.any()]


def say(report: Report, label: str, fluxes: dict, blends: Blends) -> None:
    """Residuals, pulls and coverage of some blends."""
    names = list(fluxes)
    draws = np.concatenate([fluxes[n] for n in names], axis=1)
    true = np.concatenate([blends.truth[n] for n in names])
    blended = np.concatenate([blends.blendedness[n] for n in names]) > BLENDED
    mean, error = draws.mean(axis=0), draws.std(axis=0, ddof=1)
    residual, pull = np.abs(mean / true - 1), (mean - true) / error
    inside = coverage(true, draws, (0.68, 0.95))
    for name, value, n in (
        ("mean abs flux residual, blendedness > 0.2", residual[blended], blended.sum()),
        ("mean abs flux residual, others", residual[~blended], (~blended).sum()),
        ("68 % intervals hold", inside[0], len(true)),
        ("95 % intervals hold", inside[1], len(true)),
        ("68 % intervals hold, blendedness > 0.2", inside[0][blended], blended.sum()),
    ):
        report.say(f"{label}: {name}", value.mean() if n else np.nan, n=n)
    for band, value in zip(blends.model.basis.bands, pull.T, strict=True):
        report.say(f"{label}: sd of pulls, {band}", value.std(), n=len(value))
    far = (np.abs(pull).max(axis=1) > FAR).sum()
    report.say(f"{label}: galaxies further off than {FAR:g} sigma", far, n=len(true))


def main(run: Path, prior: Path, most: int, tolerances: list[float], band: str) -> None:
    """Print and write all numbers."""
    report = Report(f"{COMMAND} {run}")
    blends = Blends(run, read_prior(prior)[0], most, band)
    start = time.perf_counter()
    first, _ = blends.draw(list(blends.given), 0.0)
    report.say("seconds of all blends", time.perf_counter() - start, "s", len(first))
    say(report, "never", first, blends)
    # What a tolerance leaves alone is as it was.
    candidates = list(first)
    for tolerance in sorted(tolerances):
        start = time.perf_counter()
        again, moved = blends.draw(candidates, tolerance)
        seconds = time.perf_counter() - start
        candidates = moved
        label = f"tolerance {tolerance:g}"
        report.say(f"{label}: blends drawn again", len(moved), n=len(first))
        report.say(f"{label}: seconds with their first pass", seconds, "s", len(again))
        say(report, label, first | again, blends)
        if moved:
            say(report, f"{label}, these", {n: again[n] for n in moved}, blends)
            say(report, "never, these", {n: first[n] for n in moved}, blends)
    report.write(run / "amplitudes.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--prior", type=Path, help="default: prior/00.eqx of the run")
    parser.add_argument("--blends", type=int, default=400)
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--band", default="i", help="whose flux is the amplitude")
    arguments = parser.parse_args()
    main(
        arguments.run,
        arguments.prior or arguments.run / "prior" / "00.eqx",
        arguments.blends,
        arguments.tolerances,
        arguments.band,
    )
