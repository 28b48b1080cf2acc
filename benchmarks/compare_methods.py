"""Methods against the truth and each other, on the same sources of the same blends.

    .venv/bin/python benchmarks/compare_methods.py results/<run> --method latent=results/<run> \
        --method gaussian=results/<other run> --method profiles=results/<run>/map \
        --method scarlet2=results/<run>/peers/scarlet2.h5

A method is a folder of a run (posterior mean), its `map` (closed-form profiles) or a method file
(method_results.py). The first is the one that the others are compared with. Two sets of sources:
`common`, those that every method was run on, and `all`, with the methods that were run on all.

- Flux: |F / F_true - 1|. F_true is the flux in the model stamp (`flux`) or all of it
  (`flux_total`); `flux_stamp` takes what of the method's model lies in the stamp. Ratios take for
  every method but the first the definition that serves it best. `mean` is over sources, then bands.
- Images: cosine similarity and ellipticity (adaptive moments, reference band) of each source alone
  as observed, in a window around the catalog position, on the pixels of its blend only; the truth
  in the same way. Ellipticities are compared on galaxies whose shape all methods could measure that
  measured most (`SHAPED`); the others on those of them that they have.
- Aperture: flux of each source alone, as observed, in a circle of `--aperture` around its catalog
  position, over that of the truth; on the pixels of its blend, as the images.
- Bias and scatter of flux: median of F / F_true - 1, and half of its central 68 %, of the sources that
  have a result. Colours of neighbouring bands [mag] and sizes (half-light radius as observed) likewise; the
  others are counted (`n_failed`, `no_colour`, `no_shape`).
- A source without a result counts with flux 0 and cosine 0 and is in `n_failed`.
- Errors: bootstrap of whole blends, the same draws for all methods.

Writes `comparison.csv`, `comparison.md`, `comparison.json` and `sources.csv` into `--output`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from method_results import (
    WINDOW_MARGIN,
    Cutouts,
    MethodResult,
    cut,
    read_cutouts,
    read_map,
    read_method,
    read_parts,
    read_run,
    read_truth,
    same_pixels,
    window_corner,
)

from blendem.measure.metrics import MAD_TO_SIGMA, cosine_similarity, flux_residual
from blendem.measure.photometry import CENTRAL_68, circle_overlap
from blendem.measure.shapes import measure_shapes
from blendem.survey.instruments import MAGZERO

BINS = {
    "<0.05": (-np.inf, 0.05),
    "0.05-0.2": (0.05, 0.2),
    "0.2-0.5": (0.2, 0.5),
    ">0.5": (0.5, np.inf),
    ">0.2": (0.2, np.inf),
    "all": (-np.inf, np.inf),
}
TARGET_BIN = ">0.2"
# Part of the galaxies whose shape a method must have to decide which shapes are compared.
SHAPED = 0.8
# Edges of other bins, by column: true magnitude, and S/N of the source were it alone.
MORE_BINS = {
    "mag": (-np.inf, 21, 22, 23, 24, 25, np.inf),
    "snr": (-np.inf, 20, 50, 100, 200, np.inf),
}
BOOTSTRAP = 1000
KEYS = ["field", "id"]
DEFINITIONS = ("flux", "flux_total", "flux_stamp")


def load(path: Path, run: Path, profile: str, stamp: int) -> MethodResult:
    """A method by what its path is."""
    if "*" in path.name:
        return read_parts(path)
    if path.suffix == ".h5":
        return read_method(path)
    owner = path.parent if path.name == "map" else path
    if owner.resolve() != run.resolve():
        same_pixels(run, owner)
        _same_cutouts(read_cutouts(run), read_cutouts(owner), owner)
    return read_map(owner, profile, stamp) if path.name == "map" else read_run(path)


def _same_cutouts(a: Cutouts, b: Cutouts, path: Path) -> None:
    names = ["field", "number", "corner_y", "corner_x", "height", "width"]
    if not a.blends[names].equals(b.blends[names]):
        raise SystemExit(
            f"{path}/blends: other cut-outs; give both runs the same `blends` and `detect`"
        )


def observed_images(
    observed: np.ndarray, corner: np.ndarray, rows: pd.DataFrame, side: int
) -> np.ndarray:
    """Images in the window of each source, zero outside the pixels of its blend."""
    out = np.zeros((len(rows), observed.shape[1], side, side), np.float32)
    low = window_corner(rows[["y", "x"]].to_numpy(), side)
    for k, (begin, r) in enumerate(zip(low, rows.itertuples(), strict=True)):
        inside = np.ones((r.height, r.width), np.float32)
        inside = cut(inside, (r.corner_y, r.corner_x), begin, side)
        image = cut(observed[k], corner[k], begin, side)
        out[k] = np.where(inside > 0, image, 0.0)
    return out


def score(
    result: MethodResult,
    rows: pd.DataFrame,
    bands: tuple[str, ...],
    true_images: np.ndarray,
    true_shapes: dict[str, np.ndarray],
    reference: int,
    pixel_scale: float,
    radii: Sequence[float] = (1.5,),
) -> pd.DataFrame:
    """Scores of one method, one row per source it was run on.

    Args:
        result: The method.
        rows: All sources with truth and the geometry of their blends, index 0 to n - 1.
        bands: Names of the bands.
        true_images, true_shapes: Of `rows`.
        reference: Index of the band of the ellipticities.
        pixel_scale: Side of a pixel [arcsec].
        radii: Of apertures [arcsec]; those after the first are for the reference band alone.
    """
    table = result.table.assign(place=np.arange(len(result.table)))
    joined = rows[KEYS].reset_index().merge(table, on=KEYS)
    if len(joined) != len(table):
        raise SystemExit(
            f"{len(table) - len(joined)} of {len(table)} sources are not in the run"
        )
    at, place = joined["index"].to_numpy(), joined["place"].to_numpy()
    true = rows.loc[at].reset_index(drop=True)
    side = true_images.shape[-1]
    images = observed_images(result.observed[place], result.corner[place], true, side)
    flux = joined[[f"flux_{b}" for b in bands]].to_numpy(float)
    failed = ~(np.isfinite(flux).all(axis=1) & np.isfinite(images).all(axis=(1, 2, 3)))
    images[failed] = 0.0
    names = [*KEYS, "blend", "blendedness", "mag", "snr", "type"]
    out = true[[name for name in names if name in true]].assign(failed=failed)
    weight = apertures(true, side, radii[0] / pixel_scale)
    for i, b in enumerate(bands):
        model = np.where(failed, 0.0, flux[:, i])
        out[f"flux_{b}"] = flux_residual(model, true[f"flux_model_{b}"].to_numpy())
        out[f"flux_total_{b}"] = flux_residual(model, true[f"flux_{b}"].to_numpy())
        if f"flux_stamp_{b}" in joined:
            model = np.where(failed, 0.0, joined[f"flux_stamp_{b}"])
            out[f"flux_stamp_{b}"] = flux_residual(
                model, true[f"flux_model_{b}"].to_numpy()
            )
        if f"flux_q16_{b}" in joined:
            within = joined[f"flux_q16_{b}"] <= true[f"flux_model_{b}"]
            within &= true[f"flux_model_{b}"] <= joined[f"flux_q84_{b}"]
            out[f"within68_{b}"] = within.astype(float)
        out[f"cosine_{b}"] = cosine_similarity(images[:, i], true_images[at, i])
        light = [
            np.sum(weight * x[:, i], axis=(1, 2)) for x in (images, true_images[at])
        ]
        out[f"aperture_{b}"] = flux_residual(*light)
    for radius in radii[1:]:
        weight = apertures(true, side, radius / pixel_scale)
        both = (x[:, reference] for x in (images, true_images[at]))
        light = [np.sum(weight * x, axis=(1, 2)) for x in both]
        out[f"aperture@{radius:g}"] = flux_residual(*light)
    for i, (a, b) in enumerate(pairwise(bands)):
        known = [true[f"flux_model_{x}"].to_numpy(float) for x in (a, b)]
        with np.errstate(divide="ignore", invalid="ignore"):
            colour = [-2.5 * np.log10(x / y) for x, y in (flux[:, i : i + 2].T, known)]
        wrong = failed | (flux[:, i : i + 2] <= 0).any(axis=1)
        out[f"colour_{a}-{b}"] = np.where(wrong, np.nan, colour[0] - colour[1])
    shapes = measure_shapes(images[:, reference], pixel_scale)
    for e in ("e1", "e2"):
        residual = shapes[e] - true_shapes[e][at]
        out[e] = np.where(failed | (true["type"] == "star"), np.nan, residual)
    ratio = shapes["size"] / true_shapes["size"][at] - 1
    out["size"] = np.where(failed | (true["type"] == "star"), np.nan, ratio)
    return out


def apertures(rows: pd.DataFrame, side: int, radius: float) -> np.ndarray:
    """Part of every pixel of each source's window inside a circle [pixel] around the source."""
    position = rows[["y", "x"]].to_numpy()
    center = position - window_corner(position, side)
    return np.stack([circle_overlap((side, side), tuple(c), radius) for c in center])


