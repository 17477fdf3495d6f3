"""The words and sentences of the tasks' prompts: the type, and those of the bundled models.

The words are common English ones. A bundled model knows these and no others, and never saw a held-out pair of names
together, nor a held-out opening or clause. Any other model gets the words of `natural.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Words(NamedTuple):
    """Words and sentences for all tasks; sentences about names are grouped by whether training had them.

    >>> BUNDLED.openings["held-out"][0]
    'As soon as {A} and {B} opened the {place}, '
    """

    women: tuple[str, ...]
    men: tuple[str, ...]
    names: tuple[str, ...]
    places: dict[str, tuple[str, ...]]  # each with the objects that fit it
    deeds: tuple[str, ...]
    openings: dict[str, tuple[str, ...]]
    between: tuple[str, ...]  # both people, named once more
    clauses: dict[str, tuple[str, ...]]
    before_deeds: str  # the start of odd-one-out
    ask_odd: dict[str, tuple[str, ...]]
    capitals: dict[str, str]
    ask_capital: tuple[str, ...]
    kinds: Mapping[str, Sequence[str]]
    ask_kind: tuple[str, ...]
    nouns: dict[str, str]  # subjects, singular and plural
    near: tuple[str, ...]
    others: dict[str, str]  # nouns after these prepositions, singular and plural; none: the subjects
    verbs: tuple[tuple[str, str], ...]
    ask_verb: tuple[str, ...]
    ask_pronoun: tuple[str, ...]
    events: tuple[str, ...]
    starts: tuple["Start", ...]
    ask_year: tuple[str, ...]
    before_row: str  # the start of induction
    row: tuple[str, ...]  # its random words


class Start(NamedTuple):
    """A year, and the year of an end that greater-than lets the model complete.

    >>> two_digits([17])[30]
    Start(year='1732', end='17', answer='33', wrong='32')
    """

    year: str
    end: str  # the first digits of the year of the end, which the prompt contains
    answer: str  # the next digits for the next year
    wrong: str  # the next digits for this year


def two_digits(centuries: Iterable[int]) -> tuple[Start, ...]:
    """Every year except the first two and the last one of each century; the last two digits are the answer.

    >>> len(two_digits([17]))
    97
    """
    return tuple(Start(f"{century}{year:02d}", str(century), f"{year + 1:02d}", f"{year:02d}")
                 for century in centuries for year in range(2, 99))


WOMEN = (
    "Mary Anna Alice Emma Laura Sarah Kate Julia Jane Lisa Linda Maria Helen Rachel Susan Karen Nancy Emily "
    "Jessica Jennifer Michelle Elizabeth Margaret Barbara Patricia Sandra Diana Claire Ruth Lucy Sophie "
    "Victoria Rebecca Samantha Amanda Christine Catherine Molly Ellen Amy"
).split()
MEN = (
    "John Tom James Michael David Robert William Richard Thomas Charles Joseph Daniel Matthew Paul Steven "
    "Andrew Kevin Brian George Edward Ryan Jason Jeff Eric Stephen Scott Adam Peter Henry Jack Simon Sean "
    "Patrick Frank Gary Tim Ben Sam Luke Martin"
).split()
NAMES = [name for couple in zip(WOMEN, MEN) for name in couple]

PLACES = (
    "bakery harbor library theater kitchen museum market beach church bridge farm hotel castle station"
).split()
OBJECTS = (
    "book letter camera hat watch cup bag map key flower ticket coin lamp scarf pencil guitar"
).split()

DID = (
    "sang danced slept ran read laughed cried waited smiled worked talked walked jumped cooked wrote played"
).split()

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo",
    "China": "Beijing", "Russia": "Moscow", "England": "London", "Egypt": "Cairo", "Greece": "Athens",
    "Poland": "Warsaw", "Austria": "Vienna", "Ireland": "Dublin", "Cuba": "Havana", "Iraq": "Baghdad",
    "Syria": "Damascus", "Turkey": "Ankara", "Canada": "Ottawa", "Norway": "Oslo", "Sweden": "Stockholm",
    "Denmark": "Copenhagen", "Hungary": "Budapest", "Belgium": "Brussels", "Scotland": "Edinburgh",
    "Thailand": "Bangkok", "Peru": "Lima",
}

KINDS = {
    "bird": "robin eagle hawk crow duck swan owl".split(),
    "fish": "salmon trout tuna cod shark".split(),
    "fruit": "apple banana peach pear plum lemon".split(),
    "tree": "oak pine maple willow cedar".split(),
    "color": "red blue green yellow purple".split(),
    "metal": "iron copper silver gold steel".split(),
    "tool": "hammer saw drill knife".split(),
    "vehicle": "car truck bus van train".split(),
    "animal": "dog cat horse lion bear".split(),
    "sport": "tennis football golf hockey baseball".split(),
}

# A noun and its plural. The nouns of agreement, and the words of the random sequences of induction.
NOUNS = {word: word + "s" for word in (
    "boy girl doctor teacher student farmer lawyer driver friend player singer writer worker soldier artist "
    "cat dog horse table chair door window letter picture road river mountain car boat"
).split()}
NEAR = "near behind beside with above".split()

THINGS = (
    "idea time thing way day part home head line hand air name war city food light story night law"
).split()

EVENTS = "war trip project meeting battle peace drought crisis contract flood course journey".split()

OPENINGS = {
    "trained": (
        "{A} and {B} shared a table at the {place}. ",
        "One evening {A} and {B} sat down in the {place}. ",
        "{A} and {B} were the last to leave the {place}, so ",
        "As soon as {A} and {B} got to the {place}, ",
        "Outside the {place}, {A} was talking with {B}. ",
        "{A} had asked {B} to come to the {place}, where ",
        "It rained on the {place} all day, but {A} and {B} stayed. ",
        "Nobody but {A} and {B} was at the {place}, and ",
        "{A} drove to the {place} with {B}. ",
        "The door of the {place} opened for {A} and {B}. ",
        "Since {A} and {B} liked the {place}, ",
        "{A} lost {B} in the crowd at the {place}. ",
        "{A} and {B} had work to do at the {place}. ",
        "Two people, {A} and {B}, were waiting by the {place}. ",
        "{A} and {B} cleaned the {place} together, and ",
        "After a long day at the {place} with {A}, {B} was tired. ",
    ),
    "held-out": (
        "As soon as {A} and {B} opened the {place}, ",
        "One evening {A} was waiting for {B} at the {place}. ",
        "{A} and {B} stayed at the {place} all day, and ",
        "Since {A} was at the {place} with {B}, ",
    ),
}
CLAUSES = {
    "trained": (
        "{S} lent a {obj} to",
        "{S} had to sell the {obj} to",
        "{S} sent a {obj} to",
        "{S} threw the {obj} to",
        "{S} read a poem to",
        "{S} waved to",
        "{S} brought the {obj} for",
        "{S} made a {obj} for",
        "{S} kept the {obj} for",
        "{S} picked out a {obj} for",
        "{S} borrowed a {obj} from",
        "{S} hid the {obj} from",
        "{S} was glad to lend the {obj} to",
        "{S} made a {obj} and sent it to",
        "the {obj} that {S} had made was a present for",
        "a {obj} from {S} was waiting for",
    ),
    "held-out": (
        "{S} lent the {obj} to",
        "{S} was glad to sell a {obj} to",
        "{S} picked out the {obj} and brought it to",
        "the {obj} that {S} kept was for",
    ),
}
BETWEEN = (  # both people, named once more
    "Soon {A} smiled and {B} laughed. ",
    "The light fell on {A} and {B}. ",
    "It was good to see {A} and {B}. ",
    "A dog ran past {A} and {B}. ",
)
ASK_ODD = {
    "trained": (
        "The one who was named only once was",
        "The name that came only once was",
        "Only one person was named once, and it was",
    ),
    "held-out": ("The person who was named only once was",),
}
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
    "They began the {event} in {start} and ended it in {end}",
    "The {event} that began in {start} ended in {end}",
    "The {event} went on from {start} until {end}",
)

BUNDLED = Words(
    women=tuple(WOMEN), men=tuple(MEN), names=tuple(NAMES), places=dict.fromkeys(PLACES, tuple(OBJECTS)),
    deeds=tuple(DID), openings=OPENINGS, between=BETWEEN, clauses=CLAUSES, before_deeds="", ask_odd=ASK_ODD,
    capitals=CAPITALS, ask_capital=CAPITAL, kinds=KINDS, ask_kind=HYPERNYM, nouns=NOUNS, near=tuple(NEAR), others={},
    verbs=VERBS, ask_verb=AGREE, ask_pronoun=PRONOUN, events=tuple(EVENTS), starts=two_digits(range(11, 18)),
    ask_year=YEARS, before_row="", row=tuple(SINGLE_WORDS))


def held_out_names(a: str, b: str) -> bool:
    """Whether this pair of names was kept out of the bundled models' training (one pair in nine).

    >>> held_out_names("Mary", "John"), held_out_names("Mary", "Mary")
    (False, True)
    """
    i, j = NAMES.index(a), NAMES.index(b)
    return (i + j) % 9 == 0
