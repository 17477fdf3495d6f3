"""Widgets without a browser: move a control, look at the figure that is shown."""

import base64
from itertools import combinations

import pytest
import torch
from matplotlib import pyplot

from gimkit import plots
from gimkit.circuits import Curve, EdgeScores, Graph, NodeScores
from gimkit.errors import GimkitError
from gimkit.notebook import widgets
from gimkit.selfrepair import HeadRepair, SelfRepair
from gimkit.selfrepair.attention import NUMBERS, PLACES, tidy
from gimkit.tokens import TokenScores


@pytest.fixture
def shown(monkeypatch):
    """The figures displayed so far."""
    figures = []
    pyplot.close("all")  # what other tests left
    monkeypatch.setattr(widgets, "display", figures.append)
    yield figures
    assert pyplot.get_fignums() == []  # no figure is left open


def widths(ax):
    return [bar.get_width() for bar in ax.patches]


def controls(explorer):
    return {control.description: control for control in explorer.children[0].children}


def test_saturation_explorer_redraws(shown):
    explorer = widgets.saturation_explorer()
    assert all(not getattr(control, "continuous_update", False) for control in controls(explorer).values())
    assert widths(shown[-1].axes[1]) == pytest.approx([0.0348, 0.0348, 0.0696, 1.1607, 0.1329, 2.3278], abs=1e-4)
    controls(explorer)["temperature"].value = 3.0
    *truth, plain, tempered = widths(shown[-1].axes[1])
    assert truth == pytest.approx([0.0348, 0.0348, 0.0696, 1.1607], abs=1e-4) and plain == pytest.approx(0.1329, 1e-3)
    assert tempered != pytest.approx(2.3278, abs=0.1)
    controls(explorer)["both equal"].value = False
    controls(explorer)["score 2"].value = 0.0
    expected = plots.saturation_effects((6, 0, 0, 0, 0)).query("share == 1 and by == 'truth'")["effect"].tolist()
    first, second, _, both, *_ = widths(shown[-1].axes[1])
    assert [first, second, both] == pytest.approx(expected)


def test_equal_scores_move_together_up_to_16_and_the_axes_stay(shown):
    explorer = widgets.saturation_explorer()
    first, second = (controls(explorer)[f"score {number}"] for number in (1, 2))
    limits = [[ax.get_xlim(), ax.get_ylim()] for ax in shown[-1].axes]
    first.value = 16
    assert second.value == 16
    second.value = 12
    assert first.value == 12
    controls(explorer)["both equal"].value = False
    second.value = 3
    assert first.value == 12
    assert [[ax.get_xlim(), ax.get_ylim()] for ax in shown[-1].axes] == limits
    controls(explorer)["both equal"].value = True
    assert second.value == 12


def test_the_axes_hold_every_number_of_the_sliders():
    for pair in ((16, 16), (16, 0), (0, 16), (8, 8), (12, 10)):
        for temperature in (1, 2, 5):
            effect = plots.saturation_effects((*pair, 0, 0, 0), temperature=temperature).query("share <= 1")["effect"]
            assert -1 <= effect.min() and effect.max() <= 12, (pair, temperature)


def test_without_a_kernel_a_picture_is_in_its_place(shown):
    explorer = widgets.saturation_explorer()
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")


NAMES = ["norm", "temperature", "q/k/v", "gate"]
SUBSETS = [frozenset(chosen) for size in range(5) for chosen in combinations(NAMES, size)]
CHANGES = {rules: i / 16 for i, rules in enumerate(SUBSETS)}
TOKENS = {rules: TokenScores(("Mary", "and", "John"), torch.tensor([1.0, 0.1 * i, -2.0]), "Mary", "own rules")
          for i, rules in enumerate(SUBSETS)}


def test_rule_explorer_follows_its_boxes(shown):
    explorer = widgets.rule_explorer(CHANGES, TOKENS)
    assert list(controls(explorer)) == NAMES

    def seen():
        left, right = shown[-1].axes
        bright = [i for i, bar in enumerate(left.patches) if bar.get_alpha() == 1.0]
        return bright, right.patches[1].get_height()

    assert seen() == ([0], 0.0)
    controls(explorer)["q/k/v"].value = True
    controls(explorer)["norm"].value = True
    i = SUBSETS.index(frozenset({"norm", "q/k/v"}))
    assert seen() == ([i], pytest.approx(0.1 * i))
    assert "norm + q/k/v" in shown[-1].axes[1].get_title()
    assert widths(shown[-1].axes[0]) == list(CHANGES.values())
    controls(explorer)["norm"].value = False
    assert seen() == ([3], pytest.approx(0.3))


@pytest.mark.parametrize("missing", [frozenset(), frozenset({"norm", "gate"})])
def test_rule_explorer_wants_every_subset(missing):
    with pytest.raises(GimkitError, match="every subset"):
        widgets.rule_explorer(CHANGES, {rules: s for rules, s in TOKENS.items() if rules != missing})


