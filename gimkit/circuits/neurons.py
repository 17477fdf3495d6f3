"""Scores of MLP neurons."""

from dataclasses import dataclass
from typing import Any

import pandas
import torch
from nnsight.intervention.envoy import Envoy

from gimkit.circuits.metric import Metric, check_slope, metric_of
from gimkit.errors import GimkitError, check_flag, check_whole, require_finite
from gimkit.interventions.node_scores import neuron_scores
from gimkit.model.apply import apply, check_unedited
from gimkit.model.architecture import Architecture, architecture_of, projections, unembedding_of
from gimkit.remote import in_trace
from gimkit.results import Result
from gimkit.rules import Preset, Rules, name_of, rules_of
from gimkit.tasks.task import Task, answer_rows, batches, check_task, rows_of


@dataclass(frozen=True, eq=False)
class NeuronScores(Result):
    """One score per MLP neuron; positive means that corrupting the neuron hurts.

    >>> neurons = gimkit.circuits.score_neurons(model, task)
    >>> neurons.top(2, absolute=True).columns.tolist()
    ['task', 'method', 'metric', 'node', 'layer', 'neuron', 'score']

    Attributes:
        task, method, metric: as in `EdgeScores`.
        scores: [layers, neurons of an MLP] in units of the metric, means over examples.
    """

    task: str
    method: str
    scores: torch.Tensor
    metric: str = "logit"

    def frame(self) -> pandas.DataFrame:
        """Tidy table with columns task, method, metric, node, layer, neuron, score; node is the MLP, "m0", ... ."""
        layers, neurons = self.scores.shape
        layer = torch.arange(layers).repeat_interleave(neurons).tolist()
        return pandas.DataFrame({"task": self.task, "method": self.method, "metric": self.metric,
                                 "node": [f"m{i}" for i in layer], "layer": layer,
                                 "neuron": torch.arange(neurons).repeat(layers).tolist(),
                                 "score": self.scores.flatten().tolist()})

    def top(self, n: int, absolute: bool = False) -> pandas.DataFrame:
        """The n rows of the table of highest score, or absolute score, best first.

        Raises:
            GimkitError: the model has fewer neurons.
        """
        n = check_whole("n, a number of neurons,", n, 0, self.scores.numel())
        require_finite(self.scores)
        value = self.scores.flatten().abs() if check_flag("absolute", absolute) else self.scores.flatten()
        return self.frame().iloc[value.argsort(descending=True, stable=True)[:n].tolist()]


def score_neurons(model: Envoy, task: Task, method: Preset | Rules = "gim", *, metric: Metric = "logit",
                  batch_size: int = 32, remote: bool | str = False) -> NeuronScores:
    """Score every neuron of every MLP of a model on a task, from one forward and one backward pass.

    >>> neurons = gimkit.circuits.score_neurons(model, gimkit.tasks.ioi(model, n=64), method="gim")
    >>> neurons.scores.shape                                     # 5 layers of 352 neurons
    torch.Size([5, 352])

    A neuron is one number at the input of an MLP's output projection: act(up) or, in gated MLPs, act(gate) * up. Its
    score is <clean - corrupt activation, gradient at the clean run>, summed over positions, averaged over examples.
    The gradient is the one at the product itself. Rules that split it between gate and up (GIM: in halves) act on what
    flows from it to the two factors, so they do not shrink a neuron's own score; a neuron is patched as a whole.
    Without a norm after the MLP, a layer's neurons add up to the MLP's node score of the same method.

    Args:
        model: an unedited nnsight model.
        task: a `gimkit.tasks.Task`.
        method: any rules ("gim", "gradient", "relp", ..., or a `gimkit.Rules`).
        metric: as in `gimkit.score_nodes`; the divergences have no gradient at the clean run.
        batch_size: prompt pairs a forward pass; it does not change the result.
        remote: as in `gimkit.attribute`.

    Returns:
        `NeuronScores`.

    Raises:
        GimkitError: an unknown method or metric, a divergence, an edited model, a mixture of experts, NaN.

    Source:
        Attribution patching at MLP neurons (arXiv 2403.00745, AtP), signed, all positions together. EAP-IG's and MIB's
        "neurons" are different: the coordinates of what a node writes to the residual stream.
    """
    check_task(model, task)
    rules = rules_of(method)
    batch_size = check_whole("batch_size", batch_size)
    metric, rows = metric_of(task, metric), answer_rows(task)
    label = name_of(method)
    check_slope(metric, label)
    parts = architecture_of(model)
    check_unedited(model)
    paths, edited = output_projections(model, parts), apply(model, rules)
    total: Any = 0
    for batch, answers in batches(rows, batch_size, label, metric):
        total = total + in_trace(edited, rows_of(batch), neuron_scores, parts.embedding, unembedding_of(model),
                                 paths, answers, remote=remote)
    scores = total / len(task)
    require_finite(scores)
    return NeuronScores(task.name, label, scores, metric)


def output_projections(model: Envoy, architecture: Architecture) -> list[str]:
    """The path of each MLP's output projection, whose input holds the MLP's neurons.

    >>> output_projections(model, architecture_of(model))[0]
    'model.layers.0.mlp.down_proj'

    Raises:
        GimkitError: a mixture of experts, MLPs of different widths.
    """
    if architecture.experts:
        raise GimkitError(f"{architecture.name} routes tokens to experts, whose neurons run only for some tokens, "
                          "so neurons are not covered; score nodes instead")
    root = model._module
    paths = [block.products[0].path if block.products else projections(root.get_submodule(block.mlp), block.mlp)[-1]
             for block in architecture.blocks]
    if len({root.get_submodule(path).weight.shape for path in paths}) > 1:
        raise GimkitError(f"{architecture.name} has MLPs of different widths, so neurons make no table; "
                          "score nodes instead")
    return paths
