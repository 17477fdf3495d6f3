"""Scores within nodes, inside a trace: heads' queries, keys and values, MLPs' neurons. Shipped to servers by value.

Rows of a batch are b clean prompts, then their b corrupt ones.
"""

import torch

from gimkit.interventions.node_patching import by_row, metric_values
from gimkit.interventions.backward_rules import attention_call
from gimkit.interventions.weights import leaf_of


def swapped_heads(attention, b: int):
    """What an attention's heads return, [rows, seq, heads, head_dim], and what corrupt queries, keys or values change
    in it on the clean rows, clean minus changed, [3, b, seq, heads, head_dim].

    The model's own kernel runs again with one of the three taken from the other half of the rows, so masks, windows,
    soft-caps, sinks and shared keys are the model's.
    """
    kernel, call = attention_call(attention)
    (module, q, k, v, *rest), options = call.inputs
    out = call.output[0]
    with torch.no_grad():
        changed = [kernel(module, *(x.roll(b, 0) if x is other else x for x in (q, k, v)), *rest, **options)[0]
                   for other in (q, k, v)]
        return out, torch.stack([(out - other)[:b] for other in changed])


def neuron_scores(model, embedding: str, projections: list, metric: str, last, good, bad) -> torch.Tensor:
    """Scores [layers, width] of the neurons that each MLP's output projection reads, summed over examples.

    Rules that split a gated product act before what is read here, so that a neuron's gradient is whole.
    """
    b = len(last)
    model.get(embedding).output = leaf_of(model, model.get(embedding).output)
    neurons = [model.get(path).input for path in projections]
    value = metric_values(metric, model.output.logits[:b], last, good, bad).sum()
    found = []
    for x, gradient in zip(neurons, torch.autograd.grad(value, neurons)):
        x, g = by_row(x.detach(), 2 * b), by_row(gradient, 2 * b)[:b]
        precise = torch.promote_types(g.dtype, torch.float32)
        found.append(torch.einsum("bsn,bsn->n", (x[:b] - x[b:]).to(precise), g.to(precise)))
    return torch.stack(found)
