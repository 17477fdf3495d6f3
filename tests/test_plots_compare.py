"""Figures of methods compared, from made-up numbers: what is drawn must be what was given."""

import pandas
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from figures.comparison import faithfulness_by_edges


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def made_up(tasks=("ioi", "capital"), methods=("EAP", "GIM")):
    """Two seeds .2 apart; no edge at all comes first."""
    rows = [(task, method, size, value + 0.1 * i + shift) for task in tasks for i, method in enumerate(methods)
            for size, value in ((0, 0.0), (1, 0.1), (10, 0.5), (100, 1.0)) for shift in (-0.1, 0.1)]
    return pandas.DataFrame(rows, columns=["task", "method", "requested", "faithfulness"])


def test_lines_are_means_over_seeds_and_bands_reach_the_ends():
    axes = faithfulness_by_edges(made_up())
    assert [ax.get_title() for ax in axes] == ["ioi", "capital"]
    for ax in axes:
        assert ax.get_xscale() == "log" and (ax.get_xlabel(), ax.get_ylabel()) == ("edges asked for", "faithfulness")
        reference, *lines = ax.lines
        assert list(reference.get_ydata()) == [1, 1]
        for line in lines[:2]:
            assert list(line.get_xdata()) == pytest.approx([1, 10, 100])  # nothing at no edges
        assert list(lines[0].get_ydata()) == pytest.approx([0.1, 0.5, 1.0])
        assert list(lines[1].get_ydata()) == pytest.approx([0.2, 0.6, 1.1])
        heights = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert heights.min() == pytest.approx(0.0) and heights.max() == pytest.approx(1.1)


def test_methods_differ_in_colour_and_marker_and_are_named_once():
    axes = faithfulness_by_edges(made_up(methods=("EAP", "EAP-IG", "EAP-GP", "GIM")))
    lines = axes[0].lines[1:5]
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 4
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["EAP", "EAP-IG", "EAP-GP", "GIM"]
    assert axes[1].get_legend() is None
    for ax in axes:  # a method keeps its colour, also where another is missing
        assert [line.get_color() for line in ax.lines[1:5]] == [line.get_color() for line in lines]


def test_a_missing_method_changes_no_colour():
    curves = made_up(methods=("EAP", "EAP-IG", "GIM"))
    curves = curves[(curves.task == "ioi") | (curves.method != "EAP-IG")]
    first, second = faithfulness_by_edges(curves)
    assert second.lines[2].get_color() == first.lines[3].get_color()


def test_six_panels_and_given_axes():
    six = faithfulness_by_edges(made_up(tasks=("a", "b", "c", "d", "e", "$f$")))
    assert len({round(ax.get_position().y0, 2) for ax in six}) == 2 and len(six) == len(six[0].figure.axes) == 6
    six[0].figure.canvas.draw()  # a task's name is no mathematics
    five = faithfulness_by_edges(made_up(tasks=("a", "b", "c", "d", "e")))
    assert len(five) == 5 and not five[0].figure.axes[5].axison
    pyplot.close("all")
    own = list(Figure().subplots(1, 2))
    assert faithfulness_by_edges(made_up(), own) == own and pyplot.get_fignums() == []
