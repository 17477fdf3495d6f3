"""Figures of made-up results: what is drawn must be what was given."""

import hashlib

import numpy
import pandas
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from scipy import stats

from gimkit import plots
from gimkit.circuits import Curve, NodeScores
from gimkit.errors import GimkitError
from gimkit.tokens import TokenScores

TOKENS = TokenScores(("<s>", "Mary", "and", "Mary", "cost", "$5", " ", "\n"),
                     torch.tensor([0.5, 2.0, -1.0, -3.0, 0.1, 0.2, -0.1, 0.3]), "Mary", "gim")


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def made_up(layers=3, heads=2, method="gim", n=6, seed=0):
    names = ["input"]
    for layer in range(layers):
        names += [f"a{layer}.h{head}" for head in range(heads)] + [f"m{layer}"]
    noise = torch.Generator().manual_seed(seed)
    return NodeScores("ioi", method, tuple(names), torch.randn(n, len(names), generator=noise))


def test_a_bar_per_token_with_its_height_and_colour():
    ax = plots.token_bars(TOKENS)
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(TOKENS.scores.tolist())
    for bar, score in zip(ax.patches, TOKENS.scores):
        assert bar.get_facecolor()[:3] == (plots.BLUE if score > 0 else plots.ORANGE)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["<s>", "Mary", "and", "Mary", "cost", r"\$5", "␣", "⏎"]  # two Marys are two bars
    assert "gim" in ax.get_title() and "Mary" in ax.get_title() and "logits" in ax.get_ylabel()


def test_dollar_signs_are_no_mathematics():
    odd = TokenScores(("$", "x_{", "$"), torch.ones(3), "$\\frac$", "own $rules$")
    plots.token_bars(odd).figure.canvas.draw()  # mathtext would refuse this


def test_long_prompts_stay_drawable():
    ax = plots.token_bars(TokenScores(("word",) * 300, torch.ones(300), "Mary", "gim"))
    assert len(ax.patches) == 300 and ax.figure.get_figwidth() <= 24


def test_the_grid_holds_every_node_in_its_place():
    scores = made_up(layers=3, heads=2)
    ax = plots.node_grid(scores)
    by_name = dict(zip(scores.nodes, scores.scores.tolist()))
    expected = numpy.array([[by_name[f"a{layer}.h0"], by_name[f"a{layer}.h1"], by_name[f"m{layer}"]]
                            for layer in range(3)])
    mesh = ax.collections[0]
    assert numpy.allclose(mesh.get_array(), expected)
    assert mesh.norm.vmin == -mesh.norm.vmax == -numpy.abs(expected).max()  # centred
    low, middle, high = (mesh.cmap(x) for x in (0.0, 0.5, 1.0))
    assert low[0] > low[2] and high[2] > high[0] and min(middle[:3]) > 0.9  # orange, near white, blue
    assert [text.get_text() for text in ax.texts] == [f"{x:.2f}" for x in expected.ravel()]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "MLP"]
    assert ax.get_ylim() == (0, 3)  # layer 0 at the bottom


@pytest.mark.parametrize("layers, heads, numbers", [(12, 11, True), (13, 4, False), (4, 12, False)])
def test_numbers_in_cells_up_to_twelve_by_twelve(layers, heads, numbers):
    assert bool(plots.node_grid(made_up(layers, heads)).texts) is numbers


def test_scatter_shows_both_scores_the_diagonal_and_rho():
    gim, exact = made_up(seed=0), made_up(method="exact", seed=1)
    ax = plots.method_scatter(gim, exact)
    drawn = numpy.concatenate([points.get_offsets() for points in ax.collections])
    expected = numpy.stack([exact.scores[1:], gim.scores[1:]], 1)  # without the embedding
    assert numpy.allclose(drawn[numpy.lexsort(drawn.T)], expected[numpy.lexsort(expected.T)])
    rho = stats.spearmanr(gim.scores[1:], exact.scores[1:]).statistic
    assert f"ρ = {rho:.2f} [" in ax.get_title()
    diagonal = ax.lines[0]
    assert diagonal.get_xy1() == (0, 0) and diagonal.get_slope() == 1 and diagonal.get_linestyle() == "--"
    assert ax.get_xlabel() == "exact patching (logits)" and ax.get_ylabel() == "gim (logits)"


