"""Tables, figures, summary and the numbers of docs/benchmark.md from the parts of `make benchmark`.

    .venv/bin/python benchmarks/benchmark_report.py

Reads what compare_methods.py, lsst_sim_scores.py and throughput.py wrote, of the parts that exist.
Writes `results/benchmark/`: `summary.json` (records, targets first), `accuracy.csv` and `tables.md`, `figures/` with
`captions.md`; and the part of docs/benchmark.md between its two marks, with the figures in docs/images.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from benchmark_figures import CAPTIONS, FIGURES
from collect import read_records
from compare_methods import DEFINITIONS, TARGET_BIN

from blendem.plot.style import STYLE

# What each row is called, in the order of the tables.
METHODS = {
    "latent": "blendem, diffusion posterior mean",
    "em": "blendem, the same with a prior after EM",
    "score_map": "blendem, score MAP",
    "gaussian": "blendem, Gaussian tier",
    "profiles": "blendem, Sersic profile MAP",
    "scarlet2": "scarlet2 MAP",
    "sep_auto": "sep, Kron flux",
    "sep": "sep, segments",
    "sep_aperture": "sep, aperture at catalog positions",
    "photutils_auto": "photutils, Kron flux",
    "photutils": "photutils, segments",
    "none": "no deblending, aperture",
}
OURS = ("latent", "em", "score_map", "gaussian", "profiles")
SETS = {
    "benchmark_hsc": "HSC deep",
    "benchmark_hsc_1": "one magnitude shallower",
    "benchmark_hsc_2": "two magnitudes shallower",
    "benchmark_lsst": "LSST ten years",
}
MADNESS_FLUX, MADNESS_COSINE = 0.0197, 0.9936
FEWEST = 10  # sources that a row needs to be called better
MAG_LIMITS = (24.0, 24.5, 25.0, 25.5, np.inf)
MARKS = (
    "<!-- numbers: made by benchmarks/benchmark_report.py -->",
    "<!-- end of the numbers -->",
)
# Column, quantity, band, whether the lowest value is best (None: no order), and digits.
COLUMNS = (
    ("mean abs dF/F", "best_flux", "mean", True, 3),
    ("median", "median_flux", "mean", True, 3),
    ("bias", "bias_flux", "mean", None, 3),
    ("scatter", "scatter_flux", "mean", True, 3),
    ("colour [mag]", "mean_colour", "mean", True, 3),
    ("cosine", "mean_cosine", "mean", False, 4),
    ("rms e1", "rms_e1", "reference", True, 3),
    ("rms e2", "rms_e2", "reference", True, 3),
    ("size scatter", "scatter_size", "reference", True, 3),
    ("in 68 %", "mean_within68", "mean", None, 3),
)


class Part:
    """Scores of one set of blends.

    Attributes:
        name: Of the run.
        table: Rows of `comparison.csv` with `best_flux` added.
        sources: Rows of `sources.csv`.
        seconds, peaks: Per blend, and memory, by method.
    """

    def __init__(self, run: Path):
        self.name = run.name
        self.table = with_best(pd.read_csv(run / "peers" / "comparison.csv"))
        self.sources = pd.read_csv(run / "peers" / "sources.csv")
        notes = read_records(run / "peers" / "comparison.json")
        self.seconds, self.peaks = {}, {}
        for name, note in notes.items():
            keys = name.split("/")
            if "seconds_per_blend" in keys and not keys[-1].startswith("cpu_"):
                value = note["value"] or 0.0
                self.seconds[keys[1]] = self.seconds.get(keys[1], 0.0) + value
            if keys[-1] == "peak_memory":
                self.peaks[keys[1]] = note["value"]
        self.notes = notes

    def subset(self, name: str) -> pd.DataFrame:
        """Rows of a set of sources; `common` where all methods ran on all sources."""
        here = self.table[self.table["subset"] == name]
        return here if len(here) else self.table[self.table["subset"] == "common"]


def with_best(table: pd.DataFrame) -> pd.DataFrame:
    """Add `best_flux`: the definition of flux that serves a method best, over all its sources.

    The first method keeps `mean_flux`. One definition per method and set of sources: that with the lowest mean
    residual in the bin of the targets.
    """
    rows, first = [], table["method"].iloc[0]
    for (method, _), part in table.groupby(["method", "subset"], sort=False):
        names = [f"mean_{d}" for d in DEFINITIONS] if method != first else ["mean_flux"]
        target = part[(part["bin"] == TARGET_BIN) & (part["band"] == "mean")]
        values = target[target["quantity"].isin(names)].set_index("quantity")["value"]
        best = values.idxmin() if values.notna().any() else "mean_flux"
        kept = part[part["quantity"] == best]
        rows.append(kept.assign(quantity="best_flux"))
    return pd.concat([table, *rows], ignore_index=True)


def value_of(table: pd.DataFrame, method: str, label: str, quantity: str, band: str):
    """Row of a table of scores, or None."""
    found = table[
        (table["method"] == method)
        & (table["bin"] == label)
        & (table["quantity"] == quantity)
        & (table["band"] == band)
    ]
    return None if found.empty else found.iloc[0]


def cell(row, digits: int) -> str:
    """Value and error."""
    if row is None or not np.isfinite(row["value"]):
        return ""
    error = f" ± {row['error']:.{digits}f}" if np.isfinite(row["error"]) else ""
    return f"{row['value']:.{digits}f}{error}"


def markdown(rows: list[list[str]]) -> list[str]:
    """Lines of a table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""]


