"""Tangents that start inside a model: at the outputs of nodes, and at what the targets of edges read.

A node's tangent starts as clean minus corrupt of what it writes. A carrier starts in the same way, but attention
and MLPs add nothing to it, so that along the residual stream it stays what its node wrote. An edge's tangent starts as
its carrier's value where the edge's target reads. After the zero row come the corrupt rows.
"""

import torch

from gimkit.interventions.gradients import centre, inverse_scale
from gimkit.interventions.tangents import attention_tangent, clean_of


def corrupt_of(x: torch.Tensor, g: int) -> torch.Tensor:
    """The corrupt rows as [g, 1, ...], at least float32."""
    return clean_of(x[g + 1:], g)


def start_output(x: torch.Tensor, run: dict, row) -> None:
    """Start a row's tangent at a module's output, in place; row None: none starts here."""
    if row is not None:
        g = run["g"]
        gap = (clean_of(x, g) - corrupt_of(x, g))[:, 0] * run["scale"]
        tangents = x[run["first"]:-1]
        tangents.unflatten(0, (g, -1))[:, row] += gap.to(x.dtype)
        x[-1] -= (gap.sum(0) / len(tangents)).to(x.dtype)


def start_heads(t: torch.Tensor, z: torch.Tensor, run: dict, layer: int, normed: bool) -> None:
    """Start tangents of a layer's heads in t [g, n, heads, seq, width]; attention adds nothing to carriers.

    z: [rows, seq, heads, width] the heads' outputs. normed: a norm follows, whose denominators are known only after the
    output projection: until there the clean and corrupt parts go in two rows (`start_after_norm`).
    """
    starts, g = run["starts"], run["g"]
    t[:, :starts["carriers"]] = 0
    for row, head in starts["heads"].get(layer, []):
        clean, corrupt = (x[:, 0, :, head] * run["scale"] for x in (clean_of(z, g), corrupt_of(z, g)))
        t[:, row, head] = clean if normed else clean - corrupt
        if normed:
            t[:, starts["extra"] + head, head] = corrupt


def start_after_norm(moved, x, t, gain, eps: float, centred: bool, run: dict, part: tuple) -> None:
    """Start tangents at the output of a norm that follows attention or MLP; each run's denominator is a constant.

    moved: [g, n, seq, width] the tangents at the norm's output. x, t: its input, and the tangents there.
    """
    kind, layer = part
    starts, g = run["starts"], run["g"]
    clean, corrupt = clean_of(x, g), corrupt_of(x, g)
    inverse, inverse_corrupt = (inverse_scale(centre(run_, centred), eps)[:, 0] for run_ in (clean, corrupt))
    if kind == "mlps" and layer in starts["mlps"]:
        gap = clean[:, 0] * inverse - corrupt[:, 0] * inverse_corrupt
        moved[:, starts["mlps"][layer]] = gap * gain * run["scale"]
    for row, head in starts["heads"].get(layer, []) if kind == "heads" else []:
        extra = starts["extra"] + head
        moved[:, row] = (t[:, row] * inverse - t[:, extra] * inverse_corrupt) * gain
        moved[:, extra] = 0


def edges_into_heads(t, clean: list, moved: list, fixed: tuple, starts: dict, layer: int) -> None:
    """Start the tangents of edges into a layer's queries, keys or values in t [g, n, heads, seq, width].

    A key or value that query heads share changes for the one query head alone that the edge is to.
    """
    here = starts["edges"].get(layer, [])
    if not here:
        return
    group = t.shape[2] // clean[1].shape[2]
    shape = (t.shape[0], len(here), *t.shape[2:])
    separate = [x.new_zeros(*shape[:4], x.shape[-1]) for x in moved]
    for i, (_, carrier, which, head) in enumerate(here):
        separate[which][:, i, head] = moved[which][:, carrier, head if which == 0 else head // group]
    q, k, v = clean[0], *(x.repeat_interleave(group, 2) for x in clean[1:])
    t[:, [row for row, *_ in here]] = attention_tangent(q, k, v, *separate, *fixed)[1]


def edges_into_mlp(moved: list, starts: dict, layer: int) -> None:
    """Start the tangents of edges into a layer's MLP in what its projections make of the normed stream, in place."""
    for row, carrier in starts["edges_mlp"].get(layer, []):
        for x in moved:
            x[:, row] = x[:, carrier]
