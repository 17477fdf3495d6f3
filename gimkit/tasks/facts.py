"""The tasks about stored knowledge and grammar: one drawn prompt pair as text each."""

from random import Random

from gimkit.model.tokenizer import answer_id, text_ids
from gimkit.tasks.encode import build, check_choice
from gimkit.tasks.task import Pair, Task
from gimkit.tasks.words import CAPITALS, EVENTS, KINDS, MEN, NEAR, NOUNS, THINGS, WOMEN

CAPITAL = (
    "The capital of {} is",
    "The capital city of {} is",
    "The main city of {} is",
    "People in {} know that the capital is",
    "In {}, the head of the country lives in",
)
HYPERNYM = (
    "The {} is a kind of",
    "The {} is a type of",
    "People say that the {} is a kind of",
    "Everyone knows that a {} is a kind of",
)
SINGLE_WORDS = sorted(set(NOUNS) | set(THINGS))
VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
AGREE = (
    "The {} {near} the {other}",
    "I know that the {} {near} the {other}",
    "It was said that the {} {near} the {other}",
    "Everyone saw that the {} {near} the {other}",
)
PRONOUN = (
    "{} was late because",
    "{} left the house when",
    "{} was happy that",
    "When {} came home,",
    "{} said that",
    "Everyone knew {} because",
)
YEARS = (
    "They began the {event} in {century}{year} and ended it in {century}",
    "The {event} that began in {century}{year} ended in {century}",
    "The {event} went on from {century}{year} until {century}",
)


def capital_pair(rng: Random) -> Pair:
    right, wrong = rng.sample(sorted(CAPITALS), 2)
    ask = rng.choice(CAPITAL)
    return Pair(ask.format(right), ask.format(wrong), CAPITALS[right], CAPITALS[wrong])


def hypernymy_pair(rng: Random) -> Pair:
    right, wrong = rng.sample(sorted(KINDS), 2)
    ask = rng.choice(HYPERNYM)
    return Pair(ask.format(rng.choice(KINDS[right])), ask.format(rng.choice(KINDS[wrong])), right, wrong)


def agreement_pair(rng: Random) -> Pair:
    subject, other = rng.sample(sorted(NOUNS), 2)
    forms, verbs = [subject, NOUNS[subject]], list(rng.choice(VERBS))
    if rng.random() < 0.5:
        forms.reverse()
        verbs.reverse()
    ask = rng.choice(AGREE)
    rest = {"near": rng.choice(NEAR), "other": rng.choice((other, NOUNS[other]))}
    return Pair(ask.format(forms[0], **rest), ask.format(forms[1], **rest), *verbs)


def pronoun_pair(rng: Random) -> Pair:
    people = [(rng.choice(WOMEN), "she"), (rng.choice(MEN), "he")]
    rng.shuffle(people)
    (right, answer), (other, wrong) = people
    ask = rng.choice(PRONOUN)
    return Pair(ask.format(right), ask.format(other), answer, wrong)


def greater_than_pair(rng: Random) -> Pair:
    """The answer is any later year of the century (shown: the next one); corrupt: the year 01."""
    year = f"{rng.randint(2, 98):02d}"
    fill = {"event": rng.choice(EVENTS), "century": str(rng.randint(11, 17))}
    ask = rng.choice(YEARS)
    return Pair(ask.format(year=year, **fill), ask.format(year="01", **fill), f"{int(year) + 1:02d}", year)


def induction_pair(rng: Random, times=2) -> Pair:
    """Random words, repeated, cut within the last; corrupt: the word to come is another in all rounds."""
    length = rng.randint(5, 9)
    *row, other = rng.sample(SINGLE_WORDS, length + 1)
    cut = rng.randint(1, length - 1)
    flipped = [other if i == cut else word for i, word in enumerate(row)]
    clean, corrupt = (" ".join(seq * (times - 1) + seq[:cut]) for seq in (row, flipped))
    return Pair(clean, corrupt, row[cut], other)


def _years(tokenizer, pair: Pair) -> tuple[list[int], list[int]]:
    """Ids of the later years of the century, and of the year itself and those before."""
    for shown in (pair.answer, pair.wrong):
        answer_id(tokenizer, pair.clean, shown, glue="")
    prompt, sets = text_ids(tokenizer, pair.clean), ([], [])
    followed = tokenizer([f"{pair.clean}{year:02d}" for year in range(100)])["input_ids"]
    for year, ids in enumerate(followed):
        if len(ids) == len(prompt) + 1 and ids[:-1] == prompt:  # not so for 1776 where it is one token
            sets[year <= int(pair.wrong)].append(ids[-1])
    return sets


def greater_than(model, n=64, seed=0) -> Task:
    """A year that comes after another: any later year of the century is right.

    >>> gimkit.tasks.greater_than(model, n=1)[0].clean
    'The drought that began in 1151 ended in 11'

    Good: all two-digit tokens above 51; bad: all up to 51. Corrupt: the year 1101. The tokenizer must write
    years as two tokens of two digits, as GPT-2's mostly does.
    """
    return build("greater_than", model, greater_than_pair, n, seed, answers=_years)


def agreement(model, n=64, seed=0) -> Task:
    """Subject-verb agreement with another noun between.

    >>> gimkit.tasks.agreement(model, n=1)[0]
    Pair(clean='Everyone saw that the workers with the girls',
         corrupt='Everyone saw that the worker with the girls',
         answer='were', wrong='was')
    """
    return build("agreement", model, agreement_pair, n, seed)


def pronoun(model, n=64, seed=0) -> Task:
    """The pronoun that goes with a first name; corrupt: a name of the other gender.

    >>> gimkit.tasks.pronoun(model, n=1)[0]
    Pair(clean='Adam was happy that',
         corrupt='Patricia was happy that',
         answer='he', wrong='she')
    """
    return build("pronoun", model, pronoun_pair, n, seed)


def capital(model, n=64, seed=0) -> Task:
    """The capital of a country; corrupt: another country, whose capital is the wrong answer.

    >>> gimkit.tasks.capital(model, n=1)[0]
    Pair(clean='People in Iraq know that the capital is',
         corrupt='People in Thailand know that the capital is',
         answer='Baghdad', wrong='Bangkok')
    """
    return build("capital", model, capital_pair, n, seed)


def hypernymy(model, n=64, seed=0) -> Task:
    """What something is a kind of; corrupt: something of another kind.

    >>> gimkit.tasks.hypernymy(model, n=1)[0]
    Pair(clean='The golf is a kind of',
         corrupt='The train is a kind of',
         answer='sport', wrong='vehicle')
    """
    return build("hypernymy", model, hypernymy_pair, n, seed)


def induction(model, n=64, seed=0, times=2) -> Task:
    """A sequence of random words, given `times` times (2 or 3) and cut within the last round.

    >>> gimkit.tasks.induction(model, n=1)[0]
    Pair(clean='line boat girl player picture light home part line boat girl player picture',
         corrupt='line boat girl player picture law home part line boat girl player picture',
         answer='light', wrong='law')

    Answer: the next word of the sequence. Corrupt: that word is another in every round (the wrong answer).
    """
    check_choice("times", times, (2, 3))
    return build("induction", model, lambda rng: induction_pair(rng, times), n, seed)
