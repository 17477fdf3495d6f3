"""Figures of made-up self-repair: what is drawn must be what was given."""

import numpy
import pandas
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from gimkit import plots
from gimkit.selfrepair import HeadRepair, SelfRepair
from gimkit.selfrepair.attention import NUMBERS, PLACES, tidy


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def rows(n=40, name="ioi"):
    noise = torch.rand(n, len(PLACES) + len(NUMBERS), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise[:, :len(PLACES)] = torch.arange(n)[:, None].double()
    return SelfRepair(name, 1.0, tidy(noise), 7, 0.25)


def heads(n=6):
    noise = torch.Generator().manual_seed(0)
    parts = ("a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "final norm", "rest")
    return HeadRepair("ioi", ("a0.h0", "a0.h1", "a1.h0", "a1.h1"), torch.randn(n, 4, 4, generator=noise), parts,
                      torch.randn(n, 4, len(parts), generator=noise))



@pytest.mark.parametrize("draw, x, y", [
    (plots.ablation_effect, lambda f: f.d1 + f.d2, "d12"),
    (plots.grad_vs_tsg, lambda f: f.gradient, "tsg"),
])
def test_a_dot_per_row_and_the_top_in_the_second_colour(draw, x, y):
    repair = rows()
    ax, frame = draw(repair), repair.frame()
    below, above = ax.collections
    for dots, which in ((below, ~frame.flagged), (above, frame.flagged)):
        part = frame[which]
        assert numpy.allclose(dots.get_offsets(), numpy.stack([x(part), part[y]], 1))
    assert len(above.get_offsets()) == 2 and above.get_facecolor()[0][:3] == pytest.approx(plots.ORANGE)
    diagonal = ax.lines[0]
    assert diagonal.get_xy1() == (0, 0) and diagonal.get_slope() == 1 and diagonal.get_linestyle() == "--"
    assert "40 attention rows on ioi" in ax.get_title() and f"{repair.q95:.2f}" in ax.get_legend().texts[1].get_text()


def test_no_rows_are_said_in_the_figure():
    empty = SelfRepair("ioi", 3.0, tidy(torch.zeros(0, len(PLACES) + len(NUMBERS), dtype=torch.float64)), 7, 0.25)
    for ax in empty.plot():
        assert "no row has two contributions above 3" in ax.texts[0].get_text()


def test_names_with_dollars_are_drawn():
    for ax in rows(name="$x_{").plot():
        ax.figure.canvas.draw()


def test_direct_against_total():
    repair = heads()
    ax, frame = plots.direct_against_total(repair), repair.frame()
    dots = ax.containers[0].lines[0]
    assert numpy.allclose(dots.get_xdata(), frame.direct) and numpy.allclose(dots.get_ydata(), frame.total)
    rings = next(c for c in ax.collections if c.get_label() == "final norm frozen")
    assert numpy.allclose(rings.get_offsets(), frame[["direct", "total_frozen"]])
    assert {text.get_text() for text in ax.texts} <= set(repair.heads)
    assert frame.repaired.to_numpy() == pytest.approx((frame.direct - frame.total).to_numpy())


def test_answers_largest_first_and_none_lost():
    repair = heads()
    answers = repair.compensation_frame().query("ablated == 'a0.h1'")
    assert set(answers.part) == {"m0", "a1.h0", "a1.h1", "m1", "final norm", "rest"}
    ax = plots.head_compensation(repair, "a0.h1", most=3)
    widths = [bar.get_width() for bar in ax.patches]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[3] == "3 others" and sum(widths) == pytest.approx(answers.compensation.sum())
    by_size = answers.set_index("part").compensation[lambda s: s.abs().sort_values(ascending=False).index]
    assert labels[:3] == list(by_size.index[:3]) and widths[:3] == pytest.approx(by_size[:3].tolist())


@pytest.mark.parametrize("draw", [
    lambda ax: plots.ablation_effect(rows(), ax=ax), lambda ax: plots.grad_vs_tsg(rows(), ax=ax),
    lambda ax: heads().plot(ax=ax), lambda ax: plots.head_compensation(heads(), "a0.h0", ax=ax)])
def test_given_axes_are_used_and_nothing_is_printed(draw, capsys):
    ax = Figure().subplots()
    assert draw(ax) is ax
    assert pyplot.get_fignums() == [] and capsys.readouterr() == ("", "")


def test_saved_figures_hold_the_numbers(tmp_path):
    repair = rows()
    plots.save(repair.plot()[0].figure, tmp_path / "repair", repair.frame(), "Dots above a diagonal.")
    assert len(pandas.read_csv(tmp_path / "data" / "repair.csv")) == 40