def accuracy(part: Part, subset: str, label: str) -> list[str]:
    """One row per method in one bin."""
    table = part.subset(subset)
    rows = [
        ["method", "n", "no result", *(c[0] for c in COLUMNS), "s per blend", "GiB"]
    ]
    for method, title in METHODS.items():
        base = value_of(table, method, label, "mean_flux", "mean")
        if base is None:
            continue
        cells = [title, f"{base['n']:.0f}", f"{base['n_failed']:.0f}"]
        for _, quantity, band, _, digits in COLUMNS:
            cells.append(cell(value_of(table, method, label, quantity, band), digits))
        memory = part.peaks.get(method)
        cells += [
            f"{part.seconds.get(method, np.nan):.2g}",
            f"{memory:.1f}" if memory else "",
        ]
        rows.append(cells)
    return markdown(rows)


def photometry(part: Part, subset: str) -> list[list[str]]:
    """Aperture residuals and cosine in r, one row per method."""
    table = part.subset(subset)
    radii = {"1.5 arcsec": ("mean_aperture", "r")}
    for name in ("1", "0.7"):
        radii[f"{name} arcsec"] = (f"mean_aperture@{name}", "reference")
    rows = [
        [
            "method",
            "n",
            "no result",
            *(f"aperture of {r}" for r in radii),
            "cosine in r",
        ]
    ]
    for method, title in METHODS.items():
        base = value_of(table, method, "all", "mean_aperture", "r")
        if base is None:
            continue
        cells = [title, f"{base['n']:.0f}", f"{base['n_failed']:.0f}"]
        cells += [
            cell(value_of(table, method, "all", *key), 4) for key in radii.values()
        ]
        cosine = value_of(table, method, "all", "mean_cosine", "r")
        rows.append([*cells, cell(cosine, 4)])
    return rows


