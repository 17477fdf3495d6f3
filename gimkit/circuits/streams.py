"""The residual stream taken apart inside a trace: contributions, and gradients at what each target reads.

Shipped to servers by value. Rows of a batch are b clean prompts, then their b corrupt ones, then further points.
"""

import torch

from gimkit.circuits.traced import answer_difference, by_row, tensor_of
from gimkit.inside import norm_factor
from gimkit.rules import centre, inverse_scale


def heads_of(x: torch.Tensor, which: int, layout: str, heads: int, key_heads: int, width: int) -> torch.Tensor:
    """The q (0), k (1) or v (2) part of a projection's output axis, [..., heads, width]."""
    if layout == "separate":
        return x.unflatten(-1, (-1, width))
    if layout == "interleaved":
        return x.unflatten(-1, (heads, 3, width))[..., which, :]
    sizes = [heads * width, key_heads * width, key_heads * width]
    return x.split(sizes, -1)[which].unflatten(-1, (-1, width))


def output_last(projection) -> torch.Tensor:
    """A projection's weight as [in, out]; transformers' Conv1D keeps it so, Linear the other way round."""
    weight = projection.weight.detach()
    return weight if projection.weight.shape[-1] == getattr(projection, "nf", -1) else weight.T


class Reading:
    """A norm as it ran on some rows: its factor, inverse denominator and normalised input."""

    def __init__(self, module, norm, x, y):
        path, eps, centred = norm
        self.centred = centred
        top = centre(x.detach(), centred)
        self.inverse = inverse_scale(top, eps)
        factor = norm_factor(x.detach(), y.detach(), getattr(module, "weight", None), getattr(module, "bias", None),
                             path, eps, centred)
        self.factor = torch.ones((), device=x.device) if factor is None else factor
        self.normalised = top * self.inverse

    def pull_back(self, gradient: torch.Tensor, rows: slice, frozen: bool) -> torch.Tensor:
        """Gradients at the norm's output, [..., rows, seq, width], as gradients at its input."""
        g = gradient * self.factor
        if not frozen:
            unit = self.normalised[rows]
            g = g - unit * (g * unit).mean(-1, keepdim=True)
        if self.centred:
            g = g - g.mean(-1, keepdim=True)
        return g * self.inverse[rows]


def read_norm(model, norm):
    """A Reading of a norm, None where there is none."""
    if norm is None:
        return None
    module = model.get(norm[0])
    return Reading(module, norm, module.input, module.output)


def node_scores(model, embedding: str, blocks: list, n_heads: int, last, good, bad) -> torch.Tensor:
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
    metric = answer_difference(model.output.logits[:b], last, good, bad)
    columns = []
    for difference, beside, gradient in zip(differences, side_by_side, torch.autograd.grad(metric.sum(), parts)):
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


