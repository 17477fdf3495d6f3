"""What the commands share: their options, and tables that they print and save."""

import argparse
from pathlib import Path

import pandas

from gimkit.files import write_table


def parser(command: str, description: str, n: int, seeds: int,
           csv: str = "write the table here") -> argparse.ArgumentParser:
    """A parser of a model, -n, --seeds and --csv.

    >>> parser("python -m benchmarks.cards", "Does a model solve the tasks?", 64, 2).parse_args(["mini-llama"]).n
    64

    Args:
        command, description, csv: for its help.
        n, seeds: defaults.
    """
    made = argparse.ArgumentParser(command, description=description)
    made.add_argument("model", metavar="NAME", help="a bundled name, a folder or a hub id")
    made.add_argument("-n", type=int, default=n, help="prompts of each task and draw (default: %(default)s)")
    made.add_argument("--seeds", type=int, default=seeds, help="draws of prompts (default: %(default)s)")
    made.add_argument("--csv", type=Path, help=csv)
    return made


def show(table: pandas.DataFrame, csv: Path | None, title: str) -> None:
    """Print a table under its title, and save it where wanted.

    >>> show(pandas.DataFrame({"x": [0.5]}), None, "One number")
    One number
       x
    0.50

    Args:
        table: a pandas table.
        csv: the path of a file; None for none.
        title: a line.
    """
    print(f"{title}\n{table.to_string(index=False, float_format='{:.2f}'.format)}")
    if csv:
        write_table(csv, table, digits=4)
        print(f"wrote {csv}")
