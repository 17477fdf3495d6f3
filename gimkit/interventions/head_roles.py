"""What heads attend to and what they write; only numbers leave the trace."""

import torch

from gimkit.interventions.attention import attention_call, attention_pattern
from gimkit.interventions.metric import at_answers
from gimkit.interventions.residual_stream import read_after, read_norm
from gimkit.interventions.weights import leaf_of, matrix_of


def head_numbers(model, w, attentions: list, looks: torch.Tensor, answers):
    """Attention [layers, heads, kinds], summed over rows and queries, and direct writes [rows, layers, heads, 2].

    attentions: path of each layer's attention. looks: [rows, kinds, seq, seq], True where a query's attention to a
    position counts for that kind. A head writes on the good and on the bad answers' logits, each less the mean logit,
    from the answer's position straight through the final norm, whose denominator is held fixed.
    """
    last = answers.last.to(model.device)
    rows = torch.arange(len(last), device=model.device)
    looked, written = [], []
    for layer, path in zip(w.layers, attentions):
        pattern = attention_pattern(*attention_call(model.get(path)))
        looked.append(torch.einsum("rhij,rkij->hk", pattern, looks.to(pattern)))
        projection = model.get(layer.output)
        z, attention = projection.input, projection.output
        weight = matrix_of(projection, layer.output, z, attention)[0].unflatten(0, (w.heads, -1))
        z = z.detach()[rows, last]
        after = read_after(model, layer.norm_after_attention, attention)
        if after is not None:
            z = z * after.inverse[rows, last]
        parts = torch.einsum("rhd,hdw->rhw", z.unflatten(-1, (w.heads, -1)).to(weight.dtype), weight)
        written.append(parts if after is None else parts * after.factor)
    final = read_norm(model, w.final_norm)
    norm = model.get(w.final_norm.path)
    leaf = leaf_of(model, norm.output)
    norm.output = leaf
    logits = at_answers(model, w.unembedding, last)[:, 0]
    directions = []
    for ids in (answers.good.to(logits.device), answers.bad.to(logits.device)):
        side = logits.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf).logsumexp(1) - logits.mean(-1)
        gradient = torch.autograd.grad(side.sum(), leaf, retain_graph=True)[0]
        directions.append(final.pull_back(gradient, slice(None), frozen=True)[rows, last])
    written = torch.stack([part.to(directions[0]) for part in written], 1)
    return torch.stack(looked), torch.stack([torch.einsum("rlhw,rw->rlh", written, d) for d in directions], -1)


def head_patterns(model, attentions: list) -> list:
    """The attention of each layer's heads on the first row, [heads, queries, positions] for each path."""
    return [attention_pattern(*attention_call(model.get(path)))[0].float() for path in attentions]
