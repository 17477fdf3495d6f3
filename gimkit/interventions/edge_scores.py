"""Scores of edges from gradients.

Rows of a batch are b clean prompts, then their b corrupt ones, then further points.
"""

import torch

from gimkit.interventions.interpolation import path_points, plus_points, put_output
from gimkit.interventions.metric import at_answers, metric_values
from gimkit.interventions.residual_stream import (
    check_reads,
    check_sum,
    heads_of,
    heads_written,
    pull_heads_back,
    read_after,
    read_norm,
    read_projections,
    read_weights,
    scaled_gap,
    tensor_of,
    written,
)
from gimkit.interventions.weights import matrix_of


def edge_scores(model, w, frozen: bool, b: int, answers, gradient_rows: list, shares: list, points, between: dict,
                most: int = 2**24) -> tuple:
    """Scores [sources, targets] of one batch, summed over its examples, averaged over the points of the gradient; and
    the clean prompts' metric [b].

    w: the `ResidualStream`. frozen: pull gradients back through norms with constant denominators.
    answers: the `Answers`.
    gradient_rows: first rows of the groups of b rows at which the metric's gradient is taken.
    shares, points: what rows after the first 2b hold (`plus_points`).
    between: {(layer, "attention" or "mlp"): {first row: share}} outputs put between their corrupt and clean value.
    most: numbers that all sources' outputs may hold at once; as many positions at a time as that allows.

    Source:
        edge attribution (EAP) with hannamw/EAP-IG's names and order. A source's clean - corrupt output is
        multiplied with the gradient at what each target reads; q, k and v of each head are separate targets.
    """
    # Rows beyond clean and corrupt get their interpolated embeddings.
    plus_points(model, w.embedding, b, shares, points)
    group = w.heads // w.key_heads
    taken, wanted, shared = [], [], []
    summands = []  # the parts that add up to the stream here: an earlier place, and all outputs since
    for number, layer in enumerate(w.layers):
        # The stream at the block's input is the sum of all earlier outputs; a hook in between is refused.
        stream = model.get(layer.block).input
        if number == 0:
            embedded = (stream[:b] - stream[b:2 * b]).detach()
        else:
            check_sum(layer.block, stream, *summands, b=b)
        # Queries, keys and values: their gradients are wanted, their matrices lead from the stream to them.
        before = read_norm(model, layer.norm_before_attention)
        outputs, matrices = read_projections(model, layer, stream if before is None else before.y)
        # The heads' outputs z, side by side, and the matrix that writes them to the stream.
        projection = model.get(layer.output)
        z, attention = projection.input, projection.output
        weight = matrix_of(projection, layer.output, z, attention)[0]
        after = read_after(model, layer.norm_after_attention, attention)
        if (number, "attention") in between:
            writer = layer.output if after is None else layer.norm_after_attention.path
            put_output(model.get(writer), between[number, "attention"], b, len(stream))
        # What the MLP reads, and its output.
        before_mlp = read_norm(model, layer.norm_before_mlp)
        mlp = model.get(layer.mlp)
        alias = mlp.input.view_as(mlp.input)  # OLMo-2's MLP reads the residual stream itself
        mlp.input = alias
        summands = [stream, attention if after is None else after.y]
        if before_mlp is None:
            check_sum(layer.mlp, alias, *summands, b=b)
        else:
            check_sum(layer.norm_before_mlp.path, before_mlp.x, *(summands[:1] if w.parallel else summands), b=b)
            check_reads(layer.mlp, alias, before_mlp.y)
        m = tensor_of(mlp.output)
        after_mlp = read_norm(model, layer.norm_after_mlp)
        if (number, "mlp") in between:
            writer = layer.mlp if after_mlp is None else layer.norm_after_mlp.path
            put_output(model.get(writer), between[number, "mlp"], b, len(stream))
        summands.append(m if after_mlp is None else after_mlp.y)
        taken.append((before, matrices, scaled_gap(z, after, b), weight, after, before_mlp, written(m, after_mlp, b)))
        wanted += [*outputs.values(), alias]
        shared.append((outputs, z))
    # The logits read the final norm's input.
    wanted.append(model.get(w.final_norm.path).input)
    check_sum(w.final_norm.path, wanted[-1], *summands, b=b)
    if group > 1:
        wanted += [z for _, z in shared]
    # One backward pass from the metric at the gradient's points to everything that targets read.
    logits = at_answers(model, w.unembedding, answers.last)
    value = sum(metric_values(logits[start:start + b], answers, logits[:b]).sum() for start in gradient_rows)
    gradients = list(torch.autograd.grad(value, wanted, retain_graph=group > 1,
                                         materialize_grads=True))  # zeros where rules cut the graph
    # Per layer: gradients at each head's q, k, v (shared keys and values once per query head), and at the MLP.
    found = []
    at_z = gradients[-len(w.layers):] if group > 1 else []
    for number, (layer, (outputs, z)) in enumerate(zip(w.layers, shared)):
        at = {path: gradients.pop(0) for path in outputs}
        if group > 1:
            query = heads_of(at[layer.projections[0]], 0, layer.layout, w.heads, w.key_heads, w.head_dim)
            reads = [query, *per_query_head(z, at_z[number], outputs, layer, w)]
        else:
            reads = [heads_of(at[path], which, layer.layout, w.heads, w.key_heads, w.head_dim)
                     for which, path in enumerate(layer.projections)]
        found.append((torch.cat(reads, -2), gradients.pop(0)))
    # All sources' outputs times all targets' gradients, a few positions at a time.
    per_position = (1 + len(w.layers) * (w.heads + 1)) * embedded[:, 0].numel()
    step = max(1, most // per_position)
    total = 0
    for start in range(0, embedded.shape[1], step):
        total = total + contracted(w, embedded, taken, found, gradients[0], gradient_rows,
                                   slice(start, start + step), frozen)
    return total / len(gradient_rows), metric_values(logits[:b].detach(), answers, logits[:b])[0]


def contracted(w, embedded, taken: list, found: list, at_logits, gradient_rows: list, positions: slice,
               frozen: bool) -> torch.Tensor:
    """<clean - corrupt output, gradient> of every source with every target, over some positions."""
    b, precise = len(embedded), torch.promote_types(embedded.dtype, torch.float32)
    places = [(slice(start, start + b), positions) for start in gradient_rows]
    n_heads, layers = w.heads, len(w.layers)
    sources = embedded.new_empty(1 + layers * (n_heads + 1), *embedded[:, positions].shape, dtype=precise)
    scores = embedded.new_zeros(len(sources), layers * (3 * n_heads + 1) + 1, dtype=precise)
    sources[0] = embedded[:, positions]
    known, column = 1, 0
    for layer, (before, matrices, gap, weight, after, before_mlp, gap_mlp), (at_heads, at_mlp) in zip(
            w.layers, taken, found):
        reads = pull_heads_back(at_heads, read_weights(matrices, layer, w)[0], before, places, frozen)
        column = contract(scores, column, sources[:known], reads)
        writers = slice(known, known + n_heads)
        sources[writers] = heads_written(weight, gap[:, positions], after, n_heads)
        known_to_mlp = known if w.parallel else known + n_heads
        column = contract(scores, column, sources[:known_to_mlp], pulled(at_mlp, before_mlp, places, frozen))
        sources[known + n_heads] = gap_mlp[:, positions]
        known += n_heads + 1
    contract(scores, column, sources, pulled(at_logits, None, places, frozen))
    return scores


def scores_along_path(model, ids, mask, w, frozen: bool, b: int, answers, gradient_rows: list) -> tuple:
    """`edge_scores` at the points of EAP-GP's path, in traces of its own: a forward pass per step, then the scores.

    ids: [rows, seq] of the clean prompts, the corrupt ones, and a copy of the clean ones for each step.
    """
    point, path = None, []
    for _ in gradient_rows:
        with model.trace(input_ids=ids[:2 * b], use_cache=False):
            point = path_points(model, w.embedding, mask, point).save()
        path.append(point)
    path = torch.cat(path)
    with model.trace(input_ids=ids, use_cache=False):
        found = edge_scores(model, w, frozen, b, answers, gradient_rows, [], path, {})
        scores, clean = found[0].save(), found[1].save()
    return scores, clean


def per_query_head(z, at_z, outputs: dict, layer, w) -> list:
    """Gradients at the shared k, then v, for each query head by itself, each [rows, seq, heads, head_dim]."""
    group = w.heads // w.key_heads
    found = {1: [], 2: []}
    for member in range(group):
        chosen = torch.zeros(w.heads, dtype=at_z.dtype, device=at_z.device)
        chosen[member::group] = 1
        share = (at_z.unflatten(-1, (w.heads, -1)) * chosen[:, None]).flatten(-2)
        paths = list(dict.fromkeys(layer.projections[1:]))
        pulled_back = torch.autograd.grad(z, [outputs[path] for path in paths], share, retain_graph=True,
                                          materialize_grads=True)
        parts = dict(zip(paths, pulled_back))
        for which in (1, 2):
            found[which].append(heads_of(parts[layer.projections[which]], which, layer.layout,
                                         w.heads, w.key_heads, w.head_dim))
    return [torch.stack(parts, -2).flatten(-3, -2) for parts in found.values()]


def pulled(gradient: torch.Tensor, norm, places: list, frozen: bool) -> torch.Tensor:
    """Gradients [1, b, positions, width] at the residual stream, summed over the points."""
    parts = [gradient[place] if norm is None else norm.pull_back(gradient[place], place, frozen) for place in places]
    return sum(parts)[None]


def contract(scores: torch.Tensor, column: int, sources: torch.Tensor, reads: torch.Tensor) -> int:
    """Put <output, gradient> of sources and targets at their place in the scores; the column after them."""
    after = column + len(reads)
    scores[:len(sources), column:after] = sources.flatten(1) @ reads.flatten(1).to(sources.dtype).T
    return after
