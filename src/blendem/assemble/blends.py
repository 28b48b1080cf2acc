"""Tables of blends and of their observations, and what sources have from their whole blend."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from blendem.assemble.observed import Observed
from blendem.assemble.sources import Measured
from blendem.blend import Blend
from blendem.inference.draws import DIAGNOSTICS
from blendem.io.blends import BlendSet
from blendem.measure.metrics import blendedness
from blendem.measure.residuals import BandScores, score_residual
from blendem.survey.extract import SourceFlag

BAD_FIT = 1.5  # chi2 over its expectation above which sources are flagged
OBSERVATION_COLUMNS = ("field", "number", "observation", "instrument", "band")
OBSERVATION_COLUMNS += BandScores._fields


def finish_catalog(
    data: BlendSet, sources: Measured, observed: Observed, post: Mapping[str, Any]
) -> None:
    """Columns of the catalog that need whole blends: positions, blendedness, chi2, a flag."""
    columns, n = sources.columns, len(data.sources["id"])
    bands = data.attrs["bands"]
    for b in bands:
        columns[f"blendedness_{b}"] = np.full(n, np.nan)
    columns["chi2_blend"], columns["ndata_blend"] = np.full(n, np.nan), np.zeros(n, int)
    summary = post["blends"]
    for row, images in enumerate(observed.sources):
        if images is None:
            continue
        m = data.members(row)
        first = data.blend(row).observations[0]
        center = np.stack([np.asarray(first.to_observed(c)) for c in sources.center[m]])
        columns["y"][m], columns["x"][m] = (center + data.corner(row)).T
        for i, band in enumerate(first.band_index):
            columns[f"blendedness_{bands[band]}"][m] = blendedness(images[:, i])
        columns["chi2_blend"][m] = summary["chi2"][row]
        columns["ndata_blend"][m] = int(summary["n_data"][row])
        if summary["chi2"][row] > BAD_FIT * _expected_chi2(summary, row):
            columns["flags"][m] |= SourceFlag.BAD_FIT


def blend_table(
    data: BlendSet,
    observed: Observed,
    stats: Mapping[str, Any],
    post: Mapping[str, Any],
    instruments: Mapping[str, Sequence[str]],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Columns of the blends, and of their observations, band by band.

    Args:
        data: The blends.
        observed: Their models.
        stats: Statistics of the chunk.
        post: Posteriors of the chunk.
        instruments: Of the observations of every field.
    """
    bands, summary = data.attrs["bands"], post["blends"]
    names = ["chi2", "expected_chi2", "n_data", "log_evidence"]
    names += [
        f"{kind}_{b}" for kind in ("chi2", "ndata", "autocorrelation") for b in bands
    ]
    blends = {name: np.full(len(observed.totals), np.nan) for name in names}
    seen = []
    for row, totals in enumerate(observed.totals):
        if totals is None:
            continue
        blend = data.blend(row)
        scores = _score_observations(data, blend, row, totals, stats, post)
        for i, band in enumerate(blend.observations[0].band_index):
            blends[f"chi2_{bands[band]}"][row] = scores[0].chi2[i]
            blends[f"ndata_{bands[band]}"][row] = scores[0].n_data[i]
            value = scores[0].autocorrelation[i]
            blends[f"autocorrelation_{bands[band]}"][row] = value
        name = str(data.blends["field"][row])
        seen += [
            {
                "field": name,
                "number": data.blends["number"][row],
                "observation": number,
                "instrument": instruments[name][number],
                "band": bands[band],
            }
            | {key: values[i] for key, values in score._asdict().items()}
            for number, score in enumerate(scores)
            for i, band in enumerate(blend.observations[number].band_index)
        ]
        for name in ("chi2", "n_data", "log_evidence"):
            blends[name][row] = summary[name][row]
        blends["expected_chi2"][row] = _expected_chi2(summary, row)
    # What the sampler says, for blends without a result too.
    blends |= {name: summary[name] for name in ("negative_flux", *DIAGNOSTICS)}
    for number in range(post["offset"].shape[1]):
        for axis, name in enumerate("yx"):
            column = f"offset_{name}_{number + 1}"
            blends[column] = post["offset"][:, number, axis]
            blends[f"{column}_err"] = post["offset_sd"][:, number, axis]
    blends["predictive_chi2"] = summary["chi2_draws"]
    observations = {
        key: np.asarray([one[key] for one in seen]) for key in OBSERVATION_COLUMNS
    }
    known = {key: data.blends[key] for key in ("field", "number", "n_sources", "flags")}
    known["in_em"] = stats["in_em"]
    return known | {k: np.asarray(v) for k, v in blends.items()}, observations


def _expected_chi2(summary: Mapping[str, np.ndarray], row: int) -> float:
    """E[chi2 of the posterior mean] = N - tr(H C): what the fit absorbs."""
    return summary["n_data"][row] - summary["effective"][row]


def _score_observations(
    data: BlendSet, blend: Blend, row: int, totals: Sequence, stats, post
) -> list[BandScores]:
    """Scores of the residual of every observation of a blend, its sky taken off."""
    sky = np.zeros(sum(len(o.band_index) for o in blend.observations))
    if post["sky"].shape[1]:
        group = stats[f"stack_{data.blends['stack'][row]}"]
        scale = group["sky_scale"][data.blends["index"][row]]
        sky = post["sky"][row][: len(scale)] * scale
    scores, begin = [], 0
    for observation, total in zip(blend.observations, totals, strict=True):
        end = begin + len(observation.band_index)
        level = sky[begin:end, None, None]
        scores.append(score_residual(observation.image - total - level, observation))
        begin = end
    return scores
