"""Scores of nodes and edges from gradients, inside a trace. Shipped to servers by value.

Rows of a batch are b clean prompts, then their b corrupt ones, then further points.
"""

import torch

from gimkit.circuits.streams import heads_of, heads_written, output_last, read_norm, written
from gimkit.circuits.traced import by_row, metric_values, tensor_of


def node_scores(model, embedding: str, blocks: list, n_heads: int, metric: str, last, good, bad) -> torch.Tensor:
    """Scores [b, nodes] of one batch of b clean prompts and their b corrupt ones.

    blocks: (output projection path, MLP path, norm after attention, norm after MLP) of each layer, norms or None.
    A node's score is <clean - corrupt output, the metric's gradient on the clean rows>, summed over positions. Where a
    norm follows, the output is what leaves it, with its denominator a constant of each run.
    """
    b = len(last)
    leaf = model.get(embedding).output.detach().requires_grad_(True)
    model.get(embedding).output = leaf
    parts, differences, side_by_side = [leaf], [(leaf[:b] - leaf[b:]).detach()[None]], [False]
    for output, mlp, after_attention, after_mlp in blocks:
        z = model.get(output).input
        reading = read_norm(model, after_attention)
        if reading is None:
            parts.append(z)
            differences.append((z[:b] - z[b:]).detach().unflatten(-1, (n_heads, -1)))
        else:
            parts.append(model.get(after_attention[0]).output)
            differences.append(heads_written(model.get(output), z, reading, b, n_heads))
        side_by_side += [reading is None, False]
        m = tensor_of(model.get(mlp).output)
        reading = read_norm(model, after_mlp)
        parts.append(m if reading is None else model.get(after_mlp[0]).output)
        differences.append(written(by_row(m, 2 * b), reading, b)[None])
    value = metric_values(metric, model.output.logits[:b], last, good, bad).sum()
    columns = []
    for difference, beside, gradient in zip(differences, side_by_side, torch.autograd.grad(value, parts)):
        g = by_row(gradient, 2 * b)[:b]
        precise = torch.promote_types(g.dtype, torch.float32)
        difference, g = difference.to(precise), g.to(precise)
        if beside:  # heads' outputs side by side: [b, seq, heads, head_dim]
            columns.append(torch.einsum("bshd,bshd->bh", difference, g.unflatten(-1, (n_heads, -1))))
        else:  # [nodes, b, seq, width]
            columns.append(torch.einsum("nbsw,bsw->bn", difference, g))
    return torch.cat(columns, 1)


def plus_points(model, embedding: str, b: int, shares: list, points):
    """Make the embedding a leaf; its rows after the first 2b are points between corrupt (0) and clean (1), or given."""
    module = model.get(embedding)
    value = module.output.detach().clone()
    for i, share in enumerate(shares):
        value[(2 + i) * b:(3 + i) * b] = value[b:2 * b] + share * (value[:b] - value[b:2 * b])
    if points is not None:
        value[2 * b:] = points
    module.output = value.requires_grad_(True)


def put_between(module, rows: dict, b: int) -> None:
    """On the given rows, {first row: share}, put an output between its corrupt (0) and its clean (1) value."""
    value = module.output
    out = tensor_of(value).clone()
    for start, share in rows.items():
        out[start:start + b] = (out[b:2 * b] + share * (out[:b] - out[b:2 * b])).detach()
    module.output = (out, *value[1:]) if isinstance(value, tuple) else out


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
            put_between(model.get(writer), between[number, "attention"], b)
        before_mlp = read_norm(model, layer.norm_before_mlp)
        mlp = model.get(layer.mlp)
        alias = mlp.input.view_as(mlp.input)  # OLMo-2's MLP reads the residual stream itself
        mlp.input = alias
        m = tensor_of(mlp.output)
        after_mlp = read_norm(model, layer.norm_after_mlp)
        if (number, "mlp") in between:
            put_between(mlp if after_mlp is None else model.get(layer.norm_after_mlp[0]), between[number, "mlp"], b)
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


def path_points(model, embedding: str, mask: torch.Tensor, point) -> torch.Tensor:
    """One unit step of EAP-GP's path, [b, seq, width], from `point` (None: the clean embeddings) towards the corrupt
    run's logits: by -gradient / |gradient| of ||logits - corrupt logits||^2, each example by itself.
    """
    b = len(mask)
    module = model.get(embedding)
    value = module.output.detach()
    here = (value[:b] if point is None else point).clone().requires_grad_(True)
    module.output = torch.cat([here, value[b:]])
    logits = model.output.logits
    gap = (logits[:b] - logits[b:].detach()) * mask[..., None].to(logits)
    gradient = torch.autograd.grad(gap.pow(2).sum(), here)[0]
    length = gradient.flatten(1).norm(dim=1)[:, None, None]
    return (here - gradient / length.clamp(min=1e-30)).detach()
