"""The metric of a task at the answers' positions."""

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
    Where answers have several tokens, last is [b, most], the position that predicts each token, and a row has one
    answer, the good or the bad one: the metric is its log-probability (or probability), negative for the bad one.
    clean: the clean run's logits [b, seq, vocab], for the divergence.
    """
    rows = torch.arange(len(last), device=logits.device)
    last = last.to(logits.device)
    precise = torch.promote_types(logits.dtype, torch.float32)
    by_group = logits.unflatten(0, (-1, len(last)))
    if last.dim() == 2:
        return of_sequences(metric, by_group[:, rows[:, None], last].to(precise), good, bad)
    at_answer = by_group[:, rows, last].to(precise)  # [groups, b, vocab]
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


def of_sequences(metric: str, logits: torch.Tensor, good, bad) -> torch.Tensor:
    """The metric [groups, b] of rows with one answer of several tokens, good or bad; the other side's ids are -1.

    >>> of_sequences("probability", torch.zeros(1, 1, 2, 10), torch.tensor([[3, 4]]), torch.tensor([[-1, -1]]))
    tensor([[0.0100]])

    logits: [groups, b, tokens, vocab] where each of the answer's tokens is predicted. good, bad: [b, tokens].
    """
    known, sides = torch.log_softmax(logits, -1), []
    for ids in (good.to(logits.device), bad.to(logits.device)):
        index = ids.clamp(min=0).expand(len(known), -1, -1)[..., None]
        total = known.gather(3, index)[..., 0].masked_fill(ids < 0, 0).sum(2)
        sides.append(total.exp() * (ids >= 0).any(1) if metric == "probability" else total)
    return sides[0] - sides[1]


def values_at_answers(model, unembedding, metric: str, last, good, bad) -> torch.Tensor:
    """The metric [groups, b] of groups of b rows, as `metric_values`; divergences are from the first group."""
    logits = at_answers(model, unembedding, last)
    return metric_values(metric, logits, places_of(last), good, bad, logits[:len(last)])


def at_answers(model, unembedding, last: torch.Tensor) -> torch.Tensor:
    """The logits [groups * b, tokens, vocab] at the answers' positions; one token each where last is [b].

    unembedding: the `Unembedding`. No other logits are computed, unless an edit or a hook could count positions.
    """
    module = model.get(unembedding.path)
    x = module.input
    rows = torch.arange(len(x), device=x.device)[:, None]
    places = last.view(len(last), -1).to(x.device).repeat(len(x) // len(last), 1)
    if unembedding.all_positions:
        return model.output.logits[rows, places]
    module.input = x[rows, places]
    return model.output.logits


def places_of(last: torch.Tensor) -> torch.Tensor:
    """Where the answers' positions are in what `at_answers` returns.

    >>> places_of(torch.tensor([[4, 5], [6, 6]]))
    tensor([[0, 1],
            [0, 1]])
    """
    return torch.zeros_like(last) if last.dim() == 1 else torch.arange(last.shape[1]).expand(len(last), -1)
