"""Every plot as a picture: no text leaves it, overlaps another one or is smaller than 9 points."""

from itertools import combinations

import numpy
import pandas
import pytest
import torch
from matplotlib import pyplot
from matplotlib.path import Path as Outline
from matplotlib.text import Text
from matplotlib.transforms import Affine2D
from test_plots import TOKENS, curve, made_up
from test_plots_circuit import MINI, scored
from test_plots_selfrepair import heads, rows

from figures import papers
from figures.comparison import faithfulness_by_edges
from gimkit import plots
from gimkit.tokens import TokenScores

FIGURES = "figures/data"


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def outline(text: Text) -> Outline:
    """The rectangle around a drawn text, rotated with it, with a pixel of room on each side."""
    angle = text.get_rotation()
    middle = [sum(ends) / 2 for ends in zip(*text.get_window_extent().get_points())]
    text.set_rotation(0)
    box = text.get_window_extent()
    text.set_rotation(angle)
    wide, high = (size / 2 + 1 for size in (box.width, box.height))
    corners = Outline([(-wide, -high), (wide, -high), (wide, high), (-wide, high), (-wide, -high)], closed=True)
    return corners.transformed(Affine2D().rotate_deg(angle).translate(*middle))


def unreadable(figure) -> list[str]:
    """What is wrong with the texts of a figure, a sentence each."""
    drawn, draw = {}, Text.draw

    def record(self, renderer):
        if self.get_visible() and self.get_text().strip():
            drawn[id(self)] = self
        return draw(self, renderer)

    Text.draw = record
    try:
        figure.canvas.draw()
        drawn.clear()  # the layout may have drawn texts elsewhere first
        figure.canvas.draw()
    finally:
        Text.draw = draw
    outlines = {text: outline(text) for text in drawn.values()}
    wrong = [f"{text.get_text()!r} has {text.get_fontsize():g} points" for text in outlines if text.get_fontsize() < 9]
    low, high = figure.bbox.min - 1, figure.bbox.max + 1
    wrong += [f"{text.get_text()!r} leaves the figure" for text, path in outlines.items()
              if (path.vertices < low).any() or (path.vertices > high).any()]
    wrong += [f"{a.get_text()!r} and {b.get_text()!r} overlap" for (a, p), (b, q) in combinations(outlines.items(), 2)
              if p.intersects_path(q)]
    return wrong


def compensation():
    table = pandas.DataFrame({"kind": ["ioi", "capital", "greater_than"], "auroc": [0.9, 0.8, 0.7]})
    return table.assign(untrained_auroc=0.6, shuffled_auroc=0.5)


SENTENCE = ("As", "Charlotte", "and", "Ethan", "were", "leaving", "the", "museum", ",", "Ethan", "wanted", "to", "give",
            "the", "post", "card", "to")
SCORES = {name: TokenScores(SENTENCE, torch.linspace(-3, most, 17), "Charlotte - Ethan", name)
          for name, most in (("GIM", 5), ("plain gradient", 1))}
FRAME = pandas.DataFrame({"group": ["superposition, as in the paper", "squares"] * 2, "error": [0.1, 0.2, 0.15, 0.3]})
PLOTS = {
    "token_bars": lambda: plots.token_bars(SCORES["GIM"]),
    "token_bars, odd tokens": lambda: plots.token_bars(TOKENS),
    "token_heat": lambda: plots.token_heat(SCORES),
    "node_grid": lambda: plots.node_grid(made_up(5, 4)),
    "node_grid, SmolLM2": lambda: plots.node_grid(made_up(30, 9)),
    "method_scatter": lambda: plots.method_scatter(made_up(8, 8), made_up(8, 8, "exact", seed=1)),
    "faithfulness_curves": lambda: plots.faithfulness_curves([curve(), curve(absolute=True), curve("random")]),
    "circuit_graph": lambda: plots.circuit_graph(scored(MINI).top(76), {"a0.h1": "name mover", "a2.h3": "suppressor"}),
    "circuit_graph, large": lambda: plots.circuit_graph(scored(MINI).top(500)),
    "ablation_effect": lambda: plots.ablation_effect(rows()),
    "grad_vs_tsg": lambda: plots.grad_vs_tsg(rows()),
    "direct_against_total": lambda: plots.direct_against_total(heads()),
    "head_compensation": lambda: plots.head_compensation(heads(), "a0.h1"),
    "saturation": lambda: plots.saturation(plots.saturation_effects())[0],
    "rule_changes": lambda: plots.rule_changes(pandas.DataFrame({"rules": ["norm", "all four"], "change": [0.3, 9]})),
    "reading_grid": lambda: plots.reading_grid(numpy.eye(10), [f"{i} (0.11)" for i in range(10)], "what W_in reads"),
    "encoder_plane": lambda: plots.encoder_plane(numpy.eye(2), -numpy.eye(2)),
    "sweep_lines": lambda: plots.sweep_lines(numpy.linspace(-1, 1, 5), numpy.ones((5, 3)), 0, numpy.ones((5, 3))),
    "change_scatter": lambda: plots.change_scatter(numpy.arange(4), numpy.arange(4), numpy.arange(4) > 1),
    "coefficient_scatter": lambda: plots.coefficient_scatter(numpy.eye(3), numpy.eye(3), r2=1.0),
    "error_bars": lambda: plots.error_bars(FRAME, {"squares": 0.19}),
    "selection_dots": lambda: plots.selection_dots(compensation()),
    "beside_gim": lambda: plots.beside_gim(pandas.Series({"a3.h0": 0.7, "a3.h1": 0.3}),
                                           pandas.Series({"a3.h0": 0.7, "a3.h1": 0.3}), [0.1, 0.9], 1, "ioi"),
    "faithfulness_by_edges": lambda: faithfulness_by_edges(pandas.DataFrame(
        {"task": task, "method": method, "requested": size, "faithfulness": size / 1000}
        for task in ("ioi", "capital", "greater_than") for method in ("EAP", "GIM") for size in (1, 10, 100, 1000)))[0],
}


