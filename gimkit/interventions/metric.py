"""The metric of a task at the answers' positions."""

from typing import NamedTuple

import torch


class Answers(NamedTuple):
    """What a batch of b rows is measured by.

    metric: "logit", logsumexp over the good answers' logits minus that over the bad ones' (the logit difference for
    single answers); "probability", the good answers' summed probability minus the bad ones'; "kl", minus the
    divergence KL(clean || current) of the next token's distribution, in nats; "kl-mean", that divided by |vocab|.
    last: [b] position of the answer. good, bad: [b, most] token ids, padded with -1.
    Where answers have several tokens, last is [b, most], the position that predicts each token, and a row has one
    answer, the good or the bad one: the metric is its log-probability (or probability), negative for the bad one.
    """

    metric: str
    last: torch.Tensor
    good: torch.Tensor
    bad: torch.Tensor


def answers_at(answers, rows):
    """The answers of some of the rows."""
    return type(answers)(metric=answers.metric, last=answers.last[rows], good=answers.good[rows],
                         bad=answers.bad[rows])


def metric_values(logits: torch.Tensor, answers, clean=None) -> torch.Tensor:
    """The metric [groups, b] of groups of b rows that have the same answers.

    >>> answers = Answers("logit", torch.tensor([0]), good=torch.tensor([[1]]), bad=torch.tensor([[2]]))
    >>> metric_values(torch.tensor([[[0.0, 3.0, 1.0]]]), answers)
    tensor([[2.]])

    logits: [groups * b, tokens, vocab] as `at_answers` returns them. clean: those of the clean run, [b, tokens, vocab],
    for the divergences.
    """
    b = len(answers.last)
    by_group = logits.to(torch.promote_types(logits.dtype, torch.float32)).unflatten(0, (-1, b))
    if answers.last.dim() == 2:
        return of_sequences(by_group, answers)
    at_answer = by_group[:, :, 0]  # [groups, b, vocab]
    if answers.metric in ("kl", "kl-mean"):
        wanted = torch.log_softmax(clean[:, 0].detach().to(at_answer.dtype), -1)
        divergence = torch.nn.functional.kl_div(torch.log_softmax(at_answer, -1), wanted.expand_as(at_answer),
                                                reduction="none", log_target=True)
        return -divergence.sum(-1) if answers.metric == "kl" else -divergence.mean(-1)
    if answers.metric == "probability":
        at_answer = torch.log_softmax(at_answer, -1)
    sides = []
    for ids in (answers.good.to(logits.device), answers.bad.to(logits.device)):
        chosen = at_answer.gather(2, ids.clamp(min=0).expand(len(at_answer), -1, -1)).masked_fill(ids < 0, -torch.inf)
        sides.append(torch.logsumexp(chosen, 2))
    return sides[0].exp() - sides[1].exp() if answers.metric == "probability" else sides[0] - sides[1]


def of_sequences(logits: torch.Tensor, answers) -> torch.Tensor:
    """The metric [groups, b] of rows with one answer of several tokens, good or bad; the other side's ids are -1.

    logits: [groups, b, tokens, vocab].
    """
    known, sides = torch.log_softmax(logits, -1), []
    for ids in (answers.good.to(logits.device), answers.bad.to(logits.device)):
        index = ids.clamp(min=0).expand(len(known), -1, -1)[..., None]
        total = known.gather(3, index)[..., 0].masked_fill(ids < 0, 0).sum(2)
        sides.append(total.exp() * (ids >= 0).any(1) if answers.metric == "probability" else total)
    return sides[0] - sides[1]


def values_at_answers(model, unembedding, answers) -> torch.Tensor:
    """The metric [groups, b] of groups of b rows, as `metric_values`; divergences are from the first group."""
    logits = at_answers(model, unembedding, answers.last)
    return metric_values(logits, answers, logits[:len(answers.last)])


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