def test_a_tab_per_method_with_escaped_tokens():
    results = [TokenScores(("<b>", "John"), torch.tensor([1.0, -2.0]), "Mary", method) for method in ("gim", "ig")]
    tabs = widgets.token_tabs(results)
    assert tabs.children[0].titles == ("gim", "ig")
    html = tabs.children[0].children[0].value
    assert "&lt;b&gt;" in html and "<b>gim</b>" in html and 'title="-2.000"' in html


def test_node_explorer_shows_the_chosen_scores(shown):
    names = ("input", "a0.h0", "m0", "a1.h0", "m1")
    results = [NodeScores("ioi", method, names, torch.full((2, 5), value)) for method, value in (("gim", 1.0),
                                                                                                 ("exact", -3.0))]
    explorer = widgets.node_explorer(results)
    assert float(shown[-1].axes[0].collections[0].get_array().max()) == 1.0
    choice = controls(explorer)["scores"]
    assert [label for label, _ in choice.options] == ["gim on ioi", "exact on ioi"]
    choice.value = 1
    assert float(shown[-1].axes[0].collections[0].get_array().max()) == -3.0
    assert "exact" in shown[-1].axes[0].get_title()


def made_up_circuits(absolute=True, greedy=False, seed=0):
    """Scores of a small model, and the curve of the circuits that they give."""
    graph = Graph(3, 2, False, 8)
    noise = torch.randn(graph.real.shape, generator=torch.Generator().manual_seed(seed))
    edges = EdgeScores("ioi", "gim", graph, noise * graph.real)
    shares = (0.2, 0.5, 1.0)
    cut = edges.greedy if greedy else edges.top
    counts = tuple(len(cut(int(share * graph.n_edges), absolute)) for share in shares)
    metric = torch.tensor([0.0, 3.0, 4.0])[:, None].expand(-1, 2)
    return edges, Curve("ioi", "gim", absolute, greedy, shares, counts, metric, torch.zeros(2), torch.full((2,), 4.0))


@pytest.mark.parametrize("absolute, greedy", [(True, False), (False, False), (False, True)])
def test_circuit_size_shows_the_circuit_and_its_point(shown, absolute, greedy):
    edges, curve = made_up_circuits(absolute, greedy)
    size = controls(widgets.circuit_size(edges, curve, roles={"m0": "first of all"}))["size"]
    assert not size.continuous_update and [label for label, _ in size.options] == [f"{n} edges" for n in curve.edges]

    def seen():
        left, right = shown[-1].axes
        *_, point = right.lines
        return left.get_title(), (point.get_xdata()[0], point.get_ydata()[0])

    cut = edges.greedy if greedy else edges.top
    for which, kept in ((1, 0.75), (2, 1.0), (0, 0.0)):
        size.value = which
        title, point = seen()
        assert title == str(cut(int(curve.shares[which] * edges.graph.n_edges), absolute))
        assert point == (curve.shares[which], pytest.approx(kept))
    size.value = 2
    assert "first of all" in [text.get_text() for text in shown[-1].axes[0].get_legend().get_texts()]


def test_circuit_size_wants_the_scores_of_the_curve():
    edges, curve = made_up_circuits()
    with pytest.raises(GimkitError, match="other scores"):
        widgets.circuit_size(made_up_circuits(seed=3)[0], curve)


def test_repair_explorer_shows_the_chosen_head(shown):
    noise = torch.Generator().manual_seed(0)
    names = tuple(f"a{layer}.h{head}" for layer in range(3) for head in range(2))
    heads = HeadRepair("ioi", names, torch.randn(4, 6, 4, generator=noise), (*names, "m2", "final norm", "rest"),
                       torch.randn(4, 6, 9, generator=noise))
    numbers = torch.rand(30, len(PLACES) + len(NUMBERS), generator=noise, dtype=torch.float64)
    numbers[:, 1], numbers[:, 2] = torch.arange(30) % 3, torch.arange(30) % 2
    explorer = widgets.repair_explorer(SelfRepair("ioi", 1.0, tidy(numbers), 7, 0.25), heads)
    assert "a2.h1" in shown[-1].axes[1].get_title()
    controls(explorer)["layer"].value = 1
    controls(explorer)["head"].value = 0
    left, right = shown[-1].axes
    assert "5 attention rows of a1.h0" in left.get_title() and "a1.h0" in right.get_title()
    grey, plain, flagged = left.collections
    assert len(grey.get_offsets()) == 25 and len(plain.get_offsets()) + len(flagged.get_offsets()) == 5
    answers = heads.compensation_frame().query("ablated == 'a1.h0'").compensation
    assert sum(widths(right)) == pytest.approx(answers.sum())