@pytest.mark.parametrize("name", PLOTS)
def test_texts_of_a_plot_are_readable(name):
    drawn = PLOTS[name]()
    assert unreadable(getattr(drawn, "figure", drawn)) == []


@pytest.mark.parametrize("name, draw", [
    ("toy", papers.toy), ("temperature-sweep-mini-llama", lambda frame: papers.temperature_sweep(frame, "all tasks")),
    ("ablation-ladder-mini-llama", lambda frame: papers.ladder(frame, "all tasks")),
    ("layers-mini-llama", papers.layers), ("planted", papers.known_circuits),
    ("token-faithfulness-mini-llama", lambda frame: papers.faithfulness_table(frame, "all tasks")),
    ("eap-gp-saturation-mini-llama", papers.saturation_path), ("eap-gp-runtime-mini-llama", papers.runtimes)])
def test_texts_of_a_committed_figure_are_readable(name, draw):
    assert unreadable(draw(pandas.read_csv(f"{FIGURES}/{name}.csv"))) == []


def test_the_test_sees_what_is_wrong():
    figure, ax = pyplot.subplots(figsize=(3, 2))
    ax.set_title("a title that is far too long for a figure of three inches")
    ax.text(0.5, 0.5, "one text")
    ax.text(0.52, 0.5, "another", fontsize=6)
    said = " ".join(unreadable(figure))
    assert "leaves the figure" in said and "'one text' and 'another' overlap" in said and "has 6 points" in said
    figure, ax = pyplot.subplots()
    ax.axis("off")
    for i in range(2):  # side by side, turned: the boxes around them overlap, the texts do not
        ax.text(0.3 + 0.08 * i, 0.3, "a turned label", rotation=60)
    assert unreadable(figure) == []


@pytest.mark.parametrize("first, second", [("gim", "GIM"), ("gradient", "EAP"), ("ig", "EAP-IG"), ("gp", "EAP-GP")])
def test_a_method_has_one_colour_under_all_its_names(first, second):
    assert plots.method_colour(first) == plots.method_colour(second)


def test_methods_that_are_compared_have_different_colours():
    names = ("gim", "gradient", "freeze", "ig", "relp", "gp", "attnlrp", "random", "temperature", "gim-ig", "exact")
    assert len({plots.method_colour(name) for name in names}) == len(names)


def test_scatters_against_the_truth_have_equal_axes():
    for ax in (plots.method_scatter(made_up(), made_up(method="exact", seed=1)), plots.ablation_effect(rows()),
               plots.grad_vs_tsg(rows()), plots.direct_against_total(heads())):
        assert ax.get_xlim() == ax.get_ylim() and ax.get_aspect() == 1


def test_a_token_heat_map_has_one_scale_for_all_methods():
    ax = plots.token_heat(SCORES)
    scale = ax.figure.axes[1].get_ylim()
    assert scale == (-5, 5)
    weak, strong = (ax.patches[at].get_facecolor() for at in (16, 33))  # 5 of 5 under GIM, 1 of 5 under the gradient
    assert weak[:3] == pytest.approx(plots.BLUE, abs=0.01) and strong[0] > weak[0]
    words = [text.get_text() for text in ax.texts]
    assert words.count("Charlotte") == 2 and "+5.0" in words and "-3.0" in words
