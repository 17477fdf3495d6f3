"""Shapley values of heads and MLPs, from sampled orders in which they change from corrupt to clean."""

from collections.abc import Callable
from typing import Any

import numpy
import pandas
import torch
from nnsight.intervention.envoy import Envoy
from tqdm.auto import tqdm

from gimkit.circuits.metric import metric_of
from gimkit.circuits.nodes import NodeScores
from gimkit.errors import check_whole, require_finite
from gimkit.interventions.node_patching import coalition_values
from gimkit.model.apply import check_unedited
from gimkit.model.architecture import Architecture, architecture_of, rows_at_once, unembedding_of
from gimkit.model.graph import nodes_of
from gimkit.model.residual_stream import graph_if_covered
from gimkit.remote import in_trace
from gimkit.statistics import bootstrap
from gimkit.tasks.task import Task, answer_rows, answers_of, check_task, per_pair


def shapley_nodes(model: Envoy, task: Task, *, orders: int = 8, seed: int = 0, batch_size: int = 16,
                  remote: bool | str = False) -> NodeScores:
    """The Shapley value of every head and MLP, estimated from random orders.

    >>> worth = gimkit.circuits.shapley_nodes(model, task[:4], orders=2)
    >>> worth.per_example.shape, worth.method                    # 5 layers of 4 heads and an MLP, and the embedding
    (torch.Size([4, 26]), 'shapley')

    The value of a set of nodes is the logit metric on the clean prompt when the heads and MLPs outside the set write
    their corrupt-run output at all positions; those inside compute from what they read. Each example draws `orders`
    orders of its own. Each order is run in both directions, so that the interaction of two nodes is split exactly.
    "input" is the effect of the clean embedding before any head or MLP turns clean, so in every example the scores sum
    to the clean metric minus the corrupt one. Intervals over examples (`node_intervals`, `rank_correlation`) therefore
    include the sampling error.

    Args:
        model: an unedited nnsight model.
        task: a `gimkit.tasks.Task` of n prompt pairs.
        orders: random orders for each example.
        seed: of the orders.
        batch_size: prompt pairs a forward pass; it does not change the result.
        remote: as in `gimkit.attribute`.

    Returns:
        `NodeScores` with method "shapley", per_example [n, nodes] in units of the metric.

    Raises:
        GimkitError: an edited model, NaN.

    Source:
        Castro et al. 2009 (sampled permutations); arXiv 2104.12199 (each with its reverse).
    """
    check_task(model, task)
    orders, batch_size = check_whole("orders", orders), check_whole("batch_size", batch_size)
    seed = check_whole("seed", seed, 0)
    check_unedited(model)
    parts = architecture_of(model)
    names = [node.name for node in nodes_of(parts)]
    players = len(names) - 1
    paths = [(block.output, block.mlp) for block in parts.blocks]
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(len(task), orders, players, generator=generator).argsort(-1)
    per_example = []
    for start in tqdm(range(0, len(task), batch_size), desc=f"{task.name} shapley", delay=2, leave=False):
        batch = task[start:start + batch_size]
        rows = answer_rows(batch)

        def worth(present: torch.Tensor, rows: Task = rows) -> torch.Tensor:
            return _worth(model, parts, paths, rows, present, remote)

        rank = ranks[start:start + batch_size].repeat_interleave(len(rows) // len(batch), 0)
        gains = torch.stack([gains_in_order(worth, way[:, i]) for i in range(orders)
                             for way in (rank, players - 1 - rank)]).mean(0)
        none = torch.zeros(1, len(rows), players, dtype=torch.bool)
        corrupt, alone = worth(none)  # the corrupt run, and the clean embedding with everything else corrupt
        per_example.append(per_pair(batch, torch.cat([(alone - corrupt)[:, None], gains], 1)))
    scores = NodeScores(task.name, "shapley", tuple(names), torch.cat(per_example).float(), metric_of(task, "logit"),
                        graph=graph_if_covered(model, parts))
    require_finite(scores.per_example)
    return scores


def gains_in_order(worth: Callable, rank: torch.Tensor) -> torch.Tensor:
    """The gain of each player when it joins, [b, players].

    >>> gains_in_order(lambda present: present.sum(-1), torch.tensor([[1, 0]]))      # every player adds 1
    tensor([[1., 1.]], dtype=torch.float64)

    Args:
        worth: maps which players are present, [sets, b, players], to values [1 + sets, b]; the first row is not used.
        rank: [b, players], when each player joins.
    """
    players = rank.shape[1]
    values = worth(rank[None] < torch.arange(players + 1)[:, None, None])[-players - 1:].double()
    return (values[1:] - values[:-1]).gather(0, rank.T).T


def node_intervals(scores: NodeScores, **options: Any) -> pandas.DataFrame:
    """Mean scores with bootstrap intervals over examples: columns node, score, low, high.

    >>> gimkit.circuits.node_intervals(gimkit.score_nodes(model, task)).columns.tolist()
    ['node', 'score', 'low', 'high']

    Args:
        scores: `NodeScores` of several examples.
        options: level, resamples and seed of the bootstrap.

    Returns:
        A pandas table with columns node, score, low, high.
    """
    rows = []
    for name, values in zip(scores.nodes, scores.per_example.double().numpy().T):
        def mean(index: numpy.ndarray, values: numpy.ndarray = values) -> float:
            return values[index].mean()

        rows.append((name, *bootstrap(mean, len(values), **options)))
    return pandas.DataFrame(rows, columns=["node", "score", "low", "high"])


def _worth(model: Envoy, parts: Architecture, paths: list[tuple[str, str]], batch: Task, present: torch.Tensor,
           remote: bool | str) -> torch.Tensor:
    """Values [1 + sets, b]: of the corrupt run, then of each set; a pass takes as many sets as fit."""
    found: list[torch.Tensor] = []
    for some in present.split(max(1, rows_at_once(model, batch.clean.shape[1]) // len(batch) - 1)):
        ids = torch.cat([batch.corrupt, batch.clean.repeat(len(some), 1)])
        values = in_trace(model, ids, coalition_values, unembedding_of(model), paths, parts.n_heads, some,
                          answers_of(batch), remote=remote, gradients=False)
        found.append(values[0 if not found else 1:])
    return torch.cat(found)
