"""Which directions of the prior EM learns fast, and which slowly: from finished runs.

    make em-repair
    .venv/bin/python benchmarks/em_modes.py

In coordinates in which the prior of the true galaxies (`em_oracle`) is white, directions are the
eigenvectors of the mean information that the data have on one galaxy; the root of the eigenvalue is
the signal-to-noise ratio of a direction. For every lap of `em_repair` the standard deviation and mean
of the prior along each are compared with those of the true galaxies. Writes
`results/em/modes.csv` and `modes.png`.
"""

import argparse
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from blendem.io.blends import read_blends
from blendem.io.priors import read_prior
from blendem.io.statistics import read_statistics
from blendem.plot.style import GREY, SEQUENTIAL, STYLE, TWO_COLUMNS
from blendem.prior.latent import LatentPrior

BINS = (0.0, 0.3, 1.0, 3.0, 10.0, np.inf)  # signal to noise of a direction


def moments(prior: LatentPrior) -> tuple[np.ndarray, np.ndarray]:
    """Mean `(mode,)` and covariance `(mode, mode)` of the first coordinates."""
    mixture, n = prior.mixture, prior.n_modes
    weights = np.asarray(mixture.weights, float)
    centers = np.asarray(mixture.centers, float)[:, :n]
    mean = weights @ centers
    within = np.einsum(
        "c,cij->ij", weights, np.asarray(mixture.covariances, float)[:, :n, :n]
    )
    away = centers - mean
    return mean, within + (weights * away.T) @ away


def information(run: Path, prior: LatentPrior) -> np.ndarray:
    """Information of the data on each galaxy, `(galaxy, mode, mode)`."""
    d, n = len(prior.mean), prior.n_modes
    lower = np.asarray(prior.cholesky, float)[:, :n]
    blocks = []
    for path in sorted((run / "statistics").glob("*.h5")):
        for one in read_statistics(path, read_blends(run / "blends" / path.name)):
            if one is None:
                continue
            for k, star in enumerate(one.is_star):
                if not star:
                    block = one.H[k * d : (k + 1) * d, k * d : (k + 1) * d]
                    blocks.append((lower.T @ block @ lower).astype(np.float32))
    return np.array(blocks)


def main(repair: Path, oracle: Path, out: Path) -> None:
    """Write table and figure."""
    right = read_prior(oracle / "prior" / "00.eqx")[0]
    center, covariance = moments(right)
    white = np.linalg.cholesky(covariance)
    blocks = information(oracle, right)
    value, axes = np.linalg.eigh(white.T @ blocks.mean(axis=0) @ white)
    noise = np.sqrt(np.maximum(value, 0))
    axes = white @ axes  # columns: one standard deviation of true galaxies
    # Of the median galaxy: the mean is that of the brightest.
    each = np.einsum("id,kij,jd->kd", axes, blocks, axes, optimize=True)
    typical = np.sqrt(np.median(np.maximum(each, 0), axis=0))
    back = np.linalg.inv(axes)
    rows = []
    for path in sorted((repair / "prior").glob("[0-9][0-9].eqx")):
        mean, spread = moments(read_prior(path)[0])
        deviation = np.sqrt(np.diag(back @ spread @ back.T))
        shift = back @ (mean - center)
        for i in range(len(value)):
            rows.append(
                dict(
                    lap=int(path.stem),
                    direction=i,
                    signal_to_noise=noise[i],
                    signal_to_noise_median=typical[i],
                    deviation=deviation[i],
                    shift=shift[i],
                )
            )
    table = pd.DataFrame(rows)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "modes.csv", index=False)
    table["error"] = np.abs(np.log(table["deviation"]))
    table["bin"] = pd.cut(table["signal_to_noise_median"], BINS, include_lowest=True)
    for name, what in (("error", "mean |ln sd|"), ("shift", "rms shift [sd]")):
        how = "mean" if name == "error" else (lambda x: np.sqrt(np.mean(x**2)))
        print(f"{what}, by signal to noise of the median galaxy and lap")
        print(
            table.pivot_table(name, "bin", "lap", how, observed=True)
            .round(3)
            .to_string()
        )
    print(table[table["lap"] == 0].groupby("bin", observed=True).size().to_string())
    with matplotlib.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(TWO_COLUMNS, 2.6))
        last = table["lap"].max()
        shown = [lap for lap in (0, 1, 2, 4, 8) if lap < last] + [last]
        colors = matplotlib.colormaps[SEQUENTIAL](np.linspace(0.0, 0.85, len(shown)))
        for lap, color in zip(shown, colors, strict=True):
            part = table[table["lap"] == lap].sort_values("signal_to_noise_median")
            for ax, name in zip(panels, ("deviation", "shift"), strict=True):
                x = part["signal_to_noise_median"]
                ax.plot(x, part[name], ".", color=color, ms=4, label=f"lap {lap}")
        for ax in panels:
            ax.set_xscale("log")
            ax.set_xlabel("signal to noise of the direction, median galaxy")
        panels[0].set_yscale("log")
        panels[0].axhline(1, color=GREY, lw=0.6)
        panels[1].axhline(0, color=GREY, lw=0.6)
        panels[0].set_ylabel("sd of prior / sd of true galaxies")
        panels[1].set_ylabel("mean of prior, of true galaxies = 0 [sd]")
        panels[0].legend()
        figure.savefig(out / "modes.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repair", type=Path, default=Path("results/em_repair"))
    parser.add_argument("--oracle", type=Path, default=Path("results/em_oracle"))
    parser.add_argument("--out", type=Path, default=Path("results/em"))
    arguments = parser.parse_args()
    main(arguments.repair, arguments.oracle, arguments.out)
