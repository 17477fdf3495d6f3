"""Faithfulness, CPR, CMD and AUROC against numbers worked out by hand."""

import numpy
import pytest
import torch
from made_up import random_task
from nnsight import NNsight
from tiny import build

import gimkit
from gimkit.circuits import Circuit, Curve, EdgeScores, Graph, auroc, precision_recall
from gimkit.circuits.faithfulness import SIZES
from gimkit.statistics import bootstrap

GRAPH = Graph(layers=2, heads=2, parallel=False, width=8)


def made_up(seed=0):
    scores = torch.randn(GRAPH.real.shape, generator=torch.Generator().manual_seed(seed)) * GRAPH.real
    return EdgeScores("made up", "gim", GRAPH, scores)


def curve(values, shares=SIZES):
    """A curve whose faithfulness is given: empty 1, full 3."""
    per_example = 1 + 2 * torch.tensor(values)[:, None].repeat(1, 4)
    return Curve("t", "m", False, False, tuple(shares), (0,) * len(values), per_example, torch.full((4,), 1.0),
                 torch.full((4,), 3.0))


def test_a_perfect_circuit_has_cpr_999_and_cmd_0():
    perfect = curve([1.0] * 10)
    assert perfect.cpr().value == pytest.approx(0.999) and perfect.cmd().value == pytest.approx(0)
    assert perfect.cpr(log=True).value == pytest.approx(1)


def test_areas_by_hand():
    line = curve([0.0, 0.5, 1.5], shares=(0.1, 0.4, 1.0))
    assert line.faithfulness == pytest.approx([0, 0.5, 1.5])
    assert line.cpr().value == pytest.approx(0.3 * 0.25 + 0.6 * 1.0)
    assert line.cmd().value == pytest.approx(0.3 * 0.75 + 0.6 * 0.5)
    middle = numpy.log10(4)
    assert line.cpr(log=True).value == pytest.approx(middle * 0.25 + (1 - middle) * 1.0)


def test_the_interval_is_over_examples():
    noisy = curve([0.0, 1.0], shares=(0.1, 1.0))
    noisy.per_example[0] = torch.tensor([0.0, 1.0, 2.0, 5.0])
    interval = noisy.cpr(seed=1)
    assert interval.low < interval.value < interval.high
    assert interval == noisy.cpr(seed=1)


def test_the_interval_of_one_two_and_three_examples():
    """Of two, a resample holds the one, both or the other: 95% of the means reach from one to the other."""
    def interval(values):
        return tuple(bootstrap(lambda index: numpy.array(values)[index].mean(), len(values)))

    assert interval([2.0]) == (2.0, 2.0, 2.0)
    assert interval([1.0, 3.0]) == (2.0, 1.0, 3.0)
    value, low, high = interval([1.0, 2.0, 6.0])
    assert value == 3.0 and 1.0 <= low < 2.0 and 4.0 < high <= 6.0


def test_faithfulness_ends_at_one_and_names_its_ranking():
    model, task = NNsight(build("gpt2")), random_task()
    task = _solved(model, task)
    edges = gimkit.score_edges(model, task, "gim")
    signed = gimkit.faithfulness(model, task, edges, absolute=False, sizes=(0.0, 0.1, 1.0))
    assert signed.faithfulness[[0, 2]] == pytest.approx([0, 1], abs=1e-5)
    assert signed.label == "gim, signed, logit" and signed.edges[0] == 0 and signed.edges[2] == edges.graph.n_edges
    grown = gimkit.faithfulness(model, task, edges, absolute=True, sizes=(0.1,), greedy=True)
    assert grown.label == "gim, absolute, greedy, logit" and list(grown.frame().ranking) == ["absolute, greedy"]


def _graph(model):
    return gimkit.score_edges(model, random_task(), "random").graph


def _solved(model, task):
    """The same task with answers that the clean prompt prefers."""
    edges = _graph(model)
    full = gimkit.run(model, task, Circuit(edges, edges.real))
    empty = gimkit.run(model, task, Circuit(edges, torch.zeros_like(edges.real)))
    keep = (full > empty).nonzero()[:, 0].tolist()
    assert keep
    return gimkit.tasks.Task(task.name, task.clean[keep], task.corrupt[keep], task.mask[keep],
                             tuple(task.good[i] for i in keep), tuple(task.bad[i] for i in keep),
                             tuple(task.pairs[i] for i in keep))


