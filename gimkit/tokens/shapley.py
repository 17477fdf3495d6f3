"""Exact Shapley values of tokens: what each is worth, averaged over every set of other tokens it may join."""

import math

import torch

from gimkit.errors import GimkitError, require_finite
from gimkit.model.apply import check_unedited
from gimkit.model.prompt import ask, free_mask, inner_positions
from gimkit.tokens import TokenScores
from gimkit.tokens.attribute import label_scores
from gimkit.tokens.masking import masked_values

MOST = 12  # free tokens: 4096 variants of the prompt


def shapley(model, prompt, target=None, *, baseline=None, free=None, glue: str | None = None,
            remote: bool | str = False) -> TokenScores:
    """The exact Shapley value of each free token, from the model's logits on all subsets of them.

    >>> worth = shapley(model, "Mary drove to the farm with John. John lent a map to", target=("Mary", "John"))
    >>> worth.scores.shape, worth.method
    (torch.Size([14]), 'shapley')

    A subset's value is what `target` explains (a logit, a difference, a log-probability, a function) when the other
    free tokens are the baseline token. So scores sum to that of the prompt minus that of the prompt without its free
    tokens, and interactions are shared equally by those who take part. 2^free variants: 4096 for the 12 allowed.
    free: positions of at most 12 tokens; the others stay and score 0. None: all but the first and the last.
    model, prompt, target, baseline, glue, remote: as in `gimkit.attribute`.
    Raises GimkitError for more than 12 free tokens, and as `gimkit.attribute`.
    Source: Shapley 1953; the game of arXiv 1705.07874 with a baseline token.
    """
    check_unedited(model)
    asked = ask(model, prompt, target, baseline, free, glue)
    if free is None:
        asked = asked._replace(free=free_mask(len(asked.ids), inner_positions(len(asked.ids))))
    positions = asked.free.nonzero().flatten()
    if len(positions) > MOST:
        raise GimkitError(f"{len(positions)} free tokens would take 2^{len(positions)} variants of the prompt; choose "
                          f"at most {MOST} positions with free=")
    inside = subsets(len(positions)).flip(0)  # the whole prompt first
    keep = torch.ones(len(inside), len(asked.ids), dtype=torch.bool)
    keep[:, positions] = inside
    values, answers = masked_values(model, asked, keep, remote)
    scores = torch.zeros(len(asked.ids), dtype=torch.float64)
    scores[positions] = shapley_values(values[:, 0].flip(0))
    require_finite(scores)
    return label_scores(model, asked, scores.float(), answers, "shapley")


def subsets(n: int) -> torch.Tensor:
    """Membership [2^n, n]: row r holds player i where bit i of r is set.

    >>> subsets(2)
    tensor([[False, False],
            [ True, False],
            [False,  True],
            [ True,  True]])
    """
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) % 2 == 1


def shapley_values(values: torch.Tensor) -> torch.Tensor:
    """Shapley values [n] of a game given by the values [2^n] of all coalitions, in the order of `subsets`.

    >>> shapley_values(torch.tensor([0.0, 0.0, 0.0, 1.0]))                # worth something only together
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    n = len(values).bit_length() - 1
    members = subsets(n)
    weight = torch.tensor([math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
                           for size in range(n)], dtype=torch.float64)
    worth = []
    for player in range(n):
        without = (~members[:, player]).nonzero().flatten()
        gain = values[without + 2**player].double() - values[without].double()
        worth.append((weight[members[without].sum(1)] * gain).sum())
    return torch.stack(worth)
