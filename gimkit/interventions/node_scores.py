"""Scores of nodes and neurons from gradients.

Rows of a batch are b clean prompts, then their b corrupt ones, then further points.
"""

import torch

from gimkit.interventions.attention import swapped_heads
from gimkit.interventions.interpolation import plus_points, put_between, put_output
from gimkit.interventions.metric import at_answers, metric_values
from gimkit.interventions.residual_stream import (
    by_row,
    heads_written,
    read_after,
    read_norm,
    scaled_gap,
    tensor_of,
    written,
)
from gimkit.interventions.weights import leaf_of, matrix_of


def node_scores(model, embedding: str, unembedding, blocks: list, n_heads: int, b: int, answers,
                gradient_rows: list, shares: list, between: dict, by_position: bool) -> torch.Tensor:
    """Scores [b, nodes] of one batch: <clean - corrupt output, mean gradient of the metric>, summed over positions.

    With by_position they are not summed, [b, nodes, seq].

    blocks: (output projection path, MLP path, norm after attention, norm after MLP, attention path) of each layer,
    norms or None; with the attention's path its heads come after their queries, keys and values.
    answers, gradient_rows, shares, between: as in `edge_scores`.
    Where a norm follows, the output is what leaves it, with its denominator a constant of each run.
    """
    leaf = plus_points(model, embedding, b, shares, None)
    rows = len(leaf)
    parts, differences, by_head = [leaf], [(leaf[:b] - leaf[b:2 * b]).detach()[None]], [False]
    for layer, (output, mlp, after_attention, after_mlp, attention) in enumerate(blocks):
        # "atp*": heads again with the corrupt run's queries, keys or values, one after another.
        if attention:
            heads, changes = swapped_heads(model.get(attention), b)
            parts.append(heads)
            differences.append(changes)
            by_head.append(True)
        # The heads: their outputs side by side, or where a norm follows, what leaves it.
        projection, shares_here = model.get(output), between.get((layer, "attention"), {})
        z = projection.input
        if after_attention is None:
            differences.append((z[:b] - z[b:2 * b]).detach().unflatten(-1, (n_heads, -1))[None])
            part = put_between(z, shares_here, b, rows)
            if shares_here:
                projection.input = part
        else:
            attention_output = projection.output
            weight = matrix_of(projection, output, z, attention_output)[0]
            reading = read_after(model, after_attention, attention_output)
            differences.append(heads_written(weight, scaled_gap(z, reading, b), reading, n_heads))
            part = put_output(model.get(after_attention.path), shares_here, b, rows)
        parts.append(part)
        by_head.append(after_attention is None)
        # The MLP, read in the same way.
        m, reading = tensor_of(model.get(mlp).output), read_norm(model, after_mlp)
        differences.append(written(by_row(m, rows), reading, b)[None])
        writer = mlp if after_mlp is None else after_mlp.path
        parts.append(put_output(model.get(writer), between.get((layer, "mlp"), {}), b, rows))
        by_head.append(False)
    # One backward pass from the metric at the gradient's points to all outputs.
    logits = at_answers(model, unembedding, answers.last)
    value = sum(metric_values(logits[start:start + b], answers, logits[:b]).sum() for start in gradient_rows)
    # <clean - corrupt output, mean gradient>, summed over width, and over positions where they are not asked for.
    columns, kept = [], "s" * by_position
    for difference, headwise, gradient in zip(differences, by_head, torch.autograd.grad(value, parts)):
        g = gradient if headwise else by_row(gradient, rows)
        g = sum(g[start:start + b] for start in gradient_rows) / len(gradient_rows)
        precise = torch.promote_types(g.dtype, torch.float32)
        difference, g = difference.to(precise), g.to(precise)
        if headwise:  # heads side by side: [nodes of a head, b, seq, heads, head_dim]
            g = g.reshape(difference.shape[1:])
            columns.append(torch.einsum(f"nbshd,bshd->bnh{kept}", difference, g).flatten(1, 2))
        else:  # [nodes, b, seq, width]
            columns.append(torch.einsum(f"nbsw,bsw->bn{kept}", difference, g))
    return torch.cat(columns, 1)


def neuron_scores(model, embedding: str, unembedding, projections: list, answers) -> torch.Tensor:
    """Scores [layers, width] of the neurons that each MLP's output projection reads, summed over examples.

    Rules that split a gated product act before what is read here, so that a neuron's gradient is whole.
    """
    b = len(answers.last)
    model.get(embedding).output = leaf_of(model, model.get(embedding).output)
    neurons = [model.get(path).input for path in projections]
    value = metric_values(at_answers(model, unembedding, answers.last)[:b], answers).sum()
    found = []
    for x, gradient in zip(neurons, torch.autograd.grad(value, neurons)):
        x, g = by_row(x.detach(), 2 * b), by_row(gradient, 2 * b)[:b]
        precise = torch.promote_types(g.dtype, torch.float32)
        found.append(torch.einsum("bsn,bsn->n", (x[:b] - x[b:]).to(precise), g.to(precise)))
    return torch.stack(found)