def test_an_unsolved_task_is_not_divided_by():
    model, task = NNsight(build("gpt2")), random_task()
    solved = _solved(model, task)
    swapped = gimkit.tasks.Task("swapped", solved.corrupt, solved.clean, solved.mask, solved.good, solved.bad,
                                solved.pairs)
    with pytest.raises(gimkit.GimkitError, match="does not beat the corrupt"):
        gimkit.faithfulness(model, swapped, gimkit.score_edges(model, swapped, "random"), absolute=True)
    with pytest.raises(gimkit.GimkitError, match="score this model"):
        gimkit.faithfulness(model, solved, made_up(), absolute=True)
    nan = gimkit.score_edges(model, solved, "random")
    nan.scores[0, 0] = torch.nan
    with pytest.raises(gimkit.GimkitError, match="the scores contain NaN"):
        gimkit.faithfulness(model, solved, nan, absolute=True)
    with pytest.raises(gimkit.GimkitError, match="increasing shares"):
        gimkit.faithfulness(model, solved, gimkit.score_edges(model, solved, "random"), absolute=True, sizes=(0.5, 0.1))


@pytest.mark.filterwarnings("ignore:the model gets")
def test_the_best_cut_is_the_nearest_of_five_made_by_hand():
    model, task = NNsight(build("gpt2", torch.float64)), random_task()
    chosen = set()
    for seed in range(4):
        edges = gimkit.score_edges(model, task, "random", seed=seed)
        names = {name: float(edges.scores[place]) for name, place in edges.graph.edges.items()}
        whole = gimkit.run(model, task, Circuit(edges.graph, edges.graph.real)).mean()
        found = []
        for tilt in (1, 0.5, 0.25, 0.1, 0):
            rank = {name: -tilt * x if x < 0 and tilt else x for name, x in names.items()}
            best = sorted(names, key=rank.get, reverse=True)[:150]
            kept = Circuit.of(edges.graph, best)
            found.append((abs(float(gimkit.run(model, task, kept).mean() - whole)), tilt, set(best)))
        _, tilt, best = min(found)
        cut = gimkit.circuits.best_cut(model, task, edges, 150)
        assert set(cut.edges) <= best and abs(float(gimkit.run(model, task, cut).mean() - whole)) == pytest.approx(
            min(found)[0], abs=1e-6)
        chosen.add(tilt)
    assert len(chosen) > 1  # no way is the best for all


def test_a_best_cut_of_what_has_no_edges_is_refused():
    model, task = NNsight(build("gpt2")), random_task()
    with pytest.raises(gimkit.GimkitError, match="result of gimkit.score_edges"):
        gimkit.circuits.best_cut(model, task, gimkit.score_nodes(model, task), 5)
    with pytest.raises(gimkit.GimkitError, match="score this model"):
        gimkit.circuits.best_cut(model, task, made_up(), 5)
    with pytest.raises(gimkit.GimkitError, match="edges"):
        gimkit.circuits.best_cut(model, task, gimkit.score_edges(model, task, "random"), 10**6)


def test_auroc_and_precision_by_counting_pairs():
    edges = made_up()
    known = edges.top(12)
    value, hit = edges.scores[GRAPH.real], known.keep[GRAPH.real]
    pairs = [(a > b).float() + 0.5 * (a == b) for a in value[hit] for b in value[~hit]]
    assert auroc(edges, known, absolute=False) == pytest.approx(torch.stack(pairs).mean().item())
    perfect = EdgeScores("t", "m", GRAPH, known.keep.float())
    reversed_ = EdgeScores("t", "m", GRAPH, -known.keep.float())
    assert auroc(perfect, known) == 1 and auroc(reversed_, known, absolute=False) == 0
    table = precision_recall(perfect, known)
    assert table.iloc[len(known) - 1][["precision", "recall"]].tolist() == [1, 1]
    assert table.iloc[-1].precision == pytest.approx(len(known) / GRAPH.n_edges)
    with pytest.raises(gimkit.GimkitError, match="some but not all"):
        auroc(edges, Circuit(GRAPH, GRAPH.real))
