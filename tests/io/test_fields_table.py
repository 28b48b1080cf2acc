"""The table of fields: what it may hold, and each way in which it can be wrong."""

from pathlib import Path

import pytest

from blendem.io.table import FieldRow, InputError, check_files, read_fields_table

SHIPPED = Path(__file__).parents[2] / "config" / "fields" / "hsc_cosmos.tsv"
HEADER = "field\tinstrument\tpath\tcatalog\tsurvey\n"


@pytest.fixture
def table(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "fields.tsv"
        path.write_text(text)
        return path

    return write


def test_rows_comments_relative_paths_and_optional_cells(table, tmp_path):
    path = table(
        "# a comment\n\nfield\tpath\tinstrument\tbands\tmagzero\tcatalog\n"
        "a\tx/a.fits\thsc_deep\t\t\n"
        "a\t/abs/b.npz\tmine\tg, r\t25.5\tc.csv\n"
    )
    first, second = read_fields_table(path)
    assert (first.field, first.instrument) == ("a", "hsc_deep")
    assert first.path == tmp_path / "x" / "a.fits"
    assert (first.catalog, first.bands, first.magzero) == (None, None, None)
    assert second.path == Path("/abs/b.npz")
    assert (second.bands, second.magzero) == (("g", "r"), 25.5)
    assert second.catalog == tmp_path / "c.csv"


def test_environment_variables_are_expanded(table, monkeypatch):
    monkeypatch.setenv("BLENDEM_DATA", "/somewhere")
    path = table(HEADER + "a\thsc_deep\t${BLENDEM_DATA}/a.npz\t\t\n")
    assert read_fields_table(path)[0].path == Path("/somewhere/a.npz")
    monkeypatch.delenv("BLENDEM_DATA")
    expected = (Path.cwd() / "../shared/data").resolve() / "a.npz"
    assert read_fields_table(path)[0].path == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty", "header"]),
        ("field,instrument,path\na,b,c\n", ["lacks column", "separated by tabs"]),
        ("field\tpath\na\tb\n", ["lacks column instrument"]),
        (
            HEADER.replace("catalog", "catalogue"),
            ["'catalogue'", "did you mean 'catalog'"],
        ),
        (HEADER.replace("survey", "path"), ["'path' appears twice", "remove"]),
        (HEADER, ["no rows"]),
        (HEADER + "a\tb\n", ["line 2", "column path is empty"]),
        (HEADER + "a/b\tc\td\n", ["line 2", "'a/b'", "use letters"]),
        (HEADER + "a\tb\tc\td\te\tf\n", ["line 2", "6 cells for 5 columns"]),
        (HEADER + "a\tb\tc\na\tb\tc\n", ["line 3", "repeats field a", "of line 2"]),
        (HEADER + "a\tb\t${NO_SUCH}/c\n", ["line 2", "NO_SUCH", "export"]),
        (
            "field\tinstrument\tpath\tmagzero\na\tb\tc\tbright\n",
            ["line 2", "magzero 'bright'", "zero point"],
        ),
    ],
)
def test_a_bad_table_names_file_line_and_remedy(table, text, words):
    path = table(text)
    with pytest.raises(InputError) as caught:
        read_fields_table(path)
    message = str(caught.value)
    assert str(path) in message
    assert [word for word in words if word not in message] == []


def test_all_bad_rows_are_listed_at_once(table):
    path = table(HEADER + "a\tb\n" + "b\thsc_deep\tb.fits\n" + "c d\tb\tc\n")
    with pytest.raises(InputError, match="2 problems") as caught:
        read_fields_table(path)
    assert "line 2" in str(caught.value) and "line 4" in str(caught.value)


def test_missing_and_binary_tables(tmp_path):
    with pytest.raises(InputError, match=r"none\.tsv.*check `fields`"):
        read_fields_table(tmp_path / "none.tsv")
    (tmp_path / "bin.tsv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match=r"bin\.tsv.*not a text file"):
        read_fields_table(tmp_path / "bin.tsv")


def test_the_shipped_table_lists_83_fields():
    """hsc_cosmos_35 and the 82 cut-outs with 2 to 8 peaks (README of the data)."""
    rows = read_fields_table(SHIPPED)
    assert len(rows) == len({row.field for row in rows}) == 83
    assert rows[0].field == "hsc_cosmos_35"
    assert {row.instrument for row in rows} == {"hsc_deep"}


def test_missing_files_are_all_named_with_their_fields(tmp_path):
    there = tmp_path / "a.npz"
    there.touch()
    rows = [
        FieldRow("a", "hsc_deep", there),
        FieldRow("b", "hsc_deep", tmp_path / "b.fits"),
        FieldRow("c", "hsc_deep", there, catalog=tmp_path / "c.csv"),
    ]
    check_files(rows[:1])
    with pytest.raises(InputError) as error:
        check_files(rows)
    text = str(error.value)
    assert "field b: file" in text and "b.fits" in text
    assert "field c: catalog" in text and "field a" not in text


def test_ids_of_stars_are_read_and_must_be_numbers(tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text("field\tinstrument\tpath\tstars\na\thsc_deep\ta.npz\t0,3\n")
    assert read_fields_table(table)[0].stars == (0, 3)
    table.write_text("field\tinstrument\tpath\tstars\na\thsc_deep\ta.npz\tx\n")
    with pytest.raises(InputError, match="stars 'x' are not ids"):
        read_fields_table(table)
