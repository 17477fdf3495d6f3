"""What NDIF's sandbox lacks, inside a trace: its modules have no weights, its tensors no graph. Shipped by value.

A block of an ordinary key runs in a process of its own, where the weights are on the meta device; each read, each
replacement and each call of a module crosses to the process that holds the model.
"""

import torch

from gimkit.errors import GimkitError


def leaf_of(model, value: torch.Tensor) -> torch.Tensor:
    """A value that gradients are taken at; an error where the server gives none."""
    if model.device.type == "meta":
        raise GimkitError("this key's requests run in a sandbox without gradients")
    return value.detach().requires_grad_(True)


def matrix_of(projection, dtype: torch.dtype) -> tuple:
    """A projection's weight [in, out], and its bias [out] or None.

    transformers' Conv1D keeps its weight so, Linear the other way round. In a sandbox the projection is asked what it
    makes of zeros and of each unit vector. dtype: of what it really computes with, which a sandbox does not know.
    """
    weight, bias = projection.weight, getattr(projection, "bias", None)
    inputs_first = weight.shape[-1] == getattr(projection, "nf", -1)
    if weight.is_meta:
        size = weight.shape[0 if inputs_first else 1]
        answers = projection(torch.eye(size + 1, dtype=dtype)[:, 1:])
        return (answers[1:], None) if bias is None else (answers[1:] - answers[0], answers[0])
    return (weight if inputs_first else weight.T).detach(), None if bias is None else bias.detach()


def scale_of(norm, eps: float, dtype: torch.dtype) -> tuple:
    """A norm's weight and bias, None where it has none.

    In a sandbox the norm is asked what it makes of zeros, and of 1, -1, 1, -1, ..., which have mean 0 and variance 1.
    """
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if weight is None or not weight.is_meta:
        return weight, bias
    signs = torch.ones(weight.shape, dtype=dtype)
    signs[..., 1::2] = -1
    zero, one = norm(torch.stack([torch.zeros_like(signs), signs]))
    return (one - zero) * signs * (1 + eps) ** 0.5, None if bias is None else zero
