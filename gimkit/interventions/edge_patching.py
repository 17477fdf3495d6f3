"""Runs in which a single edge carries its corrupt value, inside a trace. Shipped to servers by value.

Everything before the edge's target is as in the clean run and everything behind it follows by itself, so that one
plain forward has as many edges as rows; `runs.py`, which is for any circuit, builds up what each target reads.
"""

import torch

from gimkit.interventions.metric import values_at_answers
from gimkit.interventions.residual_stream import heads_of, heads_written, read_norm, scaled_gap, tensor_of, written
from gimkit.interventions.weights import matrix_of


def exact_edge_scores(model, w, edges: list, metric: str, last, good, bad) -> torch.Tensor:
    """By how much the metric falls for each edge put at its corrupt value, [edges], summed over b examples.

    edges: (source, target) as row and column of the scores, target by target. The rows are b clean prompts, b corrupt
    ones, and for each edge b clean ones again. Where query heads share keys and values, only the head whose edge it is
    sees a changed key or value (as well as the heads at the same place in their groups, where one norm spans all keys).
    """
    b, group = len(last), w.heads // w.key_heads
    into, column = rows_by_target(edges, b), 0
    embedded = model.get(w.layers[0].block).input
    gaps = (embedded[:b] - embedded[b:2 * b])[None]
    for layer in w.layers:
        stream = model.get(layer.block).input
        reads = []
        for which in range(3):
            for head in range(w.heads):
                if column in into:
                    rows, sources = into[column]
                    x = without(stream, rows, gaps[sources])
                    if layer.norm_before_attention is not None:
                        x = model.get(layer.norm_before_attention.path)(x)
                    reads.append((which, head, rows, x))
                column += 1
        for path in list(dict.fromkeys(layer.projections)):
            mine = [read for read in reads if layer.projections[read[0]] == path]
            if mine:
                model.get(path).output = projected(model.get(path), mine, layer.layout, w)
        z = model.get(layer.output).input
        if group > 1 and any(which for which, *_ in reads):
            z = z.clone()
            by_head = z.unflatten(-1, (w.heads, -1))
            for which, head, rows, _ in reads:
                others = [other for other in range(w.heads) if which and other % group != head % group]
                for other in others:
                    by_head[rows, :, other] = by_head[:b, :, other].repeat((rows.stop - rows.start) // b, 1, 1)
            model.get(layer.output).input = z
        after = read_norm(model, layer.norm_after_attention)
        heads = heads_written(model.get(layer.output), scaled_gap(z, after, b), after, w.heads)
        if not w.parallel:
            gaps = torch.cat([gaps, heads])
        mlp = model.get(layer.mlp)
        if column in into:
            rows, sources = into[column]
            entry = mlp if layer.norm_before_mlp is None else model.get(layer.norm_before_mlp.path)
            x = without(entry.input, rows, gaps[sources])
            if layer.norm_before_mlp is not None:
                x = entry(x)
            mlp.input = replaced(mlp.input, rows, x)
        column += 1
        m = tensor_of(mlp.output)
        after = read_norm(model, layer.norm_after_mlp)
        gaps = torch.cat([gaps, *([heads] if w.parallel else []), written(m, after, b)[None]])
    if column in into:
        final = model.get(w.final_norm.path)
        rows, sources = into[column]
        final.input = replaced(final.input, rows, without(final.input, rows, gaps[sources]))
    values = values_at_answers(model, w.unembedding, metric, last, good, bad)
    return (values[0] - values[2:]).sum(1)


def rows_by_target(edges: list, b: int) -> dict:
    """{target: (its rows of the batch, the sources of its edges)}."""
    into = {}
    for i, (source, target) in enumerate(edges):
        first, sources = into.setdefault(target, (i, []))
        sources.append(source)
    return {target: (slice((2 + first) * b, (2 + first + len(sources)) * b), sources)
            for target, (first, sources) in into.items()}


def without(stream: torch.Tensor, rows: slice, gaps: torch.Tensor) -> torch.Tensor:
    """What a target reads on its rows: the stream less clean - corrupt of one source after another."""
    return stream[rows] - gaps.flatten(0, 1).to(stream.dtype)


def replaced(x: torch.Tensor, rows: slice, value: torch.Tensor) -> torch.Tensor:
    """A copy with other values on these rows."""
    x = x.clone()
    x[rows] = value.to(x.dtype)
    return x


def projected(projection, reads: list, layout: str, w) -> torch.Tensor:
    """A projection's output in which heads have their q, k or v of what they read, on its rows."""
    out = projection.output.clone()
    shape = (layout, w.heads, w.key_heads, w.head_dim)
    weight, bias = matrix_of(projection, out.dtype)
    for which, head, rows, x in reads:
        part = heads_of(out, which, *shape)
        own = head // (w.heads // part.shape[-2])
        value = x @ heads_of(weight, which, *shape)[:, own]
        if bias is not None:
            value = value + heads_of(bias, which, *shape)[own]
        part[rows, :, own] = value
    return out
