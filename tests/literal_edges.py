"""Edge patching spelled out with torch hooks on transformers models: one prompt, no padding, one head at a time.

A target reads the residual stream plus a change that no other target sees; everything downstream follows.
To change what one head's query, key or value reads, the layer's attention runs once more with that head's columns of
the projection's output computed from the changed stream, and only that head's slice is taken over from this run.

Where a norm spans the queries or keys of all heads (OLMo-2), a head's changed columns shift that norm for its
neighbours too. All heads see a changed query there. A changed key is seen by the query heads that have the same place
in their group, as if keys stood in as many copies as query heads share one.
"""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from oracle import _attention, _prepare, _registered

LLAMA = dict(blocks="model.layers", attention="self_attn", projections=("q_proj", "k_proj", "v_proj"), out="o_proj",
             before="input_layernorm", before_mlp="post_attention_layernorm", final="model.norm")
POST = dict(after="post_attention_layernorm", after_mlp="post_feedforward_layernorm")
GEMMA = LLAMA | POST | dict(before_mlp="pre_feedforward_layernorm")
NAMES = {
    "gpt2": dict(blocks="transformer.h", attention="attn", projections=("c_attn",), out="c_proj", before="ln_1",
                 before_mlp="ln_2", final="transformer.ln_f"),
    "gpt_neox": LLAMA | dict(blocks="gpt_neox.layers", attention="attention", projections=("query_key_value",),
                             out="dense", final="gpt_neox.final_layer_norm"),
    "phi3": LLAMA | dict(projections=("qkv_proj",)),
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "olmo2": LLAMA | POST | dict(before=None, before_mlp=None),
}


class Parts(NamedTuple):
    """The modules of one block; None where there is no such norm."""

    block: torch.nn.Module
    attention: torch.nn.Module
    projections: tuple
    out: torch.nn.Module
    mlp: torch.nn.Module
    before: torch.nn.Module | None
    after: torch.nn.Module | None
    before_mlp: torch.nn.Module | None
    after_mlp: torch.nn.Module | None


class Shape(NamedTuple):
    heads: int
    width: int  # of one head
    group: int  # query heads that share a key head
    joint: bool  # a norm spans the queries, and the keys, of all heads


def parts_of(hf):
    """(the parts of every block, the final norm, the shape)."""
    names = NAMES.get(hf.config.model_type, LLAMA)
    found = []
    for block in hf.get_submodule(names["blocks"]):
        attention = getattr(block, names["attention"])
        norms = [getattr(block, names[key]) if names.get(key) else None
                 for key in ("before", "after", "before_mlp", "after_mlp")]
        found.append(Parts(block, attention, tuple(getattr(attention, key) for key in names["projections"]),
                           getattr(attention, names["out"]), block.mlp, *norms))
    heads = hf.config.num_attention_heads
    width = matrix(found[0].out).shape[0] // heads
    read = sum(matrix(projection).shape[1] for projection in found[0].projections)  # q, k and v of all heads
    group = heads * 2 * width // (read - heads * width)
    return found, hf.get_submodule(names["final"]), Shape(heads, width, group, hf.config.model_type == "olmo2")


def matrix(projection):
    """A projection's weight as [in, out]."""
    return projection.weight if type(projection).__name__ == "Conv1D" else projection.weight.T


def columns(part, shape, which, head):
    """(the projection, the columns of its output) of a query head's own q, or of the k or v that it reads."""
    w, keys = shape.width, shape.heads // shape.group
    own = head if which == "q" else head // shape.group
    if len(part.projections) == 3:
        projection, first = part.projections["qkv".index(which)], own * w
    elif type(part.attention).__name__ == "GPTNeoXAttention":  # head by head: its q, its k, its v
        projection, first = part.projections[0], (3 * own + "qkv".index(which)) * w
    else:  # all q, then all k, then all v
        offset = {"q": 0, "k": shape.heads, "v": shape.heads + keys}[which]
        projection, first = part.projections[0], (offset + own) * w
    return projection, slice(first, first + w)


def post_factor(norm, total):
    """What a norm after a part multiplies it with, its denominator as it came out for the whole part."""
    if norm is None:
        return 1.0
    weight = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return weight / torch.sqrt((total ** 2).mean(-1, keepdim=True) + eps)


