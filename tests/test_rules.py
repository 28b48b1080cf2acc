"""The graph of rules: what Snakemake prints, as a figure."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from blendem.plot.rules import layers_of_rules, parse_rule_graph, plot_rules

DOT = """
Building DAG of jobs...
digraph snakemake_dag {
    graph[bgcolor=white, margin=0];
\t0[label = "all", color = "0.00 0.6 0.85", style="rounded"];
\t1[label = "measure_0", color = "0.27 0.6 0.85", style="rounded"];
\t2[label = "measure_1", color = "0.27 0.6 0.85", style="rounded"];
\t3[label = "em_expectation", color = "0.58 0.6 0.85", style="rounded"];
\t4[label = "em_maximization", color = "0.18 0.6 0.85", style="rounded"];
\t5[label = "tile_sim_000\\nfield: a", color = "0.18 0.6 0.85", style="rounded"];
\t1 -> 0
\t1 -> 2
\t2 -> 0
\t3 -> 4
\t4 -> 3
\t4 -> 1
\t4 -> 2
\t5 -> 4
\t5 -> 1
}
"""


def edges(graph, back):
    names = graph.vs["name"]
    chosen = graph.es.select(back=back)
    return {(names[edge.source], names[edge.target]) for edge in chosen}


def test_rules_of_a_loop_are_one_and_implied_edges_are_left_out():
    graph = parse_rule_graph(DOT, each=["sim_000"])
    assert sorted(graph.vs["name"]) == [
        *("all", "em_expectation", "em_maximization", "measure", "tile")
    ]
    ahead, back = edges(graph, back=False), edges(graph, back=True)
    # All paths from the tile lead through the prior; laps of EM are a circle.
    assert ("tile", "measure") not in ahead
    lap = {
        ("em_expectation", "em_maximization"),
        ("em_maximization", "em_expectation"),
    }
    assert len(lap & back) == 1 and len(back) == 1
    assert lap <= ahead | back


def test_every_rule_is_below_what_it_reads():
    graph = parse_rule_graph(DOT)
    rows = dict(zip(graph.vs["name"], layers_of_rules(graph), strict=True))
    assert "tile_sim" in rows  # no field of that name was given
    for first, then in edges(graph, back=False):
        assert rows[first] < rows[then]
    assert rows["all"] == max(rows.values())


def test_boxes_of_a_row_are_apart():
    graph = parse_rule_graph(DOT)
    ax = Figure().subplots()
    plot_rules(ax, graph)
    assert sorted(text.get_text().replace("\n", "_") for text in ax.texts) == sorted(
        graph.vs["name"]
    )
    places = np.array([text.get_position() for text in ax.texts])
    apart = np.abs(places[:, None] - places[None]).sum(-1) + np.eye(len(places)) * 9
    assert apart.min() >= 0.9
    assert len(ax.patches) == graph.ecount()


def test_no_rules_is_an_error():
    with pytest.raises(ValueError, match="no rule"):
        parse_rule_graph("Building DAG of jobs...")
