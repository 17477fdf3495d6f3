"""The numbers of the model cards: `python -m benchmarks.training.measure mini-gpt2`."""

import argparse
import sys

import pandas as pd

import gimkit
from gimkit import tasks
from gimkit.cli import run_command
from gimkit.tasks import Task
from gimkit.tasks.measure import metric
from tests.oracles.phenomena import phenomena

SHOW_PHENOMENA = ("ioi, trained templates", "ioi_twice, trained templates", "odd_one_out, 3 people",
                  "induction, three times")


def _examined(model, n: int = 1000, seed: int = 1000) -> dict[str, Task]:
    """The tasks of the model cards, with held-out pairs of names.

    >>> len(_examined(model, n=2))
    14
    """
    held = {"names": "held-out"}
    return {
        "ioi, trained templates": tasks.ioi(model, n, seed, templates="trained", **held),
        "ioi, held-out templates": tasks.ioi(model, n, seed, templates="held-out", **held),
        "ioi_twice, trained templates": tasks.ioi_twice(model, n, seed, templates="trained", **held),
        "ioi_twice, held-out templates": tasks.ioi_twice(model, n, seed, templates="held-out", **held),
        "odd_one_out, 2 people": tasks.odd_one_out(model, n, seed, people=2, **held),
        "odd_one_out, 3 people": tasks.odd_one_out(model, n, seed, people=3, **held),
        "odd_one_out, 4 people": tasks.odd_one_out(model, n, seed, people=4, **held),
        "induction, twice": tasks.induction(model, n, seed),
        "induction, three times": tasks.induction(model, n, seed, times=3),
        "greater_than": tasks.greater_than(model, n, seed),
        "agreement": tasks.agreement(model, n, seed),
        "pronoun": tasks.pronoun(model, n, seed),
        "capital": tasks.capital(model, n, seed),
        "hypernymy": tasks.hypernymy(model, n, seed),
    }


def accuracy(model, n: int = 1000, seed: int = 1000) -> pd.DataFrame:
    """Accuracy and mean logit difference of each task, on pairs of names that were held out of training.

    >>> accuracy(model, n=8).shape
    (14, 4)

    Args:
        model: an nnsight model with its tokenizer.
        n, seed: of each task's prompts.
    Returns:
        A row for each task. accuracy: the share of prompts with a positive metric.
    """
    rows = []
    for name, task in _examined(model, n, seed).items():
        values = metric(model, task)
        rows.append((name, (values > 0).float().mean().item(), values.mean().item(), len(task)))
    return pd.DataFrame(rows, columns=["task", "accuracy", "logit_difference", "prompts"])


def main(arguments: list[str] | None = None) -> int:
    """Print accuracies and phenomena of a model; bad input gives one line and exit code 2."""
    parser = argparse.ArgumentParser("python -m benchmarks.training.measure",
                                     description="Accuracies per task, and the phenomena that the notebooks teach.")
    parser.add_argument("model", metavar="NAME_OR_FOLDER", help="a bundled name, or a folder that training wrote")
    return run_command(_print_measures, parser.parse_args(arguments))


def _print_measures(options) -> None:
    """Print accuracies and phenomena."""
    model = gimkit.load(options.model)
    print("Accuracy: share of prompts whose right answer is above the wrong one. Name pairs are held out of training.")
    print(accuracy(model).to_string(index=False, float_format="{:.3f}".format), flush=True)
    chosen = {task.name: task for name, task in _examined(model, n=64).items() if name in SHOW_PHENOMENA}
    rows = [(*key.split(".", 1), value) for key, value in phenomena(model._module, chosen).items()]
    table = pd.DataFrame(rows, columns=["task", "measure", "value"]).set_index(["measure", "task"])["value"]
    print("\nPhenomena, 64 prompts each; the measures are defined in tests/oracles/phenomena.py.")
    print(table.unstack(sort=False).to_string(float_format="{:.2f}".format))


if __name__ == "__main__":
    sys.exit(main())
