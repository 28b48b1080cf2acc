"""Bands of a model against those of the observations that it is to explain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelBands:
    """Bands of the model of a run, and what the settings say about them.

    Attributes:
        names: Bands of the prior.
        source: Key of the settings that they come from, and its value.
        asked: `frame.bands`; empty where the settings leave it to the prior or instrument.
        reference: `infer.reference_band`.
    """

    names: tuple[str, ...]
    source: str
    asked: tuple[str, ...]
    reference: str


def compare_bands(
    observed: Mapping[str, Sequence[tuple[Path, Sequence[str]]]], model: ModelBands
) -> tuple[list[str], list[str]]:
    """Problems, and what is no problem but should be known.

    A band that the settings name and nobody observed is a mistake. One that only the prior has
    is none, it may know more bands than the data: its columns stay empty.

    Args:
        observed: File and bands of every observation of each field.
        model: Bands of the model.
    """
    problems, notes = [], []
    known = ", ".join(model.names)
    for field, observations in observed.items():
        for path, bands in observations:
            problems += [
                f"{path} (field {field}): the model has no band {band}, it has {known}"
                f" ({model.source}); name it in frame.bands and take or train a prior that has"
                " it, or leave this plane out"
                for band in bands
                if band not in model.names
            ]
    of_field = {f: {b for _, bands in o for b in bands} for f, o in observed.items()}
    seen = set().union(*of_field.values())
    have = f"they have {', '.join(sorted(seen))}"
    problems += [
        f"frame.bands: {band} is in no observation of any field, {have}; remove it, or add an"
        " observation in it"
        for band in model.asked
        if band not in seen
    ]
    if model.reference not in seen:
        problems.append(
            f"infer.reference_band: {model.reference} is in no observation of any field,"
            f" {have}; give one of these"
        )
    for field, bands in of_field.items():
        without = [b for b in model.names if b not in bands]
        if without:
            notes.append(
                f"field {field}: no observation in {', '.join(without)} of the model"
                f" ({model.source}); columns of these bands are NaN in its catalog"
            )
    return problems, notes
