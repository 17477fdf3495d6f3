"""Sampled Shapley values of heads and MLPs: closed forms, literal patching, sums, and that more orders come nearer."""

from contextlib import ExitStack

import pytest
import torch
from made_up import literal_metric, random_task
from nnsight import NNsight
from test_nodes import changed, places, rows, value_of
from test_rules import relative
from tiny import build

import gimkit
from gimkit.circuits import node_intervals, shapley_nodes
from gimkit.circuits.shapley import gains_in_order
from gimkit.interventions.node_patching import coalition_values
from gimkit.model.architecture import architecture_of, unembedding_of
from gimkit.tasks.task import answers_of
from gimkit.tokens.shapley import shapley_values, subsets

torch.set_num_threads(1)


def sampled(game, n, orders, seed=0):
    rank = torch.rand(orders, n, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    ways = [gains_in_order(game, way) for way in (rank, n - 1 - rank)]
    return torch.stack(ways).mean((0, 1))


def test_one_order_and_its_reverse_are_exact_without_triples():
    g = torch.Generator().manual_seed(1)
    alone, pairs = torch.randn(6, generator=g).double(), torch.randn(6, 6, generator=g).double()

    def game(present):
        present = present.double()
        return present @ alone + ((present @ pairs) * present).sum(-1)

    assert torch.allclose(sampled(game, 6, 1), shapley_values(game(subsets(6))))
    one_way = gains_in_order(game, torch.arange(6)[None])[0]
    assert not torch.allclose(one_way, shapley_values(game(subsets(6))))


def test_many_orders_come_near():
    def game(present):  # gloves: two right, four left
        return torch.minimum(present[..., :2].sum(-1), present[..., 2:].sum(-1)).double()

    want = shapley_values(game(subsets(6)))
    assert relative(sampled(game, 6, 2000), want) < 0.03 < relative(sampled(game, 6, 3), want)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gemma2"])
def test_worth_is_literal_patching(name):
    """Absent heads and MLPs take their corrupt outputs by forward hooks, one unpadded row at a time."""
    hf, task = build(name), random_task(n=3)
    model = NNsight(hf)
    parts = architecture_of(model)
    nodes = list(places(hf).items())[1:]  # the embedding is no player
    present = torch.rand(2, 3, len(nodes), generator=torch.Generator().manual_seed(0)) < 0.5
    paths = [(block.output, block.mlp) for block in parts.blocks]
    with torch.no_grad(), model.trace(input_ids=torch.cat([task.corrupt, task.clean.repeat(2, 1)]), use_cache=False):
        got = coalition_values(model, unembedding_of(model), paths, parts.n_heads, present, answers_of(task)).save()
    for row in range(3):
        assert got[0, row].item() == pytest.approx(literal_metric(hf, task.corrupt, task, row), abs=1e-4)
        corrupt = [value_of(hf, place, rows(task, row)[1]) for _, place in nodes]
        for which in range(2):
            with ExitStack() as stack:
                for (_, place), old, here in zip(nodes, corrupt, present[which, row]):
                    if not here:
                        stack.enter_context(changed(place, lambda _, old=old: old))
                want = literal_metric(hf, task.clean, task, row)
            assert got[1 + which, row].item() == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_scores_sum_to_clean_less_corrupt_in_every_example(name):
    hf, task = build(name), random_task(n=5)
    worth = shapley_nodes(NNsight(hf), task, orders=1, batch_size=2)
    gap = [literal_metric(hf, task.clean, task, i) - literal_metric(hf, task.corrupt, task, i) for i in range(5)]
    assert torch.allclose(worth.per_example.sum(1), torch.tensor(gap), atol=1e-3)
    assert worth.nodes == gimkit.score_nodes(NNsight(hf), task).nodes and worth.method == "shapley"
    again, other = (shapley_nodes(NNsight(hf), task, orders=1, seed=seed) for seed in (0, 1))
    assert torch.allclose(worth.per_example, again.per_example, atol=1e-4)  # whatever the batch
    assert not torch.allclose(worth.per_example, other.per_example, atol=1e-2)


def test_orders_of_other_seeds_agree_within_their_intervals():
    """More examples and orders: two estimates agree, and the exact single effects are near but not the same."""
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.ioi(model, n=8, seed=3)
    one, two = (shapley_nodes(model, task, orders=3, seed=seed) for seed in (0, 1))
    assert gimkit.circuits.rank_correlation(one, two).value > 0.8
    table = node_intervals(one, resamples=200)
    assert list(table.columns) == ["node", "score", "low", "high"] and len(table) == 26
    assert ((table.low <= table.score) & (table.score <= table.high)).all()
    inside = (table.low <= two.scores.numpy()) & (two.scores.numpy() <= table.high)
    assert inside.mean() > 0.7


@pytest.mark.parametrize(("options", "message"), [
    (dict(orders=0), "orders must be a whole number of at least 1"),
    (dict(batch_size=0), "batch_size must be"),
])
def test_bad_input(options, message):
    with pytest.raises(gimkit.GimkitError, match=message):
        shapley_nodes(NNsight(build("gpt2")), random_task(), **options)
