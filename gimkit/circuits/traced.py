"""The bodies of circuit traces: they read activations and leave only scores. Shipped to servers by value."""

import torch


def metric_values(metric: str, logits: torch.Tensor, last, good, bad, clean=None) -> torch.Tensor:
    """The metric [groups, b] of groups of b rows that have the same answers.

    >>> logits = torch.tensor([[[0.0, 3.0, 1.0]]])                                     # [groups * b, seq, vocab]
    >>> metric_values("logit", logits, torch.tensor([0]), torch.tensor([[1]]), torch.tensor([[2]]))
    tensor([[2.]])

    metric: "logit", logsumexp over the good answers' logits minus that over the bad ones' (the logit difference for
    single answers); "probability", the good answers' summed probability minus the bad ones'; "kl", minus the
    divergence KL(clean || current) of the next token's distribution, in nats; "kl-mean", that divided by |vocab|.
    last: [b] position of the answer. good, bad: [b, most] token ids, padded with -1.
    clean: the clean run's logits [b, seq, vocab], for the divergence.
    """
    rows = torch.arange(len(last), device=logits.device)
    last = last.to(logits.device)
    precise = torch.promote_types(logits.dtype, torch.float32)
    at_answer = logits.unflatten(0, (-1, len(last)))[:, rows, last].to(precise)  # [groups, b, vocab]
    if metric in ("kl", "kl-mean"):
        wanted = torch.log_softmax(clean[rows, last].detach().to(precise), -1)
        divergence = torch.nn.functional.kl_div(torch.log_softmax(at_answer, -1), wanted.expand_as(at_answer),
                                                reduction="none", log_target=True)
        return -divergence.sum(-1) if metric == "kl" else -divergence.mean(-1)
    if metric == "probability":
        at_answer = torch.log_softmax(at_answer, -1)
    sides = []
    for ids in (good.to(logits.device), bad.to(logits.device)):
        chosen = at_answer.gather(2, ids.clamp(min=0).expand(len(at_answer), -1, -1)).masked_fill(ids < 0, -torch.inf)
        sides.append(torch.logsumexp(chosen, 2))
    return sides[0].exp() - sides[1].exp() if metric == "probability" else sides[0] - sides[1]


def at_answers(model, w, last: torch.Tensor) -> torch.Tensor:
    """The logits [groups * b, 1, vocab] at the answers' positions; no others are computed where none may count.

    w: the `Wiring`. last: [b].
    """
    module = model.get(w.unembedding)
    x = module.input
    rows = torch.arange(len(x), device=x.device)
    places = last.to(x.device).repeat(len(x) // len(last))
    if w.all_positions:
        return model.output.logits[rows, places][:, None]
    module.input = x[rows, places][:, None]
    return model.output.logits


def tensor_of(output):
    """A module's hidden state, when it returns it alone or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def by_row(x: torch.Tensor, rows: int) -> torch.Tensor:
    """A view as [rows, seq, width]; OPT-like blocks run their MLP with rows and positions in one axis."""
    return x.view(rows, -1, x.shape[-1])


def exact_node_scores(model, embedding: str, blocks: list, n_heads: int, nodes: list, metric: str, last, good,
                      bad) -> torch.Tensor:
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
    logits = model.output.logits
    values = metric_values(metric, logits, last, good, bad, logits[:b])
    return (values[0] - values[2:]).T


def coalition_values(model, blocks: list, n_heads: int, present: torch.Tensor, last, good, bad) -> torch.Tensor:
    """The logit metric [1 + sets, b] of the corrupt run, and of clean ones in which absent nodes stay corrupt.

    The rows are b corrupt prompts, then b clean ones for each set. present: [sets, b, nodes], nodes in order of layers,
    each layer's heads before its MLP.
    """
    sets, b, _ = present.shape
    present = present.reshape(sets * b, len(blocks), n_heads + 1)
    for layer, (output, mlp) in enumerate(blocks):
        z = model.get(output).input
        present = present.to(z.device)
        heads = present[:, layer, :n_heads].repeat_interleave(z.shape[-1] // n_heads, -1)[:, None]
        model.get(output).input = torch.cat([z[:b], torch.where(heads, z[b:], z[:b].repeat(sets, 1, 1))])
        value = model.get(mlp).output
        m = by_row(tensor_of(value), (1 + sets) * b)
        kept = torch.where(present[:, layer, n_heads, None, None], m[b:], m[:b].repeat(sets, 1, 1))
        kept = torch.cat([m[:b], kept]).view(tensor_of(value).shape)
        model.get(mlp).output = (kept, *value[1:]) if isinstance(value, tuple) else kept
    return metric_values("logit", model.output.logits, last, good, bad)
