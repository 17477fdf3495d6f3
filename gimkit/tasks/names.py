"""The tasks about names: indirect object identification (IOI), IOI with both people named twice, the odd one out.

Each `_pair` function draws one prompt pair as text, from the words of `words.py` or `natural.py`.
"""

from random import Random
from typing import Any, Literal

from gimkit.errors import check_known
from gimkit.tasks.encode import build, ordered
from gimkit.tasks.task import Pair, Task
from gimkit.tasks.words import BUNDLED, Words, held_out_names

Corrupt = Literal["s2", "third"]
Order = Literal["both", "ABBA", "BABA"]
Which = Literal["all", "trained", "held-out"]  # templates or pairs of names, as the bundled models met them in training
WHICH = ("all", "trained", "held-out")


def _choose(options: dict, which: Which, rng: Random) -> str:
    """One of the sentences under `which`, or under any key where `which` is not one."""
    return rng.choice(options[which] if which in options else [row for rows in options.values() for row in rows])


def draw_names(rng: Random, count: int, which: Which, words: Words = BUNDLED) -> list[str]:
    """Different names. trained: no two of them are a held-out pair; held-out: the first two are such a pair.

    >>> held_out_names(*draw_names(Random(0), 2, "held-out"))
    True
    """
    while True:
        names = rng.sample(words.names, count)
        if words is BUNDLED and which == "held-out" and not held_out_names(*names[:2]):
            continue
        if words is BUNDLED and which == "trained" and any(held_out_names(a, b) for a in names for b in names if a < b):
            continue
        return names


def join(opening: str, clause: str) -> str:
    """The opening, then the clause, with a capital letter after a full stop.

    >>> join("They met. ", "the book was for"), join("They met and ", "the book was for")
    ('They met. The book was for', 'They met and the book was for')
    """
    return opening + (clause[0].upper() + clause[1:] if opening.endswith(". ") else clause)


def ioi_pair(rng: Random, corrupt: Corrupt = "s2", order: Order = "both", templates: Which = "all",
             names: Which = "all", times: int = 1, words: Words = BUNDLED) -> Pair:
    """Two people, both named `times` times, then one of them acts and the other receives; arguments as in `ioi`.

    >>> ioi_pair(Random(0)).answer
    'Stephen'
    """
    io, subject, third = draw_names(rng, 3, names, words)
    order = rng.choice(("ABBA", "BABA")) if order == "both" else order
    first, second = (io, subject) if order == "ABBA" else (subject, io)
    openings = {key: [o for o in rows if o.endswith(". ") or times == 1] for key, rows in words.openings.items()}
    opening = _choose(openings, templates, rng)
    place = rng.choice(tuple(words.places))
    opening = opening.format(A=first, B=second, place=place)
    for _ in range(times - 1):
        again = rng.sample((io, subject), 2)
        opening += rng.choice(words.between).format(A=again[0], B=again[1])
    clause = _choose(words.clauses, templates, rng)
    obj = rng.choice(words.places[place])
    swapped = {"s2": io, "third": third}[corrupt]
    clean, corrupt_prompt = (join(opening, clause.format(S=name, obj=obj)) for name in (subject, swapped))
    return Pair(clean, corrupt_prompt, io, subject)


def odd_pair(rng: Random, people: int = 3, templates: Which = "all", names: Which = "all",
             words: Words = BUNDLED) -> Pair:
    """All people but one are named twice, in any order; corrupt: another person is the one named once.

    >>> odd_pair(Random(0), people=2).answer
    'Stephen'
    """
    odd, wrong, *others = draw_names(rng, people, names, words)
    slots = [odd, wrong, wrong] + others * 2
    rng.shuffle(slots)
    place = rng.choice([i for i, name in enumerate(slots) if name == wrong])
    flipped = [odd if i == place else name for i, name in enumerate(slots)]
    deeds = rng.sample(words.deeds, len(slots))
    ask = _choose(words.ask_odd, templates, rng)
    clean, corrupt = (words.before_deeds + "".join(f"{name} {deed}. " for name, deed in zip(row, deeds)) + ask
                      for row in (slots, flipped))
    return Pair(clean, corrupt, odd, wrong)


