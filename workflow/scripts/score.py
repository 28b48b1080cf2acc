"""Scores of the run: against the truth where there is one, and of every blend."""

from pathlib import Path

import numpy as np
import pandas as pd

from blendem.io.atomic import atomic_path
from blendem.io.priors import read_prior
from blendem.io.products import (
    read_h5,
    read_light_curves,
    read_models,
    read_samples,
    read_table,
)
from blendem.io.truth import read_truth
from blendem.logs import configure_logging
from blendem.measure.quantities import (
    SHAPES,
    posterior_quantities,
    quantity_names,
    truth_quantities,
)
from blendem.measure.scores import score_light_curves, score_sources
from blendem.prior.magnify import fit_side


def main(
    catalogs: list[Path],
    models: list[Path],
    samples: list[Path],
    truths: list[Path],
    prior: Path,
    chunks: list[Path],
    evidence: list[Path],
    reference_band: str,
    last_lap: int,
    sources: Path,
    blends: Path,
    observations: Path,
    laps: Path,
    light_curves: Path | None,
) -> None:
    """Join the fields and compare."""
    basis = read_prior(prior)[0].basis
    joined = _join(chunks, "blends")
    _write(observations, _join(chunks, "observations"))
    first = ["field", "number", "n_sources", "n_data", "chi2", "expected_chi2"]
    joined = joined[first + [c for c in joined if c not in first]]
    _write(blends, joined)
    rows = pd.concat([pd.read_csv(path) for path in evidence] or [pd.DataFrame()])
    used = joined[joined["in_em"]]
    final = {
        "lap": last_lap,
        # NaN for diffusion tiers: nothing gives it in closed form.
        "log_evidence": used["log_evidence"].sum(skipna=False),
        "n_data": used["n_data"].sum(),
        "n_blends": len(used),
    }
    _write(laps, pd.concat([rows, pd.DataFrame([final])], ignore_index=True))
    scores = [
        _score(*paths, basis, reference_band)
        for paths in zip(catalogs, models, samples, truths, strict=False)
    ]
    _write(
        sources, pd.concat(scores) if scores else pd.DataFrame({"field": [], "id": []})
    )
    if light_curves is not None:
        fields = zip(catalogs, truths, strict=True)
        _write(light_curves, pd.concat([_score_light(*paths) for paths in fields]))


def _join(chunks: list[Path], name: str) -> pd.DataFrame:
    """A table of all chunks."""
    tables = [read_h5(path)[0][name] for path in chunks]
    parts = [pd.DataFrame({k: np.asarray(v) for k, v in t.items()}) for t in tables]
    return pd.concat(parts, ignore_index=True)


def _score(catalog, models, samples, truth, basis, reference_band) -> pd.DataFrame:
    """Scores of the sources of one simulated field."""
    table = read_table(catalog)[0].to_pandas()
    known = read_truth(truth)
    true, bands = known.table, known.bands
    if not len(table) and not len(true):
        return pd.DataFrame()  # a tile without sources
    grown = table.set_index("id")["magnification"].reindex(true["id"]).to_numpy() > 1
    for b in bands:
        # Light beyond the stamp is in no model: `stamp_fraction` of the truth tells it. Magnified
        # stamps are to hold all of it.
        inside = true[f"flux_model_{b}"]
        true[f"flux_{b}"] = np.where(grown, true[f"flux_{b}"], inside)
        true[f"mag_{b}"] = known.magzero - 2.5 * np.log10(true[f"flux_{b}"])
    # The truth goes through the same functions as the catalog: definitions cancel.
    star = np.asarray(true["type"]) != "galaxy"
    measured = truth_quantities(
        known.images,
        bands,
        float(basis.pixel_scale),
        reference_band,
        is_star=star,
    )
    # The true image ends at the stamp, and so does its shape.
    true = true.assign(
        **{name: np.where(grown, np.nan, measured[name]) for name in SHAPES}
    )
    drawn = read_samples(samples)
    draws = posterior_quantities(
        basis,
        drawn.scale,
        drawn.z,
        reference_band,
        is_star=drawn.is_star,
        zoom=drawn.zoom,
    )
    table["field"] = true["field"] = catalog.stem
    images = read_models(models)
    scores = score_sources(
        table,
        true,
        bands,
        keys=("field", "id"),
        samples={name: draws[name] for name in quantity_names(bands) if name in draws},
        model_images=fit_side(images["MODEL_MEAN"], known.images.shape[-1]),
        true_images=known.images,
    )
    blend = dict(zip(table["id"], table["blend"], strict=True))
    scores = scores.assign(
        blend=scores["id"].map(blend),
        type=scores["id"].map(dict(zip(true["id"], true["type"], strict=True))),
    )
    # One flux is no truth of a source that varies: light_curves.csv has them.
    return scores[scores["type"] != "variable"]


def _score_light(catalog: Path, truth: Path) -> pd.DataFrame:
    """Scores of the light curves of one simulated field."""
    measured, true = read_light_curves(catalog), read_truth(truth).light_curves
    if measured is None or true is None:
        return pd.DataFrame()
    scores = score_light_curves(measured.to_pandas(), true)
    return scores.assign(field=catalog.stem)


def _write(path: Path, table: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    given, params, result = snakemake.input, snakemake.params, snakemake.output
    main(
        [Path(path) for path in given.catalogs],
        [Path(path) for path in given.models],
        [Path(path) for path in given.samples],
        [Path(path) for path in given.truths],
        Path(given.prior),
        [Path(path) for path in given.chunks],
        [Path(path) for path in given.evidence],
        params.reference_band,
        params.last_lap,
        Path(result.sources),
        Path(result.blends),
        Path(result.observations),
        Path(result.laps),
        Path(result.light_curves[0]) if result.light_curves else None,
    )
