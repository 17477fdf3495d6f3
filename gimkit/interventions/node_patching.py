"""The bodies of circuit traces: they read activations and leave only scores."""

import torch

from gimkit.interventions.metric import values_at_answers
from gimkit.interventions.residual_stream import add_rows, by_row, tensor_of


def exact_node_scores(model, unembedding, blocks: list, n_heads: int, nodes: list, answers) -> torch.Tensor:
    """Effects [b, nodes] of replacing each node's output, at all positions, by its corrupt value.

    The rows are b clean prompts and b corrupt ones. The embedding's effect is
    that of the corrupt prompts. For every other node b clean rows are added at its block, because before it they equal
    the clean run; they may also be there from the start.
    blocks: paths of each block, its output projection and its MLP. nodes: (kind, layer, head), in order of layers.
    """
    b, places = len(answers.last), {}
    for node in nodes:
        places[tuple(node)] = 1 if node[0] == "input" else 2 + len(places) - (("input", 0, 0) in places)
    rows = {node: slice(place * b, (place + 1) * b) for node, place in places.items()}
    present = began = len(model.get(blocks[0][0]).input)
    for layer, (block, output, mlp) in enumerate(blocks):
        here = [node for node in rows if node[0] != "input" and node[1] == layer]
        present = max([present, *(rows[node].stop for node in here)])
        if present > began:
            add_rows(model.get(block), present, began, b)
        heads = [head for kind, _, head in here if kind == "head"]
        if heads:
            z = model.get(output).input.clone()
            by_head = z.unflatten(-1, (n_heads, -1))
            for head in heads:
                by_head[rows["head", layer, head], :, head] = by_head[b:2 * b, :, head]
            model.get(output).input = z
        if ("mlp", layer, 0) in rows:
            value = model.get(mlp).output
            m = tensor_of(value).clone()
            rowwise = by_row(m, present)
            rowwise[rows["mlp", layer, 0]] = rowwise[b:2 * b]
            model.get(mlp).output = (m, *value[1:]) if isinstance(value, tuple) else m
    values = values_at_answers(model, unembedding, answers)
    return (values[0] - values[list(places.values())]).T


def coalition_values(model, unembedding, blocks: list, n_heads: int, present: torch.Tensor,
                     answers) -> torch.Tensor:
    """The metric [1 + sets, b] of the corrupt run, and of clean ones in which absent nodes stay corrupt.

    The rows are b corrupt prompts, then b clean ones for each set. present: [sets, b, nodes], nodes in order of layers,
    each layer's heads before its MLP.
    """
    sets, b, _ = present.shape
    present = present.reshape(sets * b, len(blocks), n_heads + 1)
    for layer, (output, mlp) in enumerate(blocks):
        z = model.get(output).input
        present = present.to(z.device)
        heads = present[:, layer, :n_heads].repeat_interleave(z.shape[-1] // n_heads, -1)[:, None]
        model.get(output).input = torch.cat([z[:b], torch.where(heads, z[b:], z[:b].repeat(sets, 1, 1))])
        value = model.get(mlp).output
        m = by_row(tensor_of(value), (1 + sets) * b)
        kept = torch.where(present[:, layer, n_heads, None, None], m[b:], m[:b].repeat(sets, 1, 1))
        kept = torch.cat([m[:b], kept]).view(tensor_of(value).shape)
        model.get(mlp).output = (kept, *value[1:]) if isinstance(value, tuple) else kept
    return values_at_answers(model, unembedding, answers)