def test_scatter_names_the_most_important_nodes_without_overlap():
    gim, exact = made_up(8, 8, seed=0), made_up(8, 8, "exact", seed=1)
    ax = plots.method_scatter(gim, exact)
    order = exact.scores[1:].abs().argsort(descending=True)[:8].tolist()
    names = [text.get_text() for text in ax.texts]
    assert len(names) >= 4 and set(names) <= {exact.nodes[1 + i] for i in order}
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_scatter_refuses_other_nodes():
    with pytest.raises(GimkitError, match="different nodes"):
        plots.method_scatter(made_up(3, 2), made_up(4, 2))


def curve(method="gim", absolute=False, kept=(0.0, 0.5, 1.25)):
    """A made-up curve over three sizes, of prompts whose metric is -2 without edges and 2 with all of them."""
    metric = torch.tensor(kept)[:, None] * 4 - 2
    return Curve("ioi", method, absolute, False, (0.01, 0.1, 1.0), (3, 30, 300), metric.expand(-1, 4),
                 torch.full((4,), -2.0), torch.full((4,), 2.0))


def test_a_curve_per_ranking_and_a_colour_per_method():
    curves = [curve(), curve(absolute=True, kept=(0.0, 0.25, 1.0)), curve("random", kept=(0.0, 0.0, 1.0))]
    ax = plots.faithfulness_curves(curves)
    drawn = ax.lines[:3]
    assert [line.get_label() for line in drawn] == [given.label for given in curves]
    for line, given in zip(drawn, curves):
        assert line.get_xdata() == pytest.approx(given.shares)
        assert line.get_ydata() == pytest.approx(given.faithfulness)
    assert [line.get_linestyle() for line in drawn] == ["-", "--", "-"]
    assert drawn[0].get_color() == drawn[1].get_color() != drawn[2].get_color()
    assert ax.get_xscale() == "log" and [line.get_ydata()[0] for line in ax.lines[3:]] == [0, 1]


def test_rule_changes_in_the_order_given():
    ax = plots.rule_changes(pandas.DataFrame({"rules": ["norm", "gate", "norm + gate"], "change": [0.25, 0.5, 0.125]}))
    assert [bar.get_width() for bar in ax.patches] == [0.25, 0.5, 0.125]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["norm", "gate", "norm + gate"]
    assert [text.get_text() for text in ax.texts] == ["0.250", "0.500", "0.125"]
    assert ax.yaxis_inverted()


def effect(effects, by, lowered, share=1.0):
    return effects.query("by == @by and lowered == @lowered and share == @share")["effect"].item()


def test_saturation_of_the_toy_row():
    effects = plots.saturation_effects()
    # by hand: a = (6, 6, 0, 0, 0) has the mean 2.4, c = (10, 10, 0, 0, 0)
    e6, e24 = numpy.exp(6), numpy.exp(2.4)
    whole = 20 * e6 / (2 * e6 + 3)
    assert effect(effects, "truth", "first") == pytest.approx(whole - 10 * (e6 + e24) / (e6 + e24 + 3))
    assert effect(effects, "truth", "both") == pytest.approx(whole - 20 * e24 / (2 * e24 + 3))
    assert effect(effects, "sum of single", "both") == pytest.approx(0.0696, abs=1e-4)
    assert effect(effects, "truth", "both") == pytest.approx(1.1607, abs=1e-4)


