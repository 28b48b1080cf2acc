"""Are the posteriors right? Every number of docs/calibration.md, from finished runs.

    make calibration

Reads `results/calibration_latent/` and `results/calibration_gaussian/` (the same simulated blends
under two tiers) and writes `results/calibration/summary.json`, a list of records with `name`,
`value`, `unit`, `n`, `expected` and `command`, and the tables behind them as CSV.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

from blendem.inference.gibbs import GibbsSettings, sample_gibbs
from blendem.inference.likelihood import (
    LatentLikelihood,
    complete_draws,
    galaxy_likelihood,
)
from blendem.inference.posterior import BlendStatistics
from blendem.inference.sampler import (
    SamplerSettings,
    padded_shape,
    sample,
    sample_prior,
)
from blendem.io.blends import read_blends
from blendem.io.priors import gaussian_of, read_prior
from blendem.io.products import read_h5
from blendem.io.statistics import unstack
from blendem.io.truth import read_truth
from blendem.measure.calibration import interval_table, sbc_table
from blendem.measure.multivariate import tarp_coverage, two_sample_test
from blendem.measure.quantities import posterior_quantities, truth_quantities
from blendem.rng import stage_key, stage_rng

COMMAND = "make calibration"
DRAWS, BAND = 64, "i"
MAGNITUDES = (21.0, 22.0, 23.0, 24.0, 25.0)
BLENDEDNESS = (0.0, 0.05, 0.2, 0.5, 1.0)
# What TARP and the two-sample test see of a source or a blend.
TARP = ("flux_i", "color_g_r", "color_r_i", "color_i_z", "size", "e1", "e2")
PROJECTIONS = 8


class Record:
    """Numbers, printed as they come and written at the end."""

    def __init__(self):
        self.rows, self.began = [], time.perf_counter()

    def say(self, name, value, unit="1", n=1, expected="", **more):
        """Keep and print one number."""
        row = dict(name=name, value=float(value), unit=unit, n=int(n))
        self.rows.append(row | dict(expected=expected, command=COMMAND) | more)
        passed = time.perf_counter() - self.began
        print(f"{passed:6.0f} s  {name}: {value:.4g} {unit} (n = {n})", flush=True)


def read_run(run: Path) -> dict:
    """Blends, likelihoods' ingredients, draws and truth of a finished run."""
    out = {key: [] for key in ("statistics", "members", "z", "scale", "truth", "image")}
    offset, seconds = 0, 0.0
    for path in sorted((run / "blends").glob("*.h5")):
        data = read_blends(path)
        arrays, attrs = read_h5(run / "statistics" / path.name)
        post, _ = read_h5(run / "posterior" / path.name)
        seconds += attrs["seconds"]
        n = len(data.sources["id"])
        scale = np.full(n, np.nan)
        for row, s in enumerate(unstack(arrays, data)):
            members = data.members(row)
            if s is None or not np.isfinite(post["mean"][members]).all():
                continue
            group = arrays[f"stack_{data.blends['stack'][row]}"]
            index = data.blends["index"][row]
            scale[members] = group["scale"][index][: len(members)]
            out["statistics"].append(s)
            out["members"].append(members + offset)
        table, image = [None] * n, [None] * n
        for name in np.unique(data.sources["field"]):
            truth = read_truth(run / "truth" / f"{name}.h5")
            rows = np.flatnonzero(data.sources["field"] == name)
            for k, i in zip(rows, truth.rows(data.sources["id"][rows]), strict=True):
                table[k], image[k] = truth.table.iloc[i], truth.images[i]
        out["truth"].append(pd.DataFrame(table).reset_index(drop=True))
        out["image"].append(np.stack(image))
        out["z"].append(post["z"])
        out["scale"].append(scale)
        offset += n
    return out | {
        "z": np.concatenate(out["z"], axis=1),
        "scale": np.concatenate(out["scale"]),
        "truth": pd.concat(out["truth"], ignore_index=True),
        "image": np.concatenate(out["image"]),
        "statistics_seconds": seconds,
    }