def _mean(values, weights):
    return np.sum(weights * values, axis=-1) / np.sum(weights, axis=-1)


def _quantiles(values, weights, levels):
    order = np.argsort(values)
    total = np.cumsum(weights[..., order], axis=-1)
    first = [np.argmax(total >= q * total[..., -1:], axis=-1) for q in levels]
    return [values[order][f] for f in first]


def _median(values, weights):
    return _quantiles(values, weights, [0.5])[0]


def _scatter(values, weights):
    low, high = _quantiles(values, weights, CENTRAL_68)
    return (high - low) / 2


def _rms(values, weights):
    return np.sqrt(_mean(values**2, weights))


def _mad(values, weights):
    return MAD_TO_SIGMA * _median(np.abs(values), weights)


def blend_weights(blends: np.ndarray, seed: int) -> np.ndarray:
    """How often each source is drawn: once (first row), then in samples of whole blends."""
    names, place = np.unique(blends, return_inverse=True)
    rng = np.random.default_rng(seed)
    n = len(names)
    if n == 0:
        return np.ones((1, 0))
    counts = rng.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP)
    return np.concatenate([np.ones((1, len(blends))), counts[:, place]])


def quantities(part: pd.DataFrame, keep: np.ndarray, bands: tuple[str, ...]):
    """What is averaged: quantity, band, statistic, values and which sources (`keep`: None, all).

    Args:
        part: Scores of one method.
        keep: Sources whose shape is compared.
        bands: Names of the bands.
    """
    labels, found = [*bands, "mean"], ~part["failed"].to_numpy(bool)
    for kind in (*DEFINITIONS, "aperture", "cosine", "within68"):
        if f"{kind}_{bands[0]}" not in part:
            continue
        values = part[[f"{kind}_{b}" for b in bands]].to_numpy(float).T
        if kind in ("flux", "flux_total"):
            for band, v in zip(labels, [*values, values.mean(axis=0)], strict=True):
                yield f"bias_{kind}", band, _median, v[found], found
                yield f"scatter_{kind}", band, _scatter, v[found], found
        if kind in (*DEFINITIONS, "aperture"):
            values = np.abs(values)
        values = [*values, values.mean(axis=0)]
        for band, v in zip(labels, values, strict=True):
            yield f"mean_{kind}", band, _mean, v, None
            if kind in DEFINITIONS:
                yield f"median_{kind}", band, _median, v, None
    for name in part:
        if name.startswith("aperture@"):
            yield (
                f"mean_{name}",
                "reference",
                _mean,
                np.abs(part[name].to_numpy()),
                None,
            )
    for e in ("e1", "e2"):
        v = part[e].to_numpy(float)[keep]
        yield f"rms_{e}", "reference", _rms, v, keep
        yield f"mad_{e}", "reference", _mad, v, keep
    sized = np.isfinite(part["size"]).to_numpy()
    v = part["size"].to_numpy(float)[sized]
    yield "bias_size", "reference", _median, v, sized
    yield "scatter_size", "reference", _scatter, v, sized
    colours = part[[c for c in part if c.startswith("colour_")]]
    known = np.isfinite(colours).all(axis=1).to_numpy()
    for name in colours:
        v = colours[name].to_numpy(float)[known]
        yield "bias_colour", name.removeprefix("colour_"), _median, v, known
        yield "scatter_colour", name.removeprefix("colour_"), _scatter, v, known
    if colours.shape[1]:
        v = np.abs(colours.to_numpy(float)[known]).mean(axis=1)
        yield "mean_colour", "mean", _mean, v, known
        yield "no_colour", "mean", _mean, (~known).astype(float), None
    measured = np.isfinite(part[["e1", "e2"]]).all(axis=1)
    missing = (part["type"] != "star") & ~part["failed"] & ~measured
    yield "no_shape", "reference", _mean, missing.to_numpy(float), None


