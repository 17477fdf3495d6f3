"""Scores of nodes and edges from gradients, inside a trace. Shipped to servers by value.

Rows of a batch are b clean prompts, then their b corrupt ones, then further points.
"""

import torch

from gimkit.circuits.between import plus_points, put_between, put_output
from gimkit.circuits.streams import heads_of, heads_written, output_last, read_norm, written
from gimkit.circuits.traced import by_row, metric_values, tensor_of
from gimkit.circuits.within import swapped_heads


def node_scores(model, embedding: str, blocks: list, n_heads: int, b: int, metric: str, last, good, bad,
                gradient_rows: list, shares: list, between: dict) -> torch.Tensor:
    """Scores [b, nodes] of one batch: <clean - corrupt output, mean gradient of the metric>, summed over positions.

    blocks: (output projection path, MLP path, norm after attention, norm after MLP, attention path) of each layer,
    norms or None; with the attention's path its heads come after their queries, keys and values.
    gradient_rows, shares, between: as in `edge_scores`.
    Where a norm follows, the output is what leaves it, with its denominator a constant of each run.
    """
    leaf = plus_points(model, embedding, b, shares, None)
    rows = len(leaf)
    parts, differences, by_head = [leaf], [(leaf[:b] - leaf[b:2 * b]).detach()[None]], [False]
    for layer, (output, mlp, after_attention, after_mlp, attention) in enumerate(blocks):
        if attention:
            heads, changes = swapped_heads(model.get(attention), b)
            parts.append(heads)
            differences.append(changes)
            by_head.append(True)
        projection, shares_here = model.get(output), between.get((layer, "attention"), {})
        z = projection.input
        if after_attention is None:
            differences.append((z[:b] - z[b:2 * b]).detach().unflatten(-1, (n_heads, -1))[None])
            part = put_between(z, shares_here, b, rows)
            if shares_here:
                projection.input = part
        else:
            differences.append(heads_written(projection, z, read_norm(model, after_attention), b, n_heads))
            part = put_output(model.get(after_attention[0]), shares_here, b, rows)
        parts.append(part)
        by_head.append(after_attention is None)
        m, reading = tensor_of(model.get(mlp).output), read_norm(model, after_mlp)
        differences.append(written(by_row(m, rows), reading, b)[None])
        writer = mlp if after_mlp is None else after_mlp[0]
        parts.append(put_output(model.get(writer), between.get((layer, "mlp"), {}), b, rows))
        by_head.append(False)
    logits = model.output.logits
    value = sum(metric_values(metric, logits[start:start + b], last, good, bad, logits[:b]).sum()
                for start in gradient_rows)
    columns = []
    for difference, apart, gradient in zip(differences, by_head, torch.autograd.grad(value, parts)):
        g = gradient if apart else by_row(gradient, rows)
        g = sum(g[start:start + b] for start in gradient_rows) / len(gradient_rows)
        precise = torch.promote_types(g.dtype, torch.float32)
        difference, g = difference.to(precise), g.to(precise)
        if apart:  # heads side by side: [nodes of a head, b, seq, heads, head_dim]
            columns.append(torch.einsum("nbshd,bshd->bnh", difference, g.reshape(difference.shape[1:])).flatten(1))
        else:  # [nodes, b, seq, width]
            columns.append(torch.einsum("nbsw,bsw->bn", difference, g))
    return torch.cat(columns, 1)


