"""Rankings of edges learned by gradient descent on circuits with real-valued masks."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from nnsight.intervention.envoy import Envoy
from tqdm.auto import tqdm

from gimkit.circuits.patching import run_masks
from gimkit.errors import GimkitError
from gimkit.interventions.circuit_runs import soft_gradient
from gimkit.model.residual_stream import graph_of, residual_stream_of
from gimkit.remote import in_trace
from gimkit.tasks.task import Task, answer_rows, answers_of

MOST = 2**26  # numbers that a backward pass may keep: 256 MiB in float32


class SoftCircuits:
    """A model and a task whose circuits are run with real-valued masks.

    >>> soft = SoftCircuits(model, task[:2])
    >>> faithfulness, gradient = soft.gradient(soft.graph.real.float())
    >>> gradient.shape
    torch.Size([26, 66])

    An edge carries mask x the clean run's value + (1 - mask) x the corrupt one, and later parts of the model read that.
    """

    def __init__(self, model: Envoy, task: Task, metric: str = "logit"):
        self.model, self.task, self.metric, self.stream = model, task, metric, residual_stream_of(model)
        if any(layer.norm_after_attention or layer.norm_after_mlp for layer in self.stream.layers):
            raise GimkitError(f"{self.stream.name} has a norm after attention or MLP, and circuits with masks have no "
                              "gradient there; use another method of score_edges")
        self.graph = graph_of(self.stream)
        ends = torch.stack([torch.zeros_like(self.graph.real), self.graph.real])
        self.empty, self.whole = run_masks(model, self.stream, task, ends, metric, False)[0]
        if float(self.empty.mean()) == float(self.whole.mean()):
            raise GimkitError(f"on {task.name} the clean and the corrupt prompts have the same {metric}: there is no "
                              "behaviour that a circuit could keep")

    def gradient(self, keep: torch.Tensor, rows: slice = slice(None)) -> tuple[float, torch.Tensor]:
        """Faithfulness of a circuit on some of the task's pairs, and its gradient in each mask [sources, targets].

        keep: the masks, 0 to 1.
        """
        some = self.task[rows]
        pairs = answer_rows(some)
        kept = len(self.stream.layers) * len(keep) * pairs.clean.shape[1] * self.stream.width  # numbers for each row
        value: Any = 0
        total: Any = 0
        together = max(1, MOST // kept)
        for first in range(0, len(pairs), together):
            batch = pairs[first:first + together]
            values, gradient = in_trace(self.model, torch.cat([batch.corrupt, batch.clean]), soft_gradient, self.stream,
                                        len(batch), keep, answers_of(batch, self.metric))
            value, total = value + float(values.sum()), total + gradient
        empty, whole = (float(ends[rows].mean()) for ends in (self.empty, self.whole))
        return (value / len(some) - empty) / (whole - empty), total / len(some) / (whole - empty)


class Setting(NamedTuple):
    """How a ranking is learned: steps of Adam, their rate, of how many parts of the pairs each step takes one, and the
    start: -width log(rank / n), so that the best are far apart; with width 0 evenly from 1 to -1.
    """

    steps: int = 60
    rate: float = 0.03
    parts: int = 4
    width: float = 1.0


def learned(soft: SoftCircuits, start: torch.Tensor | None, setting: Setting | None = None,
            seed: int = 0) -> torch.Tensor:
    """A score for each edge, [sources, targets], learned on soft circuits; only their order means something.

    >>> learned(SoftCircuits(model, task[:2]), edges.scores, Setting(steps=1)).shape
    torch.Size([26, 66])

    start: scores [sources, targets] whose order by size it starts from, None for none. setting, seed: as in `learn`.
    """
    real = soft.graph.real

    def circuit(mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros(real.shape).masked_scatter(real, mask)

    own = None if start is None else start[real]
    return circuit(learn(soft, circuit, soft.graph.n_edges, own, setting or Setting(), seed))


def learn(soft: SoftCircuits, circuit: Callable, n: int, start: torch.Tensor | None, setting: Setting,
          seed: int) -> torch.Tensor:
    """Scores [n] above 0, such that circuits of the best of them are like the whole model, at every size.

    Each step draws a size, log-uniform from 1 to n, makes a mask that sums to it, and takes the gradient of
    |1 - faithfulness|.

    Args:
        soft: the model and the task.
        circuit: of a mask [n], the mask of every edge.
        start: [n], None for zeros.
        setting: steps, rate, parts and width.
        seed: of the sizes.

    Source:
        Matryoshka attribution, arXiv 2609.25518, with a loss that punishes overshoot, a start from scores, and few
        steps.
    """
    generator, s = torch.Generator().manual_seed(seed), torch.zeros(n)
    if start is not None:
        best_first, rank = start.abs().argsort(descending=True), torch.arange(1, n + 1)
        s[best_first] = -setting.width * torch.log(rank / n) if setting.width else torch.linspace(1, -1, n)
    s.requires_grad_(True)
    optimizer = torch.optim.Adam([s], lr=setting.rate)
    parts = min(setting.parts, len(soft.task))
    for step in tqdm(range(setting.steps), desc=f"{soft.task.name} learned", delay=2, leave=False):
        k = math.exp(float(torch.rand((), generator=generator)) * math.log(n))
        keep = circuit(soft_top(s, k))
        kept, gradient = soft.gradient(keep.detach(), slice(step % parts, None, parts))
        optimizer.zero_grad()
        keep.backward(gradient if kept > 1 else -gradient)
        optimizer.step()
    return s.detach() - s.detach().min() + 1e-3  # above 0, so that |score| ranks alike


class _SumsTo(torch.autograd.Function):
    """sigmoid((s - t) / T) with t such that the mask sums to k; the gradient knows that t depends on s."""

    @staticmethod
    def forward(context: Any, s: torch.Tensor, k: float, temperature: float) -> torch.Tensor:
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
    def backward(context: Any, gradient: torch.Tensor) -> tuple:  # type: ignore[override]
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
