"""Learned rankings against their start, each way against its formula."""

from dataclasses import replace

import numpy
import pandas
import pytest
import torch
from made_up import random_task
from nnsight import NNsight
from scipy.stats import rankdata
from tiny import build

import gimkit
from benchmarks.compare import _Draw
from benchmarks.rankings import (
    HALVES,
    ONE_PASS,
    Circuits,
    Scored,
    best_method,
    best_tilt,
    cut_all,
    fitting,
    halves,
    learned_nodes,
    main,
    measure,
    over_tasks,
    rank_mean,
    ranked,
    refined,
    rescored,
    resized,
    stable,
    swapped,
    undone,
)
from gimkit.circuits import Circuit
from gimkit.circuits.faithfulness import SIZES, tilted
from gimkit.circuits.learned import Setting, learned
from gimkit.cli import TASKS
from gimkit.model.graph import Graph


def distance(soft, scores):
    """The mean of |1 - faithfulness| over circuits of eight sizes, on the task's own pairs."""
    circuits = [Circuit(soft.graph, gimkit.model.graph.top_edges(scores.scores, soft.graph, n, True))
                for n in range(20, soft.graph.n_edges, soft.graph.n_edges // 8)]
    values = gimkit.run(soft.model, soft.task, circuits).mean(1)
    empty, whole = soft.empty.mean(), soft.whole.mean()
    return float((1 - (values - empty) / (whole - empty)).abs().mean())


@pytest.fixture(scope="module")
def tiny():
    model, task = NNsight(build("llama")), random_task(6)
    return Scored(model, task, 0)


def test_learning_reaches_at_least_the_faithfulness_of_its_start(tiny):
    start = tiny.scores("gim")
    found = tiny.made("learned", learned(tiny.soft, start.scores, Setting(60, 0.1, 2, 0.0)))
    assert distance(tiny.soft, found) <= distance(tiny.soft, start)
    assert distance(tiny.soft, found) < distance(tiny.soft, tiny.scores("random"))
    again = learned(tiny.soft, start.scores, Setting(3, 0.1, 2))
    assert torch.equal(again, learned(tiny.soft, start.scores, Setting(3, 0.1, 2)))
    assert (again[tiny.graph.real] > 0).all() and not again[~tiny.graph.real].any()


def test_learned_nodes_reach_at_least_the_faithfulness_of_random_ones_and_keep_the_embedding(tiny):
    def distance_of(scores):
        kept = tiny.run(ranked(scores).absolute)
        return numpy.trapezoid(abs(1 - kept), SIZES)

    found = learned_nodes(tiny.soft, None, Setting(40, 0.1, 2))
    assert distance_of(found) < distance_of(tiny.nodes("random"))
    assert found.scores.argmax() == 0 and (found.scores > 0).all()
    circuits = ranked(found)
    best = found.scores.argsort(descending=True)[:1 + int(0.5 * (len(found.nodes) - 1))]
    wanted = Circuit.between(tiny.graph, [found.nodes[i] for i in best.tolist()])
    assert (circuits.absolute[SIZES.index(0.5)] <= wanted.keep).all() and torch.equal(*circuits)
    tiny.restart()
    tiny.nodes("exact"), tiny.nodes("nap-ig")
    assert (tiny.forward, tiny.backward) == (len(found.nodes) - 1 + 5, 5)


def test_the_runs_that_are_known_are_not_counted(tiny):
    tiny.restart()
    half = cut_all(tiny.scores("random"), True)[SIZES.index(0.5)]
    ends = torch.stack([torch.zeros_like(tiny.graph.real), tiny.graph.real, half])
    tiny.restart()
    assert tiny.run(ends)[:2] == pytest.approx([0, 1], abs=1e-5) and tiny.forward == 1


def test_rank_means_and_exact_scores_by_their_formulas(tiny):
    real = tiny.graph.real
    gim, relp = (tiny.scores(method).scores[real].double().numpy() for method in ("gim", "relp"))
    sign = numpy.sign(gim / numpy.linalg.norm(gim) + relp / numpy.linalg.norm(relp))
    wanted = sign * (rankdata(abs(gim)) + rankdata(abs(relp))) / 2
    assert rank_mean(tiny, ("gim", "relp")).scores[real].numpy() == pytest.approx(wanted)
    exact = gimkit.score_edges(tiny.model, tiny.task, "exact").scores[real].double().numpy()
    count = int(0.05 * len(gim))
    best = numpy.argsort(-abs(gim), kind="stable")[:count]
    wanted = gim.copy()
    wanted[best] = exact[best]
    tiny.restart()
    assert rescored(tiny, "gim").scores[real].numpy() == pytest.approx(wanted, abs=1e-6)
    assert (tiny.forward, tiny.backward) == (1 + count, 1)


@pytest.mark.filterwarnings("ignore:the model gets")
@pytest.mark.parametrize("name, mlp", [("llama", 2), ("gpt2", 1)])
def test_the_targets_own_split_is_undone_where_it_has_one(name, mlp):
    scored = Scored(NNsight(build(name)), random_task(3), 0)
    gim = scored.scores("gim")
    ratio = dict(zip(gim.targets, (undone(scored, "gim").scores.sum(0) / gim.scores.sum(0)).tolist()))
    assert ratio["a1.h2<q>"] == pytest.approx(4) and ratio["a1.h2<v>"] == pytest.approx(2)
    assert ratio["m1"] == pytest.approx(mlp) and ratio["logits"] == pytest.approx(1)


def test_sizes_are_the_other_methods_in_each_group_and_order_stays(tiny):
    gim, exact = tiny.scores("gim"), tiny.scores("exact")
    found = resized(tiny, "gim", "exact", "layer").scores
    rows = [i for i, source in enumerate(gim.sources) if source[1:].split(".")[0] == "1"]
    assert found[rows].abs().sum().item() == pytest.approx(exact.scores[rows].abs().sum().item(), rel=1e-4)
    assert torch.allclose(found[rows] / found[rows].abs().sum(), gim.scores[rows] / gim.scores[rows].abs().sum())
    found = resized(tiny, "gim", "exact", "kind").scores
    columns = [j for j, target in enumerate(gim.targets) if target.endswith("<k>")]
    assert found[:, columns].abs().sum().item() == pytest.approx(exact.scores[:, columns].abs().sum().item(), rel=1e-4)


def test_stable_edges_come_first_in_their_order(tiny):
    each = torch.stack([gimkit.score_edges(tiny.model, tiny.task[i:i + 1], "gim").scores for i in range(6)])
    found = stable(tiny, "gim").scores
    one_sign = ((each > 0).all(0) | (each < 0).all(0)) & tiny.graph.real
    assert torch.allclose(found[one_sign], each.mean(0)[one_sign], atol=1e-6)
    split = tiny.graph.real & ~one_sign & (each.mean(0).abs() < 0.1 * each.std(0))
    assert split.any() and torch.allclose(found[split], 1e-3 * each.mean(0)[split], atol=1e-6)


def test_a_tilt_goes_from_absolute_to_signed(tiny):
    scores = tiny.scores("gim")
    whole, none, half = (replace(scores, scores=tilted(scores.scores, tilt)) for tilt in (1.0, 0.0, 0.5))
    assert torch.equal(cut_all(whole, False), cut_all(scores, True))
    assert torch.equal(cut_all(none, False), cut_all(scores, False))
    assert torch.equal(half.scores[scores.scores < 0], -0.5 * scores.scores[scores.scores < 0])


def test_the_best_cut_of_one_size_is_the_benchmarks_best_tilt(tiny):
    for share in (0.05, 0.2, 0.5):
        n = int(share * tiny.graph.n_edges)
        found = gimkit.circuits.best_cut(tiny.model, tiny.task, tiny.scores("gim"), n)
        assert torch.equal(found.keep, best_tilt(tiny, ("gim",)).absolute[SIZES.index(share)])


def test_the_fitting_circuit_of_each_size_is_the_best_of_its_candidates(tiny):
    candidates = [cut_all(tiny.scores(method), True) for method in ("gim", "random")]
    found = fitting(tiny, candidates)
    kept = numpy.stack([tiny.run(masks) for masks in (*candidates, *found)])
    assert abs(1 - kept[2]) == pytest.approx(abs(1 - kept[:2]).min(0)) and kept[3] == pytest.approx(kept[:2].max(0))
    assert (abs(1 - tiny.run(best_method(tiny, ("gim",)).absolute)) <= abs(1 - kept[0]) + 1e-6).all()
    start = Circuits(candidates[0], candidates[0])
    assert (abs(1 - tiny.run(refined(tiny, start).absolute)) <= abs(1 - kept[0]) + 1e-6).all()


def test_edges_are_exchanged_until_the_line_reaches_the_whole_model():
    graph = Graph(layers=1, heads=1, parallel=False, width=8)
    keep, gradient = torch.zeros_like(graph.real), torch.zeros(graph.real.shape)
    inside, outside = graph.real.nonzero()[:4], graph.real.nonzero()[4:]
    keep[tuple(inside.T)] = True
    gradient[tuple(inside.T)] = torch.arange(4.0)
    gradient[tuple(outside.T)] = torch.arange(10.0, 10 + len(outside))
    best, worst = tuple(outside[-1].tolist()), tuple(inside[0].tolist())
    found = swapped(keep, graph, 0.5, gradient)  # one exchange gains more than is missing
    assert torch.equal(found, keep)
    found = swapped(keep, graph, -20.0, gradient)
    assert found[best] and not found[worst] and found.sum() == keep.sum()
    assert torch.equal(swapped(keep, graph, 1.0, gradient), keep)


def test_halves_share_no_task_and_do_not_depend_on_order():
    parts = [{name for name, half in HALVES.items() if half == which} for which in ("search", "held out")]
    assert not parts[0] & parts[1] and parts[0] | parts[1] == set(TASKS) and abs(len(parts[0]) - len(parts[1])) <= 1
    assert halves(reversed(TASKS)) == HALVES


def test_compactness_by_hand():
    circuits = numpy.array([[0.0], [0.5], [2.5], [1.0]])  # faithfulness: none, half, overshoot beyond 2, all
    draw = _Draw(numpy.array([0.001, 0.01, 0.1, 1.0]), {"absolute": circuits}, numpy.zeros(1), numpy.ones(1))
    assert draw.area("compactness", numpy.arange(1)) == pytest.approx((0.25 + 0.25 + 0.5) / 3)


def test_random_edges_lose_and_costs_add_up(tmp_path, capsys):
    runs = measure("mini-llama", ["ioi"], ["gim", "exact", "ig-inputs", "random", "best tilt of gim"], n=4)
    table = over_tasks(runs).set_index("way")
    assert table.cmd["random"] > 0.5 > table.cmd["gim"] and table.cpr["random"] < 0.5 < table.cpr["gim"]
    assert (table.cmd_low <= table.cmd).all() and (table.cmd <= table.cmd_high).all()
    assert table["cmd_above_exact"]["gim"] == pytest.approx(table.cmd["gim"] - table.cmd["exact"], abs=1e-6)
    assert table.passes["gim"] == 1 and table.passes["ig-inputs"] == 5 and table.forward["exact"] == 761
    assert table.backward["best tilt of gim"] == 1 and table.forward["best tilt of gim"] <= 1 + 5 * len(SIZES)
    direct = gimkit.score_edges(model := gimkit.load("mini-llama"), (task := gimkit.tasks.ioi(model, n=8))[:4], "gim")
    curve = gimkit.faithfulness(model, task[4:], direct, absolute=True)
    assert table.cmd["gim"] == pytest.approx(curve.cmd().value, abs=1e-6)
    path = tmp_path / "table.csv"
    options = ["--tasks", "ioi", "--ways", "gim", "-n", "2", "--csv", str(path), "--parts", str(tmp_path)]
    assert main(["mini-llama", *options]) == 0 and "passes" in capsys.readouterr().out
    assert pandas.read_csv(path).half.tolist() == ["held out"]
    assert main(["mini-llama", "--ways", "gmi"]) == 2 and main(["mini-llama", "--level", "neurons"]) == 2
    nodes = over_tasks(measure("mini-llama", ["ioi"], ["relp", "random"], n=2, level="nodes"), ("nap-ig", "exact"))
    assert nodes.cmd[0] < nodes.cmd[1]
    assert set(ONE_PASS) <= set(gimkit.circuits.edges.METHODS) | {"freeze+gate+temperature"}
