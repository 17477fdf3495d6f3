"""The residual stream taken apart inside a trace: what heads and MLPs write, what norms do to it.

Shipped to servers by value. Rows of a batch are b clean prompts, then their b corrupt ones, then further points.
"""

import torch

from gimkit.interventions.backward_rules import norm_factor
from gimkit.interventions.gradients import centre, inverse_scale
from gimkit.interventions.weights import matrix_of, scale_of


def heads_of(x: torch.Tensor, which: int, layout: str, heads: int, key_heads: int, width: int) -> torch.Tensor:
    """The q (0), k (1) or v (2) part of a projection's output axis, [..., heads, width]."""
    if layout == "separate":
        return x.unflatten(-1, (-1, width))
    if layout == "interleaved":
        return x.unflatten(-1, (heads, 3, width))[..., which, :]
    sizes = [heads * width, key_heads * width, key_heads * width]
    return x.split(sizes, -1)[which].unflatten(-1, (-1, width))


def read_weights(model, layer, w, dtype: torch.dtype) -> tuple:
    """What makes each head's q, k and v of the normed stream: weight [3 * heads, width, head_dim], bias or None.

    All heads' q come first, then their k, then their v; heads that share keys and values repeat them.
    """
    weights, biases = [], []
    for which, path in enumerate(layer.projections):
        weight, bias = matrix_of(model.get(path), dtype)
        weight = heads_of(weight, which, layer.layout, w.heads, w.key_heads, w.head_dim)
        copies = w.heads // weight.shape[1]
        weights.append(weight.repeat_interleave(copies, 1))
        if bias is not None:
            bias = heads_of(bias, which, layer.layout, w.heads, w.key_heads, w.head_dim)
            biases.append(bias.repeat_interleave(copies, 0))
    return torch.cat(weights, 1).transpose(0, 1), torch.cat(biases)[:, None] if biases else None


class Reading:
    """A norm as it ran on some rows: its input, inverse denominator and factor."""

    def __init__(self, module, norm, x, y):
        self.x, self.centred = x.detach(), norm.centred
        self.inverse = inverse_scale(centre(self.x, self.centred), norm.eps)
        scale = scale_of(module, norm.eps, y.dtype)
        factor = norm_factor(self.x, y.detach(), *scale, norm.path, norm.eps, self.centred)
        self.factor = torch.ones((), device=x.device) if factor is None else factor

    def unit(self, place) -> torch.Tensor:
        """The normalised input, before the factor."""
        return centre(self.x[place], self.centred) * self.inverse[place]

    def pull_back(self, gradient: torch.Tensor, place, frozen: bool) -> torch.Tensor:
        """Gradients at the norm's output as gradients at its input, both [rows, seq, width] at a place."""
        g = gradient * self.factor
        if not frozen:
            unit = self.unit(place)
            g = g - unit * (g * unit).mean(-1, keepdim=True)
        if self.centred:
            g = g - g.mean(-1, keepdim=True)
        return g * self.inverse[place]


def pull_heads_back(gradient: torch.Tensor, weight: torch.Tensor, norm, places: list, frozen: bool) -> torch.Tensor:
    """Gradients [targets, rows, seq, width] at the stream from those at heads' q, k and v, summed over places.

    gradient: [all rows, seq, targets, head_dim]. weight: [targets, width, head_dim]. Same as `Reading.pull_back`, but
    factor and centring are applied to the weight and the denominator to the gradient, for these are smaller.
    """
    precise = torch.promote_types(gradient.dtype, torch.float32)
    weight, total = weight.to(precise), 0
    if norm is not None:
        weight = weight * norm.factor.to(precise)[..., None]
    if norm is not None and norm.centred:
        weight = weight - weight.mean(1, keepdim=True)
    for place in places:
        g = gradient[place].to(precise).permute(2, 0, 1, 3)
        if norm is not None:
            g = g * norm.inverse[place].to(precise)
        part = torch.bmm(g.flatten(1, 2), weight.mT)  # [targets, rows * seq, width]
        if norm is not None and not frozen:
            unit = norm.unit(place).to(precise).flatten(0, 1)
            along = torch.bmm(part.transpose(0, 1), unit[:, :, None] / -unit.shape[-1])
            part.addcmul_(along.transpose(0, 1), unit)
        total = total + part
    return total.unflatten(1, g.shape[1:3])


def read_norm(model, norm):
    """A Reading of a norm, None where there is none."""
    if norm is None:
        return None
    module = model.get(norm.path)
    return Reading(module, norm, module.input, module.output)


def scaled_gap(out: torch.Tensor, after, b: int) -> torch.Tensor:
    """Clean minus corrupt value of an output, each run's divided by the denominator of a norm that follows."""
    out = out.detach()
    if after is not None:
        out = out[:2 * b] * after.inverse[:2 * b]
    return out[:b] - out[b:2 * b]


def written(out: torch.Tensor, after, b: int) -> torch.Tensor:
    """Clean minus corrupt of what a part writes to the stream; a norm after it counts as a constant factor."""
    gap = scaled_gap(out, after, b)
    return gap if after is None else gap * after.factor


def heads_written(projection, gap: torch.Tensor, after, heads: int) -> torch.Tensor:
    """What a `scaled_gap` of heads' outputs side by side writes to the stream, head by head, [heads, b, seq, width]."""
    weight = matrix_of(projection, gap.dtype)[0].unflatten(0, (heads, -1))
    parts = torch.einsum("bshd,hdw->hbsw", gap.unflatten(-1, (heads, -1)).to(weight.dtype), weight)
    return parts if after is None else parts * after.factor


def tensor_of(output):
    """A module's hidden state, when it returns it alone or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def by_row(x: torch.Tensor, rows: int) -> torch.Tensor:
    """A view as [rows, seq, width]; OPT-like blocks run their MLP with rows and positions in one axis."""
    return x.view(rows, -1, x.shape[-1])
