"""Drawn circuits: every edge is there, at its ends, in its colour; boxes do not overlap."""

from itertools import combinations

import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from gimkit import plots
from gimkit.circuits import Circuit, EdgeScores, Graph
from gimkit.plots.circuit import BOX, PORTS, circuit_graph

MINI = Graph(5, 4, False, 128)


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def scored(graph, seed=0):
    scores = torch.randn(graph.real.shape, generator=torch.Generator().manual_seed(seed))
    return EdgeScores("made up", "random", graph, scores * graph.real)


def by_name(graph, *names, values=None):
    """The circuit of these edges; their scores count up unless given."""
    keep, scores = torch.zeros_like(graph.real), torch.zeros(graph.real.shape)
    for i, name in enumerate(names):
        source, _, target = name.partition("->")
        at = graph.sources.index(source), graph.targets.index(target)
        keep[at], scores[at] = True, i + 1.0 if values is None else values[i]
    return Circuit(graph, keep, scores)


def lines(ax):
    return [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]


def boxes(ax):
    """{name: (middle x, middle y)} of the nodes' boxes."""
    return {patch.get_gid(): (patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2)
            for patch in ax.patches if isinstance(patch, FancyBboxPatch)}


def test_every_edge_runs_from_its_source_to_its_port():
    circuit = by_name(MINI, "input->a0.h1<k>", "a0.h1->m0", "a0.h1->a2.h3<v>", "a0.h1->a2.h3<q>", "m0->logits",
                      "a2.h3->logits")
    ax = circuit_graph(circuit)
    at = boxes(ax)
    assert set(at) == {"input", "a0.h1", "m0", "a2.h3", "logits"}
    drawn = sorted(tuple(round(float(x), 6) for point in (line._posA_posB[0], line._posA_posB[1]) for x in point)
                   for line in lines(ax))
    top, bottom = BOX[1] / 2, -BOX[1] / 2

    def port(name, which=""):
        return at[name][0] + PORTS[which], at[name][1] + bottom

    def out(name):
        return at[name][0], at[name][1] + top

    wanted = [((port("a0.h1", "k")[0], 0.2), port("a0.h1", "k")), (out("a0.h1"), port("m0")),
              (out("a0.h1"), port("a2.h3", "v")), (out("a0.h1"), port("a2.h3", "q")),
              *((out(name), (out(name)[0], at["logits"][1] - 0.2)) for name in ("m0", "a2.h3"))]
    assert drawn == sorted(tuple(round(float(x), 6) for point in ends for x in point) for ends in wanted)


def test_colour_is_the_sign_and_width_the_size():
    circuit = by_name(MINI, "input->m0", "input->m1", "m0->logits", "m1->logits", values=[4.0, -1.0, -2.0, 0.25])
    drawn = sorted(lines(circuit_graph(circuit)), key=lambda line: line.get_linewidth())
    colours = [to_rgba(line.get_edgecolor())[:3] for line in drawn]
    assert colours == [to_rgba(c)[:3] for c in (plots.BLUE, plots.ORANGE, plots.ORANGE, plots.BLUE)]
    widths, alphas = [line.get_linewidth() for line in drawn], [to_rgba(line.get_edgecolor())[3] for line in drawn]
    assert widths == sorted(set(widths)) and alphas == sorted(set(alphas)) and alphas[-1] == 1.0
    strongest, other = circuit_graph(circuit).get_legend().get_texts()
    assert "|score| 4" in strongest.get_text() and other.get_text() == "against it"


@pytest.mark.parametrize("graph, n", [(MINI, 200), (MINI, 761), (Graph(12, 12, False, 768), 200),
                                      (Graph(16, 20, False, 64), 200), (Graph(6, 8, True, 512), 200)])
def test_no_edge_is_lost_and_no_boxes_overlap(graph, n):
    circuit = scored(graph).greedy(n, absolute=True)
    ax = circuit_graph(circuit)
    assert len(lines(ax)) == len(circuit) > 0
    at = boxes(ax)
    assert set(at) == set(circuit.nodes) | {"input", "logits"}
    nodes = [place for name, place in at.items() if name not in ("input", "logits")]
    assert all(abs(a[0] - b[0]) > BOX[0] or abs(a[1] - b[1]) > BOX[1] for a, b in combinations(nodes, 2))
    low, high = ax.get_xlim()
    assert all(low < x - BOX[0] / 2 and x + BOX[0] / 2 < high for x, _ in nodes)


def test_a_small_models_nodes_keep_their_places_and_a_large_ones_close_up():
    edges = scored(MINI)
    small, large = (boxes(circuit_graph(edges.top(n))) for n in (60, 300))
    assert all(large[name] == place for name, place in small.items())
    deep = Graph(30, 30, False, 64)
    ax = circuit_graph(by_name(deep, "input->a7.h29<q>", "a7.h29->a28.h4<q>", "a28.h4->logits"))
    at = boxes(ax)
    assert at["a7.h29"][1] == 1 and at["a28.h4"][1] == 3 and ax.figure.get_figheight() < 6


def test_roles_and_labels():
    circuit = by_name(MINI, "input->a0.h1<k>", "a0.h1->m0", "m0->logits")
    ax = circuit_graph(circuit, {"a0.h1": "previous-token-like, $odd$", "a4.h4": "not drawn", "m0": ""})
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("a0.h1") == texts.count("m0") == 1
    [*_, role] = ax.get_legend().get_texts()
    assert role.get_text() == "previous-token-like, \\$odd\\$" and "not drawn" not in role.get_text()
    at = {patch.get_gid(): patch.get_facecolor() for patch in ax.patches if isinstance(patch, FancyBboxPatch)}
    assert at["a0.h1"] == ax.get_legend().get_patches()[-1].get_facecolor() != at["m0"]
    assert [texts.count(which) for which in "qkv"] == [1, 1, 1]  # the head's, not the MLP's
    assert ax.get_title() == str(circuit)
    ax.figure.canvas.draw()


def test_circuits_without_scores_or_edges_can_be_drawn():
    plain = Circuit(MINI, by_name(MINI, "input->m0", "m0->logits").keep)
    ax = plain.plot()
    assert {line.get_linewidth() for line in lines(ax)} == {4.0} and ax.get_legend() is None
    nothing = Circuit(MINI, torch.zeros_like(MINI.real), torch.zeros(MINI.real.shape))
    assert lines(nothing.plot()) == []
    zeros = by_name(MINI, "input->logits", values=[0.0])
    assert len(lines(zeros.plot())) == 1


def test_given_axes_are_used_and_nothing_is_printed(capsys):
    ax = Figure().subplots()
    assert scored(MINI).top(50).plot({"m0": "first"}, ax=ax) is ax
    assert pyplot.get_fignums() == [] and capsys.readouterr() == ("", "")
