"""The residual stream taken apart inside a trace: what heads and MLPs write, what norms do to it.

Shipped to servers by value. Rows of a batch are b clean prompts, then their b corrupt ones, then further points.
"""

import torch

from gimkit.inside import norm_factor
from gimkit.rules import centre, inverse_scale


def heads_of(x: torch.Tensor, which: int, layout: str, heads: int, key_heads: int, width: int) -> torch.Tensor:
    """The q (0), k (1) or v (2) part of a projection's output axis, [..., heads, width]."""
    if layout == "separate":
        return x.unflatten(-1, (-1, width))
    if layout == "interleaved":
        return x.unflatten(-1, (heads, 3, width))[..., which, :]
    sizes = [heads * width, key_heads * width, key_heads * width]
    return x.split(sizes, -1)[which].unflatten(-1, (-1, width))


def output_last(projection) -> torch.Tensor:
    """A projection's weight as [in, out]; transformers' Conv1D keeps it so, Linear the other way round."""
    weight = projection.weight.detach()
    return weight if projection.weight.shape[-1] == getattr(projection, "nf", -1) else weight.T


class Reading:
    """A norm as it ran on some rows: its factor, inverse denominator and normalised input."""

    def __init__(self, module, norm, x, y):
        path, eps, centred = norm
        self.centred = centred
        top = centre(x.detach(), centred)
        self.inverse = inverse_scale(top, eps)
        factor = norm_factor(x.detach(), y.detach(), getattr(module, "weight", None), getattr(module, "bias", None),
                             path, eps, centred)
        self.factor = torch.ones((), device=x.device) if factor is None else factor
        self.normalised = top * self.inverse

    def pull_back(self, gradient: torch.Tensor, rows: slice, frozen: bool) -> torch.Tensor:
        """Gradients at the norm's output, [..., rows, seq, width], as gradients at its input."""
        g = gradient * self.factor
        if not frozen:
            unit = self.normalised[rows]
            g = g - unit * (g * unit).mean(-1, keepdim=True)
        if self.centred:
            g = g - g.mean(-1, keepdim=True)
        return g * self.inverse[rows]


def read_norm(model, norm):
    """A Reading of a norm, None where there is none."""
    if norm is None:
        return None
    module = model.get(norm[0])
    return Reading(module, norm, module.input, module.output)


def written(out: torch.Tensor, after, b: int) -> torch.Tensor:
    """Clean minus corrupt of what a part writes to the stream; a norm after it counts as a constant factor."""
    out = out.detach()
    if after is None:
        return out[:b] - out[b:2 * b]
    return (out[:b] * after.inverse[:b] - out[b:2 * b] * after.inverse[b:2 * b]) * after.factor


def heads_written(projection, z, after, b: int, heads: int) -> torch.Tensor:
    """Clean minus corrupt of what each head writes to the stream, [heads, b, seq, width]."""
    z = z.detach()
    z = z[:b] - z[b:2 * b] if after is None else z[:b] * after.inverse[:b] - z[b:2 * b] * after.inverse[b:2 * b]
    weight = output_last(projection).unflatten(0, (heads, -1))
    parts = torch.einsum("bshd,hdw->hbsw", z.unflatten(-1, (heads, -1)).to(weight.dtype), weight)
    return parts if after is None else parts * after.factor
