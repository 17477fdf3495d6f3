"""The command line: `python -m gimkit --help`."""

import argparse
import sys
from pathlib import Path

from gimkit.errors import GimkitError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; bad input gives one line on standard error and exit code 2.

    >>> main(["demo", "--model", "mini-lama"])
    gimkit: unknown model 'mini-lama'; ...
    2
    """
    parser = argparse.ArgumentParser("python -m gimkit", description="GIM's gradients on nnsight models.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    command = commands.add_parser("demo", help="show GIM at work on a bundled model, and draw figures/ (no network)")
    command.add_argument("--model", default="mini-gpt2", help="bundled name, folder or hub id (default: %(default)s)")
    command.set_defaults(run=demo)

    command = commands.add_parser("train", help="train a bundled model from a seed")
    command.add_argument("name", metavar="NAME", help="mini-gpt2 or mini-llama")
    command.add_argument("--seed", type=int, default=0, help="same seed, same weights (default: %(default)s)")
    command.add_argument("--out", type=Path, required=True, help="folder for the weights, config and tokenizer")
    command.set_defaults(run=train)

    command = commands.add_parser("measure", help="accuracies per task, and the phenomena that the notebooks teach")
    command.add_argument("model", metavar="NAME_OR_FOLDER", help="a bundled name, or a folder that `train` wrote")
    command.set_defaults(run=measure)

    options = parser.parse_args(arguments)
    if "run" not in options:
        parser.print_help()
        return 2
    try:
        options.run(options)
    except (GimkitError, OSError) as error:
        print(f"gimkit: {error}", file=sys.stderr)
        return 2
    return 0


def demo(options) -> None:
    from gimkit.demo import demo

    demo(options.model)


def train(options) -> None:
    from gimkit.models.train import train

    print(f"wrote {train(options.name, options.seed, options.out)}")


def measure(options) -> None:
    raise GimkitError("not there yet")
