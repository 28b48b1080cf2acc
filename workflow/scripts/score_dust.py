"""Scores of galaxies behind dust against their truth, headline numbers, provenance."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from blendem.config import RunConfig, load_config
from blendem.io.atomic import atomic_path
from blendem.io.products import read_h5, read_table
from blendem.io.truth import read_truth
from blendem.logs import configure_logging
from blendem.measure.dusty import dusty_quantities, score_dusty, summarise_dusty
from blendem.measure.summary import entry
from blendem.provenance import collect_provenance


def main(
    catalogs: list[Path],
    samples: list[Path],
    truths: list[Path],
    posteriors: list[Path],
    sources: Path,
    summary: Path,
    provenance: Path,
    config: dict,
    command: str,
    root: Path,
) -> None:
    """Join the fields, compare, count."""
    run = load_config(config)
    tables = [
        read_table(path)[0].to_pandas().assign(field=path.stem) for path in catalogs
    ]
    everything = pd.concat(tables, ignore_index=True)
    bands = [c.removeprefix("snr_") for c in everything if c.startswith("snr_")]
    rows = [
        score_field(*paths, bands, run)
        for paths in zip(tables, samples, truths, strict=bool(truths))
    ]
    scores = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
    with atomic_path(sources) as temporary:
        (scores if rows else pd.DataFrame({"field": [], "id": []})).to_csv(
            temporary, index=False
        )
    galaxies = everything[everything["type"] == "galaxy"]
    done = galaxies["n_samples"] > 0
    numbers = {
        "galaxies": entry(len(galaxies), "", len(galaxies), "galaxies in all fields"),
        "galaxies_without_result": entry(
            (~done).sum(), "", len(galaxies), "flagged with a reason in the catalog"
        ),
        "A_V_error_median": entry(
            galaxies["A_V_err"].median(), "mag", done.sum(), "median error of A_V"
        ),
    }
    parts = [read_h5(path) for path in posteriors]
    blends = {
        key: np.concatenate([arrays["blends"][key] for arrays, _ in parts])
        for key in ("chi2", "n_data", "acceptance")
    }
    known = int(np.isfinite(blends["chi2"]).sum())
    if known:
        numbers["chi2_per_datum_median"] = entry(
            np.nanmedian(blends["chi2"] / blends["n_data"]),
            "", known, "chi2 of a draw over the numbers that a blend is compressed to",
        )  # fmt: skip
        numbers["acceptance"] = entry(
            np.nanmean(blends["acceptance"]) if run.dust.corrections else np.nan,
            "", known, "part of the Metropolis steps that were accepted",
        )  # fmt: skip
    seconds = sum(attrs["seconds"] for _, attrs in parts)
    numbers["sampling_seconds"] = entry(seconds, "s", len(parts), "wall, all chunks")
    if rows:
        column = f"blendedness_{run.infer.reference_band}"
        numbers |= summarise_dusty(scores[scores["n_samples"] > 0], bands, column)
    _write(summary, {"run": run.run, "command": command, "numbers": numbers})
    found = collect_provenance(run, root=root, time=datetime.now(UTC))
    _write(provenance, found | {"config": run.model_dump(mode="json")})


def score_field(
    catalog: pd.DataFrame,
    samples: Path,
    truth: Path,
    bands: list[str],
    run: RunConfig,
) -> pd.DataFrame:
    """Scores of the galaxies of one simulated field."""
    known, drawn = read_truth(truth), read_h5(samples, only=("ids", "flux", "A_V"))[0]
    maps = read_h5(truth, only=("dust",))[0]["dust"]
    reference = known.bands.index(run.infer.reference_band)
    chosen = np.flatnonzero(catalog["type"] == "galaxy")
    at = known.rows(catalog["id"].iloc[chosen].tolist())
    true = dusty_quantities(known.images[at], maps[at], reference)
    values = np.concatenate([drawn["flux"], drawn["A_V"][..., None]], axis=-1)
    scores = score_dusty(true, values[:, chosen], bands)
    names = ["field", "id", "blend", "redshift", "n_samples", "flags"]
    names += ["A_V", "A_V_err"]
    kept = catalog.iloc[chosen][names].reset_index(drop=True)
    for column in ("mag_i", *(f"blendedness_{band}" for band in bands)):
        if column in known.table:
            kept[column] = known.table[column].to_numpy()[at]
    return pd.concat([kept, scores], axis=1)


def _write(path: Path, content: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    given, params, result = snakemake.input, snakemake.params, snakemake.output
    main(
        [Path(path) for path in given.catalogs],
        [Path(path) for path in given.samples],
        [Path(path) for path in given.truths],
        [Path(path) for path in given.posteriors],
        Path(result.sources),
        Path(result.summary),
        Path(result.provenance),
        params.config,
        params.command,
        Path(snakemake.scriptdir).resolve().parents[1],
    )
