"""What stands behind a script, so that a change of it makes results again."""

from pathlib import Path

import pytest

from blendem.dependencies import modules_behind

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"


def behind(name, **options):
    script = ROOT / "workflow" / "scripts" / f"{name}.py"
    found = modules_behind(script, SRC, **options)
    return {p.relative_to(SRC / "blendem").with_suffix("").as_posix() for p in found}


@pytest.mark.parametrize(
    ("script", "modules"),
    [
        ("sample_posterior", {"inference/sampler", "inference/labels", "noise"}),
        ("compute_statistics", {"inference/rescale", "inference/batch", "renderer"}),
        ("em_split", {"inference/rescale", "inference/amplitude", "psf"}),
        ("measure", {"assemble/observed", "inference/batch", "prior/magnify"}),
        ("plot_blends", {"plot/__init__", "plot/pictures", "plot/style"}),
    ],
)
def test_imports_of_imports_count(script, modules):
    assert modules <= behind(script)


def test_what_moves_no_number_does_not(tmp_path):
    for script in ("sample_posterior", "measure", "simulate_field"):
        assert not {m for m in behind(script) if m.startswith(("io", "config", "logs"))}
    assert "prior/mixture_fit" not in behind("simulate_field", without=["prior/"])
    # Inside of a function: for runs with dust alone.
    assert "prior/dust" not in behind("check_inputs")


def test_names_of_other_packages_and_functions_are_passed_over(tmp_path):
    package = tmp_path / "blendem"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("import blendem.a\n")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "b.py").write_text("from blendem.a import value\n")
    (package / "a.py").write_text("import blendem.deep.b\nvalue = 1\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy\nfrom blendem.deep import b\ndef f():\n    import blendem.c\n"
    )
    # A circle ends.
    expected = [package / "a.py", package / "deep" / "b.py"]
    assert modules_behind(script, tmp_path) == expected
