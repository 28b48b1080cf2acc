"""Headline numbers and provenance of the run."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from blendem.config import load_config
from blendem.io.atomic import atomic_path
from blendem.io.priors import read_prior
from blendem.io.products import read_h5
from blendem.logs import configure_logging
from blendem.measure.summary import (
    entry,
    summarise_blends,
    summarise_evidence,
    summarise_sources,
)
from blendem.provenance import collect_provenance
from blendem.rng import stage_rng


def main(
    scores: tuple[Path, Path, Path],
    prior: Path,
    timings: dict[str, list[Path]],
    config: dict,
    command: str,
    summary: Path,
    provenance: Path,
    root: Path,
    rng: np.random.Generator,
) -> None:
    """Everything is computed from the products of this run."""
    sources, blends, laps = (pd.read_csv(path) for path in scores)
    run = load_config(config)
    _, card = read_prior(prior)
    bands = [c.removeprefix("chi2_") for c in blends if c.startswith("chi2_")]
    numbers = summarise_blends(blends, bands) | summarise_evidence(laps)
    numbers |= summarise_sources(sources, bands, run.infer.reference_band, rng)
    if "variance_outside_basis" in card:
        numbers["variance_outside_basis"] = entry(
            card["variance_outside_basis"], "", card["stamps"], "of the training stamps"
        )
    for name, paths in timings.items():
        attrs = [read_h5(path)[1] for path in paths]
        numbers[f"{name}_seconds"] = entry(
            sum(a["seconds"] for a in attrs), "s", len(attrs), "wall, all chunks"
        )
        if "programs" in attrs[0]:
            numbers[f"{name}_programs"] = entry(
                sum(a["programs"] for a in attrs), "", len(attrs), "compilations"
            )
    _write(summary, {"run": run.run, "command": command, "numbers": numbers})
    _write(
        provenance,
        collect_provenance(run, root=root, time=datetime.now(UTC))
        | {"config": run.model_dump(mode="json")},
    )


def _write(path: Path, content: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    given, params = snakemake.input, snakemake.params
    main(
        (Path(given.sources), Path(given.blends), Path(given.laps)),
        Path(given.prior),
        {
            "statistics": [Path(path) for path in given.statistics],
            "posterior": [Path(path) for path in given.posteriors],
            "map": [Path(path) for path in given.maps],
        },
        params.config,
        params.command,
        Path(snakemake.output.summary),
        Path(snakemake.output.provenance),
        Path(snakemake.scriptdir).resolve().parents[1],
        stage_rng(params.seed, "summarise"),
    )
