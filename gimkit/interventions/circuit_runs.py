"""Edge-patched forward passes: circuits run."""

import torch

from gimkit.interventions.metric import at_answers, metric_values, values_at_answers
from gimkit.interventions.residual_stream import (
    add_rows,
    check_reads,
    check_sum,
    heads_of,
    heads_written,
    read_after,
    read_norm,
    read_weights,
    tensor_of,
)
from gimkit.interventions.weights import check_matrix, held_or_probed, matrix_of


def run_circuits(model, w, b: int, keep: torch.Tensor, answers) -> torch.Tensor:
    """The metric [2 + circuits, b] of the corrupt and the clean run, and of edge-patched forward passes: each target
    reads the current value of the sources that it keeps and the corrupt value of the others.

    keep: [circuits, sources, targets], 0 to 1: an edge carries keep x the current value + (1 - keep) x the corrupt one.
    The result is differentiable in it, where no norm follows attention or the MLP.

    The rows are b corrupt prompts and b clean ones. A circuit's rows have no residual stream: they are added inside
    attention, inside the MLP and at the unembedding, and removed after each. A target without kept edges is the
    corrupt run's, so nothing is computed for it.
    """
    circuits, group = len(keep), w.heads // w.key_heads
    stream = model.get(w.layers[0].block).input
    keep = keep.to(stream)
    gaps = stream.new_empty(circuits, keep.shape[1], b, *stream.shape[1:])  # current minus corrupt outputs
    gaps[:, 0] = stream[b:] - stream[:b]
    known, column = 1, 0
    summands = [stream]  # the parts that add up to the stream here: an earlier place, and all outputs since
    for layer in w.layers:
        # Each head's q, k and v read the corrupt stream plus the gaps of the sources that they keep.
        reading, stream = slice(column, column + 3 * w.heads), model.get(layer.block).input
        check_sum(layer.block, stream, *summands, b=b)
        put_reads(model, w, layer, stream[:b], gaps[:, :known], keep[:, :known, reading])
        column += 3 * w.heads
        # The heads' outputs in each circuit, and their gap to the corrupt run.
        projection, norm = model.get(layer.output), layer.norm_after_attention
        z = projection.input
        if group > 1:  # each copy of the rows holds the heads that read its keys and values
            copies = z[2 * b:].unflatten(-1, (w.heads, -1)).unflatten(0, (group, -1))
            mixed = torch.stack([copies[h % group, :, :, h] for h in range(w.heads)], -2).flatten(-2)
            z = torch.cat([z[:2 * b], mixed])
        projection.input = z if norm else z[:2 * b]  # a norm after it needs all rows for its denominators
        attention = projection.output
        weight = matrix_of(projection, layer.output, z[:len(attention)], attention)[0]
        after = read_after(model, norm, attention)
        changes = gap(z if after is None else z * after.inverse, b)
        gaps = with_outputs(gaps, known, [heads_written(weight, change, after, w.heads) for change in changes])
        if norm:
            attention = after.y[:2 * b]
            model.get(norm.path).output = attention
        summands = [stream, attention]
        # The same for the MLP: one target, read before its norm.
        mlp, norm = model.get(layer.mlp), layer.norm_before_mlp
        path = layer.mlp if norm is None else norm.path
        entry, known_to_mlp = model.get(path).input, known if w.parallel else known + w.heads
        check_sum(path, entry, *(summands[:1] if w.parallel else summands), b=b)
        corrupt, live = entry[:b], live_of(keep[:, :known_to_mlp, column].T).tolist()
        reads = torch.cat([corrupt, *streams(corrupt, gaps[:, :known_to_mlp], keep[:, :known_to_mlp, column], live)])
        column += 1
        if norm is not None:
            reads = model.get(path)(reads)
        own = mlp.input
        check_reads(layer.mlp, own, reads[:b])
        mlp.input = torch.cat([own, reads[b:].to(own.dtype)])
        value, after = mlp.output, read_norm(model, layer.norm_after_mlp)
        m = tensor_of(value) if after is None else after.y
        if after is None:
            mlp.output = (m[:2 * b], *value[1:]) if isinstance(value, tuple) else m[:2 * b]
        else:
            model.get(layer.norm_after_mlp.path).output = m[:2 * b]
        summands.append(m[:2 * b])
        changed = torch.zeros_like(gaps[:, :1])
        changed[live, 0] = gap(m, b)
        gaps = with_outputs(gaps, known + w.heads, changed)
        known += w.heads + 1
    # The logits read the stream before the final norm; a trunk may give its output the shape of the ids.
    final, unembedding = model.get(w.final_norm.path), model.get(w.unembedding.path)
    check_sum(w.final_norm.path, final.input, *summands, b=b)
    reads = streams(final.input[:b], gaps, keep[:, :, column], range(circuits))
    normed = final(torch.cat([final.input[:b], *reads]).to(final.input.dtype))[b:]
    unembedding.input = torch.cat([unembedding.input, normed.to(unembedding.input.dtype)])
    logits = at_answers(model, w.unembedding, answers.last)
    return metric_values(logits, answers, logits[b:2 * b])


