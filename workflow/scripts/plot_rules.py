"""The rules of the run, and which reads from which."""

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import yaml
from matplotlib.figure import Figure

from blendem import plot
from blendem.config import PlotConfig
from blendem.logs import configure_logging
from blendem.plot.inputs import save
from blendem.plot.rules import layers_of_rules, parse_rule_graph, plot_rules

ROW = 0.42  # height of a row of rules [inch]


def rule_graph(snakefile: Path, settings: dict) -> str:
    """What Snakemake prints of the rules of a run with these settings.

    Raises:
        RuntimeError: If it fails, with what it said.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(settings, file)
        file.flush()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "snakemake", "--snakefile", str(snakefile)),
                *("--configfile", file.name, "--rulegraph", "dot"),
                *("--forceall", "--nolock", "--cores", "1"),
            ],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"snakemake --rulegraph failed:\n{done.stderr}")
    return done.stdout


def main(
    snakefile: Path,
    settings: dict,
    fields: list[str],
    output: Path,
    config: PlotConfig,
) -> None:
    """Ask Snakemake, draw, write the figure."""
    graph = parse_rule_graph(rule_graph(snakefile, settings), each=fields)
    with matplotlib.rc_context(plot.STYLE):
        rows = int(layers_of_rules(graph).max()) + 1
        figure = Figure(figsize=(plot.TWO_COLUMNS, ROW * rows))
        plot_rules(figure.subplots(), graph)
        save(figure, output, config.dpi)


if "snakemake" in globals():
    configure_logging(snakemake.log[0])
    main(
        Path(snakemake.input.snakefile),
        snakemake.params.settings,
        snakemake.params.fields,
        Path(snakemake.output[0]),
        PlotConfig(**snakemake.params.plot),
    )
