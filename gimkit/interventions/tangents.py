"""Linearised operations: what a small change of an input does to an output.

Rows of a batch: g clean prompts, one zero row, perhaps g corrupt prompts, then the tangents from row `first` on, those
of the first prompt first, and last minus their mean. A linear module acts on tangents as it is, and the zero row holds
what its bias adds; where the last row does not stay minus the mean, something on the way was not linear.
"""

import math

import torch

from gimkit.errors import GimkitError
from gimkit.interventions.gradients import centre, inverse_scale
from gimkit.interventions.recomputed import check_agrees, tolerance_of

NOT_LINEAR = ("forward mode cannot push tangents through what comes before this, since it is not linear: a hook or "
              "an edit of yours, or quantised weights; remove it, or use backend='reverse' where gradients are allowed")


def clean_of(x: torch.Tensor, g: int) -> torch.Tensor:
    """The clean rows as [g, 1, ...], at least float32."""
    return x[:g, None].to(torch.promote_types(x.dtype, torch.float32))


def tangents_of(x: torch.Tensor, run: dict, path: str) -> torch.Tensor:
    """The tangents as [g, n, ...] without biases, at least float32.

    >>> x = torch.tensor([[5.0], [1.0], [3.0], [4.0], [-1.5]])
    >>> tangents_of(x, {"g": 1, "first": 2, "tolerance": 1e-4}, "model.norm").flatten()
    tensor([2., 3.])

    path: where they are read, for the error where what they came through is not linear.
    """
    x, g = x.to(torch.promote_types(x.dtype, torch.float32)), run["g"]
    tangents = x[run["first"]:] - x[g]
    tangents, last = tangents[:-1], tangents[-1]
    size = (tangents.abs().mean(0) + x[g].abs()).amax(-1, keepdim=True)
    check_agrees(path, -tangents.mean(0), last, size, run["tolerance"], NOT_LINEAR)
    return tangents.unflatten(0, (g, -1))


def put(x: torch.Tensor, tangents: torch.Tensor, g: int, first: int) -> None:
    """Write tangents [g, n, ...] into their rows, minus their mean into the last, zeros into the zero row, in place."""
    x[g] = 0
    x[first:-1] = tangents.flatten(0, 1).to(x.dtype)
    x[-1] = -tangents.mean((0, 1)).to(x.dtype)


def share_off(computed: torch.Tensor, own: torch.Tensor) -> tuple[float, bool]:
    """The largest difference from the model's own value as a share of its size; whether it is more than rounding."""
    tolerance = tolerance_of(own.dtype)
    own = own.to(computed.dtype).reshape(computed.shape)
    share = float((computed - own).abs().max() / own.abs().max().clamp(min=1e-30))
    return share, not share <= tolerance


def check_same(computed: torch.Tensor, own: torch.Tensor, what: str) -> None:
    """Refuse when the model's own value on the clean prompts is not what forward mode recomputed.

    >>> check_same(torch.tensor([1.0]), torch.tensor([1.1]), "a0")
    Traceback (most recent call last):
    gimkit.errors.GimkitError: a0: forward mode recomputes this from its inputs and is off by 0.091 of its size, ...
    """
    share, wrong = share_off(computed, own)
    if wrong:
        raise GimkitError(f"{what}: forward mode recomputes this from its inputs and is off by {share:.2g} of its "
                          "size, so the model does something here that is not covered; use backend='reverse' where "
                          "gradients are allowed, or occlusion and exact patching, which need none")


def norm_tangent(x, t, gain, eps: float, centred: bool, frozen: bool):
    """Tangent of a norm's output. frozen: its denominator is a constant."""
    top = centre(x, centred)
    inverse, t = inverse_scale(top, eps), centre(t, centred)
    if not frozen:
        unit = top * inverse
        t = t - unit * (unit * t).mean(-1, keepdim=True)
    return t * inverse * gain


def attention_tangent(q, k, v, dq, dk, dv, scaling: float, softcap, window, rules: dict):
    """Heads' outputs [g, 1, heads, seq, width] at the clean prompts, and their tangents [g, n, heads, seq, width].

    q: [g, 1, heads, seq, width]. k, v: [g, 1, key heads, seq, width]. dq, dk, dv: their tangents [g, n, ...].
    """
    group = q.shape[2] // k.shape[2]
    q, dq = (x.unflatten(2, (-1, group)) for x in (q, dq))
    k, v, dk, dv = (x.unsqueeze(3) for x in (k, v, dk, dv))
    place = torch.arange(q.shape[-2], device=q.device)
    back = place[:, None] - place
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    scores = q @ k.mT * scaling
    slope = scaling
    if softcap is not None:
        bent = torch.tanh(scores / softcap)
        scores, slope = softcap * bent, scaling * (1 - bent * bent)
    scores = scores.masked_fill(~seen, -torch.inf)
    pattern = torch.softmax(scores, -1)
    t = rules["v"] * (pattern @ dv)
    if not rules["detach_attention"]:
        soft = pattern if rules["temperature"] == 1 else torch.softmax(scores / rules["temperature"], -1)
        change = (rules["q"] * (dq @ k.mT) + rules["k"] * (q @ dk.mT)) * slope
        t = t + (soft * (change - (soft * change).sum(-1, keepdim=True))) @ v
    return (pattern @ v).flatten(2, 3), t.flatten(2, 3)


def activation_and_slope(name: str, x, identity: bool):
    """An activation's value, and its derivative; or value / x, when its nonlinearity counts as a constant factor.

    >>> activation_and_slope("ReLU", torch.tensor([-1.0, 2.0]), False)
    (tensor([0., 2.]), tensor([0., 1.]))
    """
    if name in ("NewGELUActivation", "GELUTanh"):
        c = math.sqrt(2 / math.pi)
        bent = torch.tanh(c * (x + 0.044715 * x**3))
        value = 0.5 * x * (1 + bent)
        slope = 0.5 * (1 + bent) + 0.5 * x * (1 - bent * bent) * c * (1 + 0.134145 * x * x)
    elif name in ("GELUActivation", "GELU"):
        share = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        value, slope = x * share, share + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    elif name in ("SiLUActivation", "SiLU"):
        share = torch.sigmoid(x)
        value, slope = x * share, share * (1 + x * (1 - share))
    else:
        value, slope = torch.relu(x), (x > 0).to(x.dtype)
    if identity:
        slope = torch.where(x == 0, torch.zeros_like(x), value / x)
    return value, slope
