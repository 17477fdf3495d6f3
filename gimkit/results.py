"""What all results share: == compares them field by field, tensors and tables value by value."""

from dataclasses import fields

import pandas
import torch


class Result:
    """The base of dataclasses that hold tensors (`@dataclass(frozen=True, eq=False)`): a generated == would raise.

    >>> gimkit.score_nodes(model, task) == gimkit.score_nodes(model, task), nodes == edges
    (True, False)
    """

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            same(getattr(self, field.name), getattr(other, field.name)) for field in fields(self) if field.compare)  # type: ignore[arg-type]

    __hash__ = None  # type: ignore[assignment]


def same(a: object, b: object) -> bool:
    """Are two values the same? Two tensors with NaN at the same place are.

    >>> same((1, torch.tensor([1.0, torch.nan])), (1, torch.tensor([1.0, torch.nan])))
    True
    """
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a != a) & (b != b)).all())
    if isinstance(a, pandas.DataFrame) and isinstance(b, pandas.DataFrame):
        return a.equals(b)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)
