"""Open reports in headless Chromium, as a reader does: `make browser`.

    python -m tests.browser.run results/smoke/report.html ...

Ends with 1 if a page has a problem: an error in the console, a figure that is no picture or has no
caption, a table without rows, a link that leads nowhere, or something that it loads from elsewhere.
"""

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

NAMES = ("chromium", "chromium-browser", "google-chrome")
DRIVER = "chromedriver"
# What a page shows, as the browser sees it.
LOOK = """
const all = (what) => [...document.querySelectorAll(what)];
return {
  title: document.title,
  headings: all("h2").map((h) => h.id),
  pictures: all("figure").map((f) => ({
    name: f.querySelector("img").alt,
    pixels: f.querySelector("img").naturalWidth,
    caption: f.querySelector("figcaption").innerText.trim(),
  })),
  tables: all("table").map((t) => t.querySelectorAll("tbody tr").length),
  anchors: all("a[href^='#']").map((a) => a.getAttribute("href").slice(1)),
  found: all("[id]").map((e) => e.id),
  files: all("a[href]").map((a) => a.getAttribute("href")).filter((h) => !h.startsWith("#")),
  loaded: performance.getEntriesByType("resource").map((r) => r.name)
    .filter((name) => !name.startsWith("data:")),
  wider: document.documentElement.scrollWidth - window.innerWidth,
};
"""
EXPECTED = ("numbers", "catalog", "files", "provenance")


def find_chromium() -> tuple[str, str] | None:
    """Paths of the browser and its driver, if both are there."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which(DRIVER)
    return (browser, driver) if browser and driver else None


@contextmanager
def open_chromium(browser: str, driver: str) -> Iterator[webdriver.Chrome]:
    """A headless browser that ends with the block, whose console is recorded."""
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # As root, in a container: no sandbox, little shared memory.
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{flag}")
    options.add_argument("--window-size=1200,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options, Service(driver))
    try:
        yield chromium
    finally:
        chromium.quit()


def problems_of(
    chromium: webdriver.Chrome, page: Path, files: bool = True
) -> list[str]:
    """What is wrong with a report.

    Args:
        chromium: From `open_chromium`.
        page: The HTML file.
        files: Whether links to files beside the page must lead to something.
    """
    chromium.get(page.resolve().as_uri())
    seen = chromium.execute_script(LOOK)
    wrong = [f"console: {line['message']}" for line in chromium.get_log("browser")]
    wrong += [f"it loads {name}" for name in seen["loaded"]]
    wrong += [f"no section {name}" for name in EXPECTED if name not in seen["headings"]]
    if not seen["title"]:
        wrong.append("no title")
    if not seen["pictures"]:
        wrong.append("no figure")
    for picture in seen["pictures"]:
        if not picture["pixels"]:
            wrong.append(f"figure {picture['name']} is no picture")
        if not picture["caption"]:
            wrong.append(f"figure {picture['name']} has no caption")
    wrong += [
        f"table {i} has no rows" for i, rows in enumerate(seen["tables"]) if not rows
    ]
    lost = sorted(set(seen["anchors"]) - set(seen["found"]))
    wrong += [f"link #{name} leads nowhere" for name in lost]
    if files:
        lost = [name for name in seen["files"] if not (page.parent / name).exists()]
        wrong += [f"link {name} leads nowhere" for name in lost]
    if seen["wider"] > 0:
        wrong.append(f"it is {seen['wider']} pixels wider than the window")
    return wrong


def main() -> None:
    """Open every page, say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="+", type=Path)
    pages = parser.parse_args().pages
    missing = [str(page) for page in pages if not page.is_file()]
    if missing:
        raise SystemExit(f"error: no such file: {', '.join(missing)}")
    found = find_chromium()
    if found is None:
        raise SystemExit(
            "error: no chromium and chromedriver; tests/browser/install.sh"
        )
    wrong = 0
    with open_chromium(*found) as chromium:
        for page in pages:
            problems = problems_of(chromium, page)
            wrong += len(problems)
            print(f"{page}: {'; '.join(problems) or 'fine'}")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
