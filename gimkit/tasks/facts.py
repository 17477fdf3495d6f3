"""The tasks about stored knowledge, grammar and repetition.

Each `_pair` function draws one prompt pair as text, from the words of `words.py` or `natural.py`.
"""

import re
from random import Random
from typing import Any

from gimkit.errors import check_known
from gimkit.tasks.encode import build, ordered
from gimkit.tasks.task import Pair, Task
from gimkit.tasks.words import BUNDLED, Start, Words
from gimkit.tasks.years import next_years, split_by_year


def capital_pair(rng: Random, words: Words = BUNDLED) -> Pair:
    """A country whose capital is the next word; corrupt: another country.

    >>> capital_pair(Random(0)).answer
    'Baghdad'
    """
    right, wrong = rng.sample(sorted(words.capitals), 2)
    ask = rng.choice(words.ask_capital)
    return Pair(ask.format(right), ask.format(wrong), words.capitals[right], words.capitals[wrong])


def hypernymy_pair(rng: Random, words: Words = BUNDLED) -> Pair:
    """A thing whose kind is the next word; corrupt: a thing of another kind.

    >>> hypernymy_pair(Random(0)).answer
    'sport'
    """
    right, wrong = rng.sample(sorted(words.kinds), 2)
    ask = rng.choice(words.ask_kind)
    return Pair(ask.format(rng.choice(words.kinds[right])), ask.format(rng.choice(words.kinds[wrong])), right, wrong)


def agreement_pair(rng: Random, words: Words = BUNDLED) -> Pair:
    """A subject, singular or plural, and another noun before the verb; corrupt: the subject in the other number.

    >>> agreement_pair(Random(0)).answer
    'were'
    """
    subject, other = rng.sample(sorted(words.nouns), 2)
    forms, verbs = [subject, words.nouns[subject]], list(rng.choice(words.verbs))
    if rng.random() < 0.5:
        forms.reverse()
        verbs.reverse()
    ask, near = rng.choice(words.ask_verb), rng.choice(words.near)
    if words.others:
        other = rng.choice(sorted(words.others))
    behind = {"near": near, "other": rng.choice((other, (words.others or words.nouns)[other]))}
    return Pair(ask.format(forms[0], **behind), ask.format(forms[1], **behind), *verbs)


def pronoun_pair(rng: Random, words: Words = BUNDLED) -> Pair:
    """A first name before its pronoun; corrupt: a name of the other gender.

    >>> pronoun_pair(Random(0)).answer
    'he'
    """
    people = [(rng.choice(words.women), "she"), (rng.choice(words.men), "he")]
    rng.shuffle(people)
    (right, answer), (other, wrong) = people
    ask = rng.choice(words.ask_pronoun)
    return Pair(ask.format(right), ask.format(other), answer, wrong)


def greater_than_pair(rng: Random, words: Words = BUNDLED) -> Pair:
    """A year, then the first digits of a later one. `answer` shows the next year; corrupt: the year 01.

    >>> greater_than_pair(Random(0)).answer
    '52'
    """
    if words is BUNDLED:  # drawn as the bundled models' training drew them
        year, event, century = rng.randint(2, 98), rng.choice(words.events), rng.randint(11, 17)
        start = Start(f"{century}{year:02d}", str(century), f"{year + 1:02d}", f"{year:02d}")
    else:
        start, event = rng.choice(words.starts), rng.choice(words.events)
    ask = rng.choice(words.ask_year)
    clean, corrupt = (ask.format(event=event, start=year, end=start.end)
                      for year in (start.year, start.year[:2] + "01"))
    return Pair(clean, corrupt, start.answer, start.wrong)


def induction_pair(rng: Random, times: int = 2, words: Words = BUNDLED) -> Pair:
    """Random words, repeated, with the last round cut; corrupt: the next word is another one in all rounds.

    >>> induction_pair(Random(0)).answer
    'light'
    """
    length = rng.randint(5, 9)
    *row, other = rng.sample(words.row, length + 1)
    cut = rng.randint(1, length - 1)
    flipped = [other if i == cut else word for i, word in enumerate(row)]
    clean, corrupt = (words.before_row + " ".join(seq * (times - 1) + seq[:cut]) for seq in (row, flipped))
    return Pair(clean, corrupt, row[cut], other)


