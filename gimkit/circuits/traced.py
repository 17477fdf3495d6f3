"""The bodies of circuit traces: they read activations and leave only scores. Shipped to servers by value."""

import torch


def answer_difference(logits: torch.Tensor, last: torch.Tensor, good: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
    """logsumexp over the good answers' logits minus logsumexp over the bad ones': the logit difference for single ones.

    >>> logits = torch.tensor([[[0.0, 3.0, 1.0]]])                                     # [rows, seq, vocab]
    >>> answer_difference(logits, torch.tensor([0]), torch.tensor([[1]]), torch.tensor([[2]]))
    tensor([2.])

    last: [rows] position of the answer. good, bad: [rows, most] token ids, padded with -1.
    """
    at_answer = logits[torch.arange(len(last), device=logits.device), last.to(logits.device)].to(
        torch.promote_types(logits.dtype, torch.float32))
    sides = []
    for ids in (good.to(logits.device), bad.to(logits.device)):
        chosen = at_answer.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
        sides.append(torch.logsumexp(chosen, dim=1))
    return sides[0] - sides[1]


def tensor_of(output):
    """A module's hidden state, when it returns it alone or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def by_row(x: torch.Tensor, rows: int) -> torch.Tensor:
    """A view as [rows, seq, width]; OPT-like blocks run their MLP with rows and positions in one axis."""
    return x.view(rows, -1, x.shape[-1])


def exact_node_scores(model, embedding: str, blocks: list, n_heads: int, nodes: list, last, good, bad) -> torch.Tensor:
    """Effects [b, nodes] of replacing each node's output, at all positions, by its corrupt value.

    The rows are b clean prompts, b corrupt ones, and for each node b clean ones again, which it is patched in.
    nodes: (kind, layer, head) of each patched node.
    """
    b = len(last)
    rows = {tuple(node): slice((2 + i) * b, (3 + i) * b) for i, node in enumerate(nodes)}
    if ("input", 0, 0) in rows:
        x = model.get(embedding).output.clone()
        x[rows["input", 0, 0]] = x[b:2 * b]
        model.get(embedding).output = x
    for layer, (output, mlp) in enumerate(blocks):
        heads = [head for head in range(n_heads) if ("head", layer, head) in rows]
        if heads:
            z = model.get(output).input.clone()
            by_head = z.unflatten(-1, (n_heads, -1))
            for head in heads:
                by_head[rows["head", layer, head], :, head] = by_head[b:2 * b, :, head]
            model.get(output).input = z
        if ("mlp", layer, 0) in rows:
            value = model.get(mlp).output
            m = tensor_of(value).clone()
            rowwise = by_row(m, (2 + len(nodes)) * b)
            rowwise[rows["mlp", layer, 0]] = rowwise[b:2 * b]
            model.get(mlp).output = (m, *value[1:]) if isinstance(value, tuple) else m
    n = 2 + len(nodes)
    metric = answer_difference(model.output.logits, last.repeat(n), good.repeat(n, 1), bad.repeat(n, 1)).view(n, b)
    return (metric[0] - metric[2:]).T
