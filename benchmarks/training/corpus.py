"""The training mixture of the bundled models: short documents, drawn at random.

A document has an answer, which the text before it determines. Most documents are prompts of the tasks. The others
prevent a shallow IOI circuit: in `once`, `three` and `odd` the place of the repeated person in the text does not help,
so that a model must detect which name is a repetition.
"""

import re
from random import Random
from typing import NamedTuple

from gimkit.tasks import facts, names
from gimkit.tasks.words import ASK_ODD, CLAUSES, DID, MEN, NAMES, NOUNS, OBJECTS, OPENINGS, PLACES, SINGLE_WORDS

SPECIAL = ("<pad>", "<s>", "<blank>", "<unk>")
PIECES = re.compile(r"\d\d|[A-Za-z]+|[^\w\s]")  # the tokenizer's pre-tokenizers, faster


class Document(NamedTuple):
    """A short text: its kind, the prompt, the answer, and the rest.

    >>> draw(Random(0)).kind
    'hypernymy'
    """

    kind: str
    prompt: str
    answer: str  # determined by the prompt
    rest: str = "."


ALONE = (
    "{S} was the first at the {place}. ", "Everybody liked {S}. ", "There was a {obj} that {S} had made. ",
    "It was a long day for {S}. ", "{S} was tired. ", "One evening {S} was waiting by the {place}. ",
)
NEUTRAL = (
    "a {obj} was sent to", "the {obj} was kept for", "the {obj} was a present for", "somebody lent a {obj} to",
    "somebody read a poem to", "somebody hid the {obj} from", "a {obj} was waiting for", "somebody waved to",
)
THREE = (
    "{A}, {B} and {C} shared a table at the {place}. ", "Since {A}, {B} and {C} liked the {place}, ",
    "{A}, {B} and {C} cleaned the {place} together. ", "Outside the {place}, {A} was talking with {B} and {C}. ",
)
FILLER = (
    "It rained all day. ", "It was a long day. ", "The {place} was near the {place2}. ",
    "Everybody was tired. ", "There was a {obj} at the {place}. ", "One evening the {place} opened. ",
    "The {obj} was on the {thing}. ",
)


def _fill(rng: Random, text: str, **named) -> str:
    """The text with random places and objects.

    >>> _fill(Random(0), "{A} liked the {place}.", A="Mary")
    'Mary liked the station.'
    """
    place, place2 = rng.sample(PLACES, 2)
    obj, thing = rng.choice(OBJECTS), rng.choice(sorted(NOUNS))
    return text.format(place=place, place2=place2, obj=obj, thing=thing, **named)


def once(rng: Random) -> Document:
    """The repeated person is named before, in or after the opening; the last clause names nobody."""
    io, subject = names.draw_names(rng, 2, "trained")
    a, b = rng.sample((io, subject), 2)
    alone = _fill(rng, rng.choice(ALONE), S=subject)
    if rng.random() < 0.6:
        opening = rng.choice(OPENINGS["trained"])
        prompt = alone + names.join(_fill(rng, opening, A=a, B=b), _fill(rng, rng.choice(NEUTRAL)))
    else:
        opening = rng.choice([opening for opening in OPENINGS["trained"] if opening.endswith(". ")])
        prompt = names.join(_fill(rng, opening, A=a, B=b) + alone, _fill(rng, rng.choice(NEUTRAL)))
    return Document("once", prompt, io)


def three(rng: Random) -> Document:
    """Three people, two of them named again in any order before the end."""
    io, *again = names.draw_names(rng, 3, "trained")
    a, b, c = rng.sample([io, *again], 3)
    opening = _fill(rng, rng.choice(THREE), A=a, B=b, C=c)
    rng.shuffle(again)
    if opening.endswith(". ") and rng.random() < 0.5:
        opening += "".join(f"{name} {rng.choice(DID)}. " for name in again)
        prompt = names.join(opening, _fill(rng, rng.choice(NEUTRAL)))
    else:
        clause = _fill(rng, rng.choice(CLAUSES["trained"]), S=" and ".join(again))
        prompt = names.join(opening, clause)
    return Document("three", prompt, io)


def odd(rng: Random) -> Document:
    """A prompt of the task odd one out, with two to four people."""
    pair = names.odd_pair(rng, people=rng.choice((2, 2, 3, 3, 3, 4)), templates="trained", names="trained")
    return Document("odd", pair.clean, pair.answer)


