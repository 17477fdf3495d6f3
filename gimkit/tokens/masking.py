"""What a model answers when some tokens of a prompt are neutral: many variants of one prompt, as rows of a batch."""

import torch

from gimkit.interventions.token_scores import last_values
from gimkit.model.architecture import unembedding_of
from gimkit.model.prompt import Question, each_answer
from gimkit.remote import in_trace


def masked_values(model, asked: Question, keep: torch.Tensor, remote: bool | str = False,
                  most: int = 2**13) -> tuple[torch.Tensor, list[int]]:
    """The explained value and the answer's probability, [rows, 2] in float64, of each variant; and the answers' ids.

    >>> asked = gimkit.model.prompt.ask(model, "Mary drove to the farm with John. John lent a map to", "Mary")
    >>> values, answers = masked_values(model, asked, torch.ones(1, len(asked.ids), dtype=torch.bool))
    >>> values.shape, answers
    (torch.Size([1, 2]), [195])

    keep: [rows, seq], True where the prompt's own token stays. The first row must be the whole prompt when the answer
    is to be the model's own prediction. With a pair (right, wrong) the value is a difference and the probability that
    of the right one, or, where one has several tokens, a difference too. most: tokens per forward.
    """
    if asked.metric == "log-probability" and len(asked.answers) == 2:
        return each_answer(asked, lambda part: masked_values(model, part, keep, remote, most))
    ids = asked.rows(torch.where(keep, asked.ids, asked.neutral))
    answers, found, unembedding = asked.answers, [], unembedding_of(model)
    for rows in ids.split(max(1, most // ids.shape[1])):
        values, known = in_trace(model, rows, last_values, unembedding, answers, remote=remote, gradients=False)
        answers = known or answers  # of a function none come back
        found.append(values)
    return torch.cat(found), answers