def madness(part: Part) -> list[str]:
    """What the paper of MADNESS measures, beside its numbers; by magnitude and by S/N."""
    table, rows = part.subset("all"), photometry(part, "all")
    rows.append(["*MADNESS, published*", "94893", "", "0.0197", "", "", "0.9936"])
    rows.append(["*scarlet, published there*", "94893", "", "0.0278", "", "", "0.9913"])
    rows.append(["*no deblending, published there*", "94893", "", "0.142", "", "", ""])
    lines = markdown(rows)
    if (part.table["subset"] == "all").any():
        lines += ["Only the blends that scarlet2 was run on:", ""]
        lines += markdown(photometry(part, "common"))
    lines += ["The posterior mean by limiting magnitude:", "", *limits(part)]
    one = part.sources[part.sources["method"] == "latent"]
    # Mean absolute value of a normal deviate over S/N: the flux of a source of known shape, alone.
    noise = np.sqrt(2 / np.pi) / one["snr"]
    lines += [
        "Noise alone, of the flux in r of a galaxy whose shape is known and that has no neighbours:"
        f" {noise.mean():.4f} on average. By S/N in r, aperture of 1 arcsec:",
        "",
    ]
    key = ("mean_aperture@1", "reference")
    labels = [b for b in dict.fromkeys(table["bin"]) if b.startswith("snr ")]
    rows = [["S/N in r", "n", "noise alone", *METHODS.values()]]
    shown = [m for m in METHODS if m in set(table["method"])]
    rows[0][3:] = [METHODS[m] for m in shown]
    for label in labels:
        low, high = (float(x) for x in label.removeprefix("snr ").split(" to "))
        inside = (one["snr"] > low) & (one["snr"] <= high)
        cells = [cell(value_of(table, m, label, *key), 3) for m in shown]
        rows.append(
            [
                label.removeprefix("snr "),
                f"{inside.sum()}",
                f"{noise[inside].mean():.3f}",
                *cells,
            ]
        )
    return lines + markdown(rows)


def limits(part: Part) -> list[str]:
    """Aperture residuals of the posterior mean, and what the noise alone gives, by the faintest galaxy."""
    one = part.sources[part.sources["method"] == "latent"]
    noise = np.sqrt(2 / np.pi) / one["snr"]
    rows = [
        [
            "true r below",
            "n",
            "aperture of 1.5 arcsec",
            "1 arcsec",
            "0.7 arcsec",
            "noise alone",
        ]
    ]
    for limit in MAG_LIMITS:
        inside = one["mag"] < limit
        names = "aperture_r", "aperture@1", "aperture@0.7"
        values = [one.loc[inside, name].abs().mean() for name in names]
        values.append(noise[inside].mean())
        label = f"{limit:g}" if np.isfinite(limit) else "all"
        rows.append([label, f"{inside.sum()}", *(f"{v:.4f}" for v in values)])
    return markdown(rows)


def losses(parts: list[Part]) -> list[list[str]]:
    """Where another row has a better value than the first method in a bin of blendedness."""
    rows = [["set", "blendedness", "quantity", "blendem, posterior mean", "better"]]
    for part in parts:
        for subset in ("common", "all"):
            table = part.subset(subset)
            if subset == "all" and not (part.table["subset"] == "all").any():
                continue
            for label in (TARGET_BIN, "all"):
                for title, quantity, band, lowest, digits in COLUMNS:
                    mine = value_of(table, "latent", label, quantity, band)
                    if lowest is None or mine is None:
                        continue
                    better = []
                    for method in METHODS:
                        other = value_of(table, method, label, quantity, band)
                        if method in ("latent", "em") or other is None:
                            continue
                        if other["n"] < FEWEST:
                            continue
                        gain = mine["value"] - other["value"]
                        if (gain if lowest else -gain) > 0:
                            note = (
                                f", n = {other['n']:.0f}"
                                if other["n"] != mine["n"]
                                else ""
                            )
                            better.append(
                                f"{METHODS[method]} {cell(other, digits)}{note}"
                            )
                    if better:
                        where = f"{SETS[part.name]}, {subset}"
                        rows.append(
                            [where, label, title, cell(mine, digits), "; ".join(better)]
                        )
    return rows


class Summary:
    """Records and lines of the targets."""

    def __init__(self, command: str):
        self.command, self.records = command, []
        self.rows = [["target", "wanted", "measured", "n", "met"]]

    def target(self, name, wanted, value, n, met, error=None, digits=4) -> None:
        """One target; `value` None: not measured."""
        known = value is not None and np.isfinite(value)
        self.records.append(
            {
                "name": f"target/{name}",
                "value": float(value) if known else None,
                "error": None
                if error is None or not np.isfinite(error)
                else float(error),
                "unit": "1",
                "n": int(n),
                "expected": wanted,
                "met": bool(met) if known else None,
                "command": self.command,
            }
        )
        text = f"{value:.{digits}g}" if known else "not measured"
        if known and error is not None and np.isfinite(error):
            text += f" ± {error:.1g}"
        self.rows.append(
            [
                name,
                wanted,
                text,
                str(int(n)),
                {True: "yes", False: "**no**"}[bool(met)] if known else "",
            ]
        )


