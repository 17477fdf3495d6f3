"""Files that are there whole or not at all, and tables that are read back only when nothing of them is missing."""

import hashlib
import io
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pandas

from gimkit.errors import GimkitError


@contextmanager
def whole(path):
    """A new path beside `path` to write to, which takes its place once the block has ended without an error.

    >>> with whole("scores.txt") as new:
    ...     written = new.write_text("0.5")
    >>> Path("scores.txt").read_text()
    '0.5'

    Args:
        path: of the file, whose folders are made; what is no file, such as a pipe, is written to directly.
    Raises:
        GimkitError: where it cannot be written to.
    """
    path = Path(path)
    special = path.exists() and not path.is_file() and not path.is_dir()
    target = path if special else Path(os.path.realpath(path))  # a link stays one
    new = path if special else target.with_name(f".{target.stem[:60]}-{uuid4().hex[:8]}{target.suffix}")
    try:
        if path.is_dir():
            raise GimkitError(f"cannot write {path}: it is a folder")
        new.parent.mkdir(parents=True, exist_ok=True)
        yield new
        if not special:
            os.replace(new, target)
    except OSError as error:
        raise GimkitError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if not special:
            with suppress(OSError):
                new.unlink()


def write_text(path, text: str) -> Path:
    """Write a text in UTF-8 with the line ends that it has."""
    with whole(path) as new:
        new.write_text(text, encoding="utf-8", newline="")
    return Path(path)


def write_table(path, frame: pandas.DataFrame, digits: int = 6) -> Path:
    """Write a table as csv without its index, floats with that many significant digits."""
    with whole(path) as new:
        frame.to_csv(new, index=False, float_format=f"%.{digits}g", lineterminator="\n")
    return Path(path)


def kept(path, about: dict, measure, **reading) -> pandas.DataFrame:
    """The table at path if it is whole and about the same; else what measure() returns, written there.

    >>> table = kept("part.csv", {"seed": 0}, lambda: pandas.DataFrame({"x": [1.5]}))
    >>> kept("part.csv", {"seed": 0}, lambda: "not measured again")
         x
    0  1.5

    The first line holds `about`, the number of rows and a hash of the rest; where one of them does not fit, the table
    is measured again.

    Args:
        about: the settings, as JSON takes them. measure: makes the table. reading: options of `pandas.read_csv`.
    """
    path, about = Path(path), json.loads(json.dumps(about))
    if (text := _trusted(path, about, reading)) is None:
        text = stamped(about, measure())
        write_text(path, text)
    return _table(text, reading)


def stamped(about: dict, frame: pandas.DataFrame) -> str:
    """A table as csv, with a first line by which `kept` knows it again."""
    body = frame.to_csv(index=False, lineterminator="\n")
    return f"# {json.dumps(about | {'rows': len(frame), 'sha256': _hash(body)}, sort_keys=True)}\n{body}"


def _trusted(path: Path, about: dict, reading: dict) -> str | None:
    """The text of a table that is whole and about the same; else None."""
    if not path.is_file():
        return None
    try:
        text = path.read_bytes().decode()
        head, _, body = text.partition("\n")
        found = json.loads(head.removeprefix("# "))
        rows, digest = found.pop("rows"), found.pop("sha256")
        fits = found == about and digest == _hash(body) and rows == len(_table(text, reading))
    except (AttributeError, KeyError, TypeError, ValueError):  # of another kind, cut off or damaged
        return None
    return text if fits else None


def _table(text: str, reading: dict) -> pandas.DataFrame:
    return pandas.read_csv(io.StringIO(text), skiprows=1, float_precision="round_trip", **reading)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
