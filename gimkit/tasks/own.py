"""Your own task, from prompts as texts or chat messages, or from token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gimkit.errors import GimkitError, check_answers, check_ids, check_whole
from gimkit.model.tokenizer import answer_ids, is_text, text_of, token_text, unknown_words, warn_unknown
from gimkit.tasks.encode import encode_pair, pad_id, stack, tokenizer_of
from gimkit.tasks.task import Pair, Task

Prompts = Sequence | Mapping | torch.Tensor  # texts, chat messages, or token ids [n, seq]


def pairs(clean: Prompts, corrupt: Prompts, answers: Sequence | torch.Tensor, mask: Any = None, model: Any = None,
          name: str = "own", glue: str | None = None) -> Task:
    """A Task from your own prompt pairs.

    >>> own = gimkit.tasks.pairs(clean=["The doors"], corrupt=["The door"], answers=[("are", "is")], model=model)
    >>> own.clean.shape, own[0]
    (torch.Size([1, 3]), Pair(clean='The doors', corrupt='The door', answer='are', wrong='is'))
    >>> ids, others = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[3, 4, 7, 6]])
    >>> gimkit.tasks.pairs(clean=ids, corrupt=others, answers=torch.tensor([[12, 40]])).good
    ((12,),)
    >>> gimkit.tasks.pairs(clean=ids, corrupt=others, answers=[([[12, 13]], [[40]])]).sequences
    True

    Args:
        clean, corrupt: n texts or chat messages each (then `model` is needed), with a start token where the tokenizer
            has one and no end token; or token ids [n, S], a tensor, an array, lists or a BatchEncoding.
        answers: n times (good, bad). Good and bad are one answer or several; an answer is a text that follows the clean
            prompt, a token id, or a list of token ids. A tensor of ids [n, 2] is fine too. If one answer has several
            tokens, all answers of the task are scored by their log-probability (`Task.sequences`); then each pair
            has one good and one bad answer.
        mask: [n, S], true on real tokens; with token ids only, and all true by default. Padding is on the right.
        model: an nnsight model with a tokenizer, or a tokenizer.
        name: of the task.
        glue: the text between a prompt and an answer; None decides as in `gimkit.attribute`, "" joins both as they
            are.

    Returns:
        A `Task`.

    Raises:
        GimkitError: a prompt is empty, the lengths of a pair differ, an id is below 0 or not whole, the tokenizer does
            not know an answer, an answer is both good and bad, or a set of answers has answers of several tokens.
    """
    if isinstance(clean, str) or isinstance(corrupt, str) or is_text(clean) or is_text(corrupt):
        raise GimkitError("clean and corrupt must be lists of prompts: put the single prompt in a list")
    if isinstance(clean, Mapping) and isinstance(corrupt, Mapping):  # two BatchEncodings
        mask = clean.get("attention_mask") if mask is None else mask
        clean, corrupt = clean["input_ids"], corrupt["input_ids"]
    if len(clean) == 0:
        raise GimkitError("no prompt pairs: give at least one clean and one corrupt prompt")
    if not len(clean) == len(corrupt) == len(answers):
        raise GimkitError(f"{len(clean)} clean prompts, {len(corrupt)} corrupt ones, {len(answers)} answers: "
                          "give as many of each")
    if is_text(clean[0]):
        return _from_texts(clean, corrupt, answers, mask, model, name, glue)
    return _from_ids(clean, corrupt, answers, mask, name)


def _from_texts(clean: Any, corrupt: Any, answers: Any, mask: Any, model: Any, name: str, glue: str | None) -> Task:
    """A task of prompts as texts or chat messages."""
    if model is None:
        raise GimkitError("prompts given as strings need model=…, a model with a tokenizer or the tokenizer")
    if mask is not None:
        raise GimkitError("mask goes with token ids only: for strings it is made by the tokenizer")
    tokenizer = tokenizer_of(model)
    rows, sides, texts, unknown = [], [], [], []
    for a, b, answer in zip(clean, corrupt, answers):
        both = _two_sets(answer)
        rows.append(encode_pair(tokenizer, a, b))
        sides.append([[_ids(one, tokenizer, a, glue) for one in part] for part in both])
        shown = [part[0] if isinstance(part[0], str) else token_text(tokenizer, *ids[0]) for part, ids in
                 zip(both, sides[-1])]
        texts.append(Pair(text_of(tokenizer, a), text_of(tokenizer, b), *shown))
        unknown += [word for prompt in texts[-1][:2] for word in unknown_words(tokenizer, prompt)]
    warn_unknown(tokenizer, unknown)
    good, bad, sequences = _answers(sides, name)
    return stack(name, list(zip(*zip(*rows), good, bad)), texts, pad=pad_id(tokenizer), sequences=sequences)


def _from_ids(clean: Any, corrupt: Any, answers: Any, mask: Any, name: str) -> Task:
    """A task of token ids."""
    clean, corrupt = check_ids(clean, what="clean"), check_ids(corrupt, what="corrupt")
    if clean.ndim != 2:
        raise GimkitError(f"token ids must be a rectangle [n, S], not {list(clean.shape)}: pad rows on the right, give "
                          "mask")
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
    good, bad, sequences = _answers([[[_ids(one) for one in part] for part in _two_sets(answer)] for answer in answers],
                                    name)
    texts = (Pair("", "", "", ""),) * len(clean)
    return Task(name, clean, corrupt, mask, good, bad, texts, sequences=sequences)


def _two_sets(answer: Any) -> list[list]:
    """[[good, …], [bad, …]] out of (good, bad), where each is one answer or several."""
    answer = answer.tolist() if hasattr(answer, "tolist") else answer
    if isinstance(answer, str) or not hasattr(answer, "__len__") or len(answer) != 2:
        raise GimkitError(f"answers must be n times (good, bad), not {answer!r}")
    sets = [part.tolist() if hasattr(part, "tolist") else part for part in answer]
    sets = [list(part) if isinstance(part, (list, tuple, set, frozenset)) else [part] for part in sets]
    if not all(sets):
        raise GimkitError("an answer is empty: give at least one good and one bad token")
    return sets


def _ids(answer: Any, tokenizer: Any = None, prompt: Any = None, glue: str | None = None) -> list[int]:
    """The tokens of one answer: a text, an id, or several ids in a list."""
    if isinstance(answer, str):
        if prompt is None:
            raise GimkitError(f"prompts given as token ids need answers as token ids, not {answer!r}")
        return answer_ids(tokenizer, prompt, answer, glue)
    if hasattr(answer, "__len__"):
        return check_ids(answer, what="an answer").tolist()
    return [check_whole("an answer is a text, an id, or a list of ids, which", answer, 0)]


def _answers(sides: list, name: str) -> tuple[tuple, tuple, bool]:
    """Good and bad ids, and whether they are sequences, from each pair's [good answers, bad answers] as ids."""
    sequences = any(len(answer) > 1 for pair in sides for part in pair for answer in part)
    for row, (good, bad) in enumerate(sides):
        if sequences and (len(good) > 1 or len(bad) > 1):
            raise GimkitError(f"{name}, row {row}: a task with answers of several tokens has one good and one bad "
                              "answer for each pair, not sets of them")
        right, wrong = ([answer[0] if len(answer) == 1 else tuple(answer) for answer in part] for part in (good, bad))
        check_answers(right, wrong, f"{name}, row {row},")
    rights, wrongs = (tuple(tuple(pair[side][0] if sequences else (answer[0] for answer in pair[side]))
                            for pair in sides) for side in (0, 1))
    return rights, wrongs, sequences
