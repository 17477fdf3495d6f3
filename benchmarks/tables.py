"""What the commands share: their options, and tables that are printed, saved, measured once and read back later."""

import argparse
import hashlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas

from gimkit.files import write_table, write_text


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


def cached_table(path: str | Path, about: dict, measure: Callable[[], pandas.DataFrame],
                 **reading: Any) -> pandas.DataFrame:
    """The table in a file, when the file is complete and its settings are the same; else the table is measured again.

    >>> table = cached_table("part.csv", {"seed": 0}, lambda: pandas.DataFrame({"x": [1.5]}))
    >>> cached_table("part.csv", {"seed": 0}, lambda: "not measured again")
         x
    0  1.5

    The file's first line holds `about`, the number of rows and a hash of the rest.

    Args:
        path: of the csv file, which is written after a measurement.
        about: the settings of the measurement, values that JSON can hold.
        measure: a function that makes the table.
        reading: options of `pandas.read_csv`.
    """
    path, about = Path(path), json.loads(json.dumps(about))
    text = _trusted(path, about, reading)
    if text is None:
        text = _with_header(about, measure())
        write_text(path, text)
    return _table(text, reading)


def _with_header(about: dict, frame: pandas.DataFrame) -> str:
    """A table as csv behind the line that `_trusted` checks."""
    body = frame.to_csv(index=False, lineterminator="\n")
    return f"# {json.dumps(about | {'rows': len(frame), 'sha256': _hash(body)}, sort_keys=True)}\n{body}"


def _trusted(path: Path, about: dict, reading: dict) -> str | None:
    """The file's text when it is complete and has these settings; else None."""
    if not path.is_file():
        return None
    try:
        text = path.read_bytes().decode()
        head, _, body = text.partition("\n")
        found = json.loads(head.removeprefix("# "))
        rows, digest = found.pop("rows"), found.pop("sha256")
        complete = digest == _hash(body) and rows == len(_table(text, reading))
        changed = [key for key in {**found, **about} if found.get(key) != about.get(key)]
    except (AttributeError, KeyError, TypeError, ValueError):  # another kind of file, cut off or damaged
        return None
    if changed and complete:
        warnings.warn(f"{path} was measured with another {', '.join(changed)}: it is measured again", stacklevel=3)
    return text if complete and not changed else None


def _table(text: str, reading: dict) -> pandas.DataFrame:
    return pandas.read_csv(io.StringIO(text), skiprows=1, float_precision="round_trip", **reading)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
