"""Made-up rows in the schemas of MIB's data sets, where the hub is out of reach: `python -m benchmarks.mib_rows`."""

import argparse
import json
import sys
from pathlib import Path
from random import Random
from typing import get_args

from gimkit.cli import run_command
from gimkit.errors import check_known, check_whole
from gimkit.files import write_text
from gimkit.tasks.mib import Name
from gimkit.tasks.natural import MEN, PLACES, WOMEN

SPLITS = ("train", "validation")
SENTENCES = (
    "At the {place}, {A} sat down next to {B}. Soon {S} passed the {object} to",
    "Since {A} and {B} had planned a day at the {place}, {S} lent the {object} to",
    "Two friends, {A} and {B}, met at the {place}. Before they parted, {S} handed the {object} to",
    "It rained, so {A} and {B} stayed at the {place}, and {S} showed the {object} to",
)
COLOURS = ("red", "blue", "green", "black", "white", "brown", "gray", "pink", "orange", "yellow")
THINGS = ("cup", "coat", "door", "car", "hat", "boat", "chair", "lamp", "box", "bag", "kite", "wall")
FACTS = {  # question: (answer, three wrong ones)
    "Which animal can fly?": ("a bird", "a horse", "a dog", "a cow"),
    "What do plants need to grow?": ("sunlight", "plastic", "glass", "noise"),
    "Which of these is a liquid?": ("water", "stone", "wood", "iron"),
    "Which of these gives light by day?": ("the sun", "the sea", "the soil", "the snow"),
    "Which part of the body pumps blood?": ("the heart", "the skin", "the hair", "the tooth"),
    "What falls from clouds?": ("rain", "sand", "gold", "oil"),
    "Which animal lives in water?": ("a fish", "a cat", "a goat", "a hen"),
    "What melts in the sun?": ("ice", "brick", "steel", "rock"),
    "Which of these is hot?": ("fire", "frost", "shade", "snow"),
    "What do bees make?": ("honey", "paper", "wool", "milk"),
    "Which season is coldest?": ("winter", "summer", "spring", "autumn"),
    "Which tool measures temperature?": ("a thermometer", "a ruler", "a clock", "a scale"),
}


def made_rows(name: Name, split: str = "train", n: int = 100) -> list[dict]:
    """n rows for a task; the same call gives the same rows.

    >>> row = made_rows("arithmetic_addition", n=1)[0]
    >>> sorted(row)
    ['label', 'operator', 'prompt', 'random_counterfactual']

    Args:
        name: of a task of MIB.
        split: "train" or "validation", which share no row.
        n: rows; fewer where the task has no more different ones.
    """
    check_known("MIB task", name, get_args(Name))
    check_known("split", split, SPLITS)
    n = check_whole("n", n)
    make = MAKERS[name]
    rng, rows = Random(f"{name}"), {}
    for _ in range(200 * n):
        row = make(rng)
        rows.setdefault(row["prompt"], row)
        if len(rows) == 2 * n:
            break
    halves = list(rows.values())
    return halves[SPLITS.index(split)::2][:n]


def _ioi(rng: Random) -> dict:
    sentence, place = rng.choice(SENTENCES), rng.choice(sorted(PLACES))
    first, second, other = rng.sample([*WOMEN, *MEN], 3)
    subject, indirect = rng.sample([first, second], 2)

    def prompt(repeated: str) -> str:
        return sentence.format(A=first, B=second, S=repeated, place=place, object=thing)

    thing = rng.choice(PLACES[place].split())
    return {"prompt": prompt(subject), "metadata": {"indirect_object": indirect, "subject": subject, "random_c": other},
            "s2_io_flip_counterfactual": {"prompt": prompt(indirect)}}


def _choices(question: str, texts: list[str], right: str, rng: Random) -> dict:
    """A question with lettered options, and the same with figures as symbols."""
    def asked(symbols) -> str:
        options = "\n".join(f"{symbol}. {text}" for symbol, text in zip(symbols, texts))
        return f"{question}\n{options}\nAnswer:\n"

    letters, figures, place = ["A", "B", "C", "D"], [1, 2, 3, 4], texts.index(right)
    return {"prompt": asked(letters), "choices": {"label": letters, "text": texts}, "answerKey": place,
            "symbol_counterfactual": {"prompt": asked(figures), "choices": {"label": figures, "text": texts},
                                      "answerKey": place}}


def _mcqa(rng: Random) -> dict:
    thing, colours = rng.choice(THINGS), rng.sample(COLOURS, 4)
    right = rng.choice(colours)
    return _choices(f"The {thing} in the picture is {right}. Which colour is the {thing}?", colours, right, rng)


def _science(rng: Random) -> dict:
    question = rng.choice(sorted(FACTS))
    texts = list(FACTS[question])
    rng.shuffle(texts)
    return _choices(question, texts, FACTS[question][0], rng)


def _sums(rng: Random, operator: str) -> dict:
    """Single figures, two solved examples before the question; results stay below ten."""
    def term() -> tuple[str, int]:
        result = rng.randrange(10)
        part = rng.randrange(result + 1)
        a, b, c = (part, result - part, result) if operator == "+" else (result, part, result - part)
        return f"{a}{operator}{b}=", c

    examples = "\n".join(f"{text}{value}" for text, value in (term(), term())) + "\n"
    text, value = term()
    other, wrong = term()
    while wrong == value:
        other, wrong = term()
    return {"prompt": examples + text, "label": value, "operator": operator,
            "random_counterfactual": {"prompt": examples + other, "label": wrong}}


MAKERS = {"ioi": _ioi, "mcqa": _mcqa, "arc_easy": _science, "arc_challenge": _science,
          "arithmetic_addition": lambda rng: _sums(rng, "+"), "arithmetic_subtraction": lambda rng: _sums(rng, "-")}


def main(arguments: list[str] | None = None) -> int:
    """Write FOLDER/TASK-SPLIT.jsonl for every task and split, which `python -m benchmarks.mib --rows FOLDER` reads."""
    parser = argparse.ArgumentParser("python -m benchmarks.mib_rows", description="Made-up rows of MIB's schemas.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("-n", type=int, default=100, help="rows of each split (default: %(default)s)")
    return run_command(_write, parser.parse_args(arguments))


def _write(options) -> None:
    for name in MAKERS:
        for split in SPLITS:
            rows = made_rows(name, split, options.n)
            path = options.folder / f"{name}-{split}.jsonl"
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
            print(f"wrote {len(rows)} rows to {path}")


if __name__ == "__main__":
    sys.exit(main())
