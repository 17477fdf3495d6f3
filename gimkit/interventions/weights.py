"""What NDIF's sandbox lacks, inside a trace: its modules have no weights, its tensors no graph.

A block of an ordinary key runs in a process of its own, where the weights are on the meta device; each read, each
replacement and each call of a module crosses to the process that holds the model.
"""

import torch

from gimkit.errors import GimkitError
from gimkit.interventions.recomputed import CAUSES, check_agrees, spread, tolerance_of, weight_dtypes


def leaf_of(model, value: torch.Tensor) -> torch.Tensor:
    """A value as a leaf for gradients; an error where the server gives no gradients."""
    if model.device.type == "meta":
        raise GimkitError("this key's requests run in a sandbox without gradients")
    return value.detach().requires_grad_(True)


def matrix_of(projection, path: str, x: torch.Tensor, y: torch.Tensor) -> tuple:
    """The weight [in, out] that a projection computes with and its bias [out] or None, checked by `check_matrix`."""
    matrix = held_or_probed(projection, x)
    check_matrix(projection, path, x, y, *matrix)
    return matrix


def holds_weight(module) -> bool:
    """Whether this is a Linear or transformers' Conv1D whose own weight is in floating point."""
    known = type(module) is torch.nn.Linear or hasattr(module, "nf")
    return known and module.weight.is_floating_point() and not module.weight.is_meta


def held_or_probed(projection, x: torch.Tensor) -> tuple:
    """A projection's weight [in, out] and bias, read where a Linear or Conv1D holds them.

    Anything else (an adapter, quantised weights, any module in a sandbox) is run on each unit vector,
    and on minus the first; not on zeros, which some quantised ones cannot scale. x: what it reads, [..., in].
    """
    if holds_weight(projection._module):
        weight, bias = projection.weight.detach(), getattr(projection, "bias", None)
        weight = weight if hasattr(projection._module, "nf") else weight.T
        return weight, None if bias is None else bias.detach()
    with torch.no_grad():
        units = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        answers = projection(torch.cat([units, -units[:1]]))
    bias = (answers[0] + answers[-1]) / 2
    return answers[:-1] - bias, bias


def check_matrix(projection, path: str, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias) -> None:
    """Refuse where weight and bias do not give what a projection returned, y [..., out], for x [..., in], on some rows.
    """
    module, outputs = projection._module, [y]
    if module._forward_hooks:  # a trace reads what a module returns before its hooks change it
        with torch.no_grad():
            outputs.append(projection(x))
    rows = x.detach().flatten(0, -2)
    some = spread(len(rows))
    computed = rows[some].to(weight.dtype) @ weight
    if bias is not None:
        computed = computed + bias
    tolerance = tolerance_of(y.dtype, *weight_dtypes(module))  # quantised modules may round what they read
    for own in outputs:
        own = own.detach().flatten(0, -2)[some]
        check_agrees(path, computed, own, own.abs().amax(-1, keepdim=True), tolerance,
                     "its output is not its weight times its input: " + CAUSES)


def scale_of(norm, eps: float, dtype: torch.dtype) -> tuple:
    """A norm's weight and bias, None where it has none.

    In a sandbox the norm is run on zeros, and on 1, -1, 1, -1, ..., which have mean 0 and variance 1.
    """
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if weight is None or not weight.is_meta:
        return weight, bias
    signs = torch.ones(weight.shape, dtype=dtype)
    signs[..., 1::2] = -1
    zero, one = norm(torch.stack([torch.zeros_like(signs), signs]))
    return (one - zero) * signs * (1 + eps) ** 0.5, None if bias is None else zero
