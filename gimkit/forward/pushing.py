"""A model's forward pass with tangents beside the clean rows, inside a trace. Shipped to servers by value.

Every read crosses to the sandbox and back, so what is read is edited in place. Rows are as in `arithmetic`.
"""

import torch

from gimkit.circuits.streams import heads_of
from gimkit.forward.arithmetic import (
    activation_and_slope,
    attention_tangent,
    check_same,
    clean_of,
    norm_tangent,
    put,
    share_off,
    tangents_of,
)
from gimkit.rules import centre, inverse_scale


def token_tangents(model, plan: dict, rules: dict, scale: float, positions: list, free: torch.Tensor, left: list,
                   answers: list):
    """Scores [positions] of one chunk: what each token's whole change from the neutral one does to the logit.

    Rows: g copies of the prompt, the neutral tokens, then tangents. left: g shares of the way to the neutral embedding,
    which the free positions of each copy go; the scores are means over copies. Also the answers' ids.
    """
    g = len(left)
    first = g + 1
    x = model.get(plan["embedding"]).output
    change = x[0] - x[g]
    shares = torch.tensor(left, dtype=x.dtype, device=x.device)
    x[:g] -= shares[:, None, None] * (change * free[:, None].to(x))
    start = torch.zeros_like(x[first:]).unflatten(0, (g, -1))
    for row, position in enumerate(positions):
        start[:, row, position] = change[position] * scale
    put(x, start, g, first)
    logits, tangents = pushed(model, plan, rules, g, first, x)
    if not answers:
        answers = [int(logits[-1].argmax())]
    found = tangents[..., answers[0]]
    if len(answers) > 1:
        found = found - tangents[..., answers[1]]
    return found.mean(0) / scale, answers


def pushed(model, plan: dict, rules: dict, g: int, first: int, embedded):
    """The clean logits [g, vocab] of the last position and their tangents [g, n, vocab]."""
    norms = prepared(model, plan, embedded)
    with torch.autocast(embedded.device.type, enabled=False):
        for block in plan["blocks"]:
            norm_step(model, norms, block["before_attention"], rules, g, first)
            attention_step(model, norms, block, rules, g, first)
            norm_step(model, norms, block["after_attention"], rules, g, first)
            norm_step(model, norms, block["before_mlp"], rules, g, first)
            mlp_step(model, block, rules, g, first)
            norm_step(model, norms, block["after_mlp"], rules, g, first)
        norm_step(model, norms, plan["final_norm"], rules, g, first)
        return last_logits(model, plan, g, first)


def prepared(model, plan: dict, like) -> dict:
    """{norm's path: (gains it may have, bias)}, once every attention's source was touched: in a forward it is too late.

    A sandbox has no weights (they are on the meta device): there a norm is called on rows that tell its gain and bias.
    """
    for block in plan["blocks"]:
        if block["rotary"]:
            model.get(block["attention"]).source.node(block["rotary"])
    found = {}
    for path, eps, centred, width in plan["norms"]:
        module = model.get(path)
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if weight is not None and weight.device.type == "meta":
            probe = torch.ones(2, width, dtype=like.dtype, device=like.device)
            probe[0], probe[1, 1::2] = 0, -1
            answer = module(probe)
            answer = answer.to(torch.promote_types(answer.dtype, torch.float32))
            top = centre(probe[1], centred)
            found[path] = [(answer[1] - answer[0]) / (top * inverse_scale(top, eps))], answer[0]
        elif weight is None:
            found[path] = [1], 0
        else:
            weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
            found[path] = [weight, 1 + weight], 0 if bias is None else bias.detach().to(weight.dtype)
    return found


def norm_step(model, norms: dict, norm, rules: dict, g: int, first: int) -> None:
    """Replace the tangents at a norm's output by the linearised norm's."""
    if norm is None:
        return
    path, eps, centred, _ = norm
    module = model.get(path)
    x, y = module.input, module.output
    clean = clean_of(x, g)
    gain = fitting_gain(norms[path], clean, y[:g, None], path, eps, centred)
    put(y, norm_tangent(clean, tangents_of(x, g, first), gain, eps, centred, rules["freeze_norm"]), g, first)


