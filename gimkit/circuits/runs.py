"""Edge-patched forward passes, inside a trace. Shipped to servers by value."""

import torch

from gimkit.circuits.streams import heads_of, output_last, read_norm
from gimkit.circuits.traced import by_row, metric_values, tensor_of


def run_circuits(model, w, b: int, keep: torch.Tensor, metric: str, last, good, bad) -> torch.Tensor:
    """The metric [circuits, b] of edge-patched forward passes: each target reads the current value of the sources that
    it keeps and the corrupt value of the others.

    keep: [circuits, sources, targets] of 0 and 1. The rows are b corrupt prompts, then b clean ones per circuit; where
    query heads share keys and values, as often again as heads share one, so that each head can read its own.
    Divergences are from the last circuit's distribution: there it must keep all edges.
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
    return metric_values(metric, logits, last, good, bad, logits[-b:])


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