def closed_form(prior, statistics, record: Record, seed: int) -> None:
    """F = 0: the sampler against the exact Gaussian posterior, on real matrices."""
    chosen = [s for s in statistics if 2 <= len(s.is_star) <= 5][:60]
    exact = [galaxy_likelihood(s, prior) for s in chosen]
    keys = [stage_key(seed, "closed_form", i) for i in range(len(exact))]
    draws = sample(prior, exact, DRAWS, keys=keys)
    light = np.asarray(prior.cholesky).T @ np.asarray(prior.basis.modes, float).sum(
        (-2, -1)
    )
    errors, variances, pulls, chi2, expected = [], [], [], [], []
    for one, d in zip(exact, draws, strict=True):
        rank = len(one.target)
        gram = np.eye(rank) + one.factor.T @ one.factor
        mean = one.factor @ np.linalg.solve(gram, one.target)
        solved = np.linalg.solve(gram, one.factor.T)
        covariance = np.eye(len(mean)) - one.factor @ solved
        e = d.e.reshape(DRAWS, -1)
        white = np.linalg.solve(np.linalg.cholesky(covariance), (e - mean).T)
        errors.append(np.mean(white.mean(axis=1) ** 2) * DRAWS)
        variances.append(white.var(axis=1, ddof=1).mean())
        flux = d.e @ light
        middle = mean.reshape(-1, one.n_latent) @ light
        blocks = covariance.reshape(*(one.n_galaxies, one.n_latent) * 2)
        sd = np.sqrt(np.einsum("kikj,ib,jb->kb", blocks, light, light, optimize=True))
        pulls.append((flux.mean(axis=0) - middle) / sd)
        chi2.append(np.mean(np.sum((one.target - e @ one.factor) ** 2, axis=1)))
        expected.append(
            np.sum((one.target - mean @ one.factor) ** 2)
            + np.trace(one.factor.T @ covariance @ one.factor)
        )
    n = len(exact)
    record.say(
        "closed form: error of the mean over its Monte Carlo floor",
        np.sqrt(np.mean(errors)),
        n=n,
        expected="<= 2",
    )
    record.say(
        "closed form: variance ratio", np.mean(variances), n=n, expected="0.95 to 1.05"
    )
    pulls = np.concatenate(pulls).ravel()
    record.say(
        "closed form: mean flux bias",
        abs(pulls.mean()),
        "posterior sd",
        len(pulls),
        "< 0.15",
    )
    record.say(
        "closed form: chi2 over its expectation",
        np.sum(chi2) / np.sum(expected),
        n=n,
        expected="0.98 to 1.02",
    )


def observe(
    statistics: BlendStatistics, z: np.ndarray, rng: np.random.Generator
) -> BlendStatistics:
    """Statistics of a blend as if its galaxies were `z`, nuisances drawn from N(0, 1)."""
    H, n = statistics.H, len(statistics.b)
    w = np.concatenate([z.ravel(), rng.standard_normal(n - z.size)])
    values, vectors = np.linalg.eigh(H)  # some are below zero by rounding
    noise = vectors @ (np.sqrt(np.maximum(values, 0)) * rng.standard_normal(n))
    r2 = w @ H @ w + 2 * w @ noise + statistics.n_data
    return statistics._replace(b=H @ w + noise, r2=float(r2))