def blend_targets(summary: Summary, part: Part) -> None:
    """Targets on blends of the first set."""
    table = part.subset("common")

    def get(method, quantity, band="mean"):
        return value_of(table, method, TARGET_BIN, quantity, band)

    mine = get("latent", "best_flux")
    peers = [
        m
        for m in METHODS
        if m not in ("latent", "em") and get(m, "best_flux") is not None
    ]
    note = next(
        (
            r
            for k, r in part.notes.items()
            if k.startswith("peers/common/scarlet2/") and "_over_latent" in k
        ),
        None,
    )
    if note is not None:
        summary.target(
            "mean flux residual of scarlet2 over blendem's, blendedness > 0.2",
            "at least 5",
            note["value"],
            note["n"],
            note["value"] >= 5,
            note["error"],
        )
    best = min(get(m, "best_flux")["value"] for m in peers)
    summary.target(
        "mean flux residual, blendedness > 0.2",
        f"below every other row ({best:.3g})",
        mine["value"],
        mine["n"],
        mine["value"] < best,
        mine["error"],
    )
    cosine = get("latent", "mean_cosine")
    best = max(get(m, "mean_cosine")["value"] for m in peers)
    summary.target(
        "cosine, blendedness > 0.2",
        f"best (others {best:.4f})",
        cosine["value"],
        cosine["n"],
        cosine["value"] > best,
        cosine["error"],
        digits=5,
    )
    for e in ("e1", "e2"):
        row = get("latent", f"rms_{e}", "reference")
        others = [get(m, f"rms_{e}", "reference") for m in peers]
        # Methods that measured few shapes are compared on these alone, not on the same galaxies.
        best = min(o["value"] for o in others if o["n"] == row["n"])
        summary.target(
            f"rms {e}, blendedness > 0.2",
            f"best (others, same galaxies, {best:.3g})",
            row["value"],
            row["n"],
            row["value"] < best,
            row["error"],
        )
    covered = value_of(
        part.subset("all"), "latent", TARGET_BIN, "mean_within68", "mean"
    )
    summary.target(
        "68 % intervals of flux, blendedness > 0.2",
        "0.65 to 0.71",
        covered["value"],
        covered["n"],
        0.65 <= covered["value"] <= 0.71,
        covered["error"],
    )


def lsst_targets(summary: Summary, part: Part) -> None:
    """The set-up of MADNESS."""
    table = part.subset("all")
    flux = value_of(table, "latent", "all", "mean_aperture", "r")
    cosine = value_of(table, "latent", "all", "mean_cosine", "r")
    for name, row, wanted, met, digits in (
        (
            "LSST density, mean aperture residual in r",
            flux,
            f"below {MADNESS_FLUX}",
            flux["value"] < MADNESS_FLUX,
            4,
        ),
        (
            "LSST density, cosine in r",
            cosine,
            f"above {MADNESS_COSINE}",
            cosine["value"] > MADNESS_COSINE,
            5,
        ),
    ):
        summary.target(name, wanted, row["value"], row["n"], met, row["error"], digits)


def sim_targets(summary: Summary, table: pd.DataFrame) -> None:
    """Magnitudes of matched sources."""
    keyed = table[table["band"] == "mean"].set_index(["subset", "quantity", "method"])
    for quantity in ("bias", "scatter"):
        rows = keyed.loc[("common", quantity)]
        names = [m for m in rows.index if m.startswith(("scarlet2", "photutils"))]
        if not names:
            continue
        best, mine = rows.loc[names, "value"].min(), rows.loc["latent"]
        summary.target(
            f"lsst_sim_blends, {quantity} of magnitudes",
            f"below scarlet2 and photutils ({best:.3g} mag)",
            mine["value"],
            mine["n"],
            mine["value"] < best,
            mine["error"],
        )


