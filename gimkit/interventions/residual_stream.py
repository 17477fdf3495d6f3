"""The residual stream taken apart inside a trace: what heads and MLPs write, what norms do to it.

Rows of a batch are b clean prompts, then their b corrupt ones, then further points.
"""

import torch

from gimkit.interventions.backward_rules import norm_factor
from gimkit.interventions.gradients import centre, inverse_scale
from gimkit.interventions.recomputed import CAUSES, check_agrees, spread, tolerance_of
from gimkit.interventions.weights import matrix_of, scale_of

NOT_THE_SUM = "the residual stream here is not the sum of what the parts before it wrote: " + CAUSES


def heads_of(x: torch.Tensor, which: int, layout: str, heads: int, key_heads: int, width: int) -> torch.Tensor:
    """The q (0), k (1) or v (2) part of a projection's output axis, [..., heads, width]."""
    if layout == "separate":
        return x.unflatten(-1, (-1, width))
    if layout == "interleaved":
        return x.unflatten(-1, (heads, 3, width))[..., which, :]
    sizes = [heads * width, key_heads * width, key_heads * width]
    return x.narrow(-1, sum(sizes[:which]), sizes[which]).unflatten(-1, (-1, width))  # .split's views can't be written


def read_projections(model, layer, reads: torch.Tensor) -> tuple[dict, dict]:
    """{path: output} and {path: (weight, bias)} of a layer's projections to q, k and v.

    reads: what the norm before them makes of the stream.
    """
    outputs, matrices = {}, {}
    for path in dict.fromkeys(layer.projections):
        module = model.get(path)
        x, outputs[path] = module.input, module.output
        check_reads(path, x, reads)
        matrices[path] = matrix_of(module, path, x, outputs[path])
    return outputs, matrices


def read_weights(matrices: dict, layer, w) -> tuple:
    """What maps the normed stream to each head's q, k and v: weight [3 * heads, width, head_dim], bias or None.

    All heads' q come first, then their k, then their v; heads that share keys and values repeat them.
    matrices: {path: (weight, bias)} of the layer's projections.
    """
    weights, biases = [], []
    for which, path in enumerate(layer.projections):
        weight, bias = (part if part is None else heads_of(part, which, layer.layout, w.heads, w.key_heads, w.head_dim)
                        for part in matrices[path])
        copies = w.heads // weight.shape[1]
        weights.append(weight.repeat_interleave(copies, 1))
        biases.append(None if bias is None else bias.repeat_interleave(copies, 0))
    weight = torch.cat(weights, 1).transpose(0, 1)
    if all(bias is None for bias in biases):
        return weight, None
    none = weight.new_zeros(w.heads, w.head_dim)
    return weight, torch.cat([none if bias is None else bias for bias in biases])[:, None]


def check_reads(path: str, x: torch.Tensor, want: torch.Tensor) -> None:
    """Refuse where a module does not read what the part before it gives, on the first rows."""
    x, want = (part.detach().reshape(-1, part.shape[-1]) for part in (x, want))
    some = spread(len(want))
    x, want = x[some], want[some]
    check_agrees(path, want, x, x.abs().amax(-1, keepdim=True), tolerance_of(x.dtype),
                 "its input is not what the part before it gives: " + CAUSES)


def check_sum(path: str, stream: torch.Tensor, *parts: torch.Tensor, b: int) -> None:
    """Refuse where clean - corrupt of the stream at a module is not that of all parts that make it up.

    stream, parts: rows of b clean prompts, b corrupt ones, and perhaps more.
    """
    values = [by_row(part.detach(), len(stream))[:2 * b] for part in (stream, *parts)]
    own, *gaps = (value[:b] - value[b:] for value in values)
    size = sum(value.abs() for value in values)
    check_agrees(path, sum(gaps), own, size[:b] + size[b:], tolerance_of(stream.dtype), NOT_THE_SUM)


class Reading:
    """A norm as it ran on some rows: its input, inverse denominator and factor."""

    def __init__(self, module, norm, x, y):
        self.x, self.y, self.centred = x.detach(), y.detach(), norm.centred
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
    factor and centring are applied to the weight and the denominator to the gradient: these are smaller.
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


def read_after(model, norm, own: torch.Tensor):
    """A Reading of the norm that follows a part with the output `own`, None where there is none."""
    reading = read_norm(model, norm)
    if reading is not None:
        check_reads(norm.path, reading.x, own)
    return reading


def scaled_gap(out: torch.Tensor, after, b: int) -> torch.Tensor:
    """Clean minus corrupt value of an output, each run's divided by the denominator of a norm that follows."""
    out = out.detach()
    if after is not None:
        out = out[:2 * b] * after.inverse[:2 * b]
    return out[:b] - out[b:2 * b]


def written(out: torch.Tensor, after, b: int) -> torch.Tensor:
    """Clean minus corrupt of what a part writes to the stream: its output, or what leaves a norm that follows."""
    out = out.detach() if after is None else after.y
    return out[:b] - out[b:2 * b]


def heads_written(weight: torch.Tensor, gap: torch.Tensor, after, heads: int) -> torch.Tensor:
    """What a `scaled_gap` of heads' outputs side by side writes to the stream, head by head, [heads, b, seq, width].

    weight: of the output projection, [in, width].
    """
    weight = weight.unflatten(0, (heads, -1))
    parts = torch.einsum("bshd,hdw->hbsw", gap.unflatten(-1, (heads, -1)).to(weight.dtype), weight)
    return parts if after is None else parts * after.factor


def tensor_of(output):
    """A module's hidden state, when it returns it alone or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def by_row(x: torch.Tensor, rows: int) -> torch.Tensor:
    """A view as [rows, seq, width]; OPT-like blocks run their MLP with rows and positions in one axis."""
    return x.view(rows, -1, x.shape[-1])


def add_rows(block, rows: int, began: int, b: int) -> None:
    """Let a block run on `rows` rows: copies of the first b are added, to its hidden states and its mask.

    began: rows of the whole pass, which the mask of every later block has.
    """
    args, kwargs = block.inputs
    known = {began, len(block.input)}
    block.inputs = (grown(args, known, rows, b), grown(kwargs, known, rows, b))


def grown(value, known: set, rows: int, b: int):
    """A block's argument, with copies of the first b rows up to `rows` in every tensor whose rows are in `known`.

    >>> grown((torch.zeros(2, 1, 4, 4), {"angles": torch.zeros(1, 4, 8)}), {2}, 3, 1)[0].shape
    torch.Size([3, 1, 4, 4])
    """
    if isinstance(value, torch.Tensor) and value.dim() > 2 and len(value) in known:
        return torch.cat([value, value[:b].repeat((rows - len(value)) // b, *[1] * (value.dim() - 1))])
    if isinstance(value, tuple | list):
        return type(value)(grown(part, known, rows, b) for part in value)
    return {key: grown(part, known, rows, b) for key, part in value.items()} if isinstance(value, dict) else value