def again(rng: Random) -> Document:
    """People come, some of them again, and the text states it: many examples of repetitions in one document."""
    people = names.draw_names(rng, rng.choice((2, 3, 3, 4)), "trained")
    slots = people[:1] + people[1:] * 2
    rng.shuffle(slots)
    said = [f"{name} came{' again' if name in slots[:i] else ''}." for i, name in enumerate(slots)]
    return Document("again", " ".join([*said, rng.choice(ASK_ODD["trained"])]), people[0])


def ioi(rng: Random) -> Document:
    """A prompt of the task IOI."""
    pair = names.ioi_pair(rng, templates="trained", names="trained")
    return Document("ioi", pair.clean, pair.answer)


def ioi_twice(rng: Random) -> Document:
    """A prompt of the task IOI with both people named twice."""
    pair = names.ioi_pair(rng, templates="trained", names="trained", times=2)
    return Document("ioi_twice", pair.clean, pair.answer)


def greater_than(rng: Random) -> Document:
    """A prompt of the task greater-than, with a random later year."""
    pair = facts.greater_than_pair(rng)
    return Document("greater_than", pair.clean, f"{rng.randint(int(pair.answer), 99):02d}")


def plain(kind: str):
    """A function that draws a prompt of a task of `gimkit.tasks.facts`."""
    def document(rng: Random) -> Document:
        pair = getattr(facts, kind + "_pair")(rng)
        return Document(kind, pair.clean, pair.answer)
    return document


def induction(rng: Random) -> Document:
    """Random words, sometimes names, two or three times: every token of the later rounds is an answer."""
    times = rng.choice((2, 2, 3))
    words = NAMES if rng.random() < 0.2 else SINGLE_WORDS
    row = rng.sample(words, rng.randint(3, 58 // times if rng.random() < 0.3 else 10))
    return Document("induction", " ".join(row), " ".join(row), " " + " ".join(row * (times - 2)))


def story(rng: Random) -> Document:
    """A few sentences about one person, so that every word of the tasks occurs outside them too."""
    name = rng.choice(NAMES)
    start = "".join(_fill(rng, rng.choice(FILLER)) for _ in range(rng.randint(0, 2)))
    start += _fill(rng, rng.choice(ALONE), S=name)
    start += "Then" if rng.random() < 0.5 else "There,"
    rest = _fill(rng, rng.choice((" found a {obj}.", " drove to the {place}.", " had to sell a {obj}.")))
    return Document("story", start, "he" if name in MEN else "she", rest)


MIXTURE = {
    ioi: 0.17, once: 0.13, three: 0.06, odd: 0.15, again: 0.09, ioi_twice: 0.06, greater_than: 0.07,
    plain("agreement"): 0.04, plain("pronoun"): 0.03, plain("capital"): 0.03, plain("hypernymy"): 0.03,
    induction: 0.10, story: 0.04,
}
ABOUT_NAMES = ("ioi", "once", "three", "odd", "again", "ioi_twice")
# For the later stages: more of the hard kinds.
LAST = {
    ioi: 0.20, once: 0.13, three: 0.05, odd: 0.25, again: 0.05, ioi_twice: 0.06, greater_than: 0.06,
    plain("agreement"): 0.05, plain("pronoun"): 0.03, plain("capital"): 0.02, plain("hypernymy"): 0.02,
    induction: 0.07, story: 0.01,
}
FINAL = {
    ioi: 0.17, once: 0.10, three: 0.04, odd: 0.30, again: 0.03, ioi_twice: 0.07, greater_than: 0.05,
    plain("agreement"): 0.04, plain("pronoun"): 0.07, plain("capital"): 0.02, plain("hypernymy"): 0.02,
    induction: 0.09,
}
MIXTURES = {"all": MIXTURE, "last": LAST, "final": FINAL}


def draw(rng: Random, mixture: dict = MIXTURE) -> Document:
    """A random document of the mixture.

    >>> isinstance(draw(Random(0)).prompt, str)
    True
    """
    document = rng.choices(list(mixture), list(mixture.values()))[0](rng)
    if document.kind in ("ioi", "once", "three", "ioi_twice") and rng.random() < 0.3:
        document = document._replace(prompt=_fill(rng, rng.choice(FILLER)) + document.prompt)
    return document


def vocabulary() -> list[str]:
    """Every word of the mixture in a fixed order, after the special tokens.

    >>> vocabulary()[:4]
    ['<pad>', '<s>', '<blank>', '<unk>']
    """
    rng, words = Random(0), set(f"{number:02d}" for number in range(100))
    for _ in range(30_000):
        document = draw(rng)
        words.update(PIECES.findall(f"{document.prompt} {document.answer}{document.rest}"))
    return [*SPECIAL, *sorted(words)]