def speed_targets(summary: Summary, table: pd.DataFrame) -> None:
    """Throughput, by wall time of one process with compilation spread over 1000 blends."""
    by = table.set_index("what")
    if "scarlet2 MAP" not in by.index:
        return
    peer, n = by.loc["scarlet2 MAP", "seconds_of_1000"], by.loc["scarlet2 MAP", "n"]
    for name, least in (
        ("blendem MAP, Gaussian tier", 30),
        ("blendem MAP, profiles", 30),
        ("blendem posterior, 64 draws", 1),
    ):
        ratio = peer / by.loc[name, "seconds_of_1000"]
        summary.target(
            f"time of scarlet2 MAP over {name}",
            f"at least {least}",
            ratio,
            n,
            ratio >= least,
            digits=3,
        )


def sim_table(table: pd.DataFrame) -> list[str]:
    """Magnitudes of lsst_sim_blends."""
    rows = [
        [
            "method",
            "set",
            "n",
            "no result",
            "abs bias",
            "scatter",
            *(f"bias {b}" for b in "grizy"),
        ]
    ]
    keyed = table.set_index(["method", "subset", "quantity", "band"])
    for method, title in METHODS.items():
        for subset in ("common", "own"):
            if (method, subset, "bias", "mean") not in keyed.index:
                continue
            base = keyed.loc[(method, subset, "bias", "mean")]
            cells = [title, subset, f"{base['n']:.0f}", f"{base['n_failed']:.0f}"]
            cells += [
                cell(keyed.loc[(method, subset, q, "mean")], 3)
                for q in ("bias", "scatter")
            ]
            cells += [
                f"{keyed.loc[(method, subset, 'bias', b), 'value']:+.3f}"
                for b in "grizy"
            ]
            rows.append(cells)
    return markdown(rows)


def speed_table(table: pd.DataFrame) -> list[str]:
    """Seconds per blend in one process."""
    head = [
        "stage",
        "blends",
        "s per blend",
        "CPU s per blend",
        "compilation in all [s]",
    ]
    rows = [[*head, "s per blend of 1000"]]
    for row in table.itertuples():
        numbers = row.seconds, row.cpu_seconds, row.compile_seconds, row.seconds_of_1000
        rows.append([row.what, f"{row.n}", *(f"{x:.3f}" for x in numbers)])
    return markdown(rows)


