"""What token attribution is asked: a prompt, the answer to explain, and the token that stands for nothing."""

from typing import NamedTuple

import torch

from gimkit.errors import GimkitError
from gimkit.model.tokenizer import answer_id, encode, neutral_token, one_token


class Question(NamedTuple):
    """ids: [seq] token ids. neutral: the neutral token's id. answers: no id (the top prediction), one, or right and
    wrong. free: [seq], True where a token may become neutral.
    """

    ids: torch.Tensor
    neutral: int
    answers: list[int]
    free: torch.Tensor


def ask(model, prompt, target=None, baseline=None, free=None) -> Question:
    """Check and encode what `gimkit.attribute` and its kin are given.

    >>> ask(model, "Mary drove to the farm with John. John lent a map to", ("Mary", "John")).answers
    [195, 178]

    free: positions that may become neutral; None: all.
    Raises GimkitError for an empty prompt, one longer than the model's context, a target that is not one token or a
    pair, positions that the prompt lacks.
    """
    tokenizer = getattr(model, "tokenizer", None)
    ids = encode(tokenizer, prompt)
    context = getattr(model._module.config, "max_position_embeddings", None)
    if context is not None and len(ids) > context:
        raise GimkitError(f"the prompt has {len(ids)} tokens, but the model's context holds {context}; shorten it")
    neutral = neutral_token(tokenizer) if baseline is None else one_token(tokenizer, baseline)
    words = target if isinstance(target, tuple | list) else (target,)
    answers = [answer_id(tokenizer, prompt, word) if isinstance(word, str) and isinstance(prompt, str)
               else one_token(tokenizer, word) for word in words if word is not None]
    if len(answers) > 2:
        raise GimkitError(f"target is one token, or a pair (right, wrong), not {len(answers)} tokens")
    return Question(ids, neutral, answers, free_mask(len(ids), range(len(ids)) if free is None else free))


def free_mask(length: int, positions) -> torch.Tensor:
    """Positions as [length] booleans.

    >>> free_mask(4, [1, 2])
    tensor([False,  True,  True, False])

    Raises GimkitError for no positions, or ones outside the prompt.
    """
    positions = list(positions)
    if not positions or not all(isinstance(p, int) and 0 <= p < length for p in positions):
        raise GimkitError(f"free are positions from 0 to {length - 1} of this prompt, not {positions}")
    mask = torch.zeros(length, dtype=torch.bool)
    mask[positions] = True
    return mask


def inner_positions(length: int) -> range:
    """All positions but the first and the last, which stay in GIM's evaluation (the start token, and where it answers).

    >>> inner_positions(5)
    range(1, 4)

    Raises GimkitError for a prompt of one or two tokens.
    """
    if length < 3:
        raise GimkitError(f"this prompt has {length} token{'s' * (length > 1)}: the first and the last always stay, so "
                          "none is left to replace; use a prompt of at least 3 tokens")
    return range(1, length - 1)
