"""The one exception that gimkit raises for bad input, and the checks of arguments that all entry points share."""

import math
from typing import Any

import torch


class GimkitError(ValueError):
    """Bad input, in one line: what is wrong, and the way out.

    >>> raise GimkitError("unknown method 'gmi'; use one of gim, gradient, ig")
    Traceback (most recent call last):
    gimkit.errors.GimkitError: unknown method 'gmi'; use one of gim, gradient, ig
    """


def require_finite(values: torch.Tensor, what: str = "the scores") -> None:
    """Raise GimkitError when a tensor holds NaN or infinity.

    >>> require_finite(torch.tensor([1.0, 2.0]))
    """
    if not bool(values.isfinite().all()):
        raise GimkitError(f"{what} contain NaN or infinite values; check the model's weights and dtype")


def check_whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number as an int. Single numbers of numpy and single-element tensors count as whole numbers too.

    >>> check_whole("steps", torch.tensor(5))
    5
    >>> check_whole("steps", 2.0)
    Traceback (most recent call last):
    gimkit.errors.GimkitError: steps must be a whole number of at least 1, not 2.0

    Raises:
        GimkitError: another type, or a number below `least` or above `most`.
    """
    try:
        number = None if "bool" in str(getattr(value, "dtype", type(value))) else value.__index__()
    except (AttributeError, TypeError):  # a tensor of floats has the method, and it raises
        number = None
    if number is None or number < least or most is not None and number > most:
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise GimkitError(f"{name} must be a whole number {wanted}, not {value!r}")
    return number


def check_known(what: str, value: Any, known: Any) -> None:
    """Refuse a value that is not among the known ones.

    >>> check_known("task", "iio", ["ioi", "pronoun"])
    Traceback (most recent call last):
    gimkit.errors.GimkitError: unknown task 'iio'; use ioi, pronoun
    """
    known = tuple(known)
    if value not in known:
        raise GimkitError(f"unknown {what} {value!r}; use {', '.join(map(str, known))}")


def check_all_known(what: str, values: Any, known: Any) -> None:
    """Refuse values of which one is not among the known ones.

    >>> check_all_known("task", ["ioi", "iio"], ["ioi", "pronoun"])
    Traceback (most recent call last):
    gimkit.errors.GimkitError: unknown task 'iio'; use ioi, pronoun
    """
    for value in values:
        check_known(what, value, known)


def check_flag(name: str, value: Any) -> bool:
    """True or False; no other value counts as one of them.

    >>> check_flag("absolute", "signed")
    Traceback (most recent call last):
    gimkit.errors.GimkitError: absolute must be True or False, not 'signed'
    """
    if type(value).__name__ not in ("bool", "bool_"):  # numpy has its own
        raise GimkitError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def check_number(name: str, value: Any) -> float:
    """A finite number as a float.

    >>> check_number("q", math.nan)
    Traceback (most recent call last):
    gimkit.errors.GimkitError: q must be a finite number, not nan
    """
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise GimkitError(f"{name} must be a finite number, not {value!r}")
    return number


def check_ids(ids: Any, vocabulary: int | None = None, what: str = "the prompt") -> torch.Tensor:
    """Token ids as a tensor of int64.

    >>> check_ids([3, 4], 10), check_ids(torch.tensor([1, 12]), 10)
    Traceback (most recent call last):
    gimkit.errors.GimkitError: the prompt holds the token id 12, but the model knows ids from 0 to 9; ...

    Args:
        ids: whole numbers in a list, an array or a tensor of any shape.
        vocabulary: how many ids the model knows; None: not known here.
        what: the name of the ids in messages.

    Raises:
        GimkitError: an id that the model does not know; rows of unequal length; other values than whole numbers.
    """
    try:
        found = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError):
        raise GimkitError(f"{what} must be whole numbers in a rectangle, token ids: pad rows on the right") from None
    if found.is_floating_point() and found.numel() or found.is_complex() or found.dtype == torch.bool:
        raise GimkitError(f"{what} must be token ids, whole numbers, not {found.dtype} of shape {tuple(found.shape)}")
    wrong = found < 0 if vocabulary is None else (found < 0) | (found >= vocabulary)
    if bool(wrong.any()):
        known = "of 0 and above" if vocabulary is None else f"from 0 to {vocabulary - 1}"
        raise GimkitError(f"{what} holds the token id {int(found[wrong][0])}, but the model knows ids {known}; is it "
                          "another model's tokenizer, or padding?")
    return found.long()


def check_length(length: int, context: int | None, what: str = "the prompt") -> None:
    """Refuse a prompt that is longer than the model's context; None: the model has no such limit.

    >>> check_length(70, 64)
    Traceback (most recent call last):
    gimkit.errors.GimkitError: the prompt has 70 tokens, but the model's context holds 64; shorten it
    """
    if context is not None and length > context:
        raise GimkitError(f"{what} has {length} tokens, but the model's context holds {context}; shorten it")


def check_answers(good: list | tuple | set, bad: list | tuple | set, what: str = "the pair") -> None:
    """Refuse right and wrong answers that share a token id: their difference would not depend on it.

    >>> check_answers([5], [5])
    Traceback (most recent call last):
    gimkit.errors.GimkitError: the pair has the same answer 5 as right and as wrong; give two different ones
    """
    shared = sorted(set(good) & set(bad), key=str)
    if shared:
        raise GimkitError(f"{what} has the same answer {shared[0]} as right and as wrong; give two different ones")
