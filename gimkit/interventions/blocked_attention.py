"""The tempered gradient of attention without a second kernel run.

The value is the model's own kernel's. In the backward pass the scores are computed once more, a block of queries at a
time, each with its whole row of keys: v gets its gradient from the softmax at temperature 1, q and k from the one at T.
These are five products, as in the backward pass of any attention that keeps no map; only q, k and v are kept.
"""

import torch

from gimkit.errors import GimkitError

BLOCK = 2**19  # scores at a time: 2 MiB in float32, however long the prompt


def blocked_attention(output, module, q, k, v, mask, options: dict, temperature: float, scales: tuple):
    """A kernel's output with the tempered gradient; None where it is not known how the kernel makes its pattern.

    Known are scores q k, a softcap, a causal, boolean or additive mask, sinks, and keys that several heads share: some
    queries of each row are recomputed this way, and must give the kernel's own output. None on CUDA as well, where this
    has not been measured against a second run of a fused kernel.

    output: the kernel's, [rows, queries, heads, width], of (module, q, k, v, mask, **options).
    q: [rows, heads, queries, width]. k, v: [rows, heads or fewer, keys, width]. scales: of the gradients of q, k and v.

    Source:
        arXiv 2505.17630, rule "TSG": dL/da = p_T (g - sum p_T g), p_T = softmax(a / T).
    """
    sinks = getattr(module, "sinks", None) if options.get("s_aux") is None else options["s_aux"]
    if q.device.type != "cpu" or options.get("position_bias") is not None:
        return None
    if not readable(output, q, k, v, mask, sinks):
        return None
    causal = getattr(module, "is_causal", True) if options.get("is_causal") is None else options["is_causal"]
    causal = bool(causal) and mask is None and q.shape[2] > 1
    if causal and q.shape[2] != k.shape[2]:
        return None  # kernels differ in where they put the diagonal
    scaling = q.shape[-1] ** -0.5 if options.get("scaling") is None else options["scaling"]
    rule = scaling, options.get("softcap"), causal
    with torch.autocast("cpu", enabled=False):
        if not reproduces(output.detach(), q.detach(), k.detach(), v.detach(), mask, sinks, rule):
            return None
    return Blocked.apply(output.detach(), q, k, v, mask, sinks, rule, temperature, scales)


def readable(output, q, k, v, mask, sinks) -> bool:
    """Whether all have types and shapes whose meaning is known, and mask and sinks no gradient of their own."""
    if not output.dim() == q.dim() == k.dim() == v.dim() == 4:
        return False
    b, heads, n, width = q.shape
    if k.shape != (b, *k.shape[1:3], width) or k.shape[:3] != v.shape[:3] or heads % k.shape[1]:
        return False
    if output.shape != (b, n, heads, v.shape[3]):
        return False
    if mask is not None:
        if not isinstance(mask, torch.Tensor) or mask.dim() != 4 or mask.requires_grad:
            return False
        if len(mask) not in (1, b) or mask.shape[1] not in (1, heads) or mask.shape[2:] != (n, k.shape[2]):
            return False
        if mask.dtype != torch.bool and not mask.is_floating_point():
            return False
    return sinks is None or isinstance(sinks, torch.Tensor) and sinks.shape == (heads,) and not sinks.requires_grad


def reproduces(output, q, k, v, mask, sinks, rule: tuple) -> bool:
    """Whether scores by this rule give the kernel's output, up to rounding, for up to 16 queries and 4 key heads."""
    output = output.transpose(1, 2).unflatten(1, (k.shape[1], -1))
    q, k, v, sinks = in_groups(q, k, v, sinks)
    own, some = evenly(k.shape[1], 4), evenly(q.shape[3], 16)
    part = None if mask is None else by_group(mask[:, :, some], q.shape[2])
    part = part if part is None or part.shape[1] == 1 else part[:, own]
    q, k, v, output = q[:, own, :, some], k[:, own], v[:, own], output[:, own, :, some]
    queries = torch.arange(some.stop)[some]
    scores, _ = scores_of(q, k, queries, part, None if sinks is None else sinks[own], rule, 1)
    found = product(softmax(scores, part)[..., : k.shape[2]], v)
    largest = abs(rule[0]) * q.norm(dim=-1).max() * k.norm(dim=-1).max()  # scores are rounded to a part of this
    tolerance = 3e-7 * (10 + largest) if output.dtype in (torch.float32, torch.float64) else 2e-2
    return bool((found - output).abs().max() <= tolerance * v.abs().max())