def edge_scores(model, w, frozen: bool, b: int, last, good, bad, gradient_rows: list, shares: list, points,
                between: dict) -> torch.Tensor:
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
        if (number, "attention") in between and layer.norm_after_attention is None:
            put_between(model.get(layer.output), between[number, "attention"], b)
        after = read_norm(model, layer.norm_after_attention)
        if (number, "attention") in between and layer.norm_after_attention is not None:
            put_between(model.get(layer.norm_after_attention[0]), between[number, "attention"], b)
        before_mlp = read_norm(model, layer.norm_before_mlp)
        mlp = model.get(layer.mlp)
        alias = mlp.input.view_as(mlp.input)  # OLMo-2's MLP reads the residual stream itself
        mlp.input = alias
        m = tensor_of(mlp.output)
        if (number, "mlp") in between and layer.norm_after_mlp is None:
            put_between(mlp, between[number, "mlp"], b)
        after_mlp = read_norm(model, layer.norm_after_mlp)
        if (number, "mlp") in between and layer.norm_after_mlp is not None:
            put_between(model.get(layer.norm_after_mlp[0]), between[number, "mlp"], b)
        taken.append((stream, before, outputs, z, after, before_mlp, m, after_mlp))
        wanted += [*outputs.values(), alias] + ([z] if group > 1 else [])
    final = model.get(w.final_norm[0]).input
    logits = model.output.logits
    metric = sum(answer_difference(logits[start:start + b], last, good, bad).sum() for start in gradient_rows)
    gradients = list(torch.autograd.grad(metric, [*wanted, final], retain_graph=group > 1,
                                         materialize_grads=True))  # zeros where rules cut the graph

    layout = (w.heads, w.key_heads, w.head_dim)
    sources = [(taken[0][0][:b] - taken[0][0][b:2 * b]).detach()[None]]
    columns = []
    for layer, (_, before, outputs, z, after, before_mlp, m, after_mlp) in zip(w.layers, taken):
        at = {path: gradients.pop(0) for path in outputs}
        at_mlp = gradients.pop(0)
        to_heads = []
        for which, path in enumerate(layer.projections):
            weight = heads_of(output_last(model.get(path)), which, layer.layout, *layout)  # [width, heads, head_dim]
            to_heads.append((which, path, weight))
        if group > 1:
            at_z = gradients.pop(0)
            single = per_query_head(z, at_z, outputs, layer, w)
        reads = []
        for which, path, weight in to_heads:
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


def written(out: torch.Tensor, after, b: int) -> torch.Tensor:
    """Clean minus corrupt of what a part writes to the stream; a norm after it counts as a constant factor."""
    out = out.detach()
    if after is None:
        return out[:b] - out[b:2 * b]
    return (out[:b] * after.inverse[:b] - out[b:2 * b] * after.inverse[b:2 * b]) * after.factor


def heads_written(projection, z, after, b: int, heads: int) -> torch.Tensor:
    """Clean minus corrupt of what each head writes to the stream, [heads, b, seq, width]."""
    z = z.detach()
    z = z[:b] - z[b:2 * b] if after is None else z[:b] * after.inverse[:b] - z[b:2 * b] * after.inverse[b:2 * b]
    weight = output_last(projection).unflatten(0, (heads, -1))
    parts = torch.einsum("bshd,hdw->hbsw", z.unflatten(-1, (heads, -1)).to(weight.dtype), weight)
    return parts if after is None else parts * after.factor


