"""The files around the code: locks, README, changelog, rules."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
# Built of pieces, so that this file does not hold what it looks for.
FORBIDDEN = {
    "address of a package index": re.compile(
        "pypi" + r"\.org|python" + "hosted|anaconda" + r"\.org|/opt/" + "pypi"
        r"|docker" + r"\.io|index" + "-url[ =]*h"
    ),
    "path of a machine": re.compile(
        r"(?<![\w.])/(?:work|home|Users|root)" + r"/\w|\.pye" + "nv|/tmp" + r"/\w"
    ),
    "path of shared files": re.compile(
        r"\.\./" + r"shared(?!/data\b)|/work" + "/shared"
    ),
}
# Files without text.
BINARY = {".npz", ".png", ".fits", ".npy", ".h5", ".eqx"}


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git repository: no list of tracked files")
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [p for p in paths if p.is_file() and p.suffix not in BINARY]


def pins(path: Path) -> dict[str, list[str]]:
    """Lines of a lock file by requirement, `name==version ; marker`."""
    blocks = re.split(r"^(?=[a-zA-Z0-9])", path.read_text(), flags=re.M)
    lines = [block.splitlines() for block in blocks if not block.startswith("#")]
    return {block[0].rstrip(" \\"): block[1:] for block in lines if block}


def recipes() -> dict[str, str]:
    """Recipe of every target of the Makefile, by its name."""
    text = (ROOT / "Makefile").read_text()
    found = re.findall(
        r"^([a-z][a-z0-9-]*):(?!=)([^\n]*(?:\n\t[^\n]*)*)", text, flags=re.M
    )
    return dict(found)


def rules() -> list[tuple[str, str]]:
    """Name and text of every rule in `workflow/rules`."""
    found = []
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        parts = re.split(r"^(?:rule|checkpoint) (\w+):", path.read_text(), flags=re.M)
        found += zip(parts[1::2], parts[2::2], strict=True)
    return found


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_address_or_machine_path_is_tracked(what):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if FORBIDDEN[what].search(line)
    ]
    assert not found, f"{what}:\n" + "\n".join(found)


def test_the_patterns_find_what_they_look_for():
    examples = {
        "address of a package index": "https://pypi" + ".org/simple",
        "path of a machine": "open('/ho" + "me/me/a.fits')",
        "path of shared files": "../sha" + "red/DESIGN.md",
    }
    assert examples.keys() == FORBIDDEN.keys()
    for what, example in examples.items():
        assert FORBIDDEN[what].search(example)
        assert not FORBIDDEN[what].search("data: ../shared/data, url/home/a")


LOCKS = sorted((ROOT / "envs").glob("*.txt"))


@pytest.mark.parametrize("path", LOCKS, ids=lambda p: p.stem)
def test_every_locked_version_has_hashes(path):
    locked = pins(path)
    assert locked
    assert "://" not in path.read_text(), "an address; run `make lock`"
    for requirement, lines in locked.items():
        assert "==" in requirement, f"{requirement} is not pinned"
        hashes = [line for line in lines if "--hash=sha256:" in line]
        assert hashes, f"{requirement} has no hash; run `make lock`"


@pytest.mark.parametrize("path", LOCKS, ids=lambda p: p.stem)
def test_locks_follow_from_their_in_files(path):
    """Whoever edits an .in file and forgets `make lock` is told."""
    locked = {re.split(r"==", pin)[0]: pin for pin in pins(path)}
    for line in path.with_suffix(".in").read_text().splitlines():
        line = line.split("#")[0].strip()
        if not line or line.startswith("-"):
            continue
        name, *version = line.split("==")
        assert name in locked, f"{name} is not in {path.name}; run `make lock`"
        if version:
            pinned = locked[name].split(";")[0].strip()
            assert pinned == line, f"{path.name} has {pinned}; run `make lock`"


def test_the_locks_agree_with_each_other():
    def versions(name: str) -> set[str]:
        # Without markers: another package may need the same version elsewhere too.
        return {pin.split(" ")[0] for pin in pins(ROOT / "envs" / f"{name}.txt")}

    base = versions("requirements")
    assert len(base) > 50
    for name in ("requirements-dev", "requirements-peers"):
        missing = base - versions(name)
        assert not missing, f"{name}.txt lacks {missing}; run `make lock`"


def test_what_the_package_needs_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {pin.split("==")[0] for pin in pins(ROOT / "envs/requirements-dev.txt")}
    needed = set(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        needed |= set(extra)
    assert needed <= locked


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    # The newest entry comes first.
    assert re.search(r"^## (\S+)", changelog, flags=re.M)[1] == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert citation["license"] == project["license"]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_commands_of_the_pages_exist(page):
    text = (ROOT / page).read_text()
    # A code block, or between back ticks; a word such as "make sure" is in neither.
    code = re.findall(r"^    (.*)$|`([^`]*)`", text, flags=re.M)
    calls = [re.sub(r"\s+#.*", "", block or span) for block, span in code]
    targets = {
        target
        for call in calls
        if re.match(r"make\s", call)
        for target in re.split(r"\s+", call)[1:]
        if "=" not in target
    }
    assert {"README.md": {"demo", "test"}, "CONTRIBUTING.md": {"lint"}}[page] <= targets
    assert targets <= recipes().keys()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/*.md"])
def test_links_lead_somewhere(page):
    for path in ROOT.glob(page):
        for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name} links to {link}"


def test_configurations_of_the_makefile_and_readme_exist():
    for page in ("Makefile", "README.md", ".ci/run"):
        for name in re.findall(r"config/\w+\.yaml", (ROOT / page).read_text()):
            assert (ROOT / name).is_file(), f"{page} names {name}"


def test_the_profile_is_not_empty():
    # Snakemake fails on every call when the profile holds nothing.
    path = ROOT / "workflow/profiles/default/config.yaml"
    assert yaml.safe_load(path.read_text())


def test_every_rule_keeps_a_log_and_a_benchmark():
    if not (ROOT / "Snakefile").exists():
        pytest.skip("the workflow is not written yet")
    found = rules()
    assert found
    for name, text in found:
        # Local rules that only collect files have nothing to do.
        if not re.search(r"^    (script|shell|run|notebook):", text, flags=re.M):
            continue
        for directive in ("log", "benchmark"):
            assert re.search(rf"^    {directive}:", text, flags=re.M), (
                f"rule {name} has no {directive}"
            )
