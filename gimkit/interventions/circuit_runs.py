"""Edge-patched forward passes: circuits run."""

import torch

from gimkit.interventions.metric import at_answers, metric_values, values_at_answers
from gimkit.interventions.residual_stream import (
    check_reads,
    check_sum,
    heads_of,
    read_after,
    read_norm,
    read_weights,
    tensor_of,
)
from gimkit.interventions.weights import check_matrix, held_or_probed, matrix_of


def run_circuits(model, w, b: int, keep: torch.Tensor, answers) -> torch.Tensor:
    """The metric [circuits, b] of edge-patched forward passes: each target reads the current value of the sources that
    it keeps and the corrupt value of the others.

    keep: [circuits, sources, targets] of 0 and 1. The rows are b corrupt prompts, then b clean ones per circuit; where
    query heads share keys and values, as often again as heads share one, so that each head can read its own. Only the
    attention itself needs these copies: projections and MLPs run on one of them.
    Divergences are from the last circuit's distribution: there it must keep all edges.
    """
    circuits, group = len(keep), w.heads // w.key_heads
    stream = model.get(w.layers[0].block).input
    keep = keep.to(stream)
    gaps = stream.new_empty(circuits, keep.shape[1], b, *stream.shape[1:])  # current minus corrupt outputs
    gaps[:, 0] = gap(stream, b, circuits)
    known, column = 1, 0
    behind = [stream]  # the parts that add up to the stream here: an earlier place, and all outputs since
    for layer in w.layers:
        # Each head's q, k and v read the corrupt stream plus the gaps of the sources that they keep.
        reading, stream = slice(column, column + 3 * w.heads), model.get(layer.block).input
        check_sum(layer.block, stream, *behind, b=b)
        put_reads(model, w, layer, stream[:b], gaps[:, :known], keep[:, :known, reading])
        column += 3 * w.heads
        # The heads' outputs in each circuit, and their gap to the corrupt run.
        projection = model.get(layer.output)
        z = projection.input
        if group > 1:  # each copy of the rows holds the heads that read its keys and values
            copies = z[b:].unflatten(-1, (w.heads, -1)).unflatten(0, (group, -1))
            mixed = torch.stack([copies[h % group, :, :, h] for h in range(w.heads)], -2).flatten(-2)
            z = torch.cat([z[:b], mixed])
            projection.input = z
        attention = projection.output
        weight = matrix_of(projection, layer.output, z, attention)[0]
        if group > 1:
            z, attention = copied(z, b, group), copied(attention, b, group)
            projection.output = attention
        after = read_after(model, layer.norm_after_attention, attention)
        put_heads(gaps[:, known:known + w.heads], weight, z, after)
        behind = [stream, attention if after is None else after.y]
        # The MLP likewise: one target, read before its norm.
        mlp, norm = model.get(layer.mlp), layer.norm_before_mlp
        path = layer.mlp if norm is None else norm.path
        entry, heard = model.get(path).input, known if w.parallel else known + w.heads
        check_sum(path, entry, *(behind[:1] if w.parallel else behind), b=b)
        corrupt = entry[:b]
        reads = torch.cat([corrupt, streams(corrupt, gaps[:, :heard], keep[:, :heard, column])])
        column += 1
        if norm is not None:
            reads = model.get(path)(reads)
        theirs = mlp.input
        check_reads(layer.mlp, theirs, reads[:b])
        mlp.input = torch.cat([theirs[:b], reads[b:].to(theirs.dtype)])
        m = tensor_of(mlp.output)
        if group > 1:
            m, rest = copied(m, b, group), mlp.output[1:] if isinstance(mlp.output, tuple) else None
            mlp.output = m if rest is None else (m, *rest)
        after = read_norm(model, layer.norm_after_mlp)
        m = m if after is None else after.y
        behind.append(m)
        gaps[:, known + w.heads] = gap(m, b, circuits)
        known += w.heads + 1
    # The logits read the stream before the final norm.
    final = model.get(w.final_norm.path)
    check_sum(w.final_norm.path, final.input, *behind, b=b)
    reads = streams(final.input[:b], gaps, keep[:, :, column])
    final.input = torch.cat([final.input[:b], reads.repeat(group, 1, 1).to(final.input.dtype)])
    logits = at_answers(model, w.unembedding, answers.last)[b:(1 + circuits) * b]
    return metric_values(logits, answers, logits[-b:])


