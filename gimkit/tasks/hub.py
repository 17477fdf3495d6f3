"""Rows of public data sets: from the Hugging Face hub, from a file, or given."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gimkit.errors import GimkitError


def rows_from_hub(hub: str, *place: str, **options: Any) -> Iterable[dict]:
    """A data set's rows from the hub, read by the datasets library.

    Args:
        hub: the data set's name, for messages and, without `place`, for loading.
        place: what `datasets.load_dataset` takes in its place.
        options: of `datasets.load_dataset`.

    Raises:
        GimkitError: no `datasets`, no network, no such data set, or one that asks for a login.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise GimkitError(f"{hub} is read with the datasets library: install gimkit with its extra [data] "
                          "(pip install datasets), or give the rows as data=") from None
    try:
        return load_dataset(*(place or (hub,)), **options)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GimkitError(f"cannot read {hub} from the Hugging Face hub ({reason}): check the network (for a gated "
                          "data set, log in with `hf auth login`), or give the rows as data=") from error


def rows_given(data: Iterable[dict] | str | Path) -> list[dict]:
    """Rows as a list: given ones, or those of a .json or .jsonl file.

    >>> rows_given([{"prompt": "1+1="}])
    [{'prompt': '1+1='}]

    Raises:
        GimkitError: a file that is missing or holds no rows, or a row that is no dict.
    """
    if isinstance(data, str | Path):
        try:
            text = Path(data).read_text("utf-8")
            rows = json.loads(text) if Path(data).suffix == ".json" else list(map(json.loads, text.splitlines()))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise GimkitError(f"cannot read rows from {data} ({reason}); give a .jsonl file with a row a line, or a "
                              ".json file with a list of rows") from error
    else:
        rows = data
    rows = list(rows) if isinstance(rows, Iterable) and not isinstance(rows, dict) else [rows]
    for row in rows:
        if not isinstance(row, dict):
            raise GimkitError(f"a row is a dict of columns, not {type(row).__name__}")
    return rows
