"""Epochs in the table of fields and in catalogs: read, or refused with the reason."""

import numpy as np
import pytest
from astropy.table import Table

from blendem.io.catalogs import check_epochs, clean_catalog, epochs_off
from blendem.io.table import FieldRow, InputError, epochs_of, read_fields_table


def catalog(**columns):
    n = 2
    given = {"id": np.arange(n), "x": np.ones(n), "y": np.ones(n)} | columns
    return clean_catalog(Table(given), None, "a.fits")


def test_epochs_have_names_or_numbers(tmp_path):
    path = tmp_path / "fields.tsv"
    path.write_text(
        "field\tinstrument\tpath\tepoch\tmjd\n"
        "a\thsc\t1.fits\tbefore\t59000.5\n"
        "a\thsc\t2.fits\t\t\n"
    )
    rows = read_fields_table(path)
    assert epochs_of(rows) == ["before", "2"]
    assert [row.mjd for row in rows] == [59000.5, None]
    assert [FieldRow.of(row.plain()) for row in rows] == rows
    path.write_text(path.read_text().replace("59000.5", "monday"))
    with pytest.raises(InputError, match="mjd 'monday' is not a number"):
        read_fields_table(path)


def test_a_variable_source_names_the_epochs_in_which_it_is_off():
    found = catalog(type=["variable", "star"], off=["before; x ", ""])
    assert list(found["type"]) == ["variable", "star"]
    assert epochs_off(found) == [("before", "x"), ()]
    assert not list(check_epochs(found, ["before", "x", "y"], "a.fits"))
    assert epochs_off(catalog()) == [(), ()]


@pytest.mark.parametrize(
    ("kind", "off", "epochs", "words"),
    [
        ("variable", "", ["1"], ["one epoch", "reference epoch", "star"]),
        ("variable", "3", ["1", "2"], ["off in 3", "epochs 1, 2", "column `epoch`"]),
        ("variable", "1;2", ["1", "2"], ["off in every epoch", "column off"]),
        ("galaxy", "1", ["1", "2"], ["off in 1", "of type galaxy", "variable"]),
    ],
)
def test_epochs_that_cannot_tell_a_source_from_its_host(kind, off, epochs, words):
    found = catalog(type=[kind, "galaxy"], off=[off, ""])
    (problem,) = check_epochs(found, epochs, "catalog b.csv")
    assert all(word in problem for word in ["catalog b.csv: source 0", *words])
