"""A model's forward pass with tangents beside the clean rows.

In a sandbox every read crosses to the trace and back, so what is read is edited in place. Rows are as in `tangents`.
`run` is a dict: "rules"; "g" and "first" of the rows; where tangents start inside the model, "starts" (see
`gimkit.jvp.rows`). It gets "scale", what tangents are multiplied by on their way: in half precision small tangents
beside large biases lose digits.
"""

import torch

from gimkit.interventions.gradients import centre, inverse_scale
from gimkit.interventions.metric import answers_at, metric_values
from gimkit.interventions.residual_stream import heads_of
from gimkit.interventions.tangent_starts import (
    edges_into_heads,
    edges_into_mlp,
    start_after_norm,
    start_heads,
    start_output,
)
from gimkit.interventions.tangents import (
    activation_and_slope,
    attention_tangent,
    check_same,
    clean_of,
    norm_tangent,
    put,
    share_off,
    tangents_of,
)
from gimkit.interventions.token_scores import explained_value
from gimkit.interventions.weights import scale_of


def gradient_arrives(model, embedding: str) -> bool:
    """Does a gradient go from the logits back to the embeddings? In a sandbox no graph joins what a trace reads."""
    module = model.get(embedding)
    leaf = module.output.detach().requires_grad_(True)
    module.output = leaf
    logits = model.output.logits
    try:
        torch.autograd.grad(logits.sum(), leaf)
    except RuntimeError:
        return False
    return True


def token_scores_of(model, plan: dict, rules: dict, prompt: torch.Tensor, neutral: int, chunks: list,
                    free: torch.Tensor, answers: list):
    """Scores [seq] of a prompt's tokens, and the answers' ids, by a trace for each of chunks (left, positions)."""
    scores = torch.zeros(len(prompt), dtype=torch.float64)
    for left, positions in chunks:
        run = {"rules": rules, "g": len(left), "first": len(left) + 1, "last": positions_of(answers)}
        ids = prompt.repeat(len(left) * (1 + len(positions)) + 2, 1)
        ids[len(left)] = neutral
        with model.trace(input_ids=ids, use_cache=False):
            found, known = token_tangents(model, plan, run, positions, free, left, answers).save()
        scores[positions] += found.double()
        answers = known or answers  # a target that is a function has no ids
    return scores.to(found.dtype), [] if callable(answers[0]) else answers


def positions_of(answers: list) -> int:
    """How many last positions predict the answer's tokens."""
    return len(answers[0]) if answers and isinstance(answers[0], list) else 1


def token_tangents(model, plan: dict, run: dict, positions: list, free: torch.Tensor, left: list, answers: list):
    """Scores [positions] of one chunk: what each token's whole change from the neutral one does to what is explained.

    Rows: g copies of the prompt, the neutral tokens, then tangents, and minus their mean. left: for each of g
    copies, how far its free positions are moved to the neutral embedding, 0 to 1; the scores are sums over copies. Also
    the answers' ids.
    """
    g, first = run["g"], run["first"]
    x = model.get(plan["embedding"]).output
    run["scale"] = scale_for(x)
    change = x[0] - x[g]
    shares = torch.tensor(left, dtype=x.dtype, device=x.device)
    x[:g] -= shares[:, None, None] * (change * free[:, None].to(x))
    start = torch.zeros_like(x[first:-1]).unflatten(0, (g, -1))
    for row, position in enumerate(positions):
        start[:, row, position] = change[position] * run["scale"]
    put(x, start, g, first)
    logits, tangents = pushed(model, plan, run, x)
    if answers and not isinstance(answers[0], int):
        slope = slope_at(logits, lambda logits: explained_value(logits, answers)[0])
        found, answers = (tangents * slope[:, None]).sum((-1, -2)), [ids for ids in answers if isinstance(ids, list)]
    else:
        answers = answers or [int(logits[-1, -1].argmax())]
        found = tangents[..., 0, answers[0]]
        if len(answers) > 1:
            found = found - tangents[..., 0, answers[1]]
    return (found.sum(0) / run["scale"]).cpu(), answers


def slope_at(logits: torch.Tensor, value) -> torch.Tensor:
    """The derivative of value(logits), summed, at logits; a sandbox supports this much autograd."""
    with torch.enable_grad():
        leaf = logits.detach().clone().requires_grad_(True)
        return torch.autograd.grad(value(leaf).sum(), leaf)[0]


