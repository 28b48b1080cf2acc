"""The real pair of HST and HSC, fitted jointly, beside HSC alone: are residuals noise?

    make real-pair

Reads the runs `hst_hsc_real`, `hsc_alone_real` (settings and prior the same, without HST and with what HSC alone
detects) and `hsc_known_real` (without HST, but with the sources that it shows), and writes chi2 per pixel, autocorrelation of residuals and of noise, the offset between the two
astrometric frames and the number of sources to `results/multi/real_pair.json`, and the figure `real_pair.png`
beside it.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from records import Report

from blendem import plot
from blendem.io.priors import read_prior
from blendem.io.products import read_table
from blendem.plot.inputs import SeenField, display_bands, read_field, save

FIELD, HSC = "cosmos_pair", ("g", "r", "i", "z", "y")
RGB, PULL = ("i", "r", "g"), "i"  # bands that are shown of HSC
STRETCH, GREY, LIMIT = (
    8.0,
    3.0,
    5.0,
)  # of colours, of one band, of residuals [noise sigma]


def read_run(run: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Scores of blends and observations of a run, and its catalog.

    Raises:
        SystemExit: If it was not made.
    """
    paths = [run / "scores" / f"{name}.csv" for name in ("blends", "observations")]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise SystemExit(f"{', '.join(missing)}: no such file; run `make real-pair`")
    return tuple(pd.read_csv(path) for path in paths)


def report_run(report: Report, name: str, run: Path) -> None:
    """Numbers of one run: the whole blend, then every observation and band."""
    blends, observations = read_run(run)
    report.say(f"{name}: sources", blends["n_sources"].sum(), n=len(blends))
    total = blends["chi2"].sum() / blends["expected_chi2"].sum()
    report.say(f"{name}: chi2 over its expectation", total, n=blends["n_data"].sum())
    for row in observations.groupby(["observation", "band"], sort=False):
        band, mine = row[0][1], row[1]
        n = mine["n_data"].sum()
        here = f"{name}: {band}: "
        report.say(here + "chi2 per pixel", mine["chi2"].sum() / n, n=n)
        white = mine["white_chi2"].sum() / n
        report.say(here + "chi2 per pixel, whitened", white, n=n, expected="1")
        noise = mine["noise_autocorrelation"].mean()
        value = np.average(mine["autocorrelation"], weights=mine["n_data"])
        text = f"{noise:.3f}, of noise"
        report.say(here + "autocorrelation of residuals", value, n=n, expected=text)


def report_offset(report: Report, run: Path) -> None:
    """How far HSC is off HST, in HST's frame."""
    blends, _ = read_run(run)
    scale = float(read_prior(run / "prior" / "00.eqx")[0].basis.pixel_scale)
    for axis in "yx":
        for end, what in (("", "offset"), ("_err", "its error")):
            value = scale * blends[f"offset_{axis}_1{end}"].iloc[0]
            report.say(f"HST and HSC: HSC along {axis}, {what}", value, "arcsec")


def draw(axes: plot.Panels, seen: SeenField, title: str) -> None:
    """Data, model, and residual over sigma of one observation."""
    rgb = display_bands(seen.bands, RGB)
    stretch = (GREY if len(seen.bands) == 1 else STRETCH) * seen.noise(rgb)
    look = {"rgb": rgb, "stretch": stretch, "q": 8.0}
    for ax, image in zip(axes, (seen.image, seen.model), strict=False):
        ax.imshow(plot.lupton(image, seen.bands, **look), origin="lower")
    y, x = seen.positions.T
    axes[0].plot(x, y, "+", color="white", ms=4, mew=0.6)
    plot.plot_scale_bar(axes[0], seen.image.shape[2], seen.pixel_scale)
    band = seen.shown(PULL)
    plot.plot_pull(axes[2], seen.pull[seen.bands.index(band)], limit=LIMIT)
    axes[2].set_title(f"residual, {band}", fontsize=7)
    axes[0].set_ylabel(title, fontsize=7)
    height, width = seen.image.shape[1:]
    for ax in axes:
        ax.set(xticks=[], yticks=[], xlabel="")
        ax.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5))
    axes[2].set_ylabel("")


def report_errors(report: Report, joint: Path, known: Path) -> None:
    """How much smaller the errors of HSC fluxes are with the pixels of HST, same sources."""
    one, other = (
        read_table(run / "catalog" / f"{FIELD}.fits")[0].to_pandas().set_index("id")
        for run in (joint, known)
    )
    for b in HSC:
        ratio = other[f"flux_err_{b}"] / one[f"flux_err_{b}"]
        name = f"flux errors in {b}: with positions of HST over with its pixels, median"
        report.say(name, ratio.median(), n=ratio.count())


def draw_figure(joint: Path, alone: Path, path: Path) -> None:
    """One row per image: HSC and HST fitted jointly, HSC alone."""
    fields = [
        read_field(*(run / kind / f"{FIELD}.fits" for kind in ("catalog", "models")))
        for run in (joint, alone)
    ]
    hst, hsc = fields[0].seen
    rows = (
        (hsc, f"HSC {', '.join(RGB)}\nHST and HSC"),
        (hst, "HST F814W\nHST and HSC"),
        (fields[1].seen[0], f"HSC {', '.join(RGB)}\nHSC alone"),
    )
    with matplotlib.rc_context(plot.STYLE):
        figure = Figure(figsize=(0.75 * plot.TWO_COLUMNS, 5.4))
        panels = figure.subplots(len(rows), 3)
        for axes, (seen, title) in zip(panels, rows, strict=True):
            draw(axes, seen, title)
        for ax, title in zip(panels[0], ("data", "model"), strict=False):
            ax.set_title(title, fontsize=7)
        save(figure, path, 300)


def main(joint: Path, alone: Path, known: Path, out: Path) -> None:
    """Print and write the numbers, draw the figure."""
    report = Report("make real-pair")
    report_run(report, "HST and HSC", joint)
    report_offset(report, joint)
    report_run(report, "HSC alone", alone)
    report_run(report, "HSC with the sources of HST", known)
    report_errors(report, joint, known)
    report.write(out)
    draw_figure(joint, alone, out.with_suffix(".png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--joint", type=Path, default=Path("results/hst_hsc_real"))
    parser.add_argument("--alone", type=Path, default=Path("results/hsc_alone_real"))
    parser.add_argument("--known", type=Path, default=Path("results/hsc_known_real"))
    parser.add_argument(
        "--out", type=Path, default=Path("results/multi/real_pair.json")
    )
    arguments = parser.parse_args()
    main(arguments.joint, arguments.alone, arguments.known, arguments.out)