def summarise(
    scores: dict[str, pd.DataFrame], bands: tuple[str, ...], seed: int
) -> tuple[pd.DataFrame, dict]:
    """Statistics of every method in every bin, on sources that all tables hold in one order.

    Returns:
        Rows `method, bin, quantity, band, value, error, n, n_failed`, and the values with their
        bootstrap draws by `(method, bin, quantity, band)`.
    """
    first = next(iter(scores.values()))
    measured = [
        np.isfinite(s[["e1", "e2"]]).all(axis=1).to_numpy() for s in scores.values()
    ]
    most = SHAPED * (first["type"] != "star").sum()
    shaped = np.all([m for m in measured if m.sum() >= most] or measured, axis=0)
    rows, draws = [], {}
    for variable, label, low, high in bins_of(first):
        inside = ((first[variable] > low) & (first[variable] <= high)).to_numpy()
        if variable != "blendedness" and not inside.any():
            continue
        weights = blend_weights(first.loc[inside, "blend"].to_numpy(), seed)
        for (name, s), own in zip(scores.items(), measured, strict=True):
            part = s[inside]
            for quantity, band, statistic, values, keep in quantities(
                part, (shaped & own)[inside], bands
            ):
                if variable != "blendedness" and band in bands:
                    continue
                w = weights if keep is None else weights[:, keep]
                # A sample of blends may miss those few that have shapes.
                w = w[w.sum(axis=1) > 0]
                result = statistic(values, w) if len(values) else np.full(2, np.nan)
                draws[name, label, quantity, band] = result
                rows.append(
                    {
                        "method": name,
                        "variable": variable,
                        "bin": label,
                        "quantity": quantity,
                        "band": band,
                        "value": result[0],
                        "error": result[1:].std(ddof=1) if len(values) > 1 else np.nan,
                        "n": len(values),
                        "n_failed": int(part["failed"].sum()),
                    }
                )
    return pd.DataFrame(rows), draws


