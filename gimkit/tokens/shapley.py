"""Exact Shapley values of tokens: what each one adds, averaged over all sets of other tokens that it can join."""

import math
from collections.abc import Iterable

import torch
from nnsight.intervention.envoy import Envoy

from gimkit.errors import GimkitError, require_finite
from gimkit.model.apply import check_unedited
from gimkit.model.prompt import PromptLike, Target, free_mask, inner_positions, read_prompt
from gimkit.tokens import TokenScores
from gimkit.tokens.attribute import label_scores
from gimkit.tokens.masking import masked_values

MOST = 12  # free tokens: 4096 variants of the prompt


def shapley(model: Envoy, prompt: PromptLike, target: Target = None, *, baseline: str | int | None = None,
            free: Iterable[int] | None = None, glue: str | None = None, remote: bool | str = False) -> TokenScores:
    """The exact Shapley value of each free token, from the model's logits on all subsets of them.

    >>> values = shapley(model, "Mary drove to the farm with John. John lent a map to", target=("Mary", "John"))
    >>> values.scores.shape, values.method
    (torch.Size([14]), 'shapley')

    The value of a subset is what `target` explains when the baseline token replaces the other free tokens. The scores
    therefore sum to the value of the prompt minus the value without its free tokens. An interaction is shared equally
    by the tokens that take part in it. The cost is 2^free rows of a forward pass: 4096 for 12 free tokens.

    Args:
        model, prompt, target, baseline, glue, remote: as in `gimkit.attribute`.
        free: positions of at most 12 tokens; the others stay and score 0. None: all but the first and the last.

    Returns:
        The `TokenScores`, scores [seq] in units of the metric.

    Raises:
        GimkitError: more than 12 free tokens, and as `gimkit.attribute`.

    Source:
        Shapley 1953; the game of arXiv 1705.07874, with a baseline token.
    """
    check_unedited(model)
    encoded = read_prompt(model, prompt, target, baseline, free, glue)
    if free is None:
        encoded = encoded._replace(free=free_mask(len(encoded.ids), inner_positions(len(encoded.ids))))
    positions = encoded.free.nonzero().flatten()
    if len(positions) > MOST:
        raise GimkitError(f"{len(positions)} free tokens would take 2^{len(positions)} variants of the prompt; choose "
                          f"at most {MOST} positions with free=")
    members = subsets(len(positions)).flip(0)  # the whole prompt first
    keep = torch.ones(len(members), len(encoded.ids), dtype=torch.bool)
    keep[:, positions] = members
    values, answers = masked_values(model, encoded, keep, remote)
    scores = torch.zeros(len(encoded.ids), dtype=torch.float64)
    scores[positions] = shapley_values(values[:, 0].flip(0))
    require_finite(scores)
    return label_scores(model, encoded, scores.float(), answers, "shapley")


def subsets(n: int) -> torch.Tensor:
    """All subsets of n players, [2^n, n]: row r has player i where bit i of r is set.

    >>> subsets(2)
    tensor([[False, False],
            [ True, False],
            [False,  True],
            [ True,  True]])
    """
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) % 2 == 1


def shapley_values(values: torch.Tensor) -> torch.Tensor:
    """Shapley values [n] of a game from the values [2^n] of all subsets, in the order of `subsets`.

    >>> shapley_values(torch.tensor([0.0, 0.0, 0.0, 1.0]))                # 1 only when both play
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    n = len(values).bit_length() - 1
    members = subsets(n)
    weight = torch.tensor([math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
                           for size in range(n)], dtype=torch.float64)
    found = []
    for player in range(n):
        without = (~members[:, player]).nonzero().flatten()
        gain = values[without + 2**player].double() - values[without].double()
        found.append((weight[members[without].sum(1)] * gain).sum())
    return torch.stack(found)
