"""The attention kernel's call inside a trace: its pattern, and runs with other queries, keys or values."""

import torch


def attention_call(attention):
    """The kernel that an attention module picks, and its call: .inputs are ((module, q, k, v, mask, ...), options)."""
    source = attention.source
    names = [name for name in source.names if name.startswith("attention_interface_")]
    call = getattr(source, names[-1])
    return getattr(source, names[0]).output, call


def attention_pattern(kernel, call) -> torch.Tensor:
    """Each query's attention to each position, [rows, heads, seq, seq]: the model's own kernel on values of 0 and 1.

    The columns of the identity matrix as values make the kernel return its weights, with its own scaling, mask, softcap
    and sinks, whether it is sdpa, eager or flash. Values keep the model's own width, which some kernels require.
    kernel, call: of `attention_call`.
    """
    (module, q, k, v, mask, *rest), options = call.inputs
    positions, width = v.shape[-2:]
    identity = torch.eye(positions, positions + -positions % width, device=v.device, dtype=v.dtype)
    found = [kernel(module, q, k, columns.expand_as(v), mask, *rest, **options)[0] for columns in
             identity.split(width, 1)]
    return torch.cat(found, -1)[..., :positions].transpose(1, 2).detach()


def put_pattern_difference(attention):
    """Give the softmax the gradient (s - s') g: s is the first row's pattern, s' the second's, g the gradient to s.

    The rows are two versions of a prompt. Only the first one's gradient is replaced, the second has none.
    """
    kernel, call = attention_call(attention)
    pattern = attention_pattern(kernel, call)
    (module, q, k, v, mask, *rest), options = call.inputs
    call.inputs = ((module, q.detach(), k.detach(), v, mask, *rest), options)
    output, weights = call.output
    keys, values = (x[:1].repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v.detach()))
    scaling = q.shape[-1] ** -0.5 if options.get("scaling") is None else options["scaling"]
    scores = q[:1] @ keys.transpose(-1, -2) * scaling
    if options.get("softcap") is not None:
        scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
    term = ((pattern[:1] - pattern[1:]) * scores @ values).transpose(1, 2)
    call.output = (torch.cat([output[:1] + (term - term.detach()).to(output.dtype), output[1:]]), weights)


def swapped_heads(attention, b: int):
    """What an attention's heads return, [rows, seq, heads, head_dim], and what corrupt queries, keys or values change
    in it on the clean rows, clean minus changed, [3, b, seq, heads, head_dim].

    The model's own kernel runs again with one of the three taken from the other half of the rows, so masks, windows,
    soft-caps, sinks and shared keys are the model's.
    """
    kernel, call = attention_call(attention)
    (module, q, k, v, *rest), options = call.inputs
    out = call.output[0]
    with torch.no_grad():
        changed = [kernel(module, *(x.roll(b, 0) if x is other else x for x in (q, k, v)), *rest, **options)[0]
                   for other in (q, k, v)]
        return out, torch.stack([(out - other)[:b] for other in changed])
