"""Bands of a model and of the observations: what does not fit, and what may be missing."""

import logging
from dataclasses import replace

import pytest
from tests.workflow.conftest import script  # noqa: F401

from blendem.io.bands import ModelBands
from blendem.io.fields import validate_fields
from blendem.io.table import InputError

PRIOR = ModelBands(("g", "r", "i", "z"), "prior.start: p.eqx", (), "i")


@pytest.fixture
def rows(observation, parts, tmp_path):
    """A field with g, r, i and one with r alone."""
    first = observation.fits()
    path = first.path.rename(tmp_path / "a.fits")
    single = {key: parts[key][1:2] for key in ("image", "variance", "psf")}
    second = observation.fits(**single, bands=("r",))
    return [replace(first, field="a", path=path), replace(second, field="b")]


def complain(rows, model) -> str:
    with pytest.raises(InputError) as caught:
        validate_fields(rows, model)
    return str(caught.value)


def test_a_prior_may_know_more_bands_than_the_data(rows):
    notes = validate_fields(rows, PRIOR)
    assert [n.split(":")[0] for n in notes] == ["field a", "field b"]
    assert "no observation in z of the model (prior.start: p.eqx)" in notes[0]
    assert "no observation in g, i, z of the model" in notes[1]
    assert all("NaN" in note for note in notes)
    assert validate_fields(rows[:1], replace(PRIOR, names=("g", "r", "i"))) == []
    assert validate_fields(rows) == []


def test_a_band_of_the_settings_that_nobody_observed(rows):
    text = complain(rows, replace(PRIOR, asked=("g", "z")))
    assert "frame.bands: z is in no observation of any field" in text
    assert "they have g, i, r; remove it" in text
    # One field with it is enough.
    validate_fields(rows, replace(PRIOR, asked=("g", "r", "i")))
    assert "frame.bands: g" in complain(
        rows[1:], replace(PRIOR, asked=("g",), reference="r")
    )


def test_a_band_that_the_model_has_not(rows):
    text = complain(rows, ModelBands(("g", "i"), "frame.bands", (), "i"))
    assert "2 problems" in text
    for name in ("a.fits (field a)", "field.fits (field b)"):
        assert f"{name}: the model has no band r, it has g, i (frame.bands)" in text


def test_the_reference_band_must_be_observed(rows):
    text = complain(rows[1:], PRIOR)
    assert "infer.reference_band: i is in no observation of any field" in text
    assert "they have r; give one of these" in text


def test_the_script_says_both(script, rows, tmp_path, caplog):  # noqa: F811
    table = tmp_path / "fields.tsv"
    lines = ["field\tinstrument\tpath"]
    lines += [f"{r.field}\t{r.instrument}\t{r.path}" for r in rows]
    table.write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        script("check_inputs").main(str(table), tmp_path / "c.json", PRIOR)
    assert "field b: no observation in g, i, z" in caplog.text
    (tmp_path / "c.json").unlink()
    with pytest.raises(InputError, match=r"fields\.tsv.*\n?.*frame\.bands: z"):
        script("check_inputs").main(
            str(table), tmp_path / "c.json", replace(PRIOR, asked=("z",))
        )
    assert not (tmp_path / "c.json").exists()
