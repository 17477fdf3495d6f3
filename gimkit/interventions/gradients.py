"""Tensors with another gradient, and the arithmetic of norms."""

import torch


def scale_grad(x: torch.Tensor, a: float) -> torch.Tensor:
    """The value of x, its gradient times a.

    >>> x = torch.ones(3, requires_grad=True)
    >>> scale_grad(x, 0.25).sum().backward()
    >>> x.grad
    tensor([0.2500, 0.2500, 0.2500])
    """
    value = x.detach()
    return value + a * (x - value)


def with_grad_of(value: torch.Tensor, surrogate: torch.Tensor) -> torch.Tensor:
    """The value of the first tensor, the gradient of the second.

    >>> x = torch.tensor([2.0], requires_grad=True)
    >>> y = with_grad_of(x.exp(), 3 * x)
    >>> y.backward(); x.grad
    tensor([3.])
    """
    return value.detach() + (surrogate - surrogate.detach()).to(value.dtype)


def centre(x: torch.Tensor, centred: bool) -> torch.Tensor:
    """The numerator of a norm over the last axis: x - mean (LayerNorm) or x itself (RMSNorm), at least float32.

    >>> centre(torch.tensor([[3.0, 5.0]]), True)
    tensor([[-1.,  1.]])
    """
    x = x if x.dtype == torch.float64 else x.float()
    return x - x.mean(-1, keepdim=True) if centred else x


def inverse_scale(top: torch.Tensor, eps: float) -> torch.Tensor:
    """One over a norm's denominator, from its numerator, as a constant.

    >>> inverse_scale(torch.tensor([[3.0, 4.0]]), 0.0)
    tensor([[0.2828]])
    """
    return torch.rsqrt(top.detach().pow(2).mean(-1, keepdim=True) + eps)
