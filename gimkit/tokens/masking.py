"""What a model predicts when the baseline token replaces some tokens: variants of one prompt, as rows of a batch."""

import torch
from nnsight.intervention.envoy import Envoy

from gimkit.interventions.token_scores import last_values
from gimkit.model.architecture import unembedding_of
from gimkit.model.prompt import Prompt, right_minus_wrong
from gimkit.remote import in_trace


def masked_values(model: Envoy, prompt: Prompt, keep: torch.Tensor, remote: bool | str = False,
                  most: int = 2**13) -> tuple[torch.Tensor, list]:
    """The explained value and the answer's probability of each variant, [rows, 2] in float64, and the answers' ids.

    >>> prompt = gimkit.model.prompt.read_prompt(model, "Mary drove to the farm with John. John lent a map to", "Mary")
    >>> values, answers = masked_values(model, prompt, torch.ones(1, len(prompt.ids), dtype=torch.bool))
    >>> values.shape, answers
    (torch.Size([1, 2]), [195])

    Of a pair (right, wrong) the value is the difference. The probability is then the right answer's, or the difference
    too where an answer has several tokens.

    Args:
        keep: [rows, seq], True where the prompt's own token stays. Without a target the first row must be the whole
            prompt, whose prediction is explained.
        remote: as in `gimkit.attribute`.
        most: tokens per forward pass.
    """
    if prompt.metric == "log-probability" and len(prompt.answers) == 2:
        return right_minus_wrong(prompt, lambda part: masked_values(model, part, keep, remote, most))
    ids = prompt.rows(torch.where(keep, prompt.ids, prompt.baseline))
    answers, found, unembedding = prompt.answers, [], unembedding_of(model)
    for rows in ids.split(max(1, most // ids.shape[1])):
        values, known = in_trace(model, rows, last_values, unembedding, answers, remote=remote, gradients=False)
        answers = known or answers  # a target that is a function has no ids
        found.append(values)
    return torch.cat(found), answers
