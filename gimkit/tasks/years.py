"""How a tokenizer splits years, for greater-than: which next tokens lead to which years."""

from collections import defaultdict
from typing import Any

from gimkit.errors import GimkitError
from gimkit.model.tokenizer import text_ids
from gimkit.tasks.words import Start


def next_years(tokenizer: Any, prompt: str, end: str) -> dict[int, set[int]]:
    """{next token: the years that it can lead to}, after a prompt that ends in a year's first digits.

    >>> next_years(model.tokenizer, "in 17", "17")[model.tokenizer.convert_tokens_to_ids("32")]
    {1732}

    A year whose digits form a token with those of the prompt has no next token.

    Args:
        tokenizer: of the model.
        prompt: a text that ends in `end`.
        end: the first two or three digits of a year.
    """
    before, years = text_ids(tokenizer, prompt), defaultdict(set)
    rest = [f"{number:0{4 - len(end)}d}" for number in range(10 ** (4 - len(end)))]
    for digits, ids in zip(rest, tokenizer([prompt + digits for digits in rest])["input_ids"]):
        if len(ids) > len(before) and ids[:len(before)] == before:
            years[ids[len(before)]].add(int(end + digits))
    return dict(years)


def split_by_year(years: dict[int, set[int]], start: int) -> tuple[list[int], list[int]]:
    """Tokens that lead to later years, and those that do not.

    >>> split_by_year({5: {1740, 1741}, 6: {1739}}, start=1739)
    ([5], [6])

    Args:
        years: of `next_years`.
        start: the year to compare with.

    Raises:
        GimkitError: a token can lead to both, or there is no token of one kind.
    """
    later = [token for token, found in years.items() if min(found) > start]
    not_later = [token for token, found in years.items() if max(found) <= start]
    if not later or not not_later or len(later) + len(not_later) < len(years):
        raise GimkitError("the next token does not decide whether the year comes later")
    return later, not_later


def decided_years(tokenizer: Any, starts: tuple[Start, ...]) -> tuple[Start, ...]:
    """The years for which the next token decides, after two digits of the end, or else after three.

    >>> decided_years(model.tokenizer, (Start("1732", "17", "33", "32"),))[0].end
    '17'
    """
    for shown in (2, 3):
        ends = dict.fromkeys(start.year[:shown] for start in starts)
        years = {end: next_years(tokenizer, f"in {end}", end) for end in ends}
        found = []
        for start in starts:
            end = start.year[:shown]
            try:
                later, not_later = split_by_year(years[end], int(start.year))
            except GimkitError:
                continue
            answer = min(later, key=lambda token: min(years[end][token]))
            wrong = max(not_later, key=lambda token: max(years[end][token]))
            found.append(start._replace(end=end, answer=tokenizer.decode([answer]), wrong=tokenizer.decode([wrong])))
        if found:
            return tuple(found)
    return ()