@pytest.mark.parametrize("scores, t", [((6, 6, 0, 0, 0), 2.0), ((6, 1, 0, 0, 0), 2.0), ((2, 4, 1, 0, -1), 3.0)])
def test_saturation_gradients_against_autograd(scores, t):
    values = torch.tensor([10.0, 10, 0, 0, 0], dtype=torch.double)
    effects = plots.saturation_effects(scores, values, temperature=t)
    for by, temperature in (("gradient", 1.0), (f"gradient, T = {t:g}", t)):
        a = torch.tensor(scores, dtype=torch.double, requires_grad=True)
        output = torch.softmax(a / temperature, 0) @ values * temperature  # times T: the rule has no further 1/T
        gradient, = torch.autograd.grad(output, a)
        change = (gradient * (a - a.mean())).detach()
        for lowered, which in (("first", [0]), ("second", [1]), ("both", [0, 1])):
            assert effect(effects, by, lowered) == pytest.approx(change[which].sum().item())
            assert effect(effects, by, lowered, share=0.5) == pytest.approx(change[which].sum().item() / 2)


def test_the_plain_gradient_is_the_truths_tangent_and_the_tempered_one_is_not():
    effects = plots.saturation_effects()
    step = effects["share"][1]
    truth, plain, tempered = (effect(effects, by, "both", step) for by in ("truth", "gradient", "gradient, T = 2"))
    assert truth == pytest.approx(plain, rel=0.1) and tempered > 10 * truth


def test_saturation_draws_its_table():
    effects = plots.saturation_effects()
    left, right = plots.saturation(effects)
    curves = {line.get_label(): line.get_ydata() for line in left.lines}
    both = effects.query("by == 'truth' and lowered == 'both'")["effect"]
    assert numpy.allclose(curves["truth: both lowered"], both)
    assert [bar.get_width() for bar in right.patches] == pytest.approx(
        [0.0348, 0.0348, 0.0696, 1.1607, 0.1329, 2.3278], abs=1e-4)
    assert "logits" in left.get_ylabel() and "logits" in right.get_xlabel()


@pytest.mark.parametrize("scores, values", [((1,), (1,)), ((1, 2), (1, 2, 3))])
def test_saturation_refuses_rows_that_do_not_fit(scores, values):
    with pytest.raises(GimkitError, match="equal length"):
        plots.saturation_effects(scores, values)


@pytest.mark.parametrize("draw", [
    lambda ax: plots.token_bars(TOKENS, ax=ax),
    lambda ax: plots.node_grid(made_up(), ax=ax),
    lambda ax: plots.method_scatter(made_up(), made_up(method="exact", seed=1), ax=ax),
    lambda ax: plots.faithfulness_curves([curve()], ax=ax),
    lambda ax: plots.rule_changes(pandas.DataFrame({"rules": ["norm"], "change": [0.5]}), ax=ax),
])
def test_given_axes_are_used_and_nothing_is_printed(draw, capsys):
    ax = Figure().subplots()
    assert draw(ax) is ax
    assert pyplot.get_fignums() == [] and capsys.readouterr() == ("", "")


def test_save_writes_picture_numbers_and_caption_with_equal_bytes_on_rerun(tmp_path):
    def write(folder):
        left, _ = plots.saturation(plots.saturation_effects())
        png = plots.save(left.figure, folder / "toy-v1.0", plots.saturation_effects(), "Two scores, one output.")
        assert png == folder / "toy-v1.0.png"
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    first, second = write(tmp_path / "new" / "a"), write(tmp_path / "b")
    assert sorted(first) == ["CAPTIONS.md", *(f"toy-v1.0.{ending}" for ending in ("csv", "png", "svg"))]
    assert first == second
    assert "- **Shows:** Two scores, one output.\n" in (tmp_path / "b" / "CAPTIONS.md").read_text()
    table = pandas.read_csv(tmp_path / "b" / "data" / "toy-v1.0.csv")
    assert numpy.allclose(table["effect"], plots.saturation_effects()["effect"], rtol=1e-5)