def evenly(n: int, most: int) -> slice:
    """A slice of at most `most` of the numbers below n, at equal distances, with the last one."""
    step = -(-n // most)
    return slice((n - 1) % step, n, step)


def forward(ctx, value, q, k, v, mask, sinks, rule: tuple, temperature: float, scales: tuple):
    """The kernel's value."""
    ctx.save_for_backward(q, k, v, mask, sinks)
    ctx.settings = rule, temperature, scales
    return value.detach()


def backward(ctx, g):
    """The gradients of q, k and v, None where autograd does not need one."""
    if torch.is_grad_enabled():
        raise GimkitError("the gradient of a softmax at another temperature has no derivative of its own; "
                          "leave out create_graph=True")
    rule, temperature, scales = ctx.settings
    scales = [scale if wanted else 0 for scale, wanted in zip(scales, ctx.needs_input_grad[1:4])]
    with torch.autocast("cpu", enabled=False):
        found = gradients(*ctx.saved_tensors, g, rule, temperature, scales)
    return None, *found, None, None, None, None, None


class Blocked(torch.autograd.Function):
    """`forward` and `backward` as one function of autograd; decorators would not arrive at a server."""

    forward = staticmethod(forward)
    backward = staticmethod(backward)


def gradients(q, k, v, mask, sinks, g, rule: tuple, temperature: float, scales) -> tuple:
    """The gradients of q, k and v, each times its scale; g: the kernel's output's, [rows, queries, heads, width]."""
    inputs, (scaling, _, causal) = (q, k, v), rule
    q, k, v, sinks = in_groups(q, k, v, sinks)
    g = g.transpose(1, 2).unflatten(1, q.shape[1:3]).to(q.dtype)
    found = to_q, to_k, to_v = [torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v)]
    for rows, own, block, columns, part in blocks(g, mask, k.shape[2], causal):
        q_, g_ = q[rows, own, :, block], g[rows, own, :, block]
        k_, v_ = k[rows, own, columns], v[rows, own, columns]
        queries, width = torch.arange(block.start, block.stop), k_.shape[2]
        divisor = 2 if temperature == 2 else 1
        scores, slope = scores_of(q_, k_, queries, part, None if sinks is None else sinks[own], rule, divisor)
        if temperature == 2:
            soft = softmax(scores, part)
            hard = torch.square(soft, out=scores)  # up to a factor for each row
        else:
            hard = softmax(scores, part)
            largest = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
            soft = softmax(scores.sub_(largest).div_(temperature), part)  # a row's largest is 0 at every T
        if scales[2]:
            total = hard.sum(-1, keepdim=True).clamp(min=torch.finfo(hard.dtype).tiny)
            add_product(to_v[rows, own, columns], hard[..., :width], g_ / total)
        if scales[0] or scales[1]:
            change = product(g_, v_.mT)
            change = change if sinks is None else torch.nn.functional.pad(change, (0, 1))
            change = torch._softmax_backward_data(change, soft, -1, soft.dtype)[..., :width]
            change = change if slope is None else change * slope
            to_q[rows, own, :, block] = product(change, k_)
            add_product(to_k[rows, own, columns], change, q_)
    factors = scaling * scales[0], scaling * scales[1], scales[2]
    return tuple(x.mul_(f).view(like.shape).to(like.dtype) if f else None for x, f, like in zip(found, factors, inputs))


def in_groups(q, k, v, sinks) -> tuple:
    """Queries by the keys that they share, [rows, key heads, heads of each, queries, width], all in at least float32.

    sinks: [key heads, heads of each, 1, 1], or None.
    """
    precise = torch.promote_types(q.dtype, torch.float32)
    q = q.unflatten(1, (k.shape[1], -1)).to(precise)
    return q, k.to(precise), v.to(precise), None if sinks is None else sinks.to(precise).view(*q.shape[1:3], 1, 1)


