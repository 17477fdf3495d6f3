"""L3D's figures, widget and exercises: what is drawn is what was given; wrong answers hear why."""

import numpy
import pandas
import pytest
from matplotlib import pyplot
from test_l3d_toys import orthogonal

from figures import FIGURES, draw, parts
from figures import l3d as figures
from gimkit import l3d, plots
from gimkit.l3d import interventions, toys
from gimkit.notebook import widgets


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def found():
    toy = orthogonal(5)
    return toy, l3d.decompose(toy.module, toy.inputs(100), n=3, epochs=2, progress=False)


def test_what_a_subnetwork_reads_is_the_norm_of_its_rows(found):
    _, found = found
    table = plots.reads(found, "W_in")
    for which in range(3):
        rows = found.subnetwork(which)["W_in"].norm(dim=1)
        assert table[which] == pytest.approx((rows / rows.max()).numpy())
    ax = plots.reading_grid(table, ["a", "b", "c"], "title")
    image = numpy.asarray(ax.collections[0].get_array())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["abc"[i] for i in numpy.argsort(
        table.argmax(1), kind="stable")]
    assert image.argmax(1).tolist() == sorted(table.argmax(1))


def test_lines_and_dots_are_at_their_numbers():
    deltas, change = numpy.array([-1.0, 0.0, 1.0]), numpy.array([[1, 2], [0, 0], [3, 4.0]])
    ax = plots.sweep_lines(deltas, change, own=1, control=change / 2)
    assert {line.get_label() for line in ax.lines} >= {"output 1", "random direction"}
    own = next(line for line in ax.lines if line.get_label() == "output 1")
    assert own.get_ydata() == pytest.approx([2, 0, 4])
    relevant = numpy.array([True, False, True])
    ax = plots.change_scatter(deltas, change[:, 0], relevant)
    assert [len(dots.get_offsets()) for dots in ax.collections] == [1, 2]
    table = pandas.DataFrame({"kind": ["ioi", "capital"], "auroc": [0.9, 0.8], "untrained_auroc": [0.7, 0.6],
                              "shuffled_auroc": [0.5, 0.5]})
    dots = plots.selection_dots(table).collections[-1].get_offsets()
    assert dots[:, 0].tolist() == pytest.approx([0.9, 0.8])
    frame = pandas.DataFrame({"group": ["a", "a", "b"], "seed": [0, 1, 0], "error": [0.1, 0.3, 0.5]})
    ax = plots.error_bars(frame, {"a": 0.19})
    places = [list(line.get_xdata()) for line in ax.lines]
    assert any(place == pytest.approx([0.2]) for place in places) and [0.19, 0.19] in places
    ax = plots.coefficient_scatter(change, change, 0.5)
    assert "0.50" in ax.get_title() and len(ax.collections[0].get_offsets()) == change.size
    ax = plots.encoder_plane(change, change)
    assert len(ax.lines) == 6
    shares = pandas.Series({"a0.h0": 0.2, "a0.h1": 0.5, "a1.h0": 0.3})
    figure = plots.beside_gim(shares, shares * 2, [0.1, 0.9], 1, "ioi")
    assert "0.90" in figure.axes[0].get_title()


def test_the_explorer_moves_along_the_chosen_subnetwork(found, monkeypatch):
    toy, found = found
    shown, x = [], toy.inputs(60, seed=1)
    monkeypatch.setattr(widgets, "display", shown.append)
    explorer = widgets.subnetwork_explorer(found, toy.module, x)
    sliders = {control.description: control for control in explorer.children[0].children}
    assert all(not slider.continuous_update for slider in sliders.values()) and sliders["subnetwork"].max == 2
    sliders["subnetwork"].value, sliders["delta"].value = 2, -1.5
    left, right = shown[-1].axes
    assert "subnetwork 2" in left.get_title() and "-1.5" in right.get_title()
    far = interventions.change(toy.module, found.subnetwork(2), -1.5, x)
    drawn = sorted(float(y) for dots in right.collections for y in numpy.asarray(dots.get_offsets())[:, 1])
    assert drawn == pytest.approx(sorted(far.tolist()), abs=1e-5)
    assert len(shown) == 3


def test_a_toy_figure_draws_the_kept_run_and_a_rerun_gives_equal_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(toys, "train", lambda *given, train=toys.train, **more: train(*given, **more | {
        "epochs": 1, "n": 100, "tries": 1}))
    run = figures.runs.run
    monkeypatch.setattr(figures.runs, "activity", lambda *given: l3d.activity(*given, references=1))
    monkeypatch.setitem(figures.runs.VARIANTS, "superposed", {"paper": {}})
    monkeypatch.setitem(figures.runs.CODE, "epochs", 1)
    monkeypatch.setattr(figures.runs, "run", lambda name, **more: run(name, seeds=2, epochs=1, progress=False, **more))
    draw(["l3d-coefficients"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir() if path.is_file()}
    table = pandas.read_csv("figures/data/l3d-coefficients.csv").query("divergence == 'the text'")
    assert len(before) == 3 and numpy.corrcoef(table.true, table.guessed)[0, 1] ** 2 == pytest.approx(float(
        (tmp_path / "figures/CAPTIONS.md").read_text().split("r^2 is ")[1][:4]), abs=0.01)
    monkeypatch.setattr(toys, "train", None)  # everything is kept
    draw(["l3d-coefficients"])
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir() if path.is_file()}


def test_the_figure_beside_gim_takes_the_subnetwork_that_was_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = figures.language.attention_run

    def small(model, blocks, **_):
        return run(model, blocks, prompts=3, names=("ioi", "capital"), epochs=1, n=4, progress=False)

    monkeypatch.setattr(figures.language, "attention_run", small)
    figure, frame, alt = figures.beside_gim(parts.Request("mini-gpt2", n=2))
    chosen = frame.index[frame.kind.fillna("").str.contains("ioi")][0]
    dots = numpy.concatenate([dots.get_offsets()[:, 1] for dots in figure.axes[0].collections])
    assert dots.tolist() == pytest.approx(frame.loc[chosen, [f"a3.h{h}" for h in range(4)]].tolist())
    assert f"{frame.rho[chosen]:.2f}" in alt and "l3d-beside-gim" in FIGURES
