"""The tasks about names: indirect object (IOI), both people named twice, the one named only once.

Each function draws one prompt pair as text. The bundled models never saw a held-out pair of names together,
nor a held-out opening or clause.
"""

from random import Random

from gimkit.tasks.encode import build, check_choice
from gimkit.tasks.task import Pair, Task
from gimkit.tasks.words import DID, NAMES, OBJECTS, PLACES, held_out_names

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


def choose(options: dict, which: str, rng: Random) -> str:
    return rng.choice(options["trained"] + options["held-out"] if which == "all" else options[which])


def draw_names(rng: Random, count: int, which: str) -> list[str]:
    """`count` names; trained: no held-out pair among them; held-out: the first two are such a pair."""
    while True:
        names = rng.sample(NAMES, count)
        if which == "held-out" and not held_out_names(*names[:2]):
            continue
        if which == "trained" and any(held_out_names(a, b) for a in names for b in names if a < b):
            continue
        return names


def join(opening: str, clause: str) -> str:
    """The clause behind the opening, with a capital after a full stop."""
    return opening + (clause[0].upper() + clause[1:] if opening.endswith(". ") else clause)


def ioi_pair(rng: Random, corrupt="s2", order="both", templates="all", names="all", between=(), times=2) -> Pair:
    """One IOI prompt: two people, one of them acts, the other receives; `between`: both are named `times` times before.
    """
    io, subject, third = draw_names(rng, 3, names)
    order = rng.choice(("ABBA", "BABA")) if order == "both" else order
    first, second = (io, subject) if order == "ABBA" else (subject, io)
    openings = {key: [o for o in rows if o.endswith(". ") or not between] for key, rows in OPENINGS.items()}
    opening = choose(openings, templates, rng).format(A=first, B=second, place=rng.choice(PLACES))
    for _ in range(times - 1 if between else 0):
        again = rng.sample((io, subject), 2)
        opening += rng.choice(between).format(A=again[0], B=again[1])
    clause = choose(CLAUSES, templates, rng)
    obj = rng.choice(OBJECTS)
    swapped = {"s2": io, "third": third}[corrupt]
    return Pair(*(join(opening, clause.format(S=name, obj=obj)) for name in (subject, swapped)), io, subject)


def odd_pair(rng: Random, people=3, templates="all", names="all") -> Pair:
    """Everybody is named twice but one, in any order; corrupt: somebody else is that one."""
    odd, wrong, *others = draw_names(rng, people, names)
    slots = [odd, wrong, wrong] + others * 2
    rng.shuffle(slots)
    place = rng.choice([i for i, name in enumerate(slots) if name == wrong])
    flipped = [odd if i == place else name for i, name in enumerate(slots)]
    did = rng.sample(DID, len(slots))
    ask = choose(ASK_ODD, templates, rng)
    clean, corrupt = (
        "".join(f"{name} {verb}. " for name, verb in zip(row, did)) + ask for row in (slots, flipped))
    return Pair(clean, corrupt, odd, wrong)


WHICH = ("all", "trained", "held-out")


def ioi(model, n=64, seed=0, corrupt="s2", order="both", templates="all", names="all") -> Task:
    """Indirect object identification: the one who receives, not the one who acts.

    >>> gimkit.tasks.ioi(model, n=1)[0]
    Pair(clean='As soon as Adam and Stephen opened the beach, Adam was glad to lend the flower to',
         corrupt='As soon as Adam and Stephen opened the beach, Stephen was glad to lend the flower to',
         answer='Stephen', wrong='Adam')

    Answer: the person named once (IO); wrong: the one named twice (S). Clean and corrupt differ in one token,
    the subject of the last clause (S2).

    Args:
        corrupt: "s2" puts IO in S2's place, so that the answer flips (MIB's s2_io_flip_counterfactual);
            "third" puts a third name there, so that the prompt says nothing about who receives.
        order: "ABBA" (IO named first), "BABA" (S named first) or "both".
        templates, names: "all", "trained" or "held-out"; what the bundled models met in training.
    """
    check_choice("corrupt", corrupt, ("s2", "third"))
    check_choice("order", order, ("both", "ABBA", "BABA"))
    check_choice("templates", templates, WHICH)
    check_choice("names", names, WHICH)
    return build("ioi", model, lambda rng: ioi_pair(rng, corrupt, order, templates, names), n, seed)


def ioi_twice(model, n=64, seed=0, corrupt="s2", templates="all", names="all", times=2) -> Task:
    """IOI with a sentence between that names both people once more, so that the evidence is there twice.

    >>> gimkit.tasks.ioi_twice(model, n=1)[0].clean
    'Two people, Adam and Stephen, were waiting by the beach. A dog ran past Adam and Stephen. Adam hid the bag from'

    Answer, wrong answer, corrupt, templates and names: as in `ioi`. times: how often both are named before the last
    clause, 2 or 3; the bundled models were trained with 2.
    """
    check_choice("corrupt", corrupt, ("s2", "third"))
    check_choice("templates", templates, WHICH)
    check_choice("names", names, WHICH)
    check_choice("times", times, (2, 3))
    return build("ioi_twice", model,
                 lambda rng: ioi_pair(rng, corrupt, "both", templates, names, BETWEEN, times), n, seed)


def odd_one_out(model, n=64, seed=0, people=3, templates="all", names="all") -> Task:
    """Everybody is named twice but one person, who is asked for; where a name stands tells nothing.

    >>> gimkit.tasks.odd_one_out(model, n=1, people=2)[0].clean
    'Adam jumped. Adam wrote. Stephen played. Only one person was named once, and it was'

    Answer: the person named once; wrong: another one. Corrupt: one of the wrong one's two places goes to the
    answer, so that they change roles. people: 2 to 4.
    """
    check_choice("people", people, (2, 3, 4))
    check_choice("templates", templates, WHICH)
    check_choice("names", names, WHICH)
    return build("odd_one_out", model, lambda rng: odd_pair(rng, people, templates, names), n, seed)