def forward(hf, ids, change=lambda target, now: None, embedding=None, put=None):
    """One run -> (logits [1, seq, vocab], contributions {source: [1, seq, width]}, whole outputs {(layer, part)}).

    change(target, contributions so far): what is added to the stream that this target reads, [1, seq, width] or None.
    embedding: stands in for the embedding's output. put: {(layer, "attention" or "mlp"): what the part writes}.
    """
    blocks, final, shape = parts_of(hf)
    now, wholes, handles, put = {}, {}, [], put or {}

    def before(module, hook):
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(module, hook):
        handles.append(module.register_forward_hook(hook))

    def embed(module, args, output):
        value = output if embedding is None else embedding
        now["input"] = value
        return value

    after(hf.get_input_embeddings(), embed)
    for layer, part in enumerate(blocks):
        _hook_block(layer, part, shape, change, put, now, wholes, before, after)

    def at_final(module, args, kwargs):
        delta = change("logits", now)
        return None if delta is None else ((args[0] + delta,), kwargs)

    before(final, at_final)
    try:
        logits = hf(ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, now, wholes


def _hook_block(layer, part, shape, change, put, now, wholes, before, after):
    state = {"reads": {}, "again": False, "taken": {}}

    def at_block(module, args, kwargs):
        state["stream"] = args[0] if args else kwargs["hidden_states"]

    def at_attention(module, args, kwargs):
        deltas = {}
        for which in "qkv":
            for head in range(shape.heads):
                delta = change(f"a{layer}.h{head}<{which}>", now)
                if delta is not None:
                    deltas[which, head] = delta
        state["taken"] = {}
        for head in range(shape.heads):
            state["reads"] = {key: delta for key, delta in deltas.items() if sees(head, *key)}
            if state["reads"]:
                state["again"] = True
                module.forward(*args, **kwargs)  # hooks of the modules inside still act
                state["again"] = False
                state["taken"][head] = state["z"][..., head * shape.width:(head + 1) * shape.width]
        state["reads"] = {}

    def sees(head, which, changed):
        if not shape.joint:
            return head == changed
        return which == "q" or head % shape.group == changed % shape.group

    def at_projection(module, args, output):
        for (which, head), delta in state["reads"].items():
            projection, where = columns(part, shape, which, head)
            if projection is module:
                stream = state["stream"] + delta
                reads = stream if part.before is None else part.before.forward(stream)
                output = output.clone()
                output[..., where] = module.forward(reads)[..., where]
        return output

    def into_out(module, args, kwargs):
        if state["again"]:
            state["z"] = args[0]
            return None
        z = args[0].clone()
        for head, value in state["taken"].items():
            z[..., head * shape.width:(head + 1) * shape.width] = value
        return (z,), kwargs

    def at_out(module, args, output):
        if state["again"]:
            return None
        factor = post_factor(part.after, output)
        for head in range(shape.heads):
            mine = slice(head * shape.width, (head + 1) * shape.width)
            now[f"a{layer}.h{head}"] = (args[0][..., mine] @ matrix(module)[mine]) * factor
        return None

    def into_mlp(module, args, kwargs):
        delta = change(f"m{layer}", now)
        if delta is None:
            return None
        stream = args[0] if part.before_mlp is None else state["middle"]
        reads = stream + delta
        return (reads if part.before_mlp is None else part.before_mlp.forward(reads),), kwargs

    def at_mlp(module, args, output):
        now[f"m{layer}"] = output * post_factor(part.after_mlp, output)

    def whole(key):
        def hook(module, args, output):
            if key[1] == "attention" and state["again"]:
                return None
            wholes[key] = put.get(key, output)
            return wholes[key]
        return hook

    def middle(module, args, kwargs):
        state["middle"] = args[0]

    before(part.block, at_block)
    before(part.attention, at_attention)
    for projection in part.projections:
        after(projection, at_projection)
    before(part.out, into_out)
    after(part.out, at_out)
    if part.before_mlp is not None:
        before(part.before_mlp, middle)
    before(part.mlp, into_mlp)
    after(part.mlp, at_mlp)
    after(part.out if part.after is None else part.after, whole((layer, "attention")))
    after(part.mlp if part.after_mlp is None else part.after_mlp, whole((layer, "mlp")))


def contributions(hf, ids):
    """{source: what it writes to the stream [1, seq, width]} of a plain run."""
    with torch.no_grad():
        found = forward(hf, ids)[1]
    scale = hf.config.hidden_size ** 0.5 if "Gemma" in type(hf).__name__ else 1.0
    assert torch.allclose(found["input"], hf.get_input_embeddings().weight[ids] * scale, rtol=1e-5)
    return found


def gradients(hf, ids, metric, targets, **settings):
    """{target: gradient of metric(logits) at the stream that it reads [1, seq, width]}, by autograd."""
    width = hf.get_input_embeddings().weight.shape[1]
    leaves = {target: torch.zeros(*ids.shape, width, dtype=hf.dtype, requires_grad=True) for target in targets}
    logits = forward(hf, ids, lambda target, now: leaves[target], **settings)[0]
    found = torch.autograd.grad(metric(logits), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found))


def edge_matrix(differences, reads, graph):
    """<difference of each source, gradient at each target> on the real edges, [sources, targets]."""
    d = torch.stack([differences[source].flatten() for source in graph.sources])
    g = torch.stack([reads[target].flatten() for target in graph.targets])
    return (d @ g.T) * graph.real


def circuit_logits(hf, clean, corrupt, dropped):
    """Logits of the clean prompt's run in which every dropped edge (source, target) carries its corrupt value."""
    theirs = contributions(hf, corrupt)
    into = {}
    for source, target in dropped:
        into.setdefault(target, []).append(source)

    def change(target, now):
        if target not in into:
            return None
        return sum(theirs[source] - now[source] for source in into[target])

    with torch.no_grad():
        return forward(hf, clean, change)[0]


@contextmanager
def ruled(hf, rules):
    """Within the block the model `hf` (a copy, it stays changed) has the oracle's backward rules."""
    with _registered(_attention(rules, [])):
        _prepare(hf, rules)
        yield hf
