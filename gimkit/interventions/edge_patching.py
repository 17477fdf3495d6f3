"""Runs in which a single edge carries its corrupt value.

Everything before the edge's target is as in the clean run, and the model computes everything after it. So one plain
forward pass takes an edge per row. `circuit_runs` is for any circuit: it builds what each target reads.
"""

import torch

from gimkit.interventions.metric import values_at_answers
from gimkit.interventions.residual_stream import (
    add_rows,
    check_reads,
    check_sum,
    heads_of,
    heads_written,
    read_after,
    read_norm,
    scaled_gap,
    tensor_of,
    written,
)
from gimkit.interventions.weights import matrix_of


def exact_edge_scores(model, w, edges: list, answers) -> torch.Tensor:
    """By how much the metric falls for each edge put at its corrupt value, [edges], summed over b examples.

    edges: (source, target) as row and column of the scores, target by target. The rows are b clean prompts and b
    corrupt ones; b clean ones for each edge join at its target's block, or are there from the start. Where query heads
    share keys and values, only the head whose edge it is sees a changed key or value (as well as the heads at the same
    place in their groups, where one norm spans all keys).
    """
    b, group = len(answers.last), w.heads // w.key_heads
    into, column = rows_by_target(edges, b), 0
    embedded = model.get(w.layers[0].block).input
    gaps = (embedded[:b] - embedded[b:2 * b])[None]
    summands = [embedded]  # what makes up the stream here: an earlier place, and what parts wrote since
    present = began = len(embedded)
    for layer in w.layers:
        check_sum(layer.block, model.get(layer.block).input, *summands, b=b)
        # Rows whose edge ends in this block join here, as copies of the clean rows.
        here = range(column, column + 3 * w.heads + 1)
        present = max([present, *(rows.stop for target, (rows, _) in into.items() if target in here)])
        if present > began:
            add_rows(model.get(layer.block), present, began, b)
        stream, reads = model.get(layer.block).input, []
        # What each q, k and v reads on its edges' rows: the stream less the sources' change, through the norm.
        for which in range(3):
            for head in range(w.heads):
                if column in into:
                    rows, sources = into[column]
                    x = normed_by(model, layer.norm_before_attention, without(stream, rows, gaps[sources]))
                    reads.append((which, head, rows, x))
                column += 1
        # Those heads alone get the q, k or v of what they read.
        normed = normed_by(model, layer.norm_before_attention, stream[:2 * b])
        for path in list(dict.fromkeys(layer.projections)):
            reading = [read for read in reads if layer.projections[read[0]] == path]
            if reading:
                model.get(path).output = projected(model.get(path), path, normed, reading, layer.layout, w)
        projection = model.get(layer.output)
        z = projection.input
        # A shared key or value changed for all heads that read it: the others' outputs become clean again.
        if group > 1 and any(which for which, *_ in reads):
            z = z.clone()
            by_head = z.unflatten(-1, (w.heads, -1))
            for which, head, rows, _ in reads:
                others = [other for other in range(w.heads) if which and other % group != head % group]
                for other in others:
                    by_head[rows, :, other] = by_head[:b, :, other].repeat((rows.stop - rows.start) // b, 1, 1)
            projection.input = z
        # Clean minus corrupt of what each head writes: the sources of later edges.
        attention = projection.output
        weight = matrix_of(projection, layer.output, z, attention)[0]
        after = read_after(model, layer.norm_after_attention, attention)
        heads = heads_written(weight, scaled_gap(z, after, b), after, w.heads)
        summands = [stream, attention if after is None else after.y]
        if not w.parallel:
            gaps = torch.cat([gaps, heads])
        # The same for the MLP: one target, read before its norm.
        mlp, norm = model.get(layer.mlp), layer.norm_before_mlp
        path = layer.mlp if norm is None else norm.path
        entry = model.get(path).input
        check_sum(path, entry, *(summands[:1] if w.parallel else summands), b=b)
        if column in into:
            rows, sources = into[column]
            check_reads(layer.mlp, mlp.input, normed_by(model, norm, entry[:2 * b]))
            mlp.input = replaced(mlp.input, rows, normed_by(model, norm, without(entry, rows, gaps[sources])))
        column += 1
        m = tensor_of(mlp.output)
        after = read_norm(model, layer.norm_after_mlp)
        summands.append(m if after is None else after.y)
        gaps = torch.cat([gaps, *([heads] if w.parallel else []), written(m, after, b)[None]])
    # The logits read the stream before the final norm.
    final = model.get(w.final_norm.path)
    check_sum(w.final_norm.path, final.input, *summands, b=b)
    if column in into:
        rows, sources = into[column]
        add_rows(final, max(present, rows.stop), began, b)
        final.input = replaced(final.input, rows, without(final.input, rows, gaps[sources]))
    values = values_at_answers(model, w.unembedding, answers)
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


def normed_by(model, norm, x: torch.Tensor) -> torch.Tensor:
    """What a norm makes of a stream; the stream itself where there is none."""
    return x if norm is None else model.get(norm.path)(x)


def projected(projection, path: str, normed: torch.Tensor, reads: list, layout: str, w) -> torch.Tensor:
    """A projection's output in which heads have their q, k or v of what they read, on its rows.

    normed: the output of the norm before it, for the stream on the first rows. The change is added to the clean value,
    so that an edge whose corrupt value is the clean one has exactly no effect.
    """
    clean, out = projection.input, projection.output.clone()
    check_reads(path, clean, normed)
    shape = (layout, w.heads, w.key_heads, w.head_dim)
    weight, _ = matrix_of(projection, path, clean, out)
    for which, head, rows, x in reads:
        part = heads_of(out, which, *shape)
        own = head // (w.heads // part.shape[-2])
        change = (x - clean[rows]) @ heads_of(weight, which, *shape)[:, own]
        part[rows, :, own] = part[rows, :, own] + change.to(out.dtype)
    return out
