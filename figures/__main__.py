"""`python -m figures`: draw the papers' figures into figures/, with captions."""

import argparse
import sys

from figures import draw
from gimkit.cli import run_command


def main(arguments: list[str] | None = None) -> int:
    """Draw figures; bad input gives one line on standard error and exit code 2."""
    parser = argparse.ArgumentParser("python -m figures", description="Draw the papers' figures, with captions.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of figures (default: all)")
    parser.add_argument("--model", default="mini-llama", help="bundled name, folder or hub id (default: %(default)s)")
    parser.add_argument("-n", type=int, default=12, help="prompts of each task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", default=(), help="default: each figure's own")
    options = parser.parse_args(arguments)
    return run_command(lambda given: draw(given.names, given.model, given.n, given.seed, given.tasks), options)


if __name__ == "__main__":
    sys.exit(main())