def own_truth(
    prior, run: dict, record: Record, out: Path, seed: int, most: int | None
) -> None:
    """Truths from the learned prior itself, data from the real matrices: SBC and TARP."""
    real = run["statistics"][:most]
    count = np.array([len(s.is_star) for s in real])
    # Galaxies that a catalog would give the amplitudes that these blends have.
    known = getattr(prior, "brightness", None) is not None
    z = sample_prior(
        prior,
        int(count.sum()),
        key=stage_key(seed, "own_truth"),
        log_amplitude=np.concatenate([s.log_amplitude for s in real])
        if known
        else None,
    )
    rng = stage_rng(seed, "own_truth")
    made = [
        observe(s, truth, rng)
        for s, truth in zip(real, np.split(z, np.cumsum(count)[:-1]), strict=True)
    ]
    keys = [stage_key(seed, "own_draws", i) for i in range(len(made))]
    begin = time.perf_counter()
    likelihoods = [galaxy_likelihood(s, prior) for s in made]
    draws = sample(prior, likelihoods, DRAWS, keys=keys)
    seconds = time.perf_counter() - begin
    record.say("own truth: seconds per blend", seconds / len(made), "s", len(made))
    drawn = []
    for s, d in zip(made, draws, strict=True):
        w = complete_draws(s, prior, d.e, rng)[:, : len(s.is_star) * s.n_modes]
        drawn.append(w.reshape(DRAWS, -1, s.n_modes).astype(np.float32))
    drawn = np.concatenate(drawn, axis=1)
    scale = np.concatenate([run["scale"][m] for m in run["members"][:most]])
    basis = prior.basis
    values = posterior_quantities(basis, scale, drawn, BAND)
    truth = {
        k: v[0] for k, v in posterior_quantities(basis, scale, z[None], BAND).items()
    }
    blend = np.repeat(np.arange(len(count)), count)
    # One source of each blend: the tests take them as independent.
    one_each = np.array(
        [rng.choice(np.flatnonzero(blend == b)) for b in range(len(count))]
    )
    table = sbc_table(
        {k: v[one_each] for k, v in truth.items()},
        {k: v[:, one_each] for k, v in values.items()},
        rng=rng,
    )
    table.to_csv(out / "sbc.csv", index=False)
    for row in table.to_dict("records"):
        record.say(
            f"own truth: SBC p of {row['quantity']}",
            row["p_ks"],
            n=row["n"],
            expected="> 0.01",
        )
    stack = np.stack([truth[k] for k in TARP], axis=-1)
    drawn = np.stack([values[k] for k in TARP], axis=-1)
    tarp = tarp_coverage(stack, drawn, rng=rng)
    record.say(
        "own truth: TARP largest |coverage - level|",
        tarp.deviation,
        n=tarp.n,
        expected="<= 0.03",
        calibrated_95=tarp.deviation_95,
    )
    pd.DataFrame(
        {"level": tarp.levels, "coverage": tarp.coverage, "error": tarp.error}
    ).to_csv(out / "tarp.csv", index=False)
    intervals = interval_table(truth, values)
    intervals.to_csv(out / "own_intervals.csv", index=False)
    _say_intervals(record, "own truth", intervals)
    _two_samples([galaxy_likelihood(s, prior) for s in real], likelihoods, record, rng)


def _two_samples(real, made, record: Record, rng) -> None:
    """Data of half of the blends against replicas, from the prior, of the other half."""

    def view(one: LatentLikelihood):
        spread = np.sqrt(1 + np.sum(one.factor[:, :PROJECTIONS] ** 2, axis=0))
        return one.target[:PROJECTIONS] / spread

    usable = [i for i, one in enumerate(real) if len(one.target) >= PROJECTIONS]
    order = rng.permutation(usable)
    half = len(order) // 2
    # The sign of an eigenvector is arbitrary.
    a = np.abs(np.stack([view(real[i]) for i in order[:half]]))
    b = np.abs(np.stack([view(made[i]) for i in order[half:]]))
    test = two_sample_test(a, b, 25, rng=rng)
    record.say(
        "two-sample test of data and replicas from the prior: p",
        test.p,
        n=len(order),
        expected="> 0.01",
    )