def edge_scores(model, w, frozen: bool, b: int, metric: str, last, good, bad, gradient_rows: list, shares: list,
                points, between: dict) -> torch.Tensor:
    """Scores [sources, targets] of one batch, summed over its examples, averaged over the points of the gradient.

    w: the `Wiring`. frozen: pull gradients back through norms with constant denominators.
    gradient_rows: first rows of the groups of b rows at which the metric's gradient is taken.
    shares, points: what rows after the first 2b hold (`plus_points`).
    between: {(layer, "attention" or "mlp"): {first row: share}} outputs put between their corrupt and clean value.
    Source: edge attribution (EAP) as hannamw/EAP-IG defines its names and order; a source's output is compared
    with the gradient at what each target reads, for q, k and v of each head by itself.
    """
    plus_points(model, w.embedding, b, shares, points)
    group = w.heads // w.key_heads
    taken, wanted = [], []
    for number, layer in enumerate(w.layers):
        stream = model.get(layer.block).input
        before = read_norm(model, layer.norm_before_attention)
        paths = list(dict.fromkeys(layer.projections))
        outputs = {path: model.get(path).output for path in paths}
        z = model.get(layer.output).input
        after = read_norm(model, layer.norm_after_attention)
        if (number, "attention") in between:
            writer = layer.output if after is None else layer.norm_after_attention[0]
            put_output(model.get(writer), between[number, "attention"], b, len(stream))
        before_mlp = read_norm(model, layer.norm_before_mlp)
        mlp = model.get(layer.mlp)
        alias = mlp.input.view_as(mlp.input)  # OLMo-2's MLP reads the residual stream itself
        mlp.input = alias
        m = tensor_of(mlp.output)
        after_mlp = read_norm(model, layer.norm_after_mlp)
        if (number, "mlp") in between:
            writer = layer.mlp if after_mlp is None else layer.norm_after_mlp[0]
            put_output(model.get(writer), between[number, "mlp"], b, len(stream))
        taken.append((stream, before, outputs, z, after, before_mlp, m, after_mlp))
        wanted += [*outputs.values(), alias] + ([z] if group > 1 else [])
    final = model.get(w.final_norm[0]).input
    logits = model.output.logits
    value = sum(metric_values(metric, logits[start:start + b], last, good, bad, logits[:b]).sum()
                for start in gradient_rows)
    gradients = list(torch.autograd.grad(value, [*wanted, final], retain_graph=group > 1,
                                         materialize_grads=True))  # zeros where rules cut the graph

    layout = (w.heads, w.key_heads, w.head_dim)
    sources = [(taken[0][0][:b] - taken[0][0][b:2 * b]).detach()[None]]
    columns = []
    for layer, (_, before, outputs, z, after, before_mlp, m, after_mlp) in zip(w.layers, taken):
        at = {path: gradients.pop(0) for path in outputs}
        at_mlp = gradients.pop(0)
        if group > 1:
            single = per_query_head(z, gradients.pop(0), outputs, layer, w)
        reads = []
        for which, path in enumerate(layer.projections):
            weight = heads_of(output_last(model.get(path)), which, layer.layout, *layout)  # [width, heads, head_dim]
            if which and group > 1:
                g, weight = single[which], weight.repeat_interleave(group, 1)
            else:
                g = heads_of(at[path], which, layer.layout, *layout)
            reads.append(torch.einsum("rshd,whd->hrsw", g, weight))
        reads = torch.cat(reads)
        columns.append(contract(sources, pulled(reads, before, gradient_rows, b, frozen)))
        new_heads = heads_written(model.get(layer.output), z, after, b, w.heads)
        new_mlp = written(m, after_mlp, b)[None]
        if not w.parallel:
            sources.append(new_heads)
        columns.append(contract(sources, pulled(at_mlp[None], before_mlp, gradient_rows, b, frozen)))
        if w.parallel:
            sources.append(new_heads)
        sources.append(new_mlp)
    columns.append(contract(sources, pulled(gradients.pop(0)[None], None, gradient_rows, b, frozen)))
    rows = sum(len(source) for source in sources)
    return torch.cat([torch.nn.functional.pad(c, (0, 0, 0, rows - len(c))) for c in columns], 1) / len(gradient_rows)


def per_query_head(z, at_z, outputs: dict, layer, w) -> dict:
    """Gradients at the shared k and v for each query head by itself, {which: [rows, seq, heads, head_dim]}."""
    group = w.heads // w.key_heads
    found = {1: [], 2: []}
    for member in range(group):
        mine = torch.zeros(w.heads, dtype=at_z.dtype, device=at_z.device)
        mine[member::group] = 1
        share = (at_z.unflatten(-1, (w.heads, -1)) * mine[:, None]).flatten(-2)
        paths = list(dict.fromkeys(layer.projections[1:]))
        pulled_back = torch.autograd.grad(z, [outputs[path] for path in paths], share, retain_graph=True,
                                          materialize_grads=True)
        parts = dict(zip(paths, pulled_back))
        for which in (1, 2):
            found[which].append(heads_of(parts[layer.projections[which]], which, layer.layout,
                                         w.heads, w.key_heads, w.head_dim))
    return {which: torch.stack(parts, -2).flatten(-3, -2) for which, parts in found.items()}


def pulled(reads: torch.Tensor, norm, gradient_rows: list, b: int, frozen: bool) -> torch.Tensor:
    """Gradients [targets, b, seq, width] at the residual stream, summed over the points."""
    total = 0
    for start in gradient_rows:
        rows = slice(start, start + b)
        part = reads[:, rows].detach()
        total = total + (part if norm is None else norm.pull_back(part, rows, frozen))
    return total


def contract(sources: list, reads: torch.Tensor) -> torch.Tensor:
    """<clean - corrupt output, gradient> of every source with every target, [sources, targets], at least float32."""
    reads = reads.flatten(1).to(torch.promote_types(reads.dtype, torch.float32))
    return torch.cat([source.flatten(1).to(reads.dtype) @ reads.T for source in sources])
