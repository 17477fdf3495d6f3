"""What a model answers when some tokens of a prompt are neutral: many variants of one prompt, as rows of a batch."""

import inspect

import torch

from gimkit.question import Question
from gimkit.remote import in_trace
from gimkit.traced import last_values


def masked_values(model, asked: Question, keep: torch.Tensor, remote: bool | str = False,
                  most: int = 2**13) -> tuple[torch.Tensor, list[int]]:
    """The explained logit and the answer's probability, [rows, 2] in float64, of each variant; and the answers' ids.

    >>> asked = gimkit.question.ask(model, "Mary drove to the farm with John. John lent a map to", "Mary")
    >>> values, answers = masked_values(model, asked, torch.ones(1, len(asked.ids), dtype=torch.bool))
    >>> values.shape, answers
    (torch.Size([1, 2]), [195])

    keep: [rows, seq], True where the prompt's own token stays. The first row must be the whole prompt when the answer
    is to be the model's own prediction. With a pair (right, wrong) the logit is a difference and the probability that
    of the right one. most: tokens per forward.
    """
    ids = torch.where(keep, asked.ids, asked.neutral)
    answers, found = asked.answers, []
    accepted = inspect.signature(model._module.forward).parameters
    short = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}  # a large vocabulary need not be held whole
    for rows in ids.split(max(1, most // ids.shape[1])):
        values, answers = in_trace(model, rows, last_values, answers, remote=remote, gradients=False, **short)
        found.append(values)
    return torch.cat(found), answers