def galsim_truth(prior, run: dict, name: str, record: Record, out: Path) -> None:
    """Coverage of true GalSim galaxies, overall and in bins."""
    basis = prior.basis
    bands = basis.bands
    truth = truth_quantities(run["image"], bands, float(basis.pixel_scale), BAND)
    values = posterior_quantities(basis, run["scale"], run["z"], BAND)
    by = {
        "magnitude": (run["truth"][f"mag_{BAND}"].to_numpy(float), MAGNITUDES),
        "blendedness": (
            run["truth"][f"blendedness_{BAND}"].to_numpy(float),
            BLENDEDNESS,
        ),
    }
    table = interval_table(truth, values, by)
    table.to_csv(out / f"intervals_{name}.csv", index=False)
    _say_intervals(record, f"GalSim truth, {name}", table)
    blended = by["blendedness"][0] > BLENDEDNESS[2]
    residual = np.mean(
        [
            np.abs(np.nanmean(values[f"flux_{b}"], axis=0) / truth[f"flux_{b}"] - 1)
            for b in bands
        ],
        axis=0,
    )
    for label, chosen in (("> 0.2", blended), ("<= 0.2", ~blended)):
        good = chosen & np.isfinite(residual)
        record.say(
            f"{name}: mean |flux residual|, all bands, blendedness {label}",
            residual[good].mean(),
            n=good.sum(),
            error=float(residual[good].std() / np.sqrt(good.sum())),
        )
        record.say(
            f"{name}: median |flux residual|, all bands, blendedness {label}",
            np.median(residual[good]),
            n=good.sum(),
        )


def _say_intervals(record: Record, label: str, table: pd.DataFrame) -> None:
    """Fluxes of all bands together, then each other quantity; bins of fluxes."""
    flux = table[table["quantity"].str.startswith("flux")]
    for (level, by, low), rows in flux.groupby(["level", "bin_by", "low"]):
        if by != "all" and level > 0.9:
            continue
        part = "" if by == "all" else f", {by} {low:g} to {rows['high'].iloc[0]:g}"
        wanted = {True: "0.65 to 0.71", False: "0.93 to 0.97"}[level < 0.9]
        record.say(
            f"{label}: {level:.0%} intervals of flux{part}",
            np.average(rows["coverage"], weights=rows["n"]),
            n=rows["n"].iloc[0],
            expected=wanted if by == "all" else "0.62 to 0.74",
        )
    rest = table[~table["quantity"].str.startswith("flux") & (table["bin_by"] == "all")]
    for row in rest.to_dict("records"):
        record.say(
            f"{label}: {row['level']:.0%} intervals of {row['quantity']}",
            row["coverage"],
            n=row["n"],
        )


def gibbs(prior, run: dict, record: Record, seed: int) -> None:
    """Two independent samplers on the same 20 blends."""
    chosen = [i for i, s in enumerate(run["statistics"]) if len(s.is_star) <= 4][:20]
    likelihoods = [galaxy_likelihood(run["statistics"][i], prior) for i in chosen]
    keys = [stage_key(seed, "gibbs", i) for i in range(20)]
    one = sample(prior, likelihoods, DRAWS, keys=keys)
    settings = GibbsSettings()
    two = sample_gibbs(prior, likelihoods, DRAWS, settings, keys=keys)
    light = np.asarray(prior.basis.modes, float).sum((-2, -1))
    light = (np.asarray(prior.cholesky).T @ light)[: prior.n_modes]
    dark = np.asarray(prior.basis.mean, float).sum((-2, -1))
    dark = dark + np.asarray(prior.mean) @ np.asarray(prior.basis.modes, float).sum(
        (-2, -1)
    )
    flux = [
        np.concatenate(
            [
                (d.e[..., : prior.n_modes] @ light + dark).reshape(DRAWS, -1)
                for d in draws
            ],
            axis=1,
        )
        for draws in (one, two)
    ]
    mean, sd = ([f.mean(axis=0) for f in flux], [f.std(axis=0, ddof=1) for f in flux])
    n = mean[0].size
    record.say(
        "split Gibbs: median |difference of flux means| over the mean",
        np.median(np.abs(mean[0] / mean[1] - 1)),
        n=n,
        expected="<= 0.15",
    )
    record.say(
        "split Gibbs: fluxes whose means agree within 15 %",
        np.mean(np.abs(mean[0] / mean[1] - 1) < 0.15),
        n=n,
    )
    record.say(
        "split Gibbs: median ratio of flux standard deviations, main over Gibbs",
        np.median(sd[0] / sd[1]),
        n=n,
        expected="0.85 to 1.15",
    )


