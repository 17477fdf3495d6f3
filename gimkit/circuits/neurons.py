"""How much each MLP neuron of a model matters for a task."""

from dataclasses import dataclass

import pandas
import torch

from gimkit.anatomy import Anatomy, dissect, projections
from gimkit.circuits.scores import batches, check_metric, check_slope, check_task, check_whole, rows_of, rules_of
from gimkit.circuits.within import neuron_scores
from gimkit.edits import apply, check_unedited
from gimkit.errors import GimkitError, require_finite
from gimkit.remote import in_trace
from gimkit.rules import Rules


@dataclass(frozen=True)
class NeuronScores:
    """One score per MLP neuron; positive means that corrupting the neuron hurts.

    >>> neurons = gimkit.score_neurons(model, task)
    >>> neurons.top(2, absolute=True).columns.tolist()
    ['task', 'method', 'metric', 'node', 'layer', 'neuron', 'score']

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

        Raises GimkitError when the model has fewer neurons.
        """
        if not isinstance(n, int) or not 0 <= n <= self.scores.numel():
            raise GimkitError(f"n={n!r} neurons asked for; choose a whole number from 0 to {self.scores.numel()}")
        value = self.scores.flatten().abs() if absolute else self.scores.flatten()
        return self.frame().iloc[value.argsort(descending=True, stable=True)[:n].tolist()]


def score_neurons(model, task, method: str | Rules = "gim", *, metric: str = "logit",
                  batch_size: int = 32, remote: bool | str = False) -> NeuronScores:
    """Score every neuron of every MLP of a model on a task, from one forward and one backward pass.

    >>> neurons = gimkit.score_neurons(model, gimkit.tasks.ioi(model, n=64), method="gim")
    >>> neurons.scores.shape                                     # 5 layers of 352 neurons
    torch.Size([5, 352])

    A neuron is one number at the input of an MLP's output projection: act(up) or, in gated MLPs, act(gate) * up. Its
    score is <clean - corrupt activation, gradient at the clean run>, summed over positions, averaged over examples.
    The gradient is the one at the product itself. Rules that split it between gate and up (GIM: in halves) act on what
    flows from it to the two factors, so they do not shrink a neuron's own score; a neuron is patched as a whole.
    Without a norm after the MLP, a layer's neurons add up to the MLP's node score of the same method.

    model: an unedited nnsight model. task: a `gimkit.tasks.Task`. method: any rules ("gim", "gradient", "relp", ..., or
    a `gimkit.Rules`). metric: as in `score_nodes`; the divergences have no gradient at the clean run.
    batch_size: prompt pairs per forward; it does not change the result. remote: as in `gimkit.attribute`.
    Raises GimkitError for an unknown method or metric, a divergence, an edited model, mixtures of experts, NaN.
    Source: attribution patching at MLP neurons (arXiv 2403.00745, AtP), signed, all positions together. EAP-IG's and
    MIB's "neurons" are something else: the coordinates of what a node writes to the residual stream.
    """
    check_task(task)
    rules = rules_of(method)
    check_whole("batch_size", batch_size)
    check_metric(metric)
    label = method if isinstance(method, str) else "own rules"
    check_slope(metric, label)
    parts = dissect(model)
    check_unedited(model)
    projections, edited, total = output_projections(model, parts), apply(model, rules), 0
    for batch, answers in batches(task, metric, batch_size, label):
        total = total + in_trace(edited, rows_of(batch), neuron_scores, parts.embedding, projections, *answers,
                                 remote=remote)
    scores = total / len(task)
    require_finite(scores)
    return NeuronScores(task.name, label, scores, metric)


def output_projections(model, anatomy: Anatomy) -> list[str]:
    """The path of each MLP's output projection, whose input holds the MLP's neurons.

    >>> output_projections(model, dissect(model))[0]
    'model.layers.0.mlp.down_proj'

    Raises GimkitError for mixtures of experts, and for MLPs of different widths.
    """
    if anatomy.experts:
        raise GimkitError(f"{anatomy.architecture} routes tokens to experts, whose neurons run only for some tokens, "
                          "so neurons are not covered; score nodes instead")
    root = model._module
    paths = [block.products[0].path if block.products else projections(root.get_submodule(block.mlp), block.mlp)[-1]
             for block in anatomy.blocks]
    if len({root.get_submodule(path).weight.shape for path in paths}) > 1:
        raise GimkitError(f"{anatomy.architecture} has MLPs of different widths, so neurons make no table; "
                          "score nodes instead")
    return paths
