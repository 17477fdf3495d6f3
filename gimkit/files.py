"""Files that are written completely or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
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
