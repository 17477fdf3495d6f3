"""A task of one's own, from strings or from token ids."""

import torch

from gimkit.errors import GimkitError
from gimkit.model.tokenizer import answer_id
from gimkit.tasks.encode import encode_pair, pad_id, stack, tokenizer_of
from gimkit.tasks.task import Pair, Task


def pairs(clean, corrupt, answers, mask=None, model=None, name: str = "own") -> Task:
    """A Task from your own prompt pairs.

    >>> own = gimkit.tasks.pairs(clean=["The doors"], corrupt=["The door"], answers=[("are", "is")], model=model)
    >>> own.clean.shape, own[0]
    (torch.Size([1, 3]), Pair(clean='The doors', corrupt='The door', answer='are', wrong='is'))
    >>> ids, others = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[3, 4, 7, 6]])
    >>> gimkit.tasks.pairs(clean=ids, corrupt=others, answers=torch.tensor([[12, 40]])).good
    ((12,),)

    Args:
        clean, corrupt: n strings each (then `model` or its tokenizer is needed), or token ids [n, S].
        answers: n (good, bad). Good and bad are one answer or several; an answer is a string of one token
            behind the clean prompt, or a token id. A [n, 2] tensor of ids will do.
        mask: [n, S], true on real tokens (with token ids only; all when left out). Padding: on the right.
    Raises:
        GimkitError: empty prompts, unequal lengths in a pair, an answer that is not one token.
    """
    if isinstance(clean, str) or isinstance(corrupt, str):
        raise GimkitError("clean and corrupt must be lists of prompts: put the single prompt in a list")
    if len(clean) == 0:
        raise GimkitError("no prompt pairs: give at least one clean and one corrupt prompt")
    if not len(clean) == len(corrupt) == len(answers):
        raise GimkitError(f"{len(clean)} clean prompts, {len(corrupt)} corrupt ones, {len(answers)} answers: "
                          "give as many of each")
    if isinstance(clean[0], str):
        return _from_strings(clean, corrupt, answers, mask, model, name)
    return _from_ids(clean, corrupt, answers, mask, name)


def _from_strings(clean, corrupt, answers, mask, model, name) -> Task:
    if model is None:
        raise GimkitError("prompts given as strings need model=…, a model with a tokenizer or the tokenizer")
    if mask is not None:
        raise GimkitError("mask goes with token ids only: for strings it is made by the tokenizer")
    tokenizer = tokenizer_of(model)
    rows, texts = [], []
    for a, b, answer in zip(clean, corrupt, answers):
        good, bad = _two_sets(answer)
        rows.append((*encode_pair(tokenizer, a, b), *(_ids(part, tokenizer, a) for part in (good, bad))))
        first = [part[0] for part in (good, bad)]
        shown = [word if isinstance(word, str) else tokenizer.decode([int(word)]) for word in first]
        texts.append(Pair(a, b, *shown))
    return stack(name, rows, texts, pad=pad_id(tokenizer))


def _from_ids(clean, corrupt, answers, mask, name) -> Task:
    try:
        clean, corrupt = torch.as_tensor(clean), torch.as_tensor(corrupt)
    except (ValueError, TypeError) as error:
        raise GimkitError("token ids must be a rectangle [n, S]: pad rows on the right, give mask") from error
    if clean.ndim != 2 or clean.is_floating_point() or corrupt.is_floating_point():
        raise GimkitError(f"token ids must be whole numbers [n, S], not {clean.dtype} {list(clean.shape)}")
    if clean.shape != corrupt.shape:
        raise GimkitError(
            f"clean is {list(clean.shape)}, corrupt {list(corrupt.shape)}: a pair needs equal lengths")
    mask = torch.ones_like(clean, dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()
    if mask.shape != clean.shape:
        raise GimkitError(f"mask is {list(mask.shape)} but ids are {list(clean.shape)}: one entry a token")
    if not mask.any(1).all():
        row = int(mask.any(1).long().argmin())
        raise GimkitError(f"empty prompt: row {row} of mask has no real token")
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise GimkitError("mask must be true first and false after: padding is on the right")
    sets = [_two_sets(answer) for answer in answers]
    good, bad = (tuple(_ids(pair[side]) for pair in sets) for side in (0, 1))
    texts = (Pair("", "", "", ""),) * len(clean)
    return Task(name, clean.long(), corrupt.long(), mask, good, bad, texts)


def _two_sets(answer) -> list[list]:
    """[[good, …], [bad, …]] out of (good, bad), where each is one answer or several."""
    answer = answer.tolist() if isinstance(answer, torch.Tensor) else answer
    if isinstance(answer, str) or not hasattr(answer, "__len__") or len(answer) != 2:
        raise GimkitError(f"answers must be n times (good, bad), not {answer!r}")
    sets = [part.tolist() if isinstance(part, torch.Tensor) else part for part in answer]
    sets = [list(part) if isinstance(part, (list, tuple, set, frozenset)) else [part] for part in sets]
    if not all(sets):
        raise GimkitError("an answer is empty: give at least one good and one bad token")
    return sets


def _ids(part, tokenizer=None, prompt=None) -> tuple[int, ...]:
    ids = []
    for answer in part:
        if not isinstance(answer, str):
            ids.append(int(answer))
        elif prompt is None:
            raise GimkitError(f"prompts given as token ids need answers as token ids, not {answer!r}")
        else:
            ids.append(answer_id(tokenizer, prompt, answer))
    return tuple(ids)