def whole_circuit(model, clean, corrupt, w, keep: torch.Tensor, answers) -> tuple:
    """The metric [b] of a circuit, and of the clean prompts in a trace of their own."""
    b = len(clean)
    ids = torch.cat([corrupt, clean.repeat(w.heads // w.key_heads, 1)])
    with model.trace(input_ids=ids, use_cache=False):
        whole = run_circuits(model, w, b, keep, answers)[0].save()
    with model.trace(input_ids=clean, use_cache=False):
        own = values_at_answers(model, w.unembedding, answers)[0].save()
    return whole, own


def copied(x: torch.Tensor, b: int, group: int) -> torch.Tensor:
    """The rows of the circuits again for each copy, behind the b corrupt rows."""
    return torch.cat([x[:b], x[b:].repeat(group, *[1] * (x.dim() - 1))])


def gap(x: torch.Tensor, b: int, circuits: int) -> torch.Tensor:
    """Current minus corrupt value, [circuits, b, seq, width], of the first copy of the rows."""
    return x[b:(1 + circuits) * b].unflatten(0, (circuits, b)) - x[:b]


def streams(corrupt: torch.Tensor, gaps: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """What one target reads in each circuit, [circuits * b, seq, width]. keep: [circuits, sources]."""
    return torch.cat([stream_read(corrupt, gaps[i], keep[i, :, None])[0] for i in range(len(gaps))])


def stream_read(corrupt: torch.Tensor, gaps: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """What targets read in one circuit, [targets, b, seq, width]: the corrupt stream and what kept sources change.

    corrupt: [b, seq, width]. gaps: [sources, b, seq, width]. keep: [sources, targets].
    """
    return torch.addmm(corrupt.reshape(1, -1), keep.T, gaps.flatten(1)).unflatten(1, corrupt.shape)


def put_reads(model, w, layer, corrupt: torch.Tensor, gaps: torch.Tensor, keep: torch.Tensor) -> None:
    """Give each head the q, k and v of the stream that it reads; the model's own it computes for corrupt rows alone."""
    (circuits, b), group = gaps.shape[:3:2], w.heads // w.key_heads
    norm = None if layer.norm_before_attention is None else model.get(layer.norm_before_attention.path)
    normed = corrupt if norm is None else norm(corrupt)
    matrices = {path: held_or_probed(model.get(path), normed) for path in dict.fromkeys(layer.projections)}
    weight, bias = read_weights(matrices, layer, w)
    own = weight.new_empty(len(weight), circuits, *corrupt.shape[:2], w.head_dim)  # each target's q, k or v
    for i in range(circuits):  # one by one: all targets' streams are the largest thing here
        reads = stream_read(corrupt, gaps[i], keep[i])
        reads = (reads if norm is None else norm(reads)).flatten(1, 2).to(weight.dtype)
        own[:, i] = torch.bmm(reads, weight).unflatten(1, corrupt.shape[:2])
    if bias is not None:
        own += bias[:, :, None, None]
    own = own.flatten(1, 2).movedim(0, 2).unflatten(2, (3, w.heads))  # [circuits * b, seq, q k v, heads, head_dim]
    for path, matrix in matrices.items():
        module = model.get(path)
        module.input = module.input[:b]
        check_reads(path, module.input, normed)
        theirs = module.output
        check_matrix(module, path, normed, theirs, *matrix)
        out = theirs.new_empty((1 + group * circuits) * b, *theirs.shape[1:])
        out[:b] = theirs
        for which, mine in enumerate(layer.projections):
            if mine == path:
                part = heads_of(out, which, layer.layout, w.heads, w.key_heads, w.head_dim)[b:]
                for member, copy in enumerate(part.unflatten(0, (group, -1))):
                    copy[:] = own[:, :, which] if which == 0 else own[:, :, which, member::group]
        module.output = out


def put_heads(gaps: torch.Tensor, weight: torch.Tensor, z, after) -> None:
    """Fill gaps [circuits, heads, b, seq, width] with current minus corrupt of what each head writes.

    weight: of the output projection, [in, width].
    """
    circuits, heads, b = gaps.shape[:3]
    weight = weight.unflatten(0, (heads, -1))
    if after is not None:
        z = z * after.inverse
    change = gap(z, b, circuits).unflatten(-1, (heads, -1))
    for i in range(circuits):
        parts = torch.einsum("bshd,hdw->hbsw", change[i].to(weight.dtype), weight)
        gaps[i] = parts if after is None else parts * after.factor
