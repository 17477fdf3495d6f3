"""What gimkit recomputes of a model must be what the model computes."""

import torch

from gimkit.errors import GimkitError

CAUSES = ("a hook or an edit of yours changes it, or an adapter or quantised weights are not linear; remove the hook "
          "or the edit, merge the adapter, load full-precision weights, or score nodes instead of edges")


def tolerance_of(*dtypes: torch.dtype) -> float:
    """How far a recomputed value may be off, as a share of its size: more for dtypes of low precision."""
    return 1e-4 if all(dtype in (torch.float32, torch.float64) for dtype in dtypes) else 4e-2


def weight_dtypes(module) -> set:
    """What a module's weights are made of: floating-point numbers, or the bytes of quantised ones.

    >>> weight_dtypes(torch.nn.Linear(2, 3))
    {torch.float32}
    """
    held = [*module.parameters(), *module.buffers()]
    return {x.dtype for x in held if x.is_floating_point() or (x.element_size() == 1 and x.dtype != torch.bool)}


def spread(rows: int, most: int = 16) -> torch.Tensor:
    """Indices of at most `most` rows, spread over all of them.

    >>> spread(100, 4)
    tensor([ 0, 61, 23, 85])

    Steps of the golden ratio: rows are prompts times positions, and equal steps could hit one position only.
    """
    if rows <= most:
        return torch.arange(rows)
    return ((torch.arange(most, dtype=torch.float64) * 0.6180339887498949) % 1 * rows).long()


def check_agrees(path: str, computed: torch.Tensor, own: torch.Tensor, size: torch.Tensor, tolerance: float,
                 problem: str) -> None:
    """Refuse, naming a module, where a recomputed value differs from the model's own, or that is not finite.

    size: of the numbers that the values come from; the tolerance is a share of it.
    """
    if not bool(torch.isfinite(own).all()):
        raise GimkitError(f"{path}: the model's own output is NaN or infinite here; check its weights and its dtype")
    if not bool(((computed - own).abs() <= tolerance * size).all()):
        raise GimkitError(f"{path}: {problem}")
