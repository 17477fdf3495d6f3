"""Ablated heads, and what compensates for them.

The rows are b clean prompts, b corrupt ones, and for each ablated head b clean ones again.
"""

import torch

from gimkit.errors import GimkitError
from gimkit.interventions.gradients import centre
from gimkit.interventions.metric import metric_values, values_at_answers
from gimkit.interventions.residual_stream import Reading, by_row, check_reads, check_sum, tensor_of
from gimkit.interventions.weights import matrix_of, scale_of


def head_effects(model, layers: list, final, unembedding, softcap, heads: int, ablated: list, answers):
    """Effects [ablated, b, 4] of ablating each head, and the parts' compensation, [ablated, b, layers, heads + 1].

    The effects: direct, direct with the final norm live, total, total with the final norm frozen. Compensation: by how
    much each head's direct contribution rises, and last the MLP's. layers: (output projection, norm after it, MLP, norm
    after that) of each. ablated: (layer, head). answers: the `Answers`.
    """
    b, n = len(answers.last), 2 + len(ablated)
    here = (torch.arange(n * b), answers.last.repeat(n))
    # Per layer: what heads and MLP write at the last position, and what each ablated head no longer writes.
    written, lost, parts = [], {}, []
    for layer, (output, after_heads, mlp, after_mlp) in enumerate(layers):
        projection = model.get(output)
        z = resampled(projection, layer, ablated, heads, b)
        attention = projection.output
        weight = precise(matrix_of(projection, output, z, attention)[0]).unflatten(0, (heads, -1))
        z, attention, after = z[here], attention[here], reading_of(model, after_heads, here)
        if after is not None:
            check_reads(after_heads.path, after.x, attention)
        z = precise(z).unflatten(-1, (heads, -1))
        for row, (at, head) in enumerate(ablated):
            if at == layer:
                lost[row] = scaled((z[:b, head] - z[b:2 * b, head]) @ weight[head], after, slice(b))
        m = by_row(tensor_of(model.get(mlp).output), n * b)[here]
        after_m = reading_of(model, after_mlp, here)
        parts += [attention if after is None else after.y[:, 0], m if after_m is None else after_m.y[:, 0]]
        written.append((z, weight, after, precise(parts[-1])))
    lost = torch.stack([lost[row] for row in range(n - 2)])
    # The final norm, and the check that the stream is the sum of what was read.
    norm = model.get(final.path)
    stream, normalised = norm.input[here], norm.output[here]
    after = Reading(norm, final, stream[:, None], normalised[:, None])
    bias = scale_of(norm, final.eps, stream.dtype)[1]
    check_sum(final.path, *(x.unflatten(0, (n, b))[[0, 2]].flatten(0, 1)[:, None] for x in (stream, *parts)), b=b)
    unembed = Unembedding(model.get(unembedding.path), unembedding.path, normalised.dtype, softcap, answers)

    def frozen(x):
        """The final norm's output for streams [k, b, width] with the clean run's denominator, [k * b, width]."""
        y = centre(x, after.centred) * after.inverse[:b, 0] * after.factor
        return (y if bias is None else y + bias).flatten(0, 1)

    # The metric of the runs themselves, and of the recomputed unembedding, which must agree.
    metric = values_at_answers(model, unembedding, answers)
    again = unembed.metric(frozen(stream[None, :b]))[0]
    tolerance = 1e-3 if stream.dtype in (torch.float32, torch.float64) else 5e-2
    if not bool((again - metric[0]).abs().max() <= tolerance * (1 + metric[0].abs().max())):
        raise GimkitError(f"{unembedding.path}: unembedding the final norm's output does not reproduce the model's "
                          "logits (are they scaled?), so direct effects cannot be taken")
    # Direct effects to first order of the metric; total ones with the norm live, and frozen.
    slope = after.pull_back(unembed.slope(normalised[:b])[:, None], slice(b), True)[:, 0]
    direct = (lost * slope).sum(-1)
    direct_live = metric[0] - unembed.metric(norm((stream[:b] - lost).flatten(0, 1).to(stream.dtype)))
    total_frozen = metric[0] - unembed.metric(frozen(stream[2 * b:].unflatten(0, (n - 2, b))))
    gains = torch.stack([contributions(*part, slope, n) for part in written], 2)
    return torch.stack([direct, direct_live, metric[0] - metric[2:], total_frozen], -1), gains[2:] - gains[0]


def precise(x: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def resampled(projection, layer: int, ablated: list, heads: int, b: int):
    """The input of an output projection, in which each ablated head of this layer has its corrupt output."""
    z = projection.input
    here = [(row, head) for row, (at, head) in enumerate(ablated, 2) if at == layer]
    if here:
        z = z.clone()
        by_head = z.unflatten(-1, (heads, -1))
        for row, head in here:
            by_head[row * b:(row + 1) * b, :, head] = by_head[b:2 * b, :, head]
        projection.input = z
    return z


def reading_of(model, norm, here):
    """A norm as it ran at the rows' last positions, [rows, 1, width]; None where there is none."""
    if norm is None:
        return None
    module = model.get(norm.path)
    return Reading(module, norm, module.input[here][:, None], module.output[here][:, None])


def scaled(x: torch.Tensor, after, rows: slice) -> torch.Tensor:
    """What leaves a norm after attention or MLP for what enters it, [rows, width]; denominators are the rows' own."""
    return x if after is None else x * after.inverse[rows, 0] * after.factor


def contributions(z, weight, after, m, slope, n: int) -> torch.Tensor:
    """What each head of a layer, and last its MLP, write along the clean metric's slope, [n, b, heads + 1]."""
    reading = torch.einsum("hdw,bw->bhd", weight, slope if after is None else slope * after.factor)
    share = (z.unflatten(0, (n, -1)) * reading).sum(-1)
    share = share if after is None else share * after.inverse.view(n, -1, 1)
    return torch.cat([share, (m.unflatten(0, (n, -1)) * slope).sum(-1, keepdim=True)], -1)


class Unembedding:
    """From the final norm's output to the task's metric, and the metric's slope there."""

    def __init__(self, module, path: str, dtype, softcap, answers):
        self.module, self.path, self.dtype, self.softcap, self.answers = module, path, dtype, softcap, answers

    def logits(self, normalised):
        logits = precise(self.module(normalised.to(self.dtype)))
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def metric(self, normalised):
        """[k * b, width] -> [k, b]."""
        return metric_values(self.logits(normalised)[:, None], self.answers)

    def slope(self, normalised):
        """Gradient of the metric at the final norm's output, [b, width]."""
        x = normalised.to(self.dtype)
        logits, weight, slope = self.logits(x), matrix_of(self.module, self.path, x, self.module(x))[0].T, 0
        for ids, sign in ((self.answers.good, 1), (self.answers.bad, -1)):
            ids = ids.to(logits.device)
            chosen = logits.gather(1, ids.clamp(min=0))
            share = chosen.masked_fill(ids < 0, -torch.inf).softmax(1)
            if self.softcap is not None:
                share = share * (1 - (chosen / self.softcap) ** 2)
            slope = slope + sign * torch.einsum("bm,bmw->bw", share, precise(weight[ids.clamp(min=0)]))
        return slope
