"""The data cards of all tasks for a model: `python -m benchmarks.cards smollm2-135m`."""

import sys

import pandas

import gimkit
from benchmarks.tables import parser, show
from gimkit import tasks
from gimkit.cli import run_command
from gimkit.errors import check_whole

TASKS = {
    "ioi": tasks.ioi, "both named twice": tasks.ioi_twice,
    "odd one out of two": lambda *given: tasks.odd_one_out(*given, people=2),
    "odd one out of three": tasks.odd_one_out, "induction": tasks.induction,
    "induction, three times": lambda *given: tasks.induction(*given, times=3), "greater-than": tasks.greater_than,
    "agreement": tasks.agreement, "pronoun": tasks.pronoun, "capital": tasks.capital, "hypernymy": tasks.hypernymy,
}


def cards(model, n: int = 64, seeds: int = 2) -> pandas.DataFrame:
    """A row for each task and draw of prompts; each card is printed when it is measured.

    >>> cards(model, n=2, seeds=1).shape
    ioi, seed 0
      2 prompt pairs of ...
    (11, 11)

    Args:
        model: an nnsight model with its tokenizer.
        n: prompt pairs of each task and draw.
        seeds: draws.
    """
    rows = []
    for name, make in TASKS.items():
        for seed in range(seeds):
            card = tasks.card(model, make(model, n, seed))
            rows.append(card.frame().assign(task=name, seed=seed))
            print(f"{name}, seed {seed}\n  " + str(card).partition(": ")[2].replace("\n", "\n  "), flush=True)
    return pandas.concat(rows, ignore_index=True)


def main(arguments: list[str] | None = None) -> int:
    """Print a card for each task and draw, then all as a table; bad input gives one line and exit code 2."""
    options = parser("python -m benchmarks.cards", "Does a model solve the tasks?", 64, 2)
    return run_command(_print_cards, options.parse_args(arguments))


def _print_cards(options) -> None:
    """Print the cards, and save their table where wanted."""
    check_whole("seeds", options.seeds)
    show(cards(gimkit.load(options.model), options.n, options.seeds), options.csv,
         "Accuracy: share of clean prompts whose right answer is above the wrong one.")


if __name__ == "__main__":
    sys.exit(main())
