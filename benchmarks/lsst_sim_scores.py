"""Magnitudes of the matched sources of lsst_sim_blends against those of their catalog.

    .venv/bin/python benchmarks/lsst_sim_scores.py results/benchmark_lsst_sim --method name=path

Methods as in compare_methods.py. Of every band: median and half of the central 68 % of m - m_true, over
the sources that have a magnitude, and over those that all methods have one for (`common`); sources
without one are counted. Errors: bootstrap of whole blends. Writes `peers/magnitudes.csv`, `.json` and
`magnitude_sources.csv`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from compare_methods import _median, _scatter, blend_weights, load
from lsst_sim_fields import BANDS, MAGZERO
from records import Report

from blendem.measure.photometry import magnitudes

KEYS = ["field", "id"]


def differences(table: pd.DataFrame, matched: pd.DataFrame) -> np.ndarray:
    """m - m_true of the matched sources, `(n, band)`; NaN without a positive flux."""
    names = [f"flux_{b}" for b in BANDS]
    joined = matched[KEYS].merge(table[[*KEYS, *names]], on=KEYS, how="left")
    true = matched[[f"mag_{b}" for b in BANDS]].to_numpy(float)
    return magnitudes(joined[names].to_numpy(float), MAGZERO) - true


def statistics(values: dict[str, np.ndarray], blends: np.ndarray, seed: int):
    """Bias and scatter of every method, band and set of sources.

    Args:
        values: `differences` of every method.
        blends: Blend of every source.
        seed: Of the bootstrap.
    """
    weights = blend_weights(blends, seed)
    common = np.all([np.isfinite(v).all(axis=1) for v in values.values()], axis=0)
    rows = []
    for name, value in values.items():
        own = np.isfinite(value).all(axis=1)
        for subset, keep in (("own", own), ("common", common)):
            if not keep.any():
                continue
            drawn = weights[:, keep]
            drawn = drawn[drawn.sum(axis=1) > 0]
            for k, band in enumerate([*BANDS, "mean"]):
                # The mean is over the bands of |bias| and of scatter, band by band.
                columns = [k] if band != "mean" else range(len(BANDS))
                for what, statistic in (("bias", _median), ("scatter", _scatter)):
                    found = [statistic(value[keep, c], drawn) for c in columns]
                    if band == "mean" and what == "bias":
                        found = np.abs(found)
                    found = np.mean(found, axis=0)
                    rows.append(
                        {
                            "method": name,
                            "subset": subset,
                            "band": band,
                            "quantity": what,
                            "value": found[0],
                            "error": found[1:].std(ddof=1),
                            "n": int(keep.sum()),
                            "n_failed": int((~own).sum()),
                        }
                    )
    return pd.DataFrame(rows)


def main(options: argparse.Namespace) -> None:
    """Read, score, write."""
    run = options.run
    matched = pd.read_csv(run / "matched.csv")
    values = {}
    for text in options.method:
        name, _, path = text.partition("=")
        result = load(Path(path), run, options.profile, 49)
        values[name] = differences(result.table, matched)
    table = statistics(values, matched["field"].to_numpy(), options.seed)
    out = run / "peers"
    out.mkdir(exist_ok=True)
    table.to_csv(out / "magnitudes.csv", index=False)
    pd.concat(
        [
            matched.assign(
                method=m, **{f"dmag_{b}": v[:, k] for k, b in enumerate(BANDS)}
            )
            for m, v in values.items()
        ]
    ).to_csv(out / "magnitude_sources.csv", index=False)
    report = Report(" ".join(sys.argv))
    for row in table[table["band"] == "mean"].itertuples():
        name = f"lsst_sim/{row.subset}/{row.method}/{row.quantity}"
        report.say(name, row.value, "mag", row.n)
    for row in table.drop_duplicates("method").itertuples():
        report.say(f"lsst_sim/{row.method}/failed", row.n_failed, n=len(matched))
    report.write(out / "magnitudes.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--method", action="append", required=True, help="name=path")
    parser.add_argument("--profile", default="sersic", help="as `map.profile`")
    parser.add_argument("--seed", type=int, default=1, help="of the bootstrap")
    main(parser.parse_args())