def run_circuits(model, w, b: int, keep: torch.Tensor, last, good, bad) -> torch.Tensor:
    """The metric [circuits, b] of edge-patched forward passes: each target reads the current value of the sources that
    it keeps and the corrupt value of the others.

    keep: [circuits, sources, targets] of 0 and 1. The rows are b corrupt prompts, then b clean ones per circuit; where
    query heads share keys and values, as often again as heads share one, so that each head can read its own.
    """
    circuits, group = len(keep), w.heads // w.key_heads
    layout = (w.heads, w.key_heads, w.head_dim)
    keep = keep.to(model.device)
    embedded = model.get(w.layers[0].block).input
    current = [gap(embedded, b, circuits, group)[None]]
    column = 0
    for layer in w.layers:
        stream = model.get(layer.block).input
        inputs = {}
        for which, path in enumerate(layer.projections):
            reads = stacked(stream, current, keep[:, :, column:column + w.heads], b)
            column += w.heads
            if layer.norm_before_attention is not None:
                reads = model.get(layer.norm_before_attention[0])(reads)
            weight = heads_of(output_last(model.get(path)), which, layer.layout, *layout)
            bias = getattr(model.get(path), "bias", None)
            own = torch.einsum("hrsw,whd->rshd", reads, weight.repeat_interleave(w.heads // weight.shape[1], 1))
            if bias is not None:
                bias = heads_of(bias, which, layer.layout, *layout)
                own = own + bias.repeat_interleave(w.heads // bias.shape[0], 0)
            inputs[which] = own
        for path in list(dict.fromkeys(layer.projections)):
            out = model.get(path).output.clone()
            for which, mine in enumerate(layer.projections):
                if mine != path:
                    continue
                part = heads_of(out, which, layer.layout, *layout)
                if which and group > 1:
                    for member in range(group):
                        first = b + member * circuits * b
                        part[first:first + circuits * b] = inputs[which][:, :, member::group]
                else:
                    part[b:] = inputs[which].repeat(group, 1, 1, 1)
            model.get(path).output = out
        z = model.get(layer.output).input
        if group > 1:  # each copy of the rows holds the heads that read its keys and values
            copies = z[b:].unflatten(-1, (w.heads, -1)).unflatten(0, (group, -1))
            mixed = torch.stack([copies[h % group, :, :, h] for h in range(w.heads)], -2).flatten(-2)
            z = torch.cat([z[:b], mixed.repeat(group, 1, 1)])
            model.get(layer.output).input = z
        after = read_norm(model, layer.norm_after_attention)
        heads = heads_apart(model.get(layer.output), z, after, b, circuits, w.heads)
        if not w.parallel:
            current.append(heads)
        mlp = model.get(layer.mlp)
        entry = mlp if layer.norm_before_mlp is None else model.get(layer.norm_before_mlp[0])
        reads = stacked(entry.input, current, keep[:, :, column:column + 1], b)[0]
        column += 1
        if layer.norm_before_mlp is not None:
            reads = entry(reads)
        mlp.input = torch.cat([mlp.input[:b], reads.repeat(group, 1, 1).to(mlp.input.dtype)])
        m = tensor_of(mlp.output)
        after = read_norm(model, layer.norm_after_mlp)
        m = m if after is None else m * after.inverse * after.factor
        if w.parallel:
            current.append(heads)
        current.append(gap(m, b, circuits, group)[None])
    final = model.get(w.final_norm[0])
    reads = stacked(final.input, current, keep[:, :, column:column + 1], b)[0]
    final.input = torch.cat([final.input[:b], reads.repeat(group, 1, 1).to(final.input.dtype)])
    logits = model.output.logits[b:(1 + circuits) * b]
    return answer_difference(logits, last.repeat(circuits), good.repeat(circuits, 1), bad.repeat(circuits, 1)).view(
        circuits, b)


def gap(x: torch.Tensor, b: int, circuits: int, group: int) -> torch.Tensor:
    """Current minus corrupt value, [circuits * b, seq, width], of the first copy of the rows."""
    x = by_row(x, (1 + group * circuits) * b)
    return x[b:(1 + circuits) * b] - x[:b].repeat(circuits, 1, 1)


def stacked(stream: torch.Tensor, current: list, keep: torch.Tensor, b: int) -> torch.Tensor:
    """What targets read, [targets, circuits * b, seq, width]: the corrupt stream and what kept sources change in it."""
    circuits, _, targets = keep.shape
    gaps = torch.cat([source.to(stream.dtype) for source in current])
    keep = keep[:, :len(gaps)].to(gaps.dtype)
    change = torch.einsum("cft,fcx->tcx", keep, gaps.reshape(len(gaps), circuits, -1)).reshape(
        targets, *gaps.shape[1:])
    return change + stream[:b].repeat(circuits, 1, 1)


def heads_apart(projection, z, after, b: int, circuits: int, heads: int) -> torch.Tensor:
    """Current minus corrupt of what each head writes, [heads, circuits * b, seq, width]."""
    if after is not None:
        z = z * after.inverse
    z = z[b:(1 + circuits) * b] - z[:b].repeat(circuits, 1, 1)
    weight = output_last(projection).unflatten(0, (heads, -1))
    parts = torch.einsum("rshd,hdw->hrsw", z.unflatten(-1, (heads, -1)).to(weight.dtype), weight)
    return parts if after is None else parts * after.factor


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