def whole_circuit(model, clean, corrupt, w, keep: torch.Tensor, answers) -> tuple:
    """The metric [b] of a circuit, and of the clean prompts in a trace of their own."""
    with model.trace(input_ids=torch.cat([corrupt, clean]), use_cache=False):
        whole = run_circuits(model, w, len(clean), keep, answers)[2].save()
    with model.trace(input_ids=clean, use_cache=False):
        own = values_at_answers(model, w.unembedding, answers)[0].save()
    return whole, own


def gap(x: torch.Tensor, b: int) -> torch.Tensor:
    """Current minus corrupt value, [circuits, b, seq, width], of the rows after the corrupt and the clean ones."""
    return x[2 * b:].unflatten(0, (-1, b)) - x[:b]


def with_outputs(gaps: torch.Tensor, known: int, outputs) -> torch.Tensor:
    """Gaps with the next sources' [sources, b, seq, width], for each circuit; autograd needs a new tensor."""
    if any(own.requires_grad for own in outputs):
        return torch.cat([gaps[:, :known], torch.stack([*outputs])], 1)
    for i, own in enumerate(outputs):
        gaps[i, known:known + len(own)] = own
    return gaps


def live_of(keep: torch.Tensor) -> torch.Tensor:
    """The columns of keep [sources, ...] that keep a source; all where a gradient in keep is wanted."""
    return (keep.any(0) | keep.requires_grad).nonzero()[:, 0]


def streams(corrupt: torch.Tensor, gaps: torch.Tensor, keep: torch.Tensor, live) -> list:
    """What one target reads in each live circuit, [b, seq, width]. keep: [circuits, sources]."""
    return [stream_read(corrupt, gaps[i], keep[i, :, None])[0] for i in live]


def stream_read(corrupt: torch.Tensor, gaps: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """What targets read in one circuit, [targets, b, seq, width]: the corrupt stream and what kept sources change.

    corrupt: [b, seq, width]. gaps: [sources, b, seq, width]. keep: [sources, targets].
    """
    used = keep.any(1)
    if not keep.requires_grad and 2 * int(used.sum()) < len(used):
        gaps, keep = gaps[used], keep[used]  # copying them is cheaper than multiplying the others by zeros
    return torch.addmm(corrupt.reshape(1, -1), keep.T, gaps.flatten(1)).unflatten(1, corrupt.shape)


def put_reads(model, w, layer, corrupt: torch.Tensor, gaps: torch.Tensor, keep: torch.Tensor) -> None:
    """Give each head the q, k and v of the stream that it reads.

    The corrupt and the clean rows keep the model's own. After them come each circuit's rows, once, or as many times as
    query heads share a key head; each copy then has the keys and values that another of these heads reads.
    """
    (circuits, b), group = gaps.shape[:3:2], w.heads // w.key_heads
    add_rows(model.get(layer.attention), (2 + group * circuits) * b, 2 * b, b)
    norm = None if layer.norm_before_attention is None else model.get(layer.norm_before_attention.path)
    normed = corrupt if norm is None else norm(corrupt)
    matrices = {path: held_or_probed(model.get(path), normed) for path in dict.fromkeys(layer.projections)}
    weight, bias = read_weights(matrices, layer, w)
    own = []  # for each circuit, the live targets and their q, k or v
    for i in range(circuits):  # one by one: all targets' streams are the largest thing here
        live = live_of(keep[i])
        reads = stream_read(corrupt, gaps[i], keep[i][:, live])
        reads = (reads if norm is None or not len(live) else norm(reads)).flatten(1, 2).to(weight.dtype)
        some = torch.bmm(reads, weight[live]).unflatten(1, corrupt.shape[:2])
        own.append((live, some if bias is None else some + bias[live][:, None]))
    for path, matrix in matrices.items():
        module = model.get(path)
        module.input = module.input[:2 * b]
        check_reads(path, module.input, normed)
        output = module.output
        check_matrix(module, path, normed, output[:b], *matrix)
        out = torch.cat([output, output[:b].repeat(group * circuits, 1, 1)])
        for which, read in enumerate(layer.projections):
            if read == path:
                part = heads_of(out, which, layer.layout, w.heads, w.key_heads, w.head_dim)
                put_live(part[2 * b:].unflatten(0, (group, circuits, b)), which, own, w.heads)
        module.output = out


def put_live(part: torch.Tensor, which: int, own: list, heads: int) -> None:
    """Put live heads' q (0), k (1) or v (2) where the attention of their circuit reads them.

    part: [copies, circuits, b, seq, heads or key heads, width]; copy h % copies holds the key or value of head h.
    """
    for i, (live, values) in enumerate(own):
        here = live // heads == which
        chosen, values = live[here] % heads, values[here].to(part.dtype)
        if which == 0:
            part[:, i][..., chosen, :] = values.movedim(0, -2)
        else:
            part[chosen % len(part), i, :, :, chosen // len(part)] = values


def soft_gradient(model, w, b: int, keep: torch.Tensor, answers) -> tuple:
    """The metric [b] of one circuit with real-valued keep [sources, targets], and the gradient of its sum in keep."""
    keep = keep.detach().clone().requires_grad_(True)
    values = run_circuits(model, w, b, keep[None], answers)[2]
    return values.detach(), torch.autograd.grad(values.sum(), keep)[0]
