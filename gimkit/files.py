"""Files that are written completely or not at all, and tables that are measured once and read back later."""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas

from gimkit.errors import GimkitError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; the file written there replaces `path` when the block ends without an error.

    >>> with atomic_write("scores.txt") as new:
    ...     written = new.write_text("0.5")
    >>> Path("scores.txt").read_text()
    '0.5'

    Args:
        path: of the file. Its folders are made. A pipe or another special file is written to directly.

    Raises:
        GimkitError: the file cannot be written.
    """
    path = Path(path)
    special = path.exists() and not path.is_file() and not path.is_dir()
    target = path if special else Path(os.path.realpath(path))  # a link stays a link
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


def write_text(path: str | Path, text: str) -> Path:
    """Write a text in UTF-8, its line ends unchanged."""
    with atomic_write(path) as new:
        new.write_text(text, encoding="utf-8", newline="")
    return Path(path)


def write_table(path: str | Path, frame: pandas.DataFrame, digits: int = 6) -> Path:
    """Write a table as csv without its index, floats with `digits` significant digits."""
    with atomic_write(path) as new:
        frame.to_csv(new, index=False, float_format=f"%.{digits}g", lineterminator="\n")
    return Path(path)


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