def speed(prior, run: dict, record: Record, seed: int) -> None:
    """Seconds and memory of the sampler on blends of four galaxies."""
    four = [s for s in run["statistics"] if len(s.is_star) == 4]
    likelihoods = [galaxy_likelihood(s, prior) for s in four[:100]]
    keys = [stage_key(seed, "speed", i) for i in range(len(likelihoods))]
    by_shape = {padded_shape(one): i for i, one in enumerate(likelihoods)}
    for steps in (SamplerSettings().steps, 64):

        def run_on(rows, steps=steps):
            begin = time.perf_counter()
            sample(
                prior,
                [likelihoods[i] for i in rows],
                DRAWS,
                SamplerSettings(steps=steps),
                keys=[keys[i] for i in rows],
            )
            return (time.perf_counter() - begin) / len(rows)

        run_on(list(by_shape.values()))  # compiles every shape
        for n in (10, len(likelihoods)):
            record.say(
                f"64 draws of {steps} levels, 4 galaxies in 5 bands, {n} blends",
                run_on(range(n)),
                "s / blend",
                n,
                "<= 2 with statistics",
            )
    record.say(
        "seconds of the statistics",
        run["statistics_seconds"] / len(run["statistics"]),
        "s / blend",
        len(run["statistics"]),
    )


def main(
    latent: Path, gaussian: Path | None, out: Path, seed: int, own_blends: int | None
) -> None:
    """All parts; what is there so far is written after each."""
    out.mkdir(parents=True, exist_ok=True)
    record = Record()

    def save():
        (out / "summary.json").write_text(json.dumps(record.rows, indent=1) + "\n")

    prior, card = read_prior(latent / "prior" / "00.eqx")
    if not card.get("laps"):  # after EM the card tells of the first prior
        kept = min(card["validation"], key=lambda row: row["held_out"])
        for level, ratio in zip(card["levels"], kept["ratio"], strict=True):
            record.say(
                f"held-out squared error over Wiener's at sigma = {level:g}",
                ratio,
                n=card["held_out"],
            )
        record.say("training", card["seconds"], "s", card["stamps"], "<= 300")
    run = read_run(latent)
    n = sum(map(len, run["members"]))
    record.say("blends with a result", len(run["members"]), n=n)
    closed_form(gaussian_of(prior), run["statistics"], record, seed)
    galsim_truth(prior, run, "latent", record, out)
    save()
    if gaussian is not None:
        other = read_prior(gaussian / "prior" / "00.eqx")[0]
        galsim_truth(other, read_run(gaussian), "gaussian", record, out)
        save()
    own_truth(prior, run, record, out, seed, own_blends)
    save()
    speed(prior, run, record, seed)
    save()
    gibbs(prior, run, record, seed)
    save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--latent", type=Path, default=Path("results/calibration_latent")
    )
    parser.add_argument("--gaussian", type=Path, help="run of the Gaussian tier")
    parser.add_argument("--out", type=Path, default=Path("results/calibration"))
    parser.add_argument(
        "--own-blends", type=int, help="blends with truths from the prior; default all"
    )
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    main(
        arguments.latent,
        arguments.gaussian,
        arguments.out,
        arguments.seed,
        arguments.own_blends,
    )