def fitting_gain(known: tuple, x, y, path: str, eps: float, centred: bool):
    """Which gain of a norm (its weight, or 1 + weight) reproduces its output on the clean rows, or an error."""
    gains, bias = known
    top = centre(x, centred)
    unit = top * inverse_scale(top, eps)
    for gain in gains:
        if not share_off(unit * gain + bias, y)[1]:
            return gain
    check_same(unit * gains[0] + bias, y, path)


def attention_step(model, norms: dict, block: dict, rules: dict, g: int, first: int) -> None:
    """Replace the tangents at the heads' outputs by the linearised attention's."""
    parts = queries_keys_values(model, norms, block, rules, g, first)
    clean, moved = ([f(x) for x in parts] for f in (lambda x: clean_of(x, g), lambda x: tangents_of(x, g, first)))
    out, t = attention_tangent(*clean, *moved, block["scaling"], block["softcap"], block["window"], rules)
    z = model.get(block["output"]).input
    check_same(out.transpose(2, 3).flatten(-2), z[:g, None], block["attention"])
    put(z, t.transpose(2, 3).flatten(-2), g, first)


def queries_keys_values(model, norms: dict, block: dict, rules: dict, g: int, first: int) -> list:
    """q, k and v as the kernel gets them, each [rows, heads, seq, width]; their norms linearised on the way."""
    shape = (block["layout"], block["heads"], block["key_heads"], block["head_dim"])
    fused, v = len(set(block["projections"])) == 1, None
    if fused:
        x = model.get(block["projections"][0]).output
        q, k, v = (heads_of(x, which, *shape).transpose(1, 2) for which in range(3))
    else:
        if block["values_first"]:
            v = heads_of(model.get(block["projections"][2]).output, 2, *shape).transpose(1, 2)
        for norm in block["head_norms"]:
            norm_step(model, norms, norm, rules, g, first)
        if v is None:
            v = heads_of(model.get(block["projections"][2]).output, 2, *shape).transpose(1, 2)
    if block["rotary"]:
        q, k = model.get(block["attention"]).source.node(block["rotary"]).output
    return [q, k, v]


def mlp_step(model, block: dict, rules: dict, g: int, first: int) -> None:
    """Replace the tangents at what an MLP's last projection reads by the linearised activation's or product's."""
    if block["gate"] is None:
        module = model.get(block["activation"])
        gate, z = module.input, module.output
    elif block["up"] is None:
        gate, up = model.get(block["gate"]).output.chunk(2, -1)
    else:
        gate, up = model.get(block["gate"]).output, model.get(block["up"]).output
    value, slope = activation_and_slope(block["function"], clean_of(gate, g), rules["identity_activation"])
    t = slope * tangents_of(gate, g, first)
    if block["gate"] is not None:
        z, clean = model.get(block["down"]).input, clean_of(up, g)
        t = rules["gate"] * clean * t + rules["up"] * value * tangents_of(up, g, first)
        value = value * clean
    check_same(value, z[:g, None], block["mlp"])
    put(z, t, g, first)


def last_logits(model, plan: dict, g: int, first: int):
    """The clean logits [g, vocab] and their tangents; the model goes on with the clean rows alone."""
    module = model.get(plan["unembedding"])
    raw = module.output[:, -1:]
    logits, t = clean_of(raw, g), tangents_of(raw, g, first)
    if plan["softcap"] is not None:
        bent = torch.tanh(logits / plan["softcap"])
        logits, t = plan["softcap"] * bent, t * (1 - bent * bent)
    module.output = raw[:g].clone()
    check_same(logits, model.output.logits[:, None], plan["unembedding"])
    return logits[:, 0, 0], t[:, :, 0]