def by_group(mask, group: int):
    """A mask [rows, heads, queries, keys] as one of `in_groups`; a single head or row counts for all."""
    return mask.unflatten(1, (1, 1) if mask.shape[1] == 1 else (-1, group))


def blocks(g, mask, m: int, causal: bool):
    """Parts of the work: rows, key heads, queries and keys as slices, and the mask there (None without one).

    Only queries with a gradient and keys that they see; as many rows and heads at a time as make a block.
    """
    b, keys, group, n, _ = g.shape
    live = g.abs().amax((0, 1, 2, 4)).nonzero()
    first, last = (int(live[0]), int(live[-1]) + 1) if len(live) else (0, 0)
    few = min(128, max(64, m // 16))  # so that little is computed above the diagonal
    step = max(1, 32 // group, min(few, BLOCK // (group * m)))
    for rows in pieces(0, b, BLOCK // (min(step, n) * group * m * keys)):
        for block in pieces(first, last, step):
            part, columns = None, slice(0, block.stop if causal else m)
            if mask is not None:
                part = mask[rows if len(mask) > 1 else slice(None), :, block]
                columns = seen(part)
                part = by_group(part[..., columns], group)
            size = (rows.stop - rows.start) * group * (block.stop - block.start) * (columns.stop - columns.start)
            for own in pieces(0, keys, BLOCK // size):
                yield rows, own, block, columns, part if part is None or part.shape[1] == 1 else part[:, own]


def pieces(start: int, stop: int, size: int) -> list:
    """Slices of `size`, and at least 1, from start to stop."""
    size = max(1, size)
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]


def seen(part) -> slice:
    """The keys that some query of a part of a mask sees, from the first to the last."""
    visible = part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2
    if part.dtype != torch.bool and not bool(visible.any(-1).all()):
        return slice(0, part.shape[-1])  # a query whose keys all have the same finite minimum looks at all of them
    visible = visible.flatten(0, 2).any(0).nonzero()
    return slice(int(visible[0]), int(visible[-1]) + 1) if len(visible) else slice(0, 1)


def scores_of(q, k, queries, part, sinks, rule: tuple, divisor: int) -> tuple:
    """The rows that the kernel's softmax reads, divided, [rows, key heads, heads of each, queries, keys and sinks].

    And the softcap's slope, None without one. queries: their positions. part: the mask's, by group.
    rule: the scores' scaling, softcap, whether causal.
    """
    scaling, softcap, causal = rule
    slope = None
    if softcap is None:
        scores = product(q * (scaling / divisor), k.mT)
    else:
        scores = torch.tanh(product(q * (scaling / softcap), k.mT))
        scores, slope = scores * (softcap / divisor), 1 - scores.square()
    if causal:
        after = int(queries[0]) + 1  # what none of these queries may see
        hidden = torch.arange(after, k.shape[2]) > queries[:, None]
        scores[..., after:].masked_fill_(hidden, -torch.inf)
    elif part is not None and part.dtype == torch.bool:
        scores.masked_fill_(~part, -torch.inf)
    elif part is not None:
        scores.add_(part, alpha=1 / divisor)
    if sinks is not None:
        scores = torch.cat([scores, (sinks / divisor).expand(*scores.shape[:-1], 1)], -1)
    return scores, slope


def softmax(scores, part):
    """The softmax; 0 for queries that see nothing under a mask."""
    pattern = torch.softmax(scores, -1)
    return pattern if part is None else pattern.masked_fill_(scores.amax(-1, keepdim=True) == -torch.inf, 0)


def product(a, b):
    """[rows, key heads, heads of each, x, y] times [rows, key heads, y, z]."""
    return (a.flatten(2, 3) @ b).unflatten(2, a.shape[2:4])


def add_product(total, a, b):
    """Add a^T b to a total [rows, key heads, y, z]; a [rows, key heads, heads of each, x, y], b [..., x, z]."""
    a, b = (x.flatten(2, 3).flatten(0, 1) for x in (a, b))
    total.view(-1, *total.shape[2:]).baddbmm_(a.mT, b)
