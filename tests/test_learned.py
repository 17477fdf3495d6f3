"""Soft circuits against runs of hard ones and finite differences, and the ranking that is learned on them."""

import numpy
import pytest
import torch
from made_up import random_task
from nnsight import NNsight
from tiny import build

import gimkit
from gimkit.circuits import Circuit
from gimkit.circuits.learned import Setting, SoftCircuits, learned, soft_top

pytestmark = pytest.mark.filterwarnings("ignore:the model gets")


@pytest.mark.parametrize("name", ("gpt2", "llama", "gpt_neox", "phi3"))
def test_a_soft_circuit_of_zeros_and_ones_is_the_circuit_and_its_gradient_its_slope(name):
    model, task = NNsight(build(name, torch.float64)), random_task(4)
    soft = SoftCircuits(model, task)
    generator = torch.Generator().manual_seed(0)
    keep = (torch.rand(soft.graph.real.shape, generator=generator) < 0.6) & soft.graph.real
    empty, whole = soft.empty.mean(), soft.whole.mean()
    wanted = (gimkit.run(model, task, Circuit(soft.graph, keep)).mean() - empty) / (whole - empty)
    assert soft.gradient(keep.double())[0] == pytest.approx(wanted.item(), rel=1e-5)
    masks, way = (torch.rand(keep.shape, generator=generator).double() * soft.graph.real for _ in range(2))
    gradient = soft.gradient(masks)[1]
    above, below = (soft.gradient(masks + step * way)[0] for step in (1e-3, -1e-3))
    assert (gradient * way).sum().item() == pytest.approx((above - below) / 2e-3, rel=5e-3)  # norms are in float32


def test_an_edge_into_a_node_that_reads_nothing_has_its_slope():
    soft = SoftCircuits(NNsight(build("gpt2", torch.float64)), random_task(3))
    sources, targets = soft.graph.sources, soft.graph.targets
    keep = torch.zeros(soft.graph.real.shape, dtype=torch.float64)
    keep[sources.index("a0.h0"), targets.index("logits")] = 1
    place = sources.index("input"), targets.index("a0.h0<v>")
    gradient = soft.gradient(keep)[1][place].item()
    below, above = keep.clone(), keep.clone()
    below[place], above[place] = -1e-4, 1e-4
    slope = (soft.gradient(above)[0] - soft.gradient(below)[0]) / 2e-4
    assert gradient == pytest.approx(slope, rel=5e-3) and abs(slope) > 1e-6


def test_the_gradient_of_some_pairs_and_of_small_batches_is_the_same(monkeypatch):
    soft = SoftCircuits(NNsight(build("llama", torch.float64)), random_task(6))
    keep = torch.rand(soft.graph.real.shape, generator=torch.Generator().manual_seed(1)).double() * soft.graph.real
    alone = SoftCircuits(soft.model, soft.task[1::3])
    wanted = alone.gradient(keep)
    kept, gradient = soft.gradient(keep, slice(1, None, 3))
    assert kept == pytest.approx(wanted[0]) and torch.allclose(gradient, wanted[1])
    monkeypatch.setattr("gimkit.circuits.learned.MOST", 1)  # a pair at a time
    assert torch.allclose(soft.gradient(keep, slice(1, None, 3))[1], gradient)


def test_what_soft_circuits_cannot_do_is_refused():
    with pytest.raises(gimkit.GimkitError, match="a norm after attention or MLP"):
        gimkit.score_edges(NNsight(build("gemma2")), random_task(2), "learned")
    model, task = NNsight(build("gpt2")), random_task(2)
    with pytest.raises(gimkit.GimkitError, match="runs locally"):
        gimkit.score_edges(model, task, "learned", remote="local")
    with pytest.raises(gimkit.GimkitError, match="runs locally"):
        gimkit.score_edges(model, task, "learned", backend="forward")
    with pytest.raises(gimkit.GimkitError, match="scores all edges at once"):
        gimkit.score_edges(model, task, "learned", nodes=["input", "logits"])


def test_the_soft_mask_sums_to_its_size_and_its_gradient_knows_that():
    s = torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    for k in (1.0, 7.5, 39.0):
        mask = soft_top(s, k)
        assert mask.sum().item() == pytest.approx(k) and torch.equal(mask.argsort(), s.argsort())
    assert torch.autograd.gradcheck(lambda s: soft_top(s, 7.5), s.requires_grad_(True))


def test_one_step_moves_edges_against_the_slope_of_the_distance():
    soft = SoftCircuits(NNsight(build("gpt2")), random_task(4))
    real = soft.graph.real
    start = torch.randn(real.shape, generator=torch.Generator().manual_seed(3)) * real
    before = learned(soft, start, Setting(steps=0))[real]
    assert torch.equal(before.argsort(), start[real].abs().argsort())
    k = numpy.exp(float(torch.rand((), generator=torch.Generator().manual_seed(5))) * numpy.log(soft.graph.n_edges))

    def distance(scores):
        return abs(1 - soft.gradient(torch.zeros(real.shape).masked_scatter(real, soft_top(scores, k)))[0])

    moved = learned(soft, start, Setting(steps=1, rate=1e-3, parts=1), seed=5)[real]
    step = (moved - moved.mean()) - (before - before.mean())
    assert step.abs().max() < 2.1e-3 and distance(before + step) < distance(before)


@pytest.mark.parametrize("metric", ("logit", "kl"))
def test_score_edges_learns_a_ranking_that_beats_its_start(metric):
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.odd_one_out(model, n=16)
    found = gimkit.score_edges(model, task[:8], "learned", metric=metric)
    assert found.method == "learned" and found.metric == metric and (found.scores[found.graph.real] > 0).all()
    start = gimkit.score_edges(model, task[:8], "gim-ig", metric=metric)
    cmd = [gimkit.faithfulness(model, task[8:], scores, absolute=True, metric="logit").cmd().value
           for scores in (found, start)]
    assert cmd[0] < cmd[1]
    again = gimkit.score_edges(model, task[:8], "learned", metric=metric)
    assert torch.equal(found.scores, again.scores)