def ioi(model: Any, n: int = 64, seed: int = 0, corrupt: Corrupt = "s2", order: Order = "both",
        templates: Which = "all", names: Which = "all") -> Task:
    """Indirect object identification: the answer is the person who receives, not the one who acts.

    >>> gimkit.tasks.ioi(model, n=1)[0]
    Pair(clean='As soon as Adam and Stephen opened the beach, Adam was glad to lend the flower to',
         corrupt='As soon as Adam and Stephen opened the beach, Stephen was glad to lend the flower to',
         answer='Stephen', wrong='Adam')

    Answer: the person named once (IO); wrong: the one named twice (S). Clean and corrupt differ in one token,
    the subject of the last clause (S2).

    Args:
        model: an nnsight model with a tokenizer, or a tokenizer.
        n: prompt pairs, all different; fewer where no more are found, and then `Task.dropped` reports it.
        seed: of the random choice; the same seed gives the same pairs.
        corrupt: "s2" puts IO in S2's place, so that the answer flips (MIB's s2_io_flip_counterfactual);
            "third" puts a third name there, so that the prompt does not determine who receives.
        order: "ABBA" (IO named first), "BABA" (S named first) or "both".
        templates, names: "all", "trained" or "held-out", as the bundled models met them in training. For other models
            there is no such difference: they get all.

    Returns:
        A `Task`.

    Raises:
        GimkitError: no pair suits the tokenizer, or an argument has another value.
    """
    check_known("corrupt", corrupt, ("s2", "third"))
    check_known("order", order, ("both", "ABBA", "BABA"))
    check_known("templates", templates, WHICH)
    check_known("names", names, WHICH)
    return build("ioi", model, lambda rng, words: ioi_pair(rng, corrupt, order, templates, names, words=words), n, seed,
                 count_answers=lambda words: ordered(words.names, least=3))


def ioi_twice(model: Any, n: int = 64, seed: int = 0, corrupt: Corrupt = "s2", templates: Which = "all",
              names: Which = "all", times: int = 2) -> Task:
    """IOI with a sentence in between that names both people once more, so that the evidence is there twice.

    >>> gimkit.tasks.ioi_twice(model, n=1)[0].clean
    'Two people, Adam and Stephen, were waiting by the beach. A dog ran past Adam and Stephen. Adam hid the bag from'

    The answer and the wrong answer are as in `ioi`.

    Args:
        model, n, seed, corrupt, templates, names: as in `ioi`.
        times: how often both are named before the last clause, 2 or 3; the bundled models were trained with 2.

    Returns:
        A `Task`.
    """
    check_known("corrupt", corrupt, ("s2", "third"))
    check_known("templates", templates, WHICH)
    check_known("names", names, WHICH)
    check_known("times", times, (2, 3))
    return build("ioi_twice", model,
                 lambda rng, words: ioi_pair(rng, corrupt, "both", templates, names, times, words), n, seed,
                 count_answers=lambda words: ordered(words.names, least=3))


def odd_one_out(model: Any, n: int = 64, seed: int = 0, people: int = 3, templates: Which = "all",
                names: Which = "all") -> Task:
    """All people but one are named twice, and the answer is that one; the place of a name does not help.

    >>> gimkit.tasks.odd_one_out(model, n=1, people=2)[0].clean
    'Adam jumped. Adam wrote. Stephen played. Only one person was named once, and it was'

    Answer: the person named once; wrong: another one. Corrupt: one of the two places of the wrong one goes to the
    answer, so that they change roles.

    Args:
        model, n, seed, templates, names: as in `ioi`.
        people: 2 to 4.

    Returns:
        A `Task`.
    """
    check_known("people", people, (2, 3, 4))
    check_known("templates", templates, WHICH)
    check_known("names", names, WHICH)
    return build("odd_one_out", model, lambda rng, words: odd_pair(rng, people, templates, names, words), n, seed,
                 count_answers=lambda words: ordered(words.names, least=people))
