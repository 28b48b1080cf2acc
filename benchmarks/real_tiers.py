"""How well tiers of the prior fit the same real blends: a table from the summaries of their runs.

    make real-tiers

Chi2 per pixel and correlation of neighbouring residuals of the posterior mean in every band, and
the blends that the sampler did not solve as it should. There is no truth.
"""

import argparse
import json
from pathlib import Path

LINES = {
    "chi2_per_pixel": "chi2 per pixel",
    "chi2_of_draws_per_pixel": "chi2 per pixel of draws (posterior predictive)",
    "chi2_over_expected_median": "chi2 over its expectation, median blend",
    "negative_flux_fraction": "part of the drawn fluxes below zero",
    "blends_without_result": "blends without result",
    "blends_failed_draws": "blends with draws that are not finite",
    "blends_unconverged": "blends with a solve above the tolerance",
    "blends_guards": "blends with negative curvature",
    "posterior_seconds": "seconds for the posterior",
}
BY_BAND = {
    "chi2_per_pixel": "chi2 per pixel",
    "residual_autocorrelation": "correlation of neighbouring residuals",
}


def main(runs: list[Path], output: Path) -> None:
    """Write the table as Markdown, and print it."""
    numbers = {}
    for run in runs:
        path = run / "summary.json"
        numbers[run.name] = json.loads(path.read_text())["numbers"]
    first = next(iter(numbers.values()))
    bands = [n[-1] for n in first if n[:-1] == "residual_autocorrelation_"]
    bands = [b for b in "ugrizy" if b in bands]
    rows = dict(LINES)
    for name, text in BY_BAND.items():
        rows |= {f"{name}_{b}": f"{text}, {b}" for b in bands}
    lines = [
        "| | " + " | ".join(numbers) + " |",
        "|---" * (1 + len(numbers)) + "|",
    ]
    for name, text in rows.items():
        cells = [_cell(n[name]["value"]) for n in numbers.values()]
        lines.append(f"| {text} | " + " | ".join(cells) + " |")
    table = "\n".join(lines) + "\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(table)
    print(table + f"written to {output}")


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of results")
    parser.add_argument(
        "--output", type=Path, default=Path("results/benchmarks/real_tiers.md")
    )
    arguments = parser.parse_args()
    main(arguments.runs, arguments.output)