def draw(out: Path, parts: dict[str, Part], more: dict[str, pd.DataFrame]) -> list[str]:
    """All figures that there are data for; returns their names."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = []
    with matplotlib.rc_context(STYLE):
        for name, plot in FIGURES.items():
            figure = plot(parts, more)
            if figure is None:
                continue
            # No date, so that a second run gives the same bytes.
            figure.savefig(out / f"{name}.png", metadata={"Software": None})
            figure.savefig(out / f"{name}.pdf", metadata={"CreationDate": None})
            plt.close(figure)
            drawn.append(name)
    text = [f"**{name}**: {CAPTIONS[name]}\n" for name in drawn]
    (out / "captions.md").write_text("\n".join(text))
    return drawn


def main(options: argparse.Namespace) -> None:
    """Read the parts, write all."""
    results, out = options.results, options.results / "benchmark"
    out.mkdir(parents=True, exist_ok=True)
    parts = {
        name: Part(results / name)
        for name in SETS
        if (results / name / "peers" / "comparison.json").is_file()
    }
    if "benchmark_hsc" not in parts:
        raise SystemExit(
            f"{results}/benchmark_hsc: no comparison; run `make benchmark`"
        )
    files = {
        "sim": results / "benchmark_lsst_sim" / "peers" / "magnitudes.csv",
        "speed": out / "throughput.csv",
    }
    more = {k: pd.read_csv(f) for k, f in files.items() if f.is_file()}
    summary = Summary(" ".join(["benchmarks/benchmark_report.py", *sys.argv[1:]]))
    blend_targets(summary, parts["benchmark_hsc"])
    if "benchmark_lsst" in parts:
        lsst_targets(summary, parts["benchmark_lsst"])
    if "sim" in more:
        sim_targets(summary, more["sim"])
    else:
        summary.target(
            "lsst_sim_blends, bias and scatter", "below peers", None, 0, False
        )
    if "speed" in more:
        speed_targets(summary, more["speed"])
    else:
        summary.target(
            "throughput over scarlet2", "MAP 30, posterior 1", None, 0, False
        )
    records = {r["name"]: r for r in summary.records}
    for name, part in parts.items():
        records |= {
            f"{name}/{k}": r | {"name": f"{name}/{k}"} for k, r in part.notes.items()
        }
    for path in (
        results / "benchmark_lsst_sim/peers/magnitudes.json",
        out / "throughput.json",
    ):
        if path.is_file():
            records |= read_records(path)
    (out / "summary.json").write_text(
        json.dumps(list(records.values()), indent=1) + "\n"
    )
    pd.concat([p.table.assign(set=n) for n, p in parts.items()]).to_csv(
        out / "accuracy.csv", index=False
    )
    figures = draw(out / "figures", parts, more)
    text = page(parts, more, summary, figures)
    (out / "tables.md").write_text("\n".join(text))
    if options.page:
        for name in figures:
            shutil.copy(
                out / "figures" / f"{name}.png",
                options.page.parent / "images" / f"{name}.png",
            )
        replace_numbers(options.page, text)
    for row in summary.rows:
        print(" | ".join(row))


def page(parts, more, summary: Summary, figures: list[str]) -> list[str]:
    """Lines of the part of docs/benchmark.md that is made."""
    lines = ["## Targets", "", *markdown(summary.rows)]

    def picture(name):
        if name not in figures:
            return []
        return [f"![{name}](images/{name}.png)", "", f"*{CAPTIONS[name]}*", ""]

    for name, part in parts.items():
        n_blends = {
            m: part.notes[f"peers/{m}/peak_memory"]["n"]
            for m in ("latent", "scarlet2")
            if f"peers/{m}/peak_memory" in part.notes
        }
        lines += [f"## {SETS[name]}", ""]
        lines += [
            f"{n_blends['latent']} blends"
            + (
                f", {n_blends['scarlet2']} of them fitted by scarlet2."
                if "scarlet2" in n_blends
                else "."
            ),
            "",
        ]
        if name == "benchmark_lsst":
            lines += ["All sources, r, as MADNESS measures:", "", *madness(part)]
        both = (part.table["subset"] == "all").any()
        for label, what in (
            (TARGET_BIN, "blendedness above 0.2"),
            ("all", "all sources"),
        ):
            if both:
                lines += [
                    f"Blends that all methods were run on, {what}:",
                    "",
                    *accuracy(part, "common", label),
                ]
            lines += [f"All blends, {what}:", "", *accuracy(part, "all", label)]
        if name == "benchmark_hsc":
            lines += picture("benchmark_flux") + picture("benchmark_shapes")
    lines += picture("benchmark_depth") + picture("benchmark_lsst")
    if "sim" in more:
        lines += ["## Blends of another pipeline", "", *sim_table(more["sim"])]
        lines += picture("benchmark_lsst_sim")
    if "speed" in more:
        lines += [
            "## Throughput",
            "",
            *speed_table(more["speed"]),
            *picture("benchmark_speed"),
        ]
    lost = losses(list(parts.values()))
    lines += ["## Rows that the posterior mean does not lead", ""]
    lines += markdown(lost) if len(lost) > 1 else ["None.", ""]
    return lines


def replace_numbers(path: Path, lines: list[str]) -> None:
    """Put the lines between the marks of a page."""
    text = path.read_text()
    begin, end = (text.find(mark) for mark in MARKS)
    if not 0 <= begin < end:
        raise SystemExit(f"{path}: lacks the lines {MARKS}")
    text = text[: begin + len(MARKS[0])] + "\n\n" + "\n".join(lines) + text[end:]
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--page", type=Path, help="such as docs/benchmark.md")
    main(parser.parse_args())