def bins_of(scores: pd.DataFrame):
    """Bins as column, label, and limits `(low, high]`."""
    for label, (low, high) in BINS.items():
        yield "blendedness", label, low, high
    for column, edges in MORE_BINS.items():
        if column in scores:
            for low, high in pairwise(edges):
                yield column, f"{column} {low:g} to {high:g}", low, high


def best_definition(draws: dict, name: str, label: str) -> tuple[str, np.ndarray]:
    """The definition of flux with the lowest mean residual, and its draws."""
    found = {
        d: draws[name, label, f"mean_{d}", "mean"]
        for d in DEFINITIONS
        if (name, label, f"mean_{d}", "mean") in draws
    }
    best = min(found, key=lambda d: found[d][0])
    return best, found[best]


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return float(value) if np.isfinite(value) else None


def records(table: pd.DataFrame, draws: dict, subset: str, command: str) -> list[dict]:
    """Headline numbers in the bin of the targets, and ratios to the first method."""
    names = list(dict.fromkeys(table["method"]))
    wanted = [("mean_flux", "mean"), ("median_flux", "mean"), ("mean_cosine", "mean")]
    wanted += [(f"{s}_{e}", "reference") for s in ("rms", "mad") for e in ("e1", "e2")]
    wanted += [("mean_within68", "mean"), ("mean_colour", "mean")]
    wanted += [
        ("bias_flux", "mean"),
        ("scatter_flux", "mean"),
        ("scatter_size", "reference"),
    ]
    keyed = table[table["bin"] == TARGET_BIN].set_index(["method", "quantity", "band"])
    out = []

    def add(name, value, error, n):
        out.append(
            {
                "name": f"peers/{subset}/{name}",
                "value": _number(value),
                "error": _number(error),
                "unit": "1",
                "n": int(n),
                "command": command,
            }
        )

    for name in names:
        for quantity, band in wanted:
            if (name, quantity, band) in keyed.index:
                row = keyed.loc[(name, quantity, band)]
                add(f"{name}/{quantity}", row["value"], row["error"], row["n"])
        row = keyed.loc[(name, "mean_flux", "mean")]
        add(f"{name}/failed", row["n_failed"], 0.0, row["n"])
        if name == names[0]:
            continue
        mine = draws[names[0], TARGET_BIN, "mean_flux", "mean"]
        definition, theirs = best_definition(draws, name, TARGET_BIN)
        ratio = theirs / mine
        add(
            f"{name}/{definition}_over_{names[0]}",
            ratio[0],
            np.std(ratio[1:], ddof=1),
            row["n"],
        )
    return out