def task_scores_of(model, plan: dict, rules: dict, all_clean: torch.Tensor, all_corrupt: torch.Tensor, answers,
                   jobs: list) -> list:
    """`metric_tangents` of each job (indices of pairs, their length, starts), by a trace for each."""
    found, last = [], answers.last
    for pairs, length, starts in jobs:
        clean, corrupt = all_clean[pairs, :length], all_corrupt[pairs, :length]
        run = {"rules": rules, "g": len(clean), "first": 2 * len(clean) + 1, "starts": starts,
               "last": 1 if last.dim() == 1 else last.shape[1]}
        ids = torch.cat([clean, clean[:1], corrupt, clean.repeat_interleave(starts["rows"], 0), clean[:1]])
        with model.trace(input_ids=ids, use_cache=False):
            values = metric_tangents(model, plan, run, answers_at(answers, pairs)).save()
        found.append(values)
    return found


def metric_tangents(model, plan: dict, run: dict, answers) -> torch.Tensor:
    """What the clean - corrupt change that each tangent starts from does to the metric, [g, n]."""
    g, first = run["g"], run["first"]
    x = model.get(plan["embedding"]).output
    run["scale"] = scale_for(x)
    put(x, torch.zeros_like(x[first:-1]).unflatten(0, (g, -1)), g, first)
    start_output(x, run, run["starts"]["input"])
    logits, tangents = pushed(model, plan, run, x)
    # The logits are those of the last positions; some of these predict the answers' tokens.
    places = answers.last.view(g, -1) - x.shape[1] + run["last"]
    slope = slope_at(logits, lambda logits: metric_values(logits[torch.arange(g)[:, None], places], answers))
    return ((tangents * slope[:, None]).sum((-1, -2)) / run["scale"]).cpu()


def scale_for(x: torch.Tensor) -> float:
    """What tangents are multiplied by."""
    return 256.0 if x.element_size() == 2 else 1.0


def pushed(model, plan: dict, run: dict, embedded: torch.Tensor):
    """The clean logits [g, last, vocab] of the last positions and their tangents [g, n, last, vocab]."""
    norms, run["tolerance"] = prepared(model, plan, embedded.dtype), plan["tolerance"]
    with torch.autocast(embedded.device.type, enabled=False):
        for layer, block in enumerate(plan["blocks"]):
            norm_step(model, norms, block["before_attention"], run)
            attention_step(model, norms, block, run, layer)
            norm_step(model, norms, block["after_attention"], run, ("heads", layer))
            norm_step(model, norms, block["before_mlp"], run)
            mlp_step(model, block, run, layer)
            if "starts" in run and block["after_mlp"] is None and layer in run["starts"]["mlps"]:
                start_output(model.get(block["mlp"]).output, run, run["starts"]["mlps"][layer])
            norm_step(model, norms, block["after_mlp"], run, ("mlps", layer))
        norm_step(model, norms, plan["final_norm"], run)
        return last_logits(model, plan, run)


def prepared(model, plan: dict, dtype: torch.dtype) -> dict:
    """{norm's path: (weight, bias)}; each attention's source is read here, since in its forward it is too late."""
    for block in plan["blocks"]:
        if block["rotary"]:
            rotary_of(model, block)
    return {path: scale_of(model.get(path), eps, dtype) for path, eps, _ in plan["norms"]}


def norm_step(model, norms: dict, norm, run: dict, part=None) -> None:
    """Replace the tangents at a norm's output by the linearised norm's.

    part: ("heads" or "mlps", layer) whose outputs the norm follows, for tangents that start there.
    """
    if norm is None:
        return
    path, eps, centred = norm
    g, first = run["g"], run["first"]
    module = model.get(path)
    x, y = module.input, module.output
    clean, t = clean_of(x, g), tangents_of(x, run, path)
    gain = fitting_gain(norms[path], clean, y[:g, None], path, eps, centred)
    moved = norm_tangent(clean, t, gain, eps, centred, run["rules"]["freeze_norm"])
    if part and "starts" in run:
        start_after_norm(moved, x, t, gain, eps, centred, run, part)
    put(y, moved, g, first)


