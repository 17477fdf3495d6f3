"""Circuits with real-valued masks: their gradient, and rankings learned with it.

An edge carries mask x the clean run's value + (1 - mask) x the corrupt one, and later parts of the model read that.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from gimkit.circuits.edges import EdgeScores
from gimkit.circuits.nodes import NodeScores
from gimkit.circuits.patching import run_masks
from gimkit.errors import GimkitError
from gimkit.interventions.circuit_runs import run_circuits
from gimkit.model.graph import Graph
from gimkit.model.residual_stream import ResidualStream, graph_of, residual_stream_of
from gimkit.remote import in_trace
from gimkit.tasks.task import Task, answers_of


def _loss_and_gradient(model, w, b: int, keep, answers, empty: float, whole: float, match: bool) -> tuple:
    """|1 - faithfulness| of the mean metric (or minus faithfulness), faithfulness, and the loss's gradient in keep."""
    keep = keep.detach().clone().requires_grad_(True)
    kept = (run_circuits(model, w, b, keep[None], answers)[2].mean() - empty) / (whole - empty)
    loss = (1 - kept).abs() if match else -kept
    return loss.detach(), kept.detach(), torch.autograd.grad(loss, keep)[0]


class Masked:
    """A model and a task whose circuits are run with real-valued masks, and how many runs that took.

    >>> masked = Masked(model, task[:2])
    >>> masked.gradient(masked.graph.real.float())[2].shape, masked.passes
    (torch.Size([26, 66]), 1)
    """

    graph: Graph
    stream: ResidualStream

    def __init__(self, model, task: Task):
        self.model, self.task, self.stream, self.passes = model, task, residual_stream_of(model), 0
        if any(layer.norm_after_attention or layer.norm_after_mlp for layer in self.stream.layers):
            raise GimkitError(f"{self.stream.name} has a norm after attention or MLP: no gradient of its soft circuits")
        self.graph = graph_of(self.stream)
        ends = torch.stack([torch.zeros_like(self.graph.real), self.graph.real])
        self.empty, self.whole = run_masks(model, self.stream, task, ends, "logit", False)[0]

    def gradient(self, keep: torch.Tensor, *, match: bool = True, rows: slice = slice(None)) -> tuple:
        """Loss, faithfulness and the loss's gradient [sources, targets] on some of the task's pairs."""
        some, self.passes = self.task[rows], self.passes + 1
        return in_trace(self.model, torch.cat([some.corrupt, some.clean]), _loss_and_gradient, self.stream, len(some),
                        keep, answers_of(some), float(self.empty[rows].mean()), float(self.whole[rows].mean()), match)


class _SumsTo(torch.autograd.Function):
    """sigmoid((s - t) / T) with t such that the mask sums to k; the gradient knows that t depends on s."""

    @staticmethod
    def forward(context, s: torch.Tensor, k: float, temperature: float) -> torch.Tensor:
        margin = temperature * (math.log(len(s)) + 10)
        low, high = s.min().double() - margin, s.max().double() + margin
        for _ in range(60):
            middle = (low + high) / 2
            if torch.sigmoid((s - middle) / temperature).sum() > k:
                low = middle
            else:
                high = middle
        mask = torch.sigmoid((s - middle) / temperature).to(s.dtype)
        context.temperature = temperature
        context.save_for_backward(mask)
        return mask

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple:
        (mask,) = context.saved_tensors
        slope = mask * (1 - mask)
        mean = (gradient * slope).sum() / slope.sum().clamp(min=1e-8)
        return slope / context.temperature * (gradient - mean), None, None


def soft_top(s: torch.Tensor, k: float, temperature: float = 0.5) -> torch.Tensor:
    """A mask in (0, 1) that sums to k and rises with the scores s [n].

    >>> soft_top(torch.tensor([2.0, 0.0, -2.0]), 1.5).sum()
    tensor(1.5000)
    """
    return _SumsTo.apply(s, k, temperature)


class Setting(NamedTuple):
    """How a ranking is learned: steps of Adam, their rate, of how many parts of the pairs each step takes one, and the
    start: -width log(rank / n), so that the best are far apart; with width 0 evenly from 1 to -1. still: Adam's eps;
    what has a far smaller gradient stays where it began.
    """

    steps: int = 200
    rate: float = 0.1
    parts: int = 2
    width: float = 0.0
    still: float = 1e-8


LONG = Setting()


def learned(masked: Masked, start: EdgeScores | None = None, setting: Setting = LONG, seed: int = 0) -> EdgeScores:
    """A ranking of edges learned by gradient descent on soft circuits of random sizes: each should be as the model.

    >>> learned(Masked(model, task[:2]), setting=Setting(steps=1)).scores.shape
    torch.Size([26, 66])

    Each step draws a size, log-uniform from one edge to all, and takes the gradient of |1 - faithfulness|.

    Args:
        masked: the model and the task.
        start: scores whose order the ranking starts from; None starts from zeros.
        setting: steps, rate, parts, width and still.
        seed: of the sizes and pairs.

    Source:
        Matryoshka attribution, arXiv 2609.25518, with a loss that punishes overshoot.
    """
    real = masked.graph.real

    def circuit(mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros(real.shape).masked_scatter(real, mask)

    own = None if start is None else start.scores[real]
    scores = circuit(_learned(masked, circuit, masked.graph.n_edges, own, setting, seed))
    return EdgeScores(masked.task.name, "learned", masked.graph, scores)


def learned_nodes(masked: Masked, start: NodeScores | None = None, setting: Setting = LONG,
                  seed: int = 0) -> NodeScores:
    """A ranking of heads and MLPs, as `learned`: all edges from a node carry its mask, those from the embedding 1.

    >>> learned_nodes(Masked(model, task[:2]), setting=Setting(steps=1)).scores.shape
    torch.Size([26])
    """
    graph = masked.graph

    def circuit(mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.ones(1), mask])[:, None] * graph.real

    own = None if start is None else start.scores[1:]
    found = _learned(masked, circuit, len(graph.sources) - 1, own, setting, seed)
    scores = torch.cat([found.max()[None], found])
    return NodeScores(masked.task.name, "learned", graph.sources, scores[None], graph=graph)


def _learned(masked: Masked, circuit: Callable, n: int, start: torch.Tensor | None, setting: Setting,
             seed: int) -> torch.Tensor:
    """Scores [n] above 0; circuit: of a mask [n], the mask of every edge."""
    generator, s = torch.Generator().manual_seed(seed), torch.zeros(n)
    if start is not None:
        best_first, rank = start.abs().argsort(descending=True), torch.arange(1, n + 1)
        s[best_first] = -setting.width * torch.log(rank / n) if setting.width else torch.linspace(1, -1, n)
    s.requires_grad_(True)
    optimizer = torch.optim.Adam([s], lr=setting.rate, eps=setting.still)
    for step in range(setting.steps):
        k = math.exp(float(torch.rand((), generator=generator)) * math.log(n))
        keep = circuit(soft_top(s, k))
        gradient = masked.gradient(keep.detach(), rows=slice(step % setting.parts, None, setting.parts))[2]
        optimizer.zero_grad()
        keep.backward(gradient)
        optimizer.step()
    return s.detach() - s.detach().min() + 1e-3  # above 0, so that |score| ranks alike