def _years(tokenizer: Any, pair: Pair) -> tuple[list[int], list[int]]:
    """The ids of tokens that lead to later years only, and of those that lead to the year itself or earlier ones."""
    year, end = re.findall(r"\d+", pair.clean)
    return split_by_year(next_years(tokenizer, pair.clean, end), int(year))


def greater_than(model: Any, n: int = 64, seed: int = 0) -> Task:
    """A year after another one: any later year of the century is right.

    >>> gimkit.tasks.greater_than(model, n=1)[0].clean
    'The drought that began in 1151 ended in 11'

    Good: the tokens that lead to later years, here all two digits above 51. Bad: those that lead to the year itself or
    to an earlier one. Corrupt: the year 1101. Tokenizers that split years in another way get years which the next
    token decides: with single digits "from 1739 to 17", where 4 is later and 3 is not; with three digits "from 1732 to
    173".

    Args:
        model, n, seed: as in `ioi`.

    Returns:
        A `Task`.
    """
    return build("greater_than", model, greater_than_pair, n, seed, lambda words: len(words.starts), _years)


def agreement(model: Any, n: int = 64, seed: int = 0) -> Task:
    """Subject-verb agreement, with another noun in between; corrupt: the subject in the other number.

    >>> gimkit.tasks.agreement(model, n=1)[0]
    Pair(clean='Everyone saw that the workers with the girls',
         corrupt='Everyone saw that the worker with the girls',
         answer='were', wrong='was')

    Args:
        model, n, seed: as in `ioi`.

    Returns:
        A `Task`.
    """
    return build("agreement", model, agreement_pair, n, seed,
                 count_answers=lambda words: 2 * len(words.nouns) * len(words.verbs))


def pronoun(model: Any, n: int = 64, seed: int = 0) -> Task:
    """The pronoun that goes with a first name; corrupt: a name of the other gender.

    >>> gimkit.tasks.pronoun(model, n=1)[0]
    Pair(clean='Adam was happy that',
         corrupt='Patricia was happy that',
         answer='he', wrong='she')

    Args:
        model, n, seed: as in `ioi`.

    Returns:
        A `Task`.
    """
    return build("pronoun", model, pronoun_pair, n, seed,
                 count_answers=lambda words: 2 * len(words.women) * len(words.men))


def capital(model: Any, n: int = 64, seed: int = 0) -> Task:
    """The capital of a country; corrupt: another country, whose capital is the wrong answer.

    >>> gimkit.tasks.capital(model, n=1)[0]
    Pair(clean='People in Iraq know that the capital is',
         corrupt='People in Thailand know that the capital is',
         answer='Baghdad', wrong='Bangkok')

    Args:
        model, n, seed: as in `ioi`.

    Returns:
        A `Task`.
    """
    return build("capital", model, capital_pair, n, seed, count_answers=lambda words: ordered(words.capitals))


def _of_two_kinds(words: Words) -> int:
    """The number of ordered pairs of things of two kinds."""
    sizes = [len(members) for members in words.kinds.values()]
    return sum(sizes) ** 2 - sum(size**2 for size in sizes)


def hypernymy(model: Any, n: int = 64, seed: int = 0) -> Task:
    """The kind that a thing belongs to; corrupt: a thing of another kind.

    >>> gimkit.tasks.hypernymy(model, n=1)[0]
    Pair(clean='The golf is a kind of',
         corrupt='The train is a kind of',
         answer='sport', wrong='vehicle')

    Args:
        model, n, seed: as in `ioi`.

    Returns:
        A `Task`.
    """
    return build("hypernymy", model, hypernymy_pair, n, seed, count_answers=_of_two_kinds)


def induction(model: Any, n: int = 64, seed: int = 0, times: int = 2) -> Task:
    """A sequence of random words that is repeated and cut in its last round; the answer is its next word.

    >>> gimkit.tasks.induction(model, n=1)[0]
    Pair(clean='line boat girl player picture light home part line boat girl player picture',
         corrupt='line boat girl player picture law home part line boat girl player picture',
         answer='light', wrong='law')

    Corrupt: the next word is another one in every round, and that is the wrong answer.

    Args:
        model, n, seed: as in `ioi`.
        times: how often the sequence is there, 2 or 3; the last time it is cut.

    Returns:
        A `Task`.
    """
    check_known("times", times, (2, 3))
    return build("induction", model, lambda rng, words: induction_pair(rng, times, words), n, seed,
                 count_answers=lambda words: ordered(words.row, least=10))