def fitting_gain(known: tuple, x, y, path: str, eps: float, centred: bool):
    """Which gain of a norm (its weight, or 1 + weight) reproduces its output on the clean rows, or an error."""
    weight, bias = (None if part is None else part.detach().to(x.dtype) for part in known)
    top = centre(x, centred)
    unit = top * inverse_scale(top, eps)
    shift = 0 if bias is None else bias
    gains = [1] if weight is None else [weight, 1 + weight]
    for gain in gains:
        if not share_off(unit * gain + shift, y)[1]:
            return gain
    check_same(unit * gains[0] + shift, y, path)


def attention_step(model, norms: dict, block: dict, run: dict, layer: int) -> None:
    """Replace the tangents at the heads' outputs by the linearised attention's."""
    g, first = run["g"], run["first"]
    parts = queries_keys_values(model, norms, block, run)
    clean, moved = [clean_of(x, g) for x in parts], [tangents_of(x, run, block["attention"]) for x in parts]
    fixed = block["scaling"], block["softcap"], block["window"], run["rules"]
    out, t = attention_tangent(*clean, *moved, *fixed)
    z = model.get(block["output"]).input
    check_same(out.transpose(2, 3).flatten(-2), z[:g, None], block["attention"])
    if "starts" in run:
        edges_into_heads(t, clean, moved, fixed, run["starts"], layer)
        start_heads(t, z.unflatten(-1, (block["heads"], -1)), run, layer, block["after_attention"] is not None)
    put(z, t.transpose(2, 3).flatten(-2), g, first)


def queries_keys_values(model, norms: dict, block: dict, run: dict) -> list:
    """q, k and v as the kernel gets them, each [rows, heads, seq, width]; their norms linearised on the way."""
    shape = (block["layout"], block["heads"], block["key_heads"], block["head_dim"])
    q_path, _, v_path = block["projections"]
    if q_path == v_path:
        fused = model.get(q_path).output
        q, k, v = (heads_of(fused, which, *shape).transpose(1, 2) for which in range(3))
    else:
        v = model.get(v_path).output if block["values_first"] else None
        for norm in block["head_norms"]:
            norm_step(model, norms, norm, run)
        v = model.get(v_path).output if v is None else v
        v = heads_of(v, 2, *shape).transpose(1, 2)
    if block["rotary"]:
        q, k = rotary_of(model, block).output
    return [q, k, v]


def rotary_of(model, block: dict):
    """The call in an attention's forward that turns its queries and keys by position."""
    return getattr(model.get(block["attention"]).source, block["rotary"])


def mlp_step(model, block: dict, run: dict, layer: int) -> None:
    """Replace the tangents at what an MLP's last projection reads by the linearised activation's or product's."""
    g, first, rules = run["g"], run["first"], run["rules"]
    if block["gate"] is None:
        module = model.get(block["activation"])
        branches, z = [module.input], module.output
    elif block["up"] is None:
        branches = model.get(block["gate"]).output.chunk(2, -1)
    else:
        branches = [model.get(block[name]).output for name in ("gate", "up")]
    moved = [tangents_of(x, run, block["mlp"]) for x in branches]
    if "starts" in run:
        edges_into_mlp(moved, run["starts"], layer)
    value, slope = activation_and_slope(block["function"], clean_of(branches[0], g), rules["identity_activation"])
    t = slope * moved[0]
    if block["gate"] is not None:
        z, up = model.get(block["down"]).input, clean_of(branches[1], g)
        t = rules["gate"] * up * t + rules["up"] * value * moved[1]
        value = value * up
    check_same(value, z[:g, None], block["mlp"])
    if "starts" in run:
        t[:, :run["starts"]["carriers"]] = 0
    put(z, t, g, first)


def last_logits(model, plan: dict, run: dict):
    """The clean logits [g, last, vocab] and their tangents; the model goes on with the clean rows alone."""
    g, module = run["g"], model.get(plan["unembedding"])
    if not plan["all_positions"]:
        module.input = module.input[:, -run["last"]:]
    raw = module.output[:, -run["last"]:]
    logits, t = clean_of(raw, g), tangents_of(raw, run, plan["unembedding"])
    if plan["softcap"] is not None:
        bent = torch.tanh(logits / plan["softcap"])
        logits, t = plan["softcap"] * bent, t * (1 - bent * bent)
    module.output = raw[:g].clone()
    check_same(logits, model.output.logits[:, None], plan["unembedding"])
    return logits[:, 0], t