def markdown(table: pd.DataFrame, title: str, seconds: dict[str, dict]) -> str:
    """One table per set of sources."""
    columns = {
        "mean dF/F": ("mean_flux", "mean"),
        "vs total": ("mean_flux_total", "mean"),
        "in stamp": ("mean_flux_stamp", "mean"),
        "median dF/F": ("median_flux", "mean"),
        "bias": ("bias_flux", "mean"),
        "scatter": ("scatter_flux", "mean"),
        "aperture": ("mean_aperture", "mean"),
        "colour": ("mean_colour", "mean"),
        "scatter size": ("scatter_size", "reference"),
        "cosine": ("mean_cosine", "mean"),
        "rms e1": ("rms_e1", "reference"),
        "rms e2": ("rms_e2", "reference"),
        "mad e1": ("mad_e1", "reference"),
        "mad e2": ("mad_e2", "reference"),
        "in 68 %": ("mean_within68", "mean"),
    }
    lines = [f"## {title}", ""]
    head = ["bin", "method", "n", "failed", *columns]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    keyed = table.set_index(["bin", "method", "quantity", "band"])
    for label in dict.fromkeys(table["bin"]):
        for name in dict.fromkeys(table["method"]):
            base = keyed.loc[(label, name, "mean_flux", "mean")]
            cells = [label, name, f"{base['n']:.0f}", f"{base['n_failed']:.0f}"]
            for key in columns.values():
                if (label, name, *key) not in keyed.index:
                    cells.append("")
                    continue
                row = keyed.loc[(label, name, *key)]
                cells.append(f"{row['value']:.4f} ± {row['error']:.4f}")
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| method | seconds per blend |", "|---|---|"]
    for name in dict.fromkeys(table["method"]):
        text = ", ".join(f"{k} {v:.3g}" for k, v in seconds[name].items())
        lines.append(f"| {name} | {text} |")
    return "\n".join([*lines, ""])


