"""The graph of rules: which step of a run feeds which."""

import re
from collections.abc import Iterable
from itertools import pairwise

import igraph
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from blendem.plot.style import BLUE, GREY, ORANGE

BESIDE = 0.12  # a line back from the one ahead [places in a row]
NODE = re.compile(r'^\s*(\d+)\s*\[label = "([^"\\]+)', re.MULTILINE)
EDGE = re.compile(r"^\s*(\d+)\s*->\s*(\d+)", re.MULTILINE)


def parse_rule_graph(dot: str, each: Iterable[str] = ()) -> igraph.Graph:
    """The graph that `snakemake --rulegraph dot` prints.

    Args:
        dot: Its output; lines around the graph do not matter.
        each: What the names of rules may end in that are made in a loop, besides numbers: fields.
            `measure_0` and `measure_1` are one rule, `measure`.

    Returns:
        A directed graph, whose vertices have the attribute `name`, and whose edges go from a rule
        to the rules that read what it makes. Edges with the attribute `back` lead to an earlier
        rule again, as the laps of EM do: without them there is no circle. Other edges that
        follow from the rest are left out (transitive reduction, Aho, Garey & Ullman 1972).

    Raises:
        ValueError: If there is no rule.
    """
    loop = re.compile("_(" + "|".join([r"\d+", *map(re.escape, each)]) + ")$")
    rules = {node: loop.sub("", name) for node, name in NODE.findall(dot)}
    if not rules:
        raise ValueError("no rule in what `snakemake --rulegraph dot` printed")
    names = list(dict.fromkeys(rules.values()))
    number = {node: names.index(rule) for node, rule in rules.items()}
    edges = {(number[a], number[b]) for a, b in EDGE.findall(dot)}
    edges = sorted((a, b) for a, b in edges if a != b)
    graph = igraph.Graph(n=len(names), edges=edges, directed=True)
    graph.vs["name"] = names
    back = set(graph.feedback_arc_set())
    graph.es["back"] = [i in back for i in range(len(edges))]
    ahead = graph.subgraph_edges(graph.es.select(back=False), delete_vertices=False)
    after = [set(ahead.subcomponent(v, mode="out")) - {v} for v in range(len(names))]
    implied = [
        edge
        for edge in graph.es.select(back=False)
        if any(edge.target in after[v] for v in ahead.successors(edge.source))
    ]
    graph.delete_edges(implied)
    return graph


def layers_of_rules(graph: igraph.Graph) -> np.ndarray:
    """Row of every rule: one below the lowest of those that it reads from, `all` last."""
    ahead = graph.subgraph_edges(graph.es.select(back=False), delete_vertices=False)
    layers = np.zeros(graph.vcount(), int)
    for vertex in ahead.topological_sorting():
        before = ahead.predecessors(vertex)
        layers[vertex] = max((layers[v] + 1 for v in before), default=0)
    return layers


def plot_rules(ax: Axes, graph: igraph.Graph) -> None:
    """Draw rules in rows, from what needs nothing down to what nothing needs.

    Args:
        ax: Panel; its frame is hidden.
        graph: From `parse_rule_graph`. Laid out after Sugiyama et al. (1981); edges back to an
            earlier rule are dashed.
    """
    layers = layers_of_rules(graph)
    layout = graph.layout_sugiyama(layers=layers.tolist())
    places = np.array(layout.coords)
    for edge, between in zip(graph.es, layout.edge_routing, strict=True):
        points = np.array([places[edge.source], *between, places[edge.target]])
        if edge["back"]:
            points[:, 0] += BESIDE
        style = {"color": ORANGE, "ls": "--"} if edge["back"] else {"color": GREY}
        ax.add_patch(PathPatch(_smooth(points), fill=False, lw=0.6, zorder=1, **style))
    for name, (x, y) in zip(graph.vs["name"], places, strict=True):
        ax.text(
            x,
            y,
            name.replace("_", "\n", 1),
            ha="center",
            va="center",
            fontsize=6,
            linespacing=1.0,
            bbox={"boxstyle": "round", "fc": "white", "ec": BLUE, "lw": 0.6},
            zorder=2,
        )
    wide = [*places[:, 0], *(x for bends in layout.edge_routing for x, _ in bends)]
    ax.set_xlim(min(wide) - 0.5, max(wide) + 0.5)
    ax.set_ylim(layers.max() + 0.5, -0.5)
    ax.set_axis_off()


def _smooth(points: np.ndarray) -> Path:
    """A curve through points, vertical in each of them."""
    vertices, codes = [tuple(points[0])], [Path.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        vertices += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [Path.CURVE4] * 3
    return Path(vertices, codes)