def main(options: argparse.Namespace) -> None:
    """Read, score, write."""
    run, command = options.run, " ".join(sys.argv)
    cutouts = read_cutouts(run)
    truth, images, corner, stamp = read_truth(run)
    bands, side = cutouts.bands, stamp + WINDOW_MARGIN
    truth["blendedness"] = truth[f"blendedness_{options.band}"]
    truth["mag"] = MAGZERO - 2.5 * np.log10(truth[f"flux_{options.band}"])
    truth["snr"] = truth[f"snr_{options.band}"]
    known = [f"{kind}_{b}" for kind in ("flux", "flux_model") for b in bands]
    truth["place"] = np.arange(len(truth))
    geometry = ["corner_y", "corner_x", "height", "width"]
    rows = cutouts.sources.merge(
        truth[[*KEYS, "place", "blendedness", "mag", "snr", *known]], on=KEYS
    )
    rows = rows.join(cutouts.blends[geometry], on="blend")
    if len(rows) != len(cutouts.sources):
        raise SystemExit(
            f"{run}/truth: {len(cutouts.sources) - len(rows)} sources missing"
        )
    place = rows["place"].to_numpy()
    true_images = observed_images(images[place], corner[place], rows, side)
    reference = bands.index(options.band)
    fields = cutouts.chunks[0][1].fields
    pixel_scale = float(next(iter(fields.values()))["pixel_scale"])
    shapes = measure_shapes(true_images[:, reference], pixel_scale)
    scores, seconds, peaks = {}, {}, {}
    for text in options.method:
        name, _, path = text.partition("=")
        if not path or name in scores:
            raise SystemExit(f"--method {text}: give each a name of its own, name=path")
        result = load(Path(path), run, options.profile, stamp)
        seconds[name], peaks[name] = result.seconds, result.peak_gib
        scores[name] = score(
            result,
            rows,
            bands,
            true_images,
            shapes,
            reference,
            pixel_scale,
            options.aperture,
        )
    options.output.mkdir(parents=True, exist_ok=True)
    pd.concat([s.assign(method=m) for m, s in scores.items()]).to_csv(
        options.output / "sources.csv", index=False
    )
    index = {m: pd.MultiIndex.from_frame(s[KEYS]) for m, s in scores.items()}
    common = next(iter(index.values()))
    for other in index.values():
        common = common.intersection(other)
    if not len(common):
        raise SystemExit("the methods have no source in common")
    complete = {m: s for m, s in scores.items() if len(s) == len(rows)}
    tables, notes = [], []
    text = [f"# Methods on the same sources: {run.name}", "", f"    {command}", ""]
    for subset, chosen in (("common", scores), ("all", complete)):
        if subset == "all" and (len(common) == len(rows) or not complete):
            continue
        kept = {}
        for name, s in chosen.items():
            keep = index[name].isin(common) | (subset == "all")
            kept[name] = s[keep].sort_values(KEYS).reset_index(drop=True)
        table, draws = summarise(kept, bands, options.seed)
        tables.append(table.assign(subset=subset))
        notes += records(table, draws, subset, command)
        n = len(next(iter(kept.values())))
        text.append(markdown(table, f"{subset}: {n} sources", seconds))
    pd.concat(tables).to_csv(options.output / "comparison.csv", index=False)
    for name, phases in seconds.items():
        for phase, value in phases.items():
            notes.append(
                {
                    "name": f"peers/{name}/seconds_per_blend/{phase}",
                    "value": _number(value),
                    "unit": "s",
                    "n": len(scores[name]["blend"].unique()),
                    "command": command,
                }
            )
        notes.append(
            {
                "name": f"peers/{name}/peak_memory",
                "value": _number(peaks[name]),
                "unit": "GiB",
                "n": len(scores[name]["blend"].unique()),
                "command": command,
            }
        )
    (options.output / "comparison.json").write_text(json.dumps(notes, indent=1) + "\n")
    (options.output / "comparison.md").write_text("\n".join(text))
    print("\n".join(text))
    for note in notes:
        if "_over_" in note["name"] and note["value"] is not None:
            print(f"{note['name']}: {note['value']:.2f} ± {note['error']:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the run with the truth")
    parser.add_argument("--method", action="append", required=True, help="name=path")
    parser.add_argument("--profile", default="sersic", help="as `map.profile`")
    parser.add_argument("--band", default="i", help="of blendedness and shapes")
    parser.add_argument("--seed", type=int, default=1, help="of the bootstrap")
    parser.add_argument(
        "--aperture",
        type=float,
        nargs="+",
        default=[1.5, 1.0, 0.7],
        help="radii [arcsec]; those after the first are measured in `--band` alone",
    )
    parser.add_argument("--output", type=Path, help="default: <run>/peers")
    arguments = parser.parse_args()
    arguments.output = arguments.output or arguments.run / "peers"
    main(arguments)
