"""Does a small trained model show what the notebooks teach? Exact measurements, one function a phenomenon.

Everything is computed forward, with plain torch on a `GPT2LMHeadModel` or `LlamaForCausalLM`: no gradients,
no approximation. The forward pass is taken apart once (`_net`), so that any part of it can be replaced.

Names: `a2.h1` is head 1 of layer 2, `m2` the MLP of layer 2, `input` the embeddings; `a0.h3->a2.h1<q>` an
edge. The metric of a prompt is logsumexp(logits[last, good]) - logsumexp(logits[last, bad]). Effects are
means over prompts; *normalised* effects are divided by mean(metric(clean) - metric(corrupt)) and are NaN
where that is not positive, because then the model does not tell clean from corrupt and a share of it means
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from gimkit.errors import GimkitError

if TYPE_CHECKING:
    from gimkit.tasks import Task

Part = tuple[int, int | None]  # (layer, head), or (layer, None) for the MLP
INPUT: Part = (-1, None)  # the embeddings, as a sender


# --- the forward pass, taken apart ----------------------------------------------------------------


class _Block(NamedTuple):
    qkv: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # residual -> q, k, v after rotary, each [n, S, H, d]
    project: Callable[[Tensor], Tensor]  # [..., H * d] -> [..., D]
    write: Tensor  # [H, d, D], what each head's output is multiplied by
    mlp: Callable[[Tensor], Tensor]  # residual -> MLP output, its norm included
    scaling: float


class _Net(NamedTuple):
    embed: Callable[[Tensor], Tensor]
    blocks: list[_Block]
    norm: nn.Module
    unembed: nn.Linear


class _Run(NamedTuple):
    """One forward pass kept whole, by layer: residual before it, q/k/v, head outputs, residual between, MLP output."""

    x: list[Tensor]
    qkv: list[tuple[Tensor, Tensor, Tensor]]
    z: list[Tensor]
    mid: list[Tensor]
    mlp: list[Tensor]


class _Tail(NamedTuple):
    """What is left of a resumed pass at the last token: final residual [n, D], head outputs, MLP outputs."""

    x: Tensor
    z: dict[int, Tensor]
    mlp: dict[int, Tensor]


class _Setting(NamedTuple):
    net: _Net
    clean: _Run
    corrupt: _Run
    ids: Tensor
    mask: Tensor
    last: Tensor
    good: Tensor  # [n, V], True at answers
    bad: Tensor
    metric: Tensor  # [n], clean
    corrupt_metric: Tensor


def _gpt2_block(block: nn.Module) -> _Block:
    attn = block.attn
    heads, d = attn.num_heads, attn.head_dim

    def qkv(x):
        return tuple(t.unflatten(-1, (heads, d)) for t in attn.c_attn(block.ln_1(x)).split(heads * d, dim=-1))

    write = attn.c_proj.weight.view(heads, d, -1)
    return _Block(qkv, attn.c_proj, write, lambda x: block.mlp(block.ln_2(x)), attn.scaling)


def _llama_block(block: nn.Module, rotary: nn.Module) -> _Block:
    attn = block.self_attn
    d = attn.head_dim

    def qkv(x):
        h = block.input_layernorm(x)
        q, k, v = (proj(h).unflatten(-1, (-1, d)) for proj in (attn.q_proj, attn.k_proj, attn.v_proj))
        cos, sin = rotary(x, torch.arange(x.shape[1], device=x.device)[None])
        q, k = apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
        return q, *(t.repeat_interleave(attn.num_key_value_groups, dim=2) for t in (k, v))

    write = attn.o_proj.weight.T.unflatten(0, (-1, d))
    return _Block(qkv, attn.o_proj, write, lambda x: block.mlp(block.post_attention_layernorm(x)), attn.scaling)


def _net(model: nn.Module) -> _Net:
    if model.training:
        raise GimkitError("the model is in training mode, so dropout would act: call model.eval() first")
    if isinstance(model, GPT2LMHeadModel):
        base = model.transformer

        def embed(ids):
            return base.wte(ids) + base.wpe(torch.arange(ids.shape[1], device=ids.device))

        return _Net(embed, [_gpt2_block(b) for b in base.h], base.ln_f, model.lm_head)
    if isinstance(model, LlamaForCausalLM):
        base = model.model
        blocks = [_llama_block(b, base.rotary_emb) for b in base.layers]
        return _Net(base.embed_tokens, blocks, base.norm, model.lm_head)
    raise GimkitError(f"cannot measure a {type(model).__name__}: give a GPT2LMHeadModel or a LlamaForCausalLM")


def _scores(q: Tensor, k: Tensor, scaling: float) -> Tensor:
    """Attention scores [n, H, S, S] of q, k [n, S, H, d], -inf above the diagonal."""
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k) * scaling
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(hidden, -torch.inf)


def _attend(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    return torch.einsum("nhqk,nkhd->nqhd", _scores(q, k, scaling).softmax(-1), v)


def _run(net: _Net, ids: Tensor) -> _Run:
    run, x = _Run([], [], [], [], []), net.embed(ids)
    for block in net.blocks:
        qkv = block.qkv(x)
        z = _attend(*qkv, block.scaling)
        mid = x + block.project(z.flatten(2))
        mlp = block.mlp(mid)
        for kept, value in zip(run, (x, qkv, z, mid, mlp), strict=True):
            kept.append(value)
        x = mid + mlp
    return run


def _at(x: Tensor, last: Tensor) -> Tensor:
    return x[torch.arange(len(x), device=x.device), last]


def _patch(net: _Net, run: _Run, last: Tensor, part: Part, value: Tensor) -> _Tail:
    """Resume `run` with one part's output (a head's z [n, S, d], or an MLP's output [n, S, D]) replaced."""
    layer, head = part
    final = len(net.blocks) - 1
    z_last, mlp_last = {}, {}
    mid = run.mid[layer]
    mlp = value
    if head is not None:
        mid = mid + (value - run.z[layer][:, :, head]) @ net.blocks[layer].write[head]
        if layer == final:  # nothing after this reads another position
            mid = _at(mid, last)
        mlp = net.blocks[layer].mlp(mid)
    x = mid + mlp
    mlp_last[layer] = mlp if mlp.dim() == 2 else _at(mlp, last)
    for later in range(layer + 1, final + 1):
        block = net.blocks[later]
        z = _attend(*block.qkv(x), block.scaling)
        z_last[later] = _at(z, last)
        if later == final:
            x, z = _at(x, last), z_last[later]
        mid = x + block.project(z.flatten(-2))
        mlp = block.mlp(mid)
        mlp_last[later] = mlp if mlp.dim() == 2 else _at(mlp, last)
        x = mid + mlp
    return _Tail(x if x.dim() == 2 else _at(x, last), z_last, mlp_last)


def _masked_lse(logits: Tensor, keep: Tensor) -> Tensor:
    return logits.masked_fill(~keep, -torch.inf).logsumexp(-1)


def _metric(net: _Net, x: Tensor, good: Tensor, bad: Tensor) -> Tensor:
    logits = net.unembed(net.norm(x))
    return _masked_lse(logits, good) - _masked_lse(logits, bad)


def _answers(sets, vocabulary: int) -> Tensor:
    mask = torch.zeros(len(sets), vocabulary, dtype=torch.bool)
    for row, ids in zip(mask, sets, strict=True):
        row[list(ids)] = True
    return mask


def _set_up(model: nn.Module, task: Task, n: int | None = None) -> _Setting:
    net = _net(model)
    mask = task.mask[:n]
    mask = mask[:, : int(mask.sum(1).max())]
    width = mask.shape[1]
    clean_ids, corrupt_ids, last = task.clean[:n, :width], task.corrupt[:n, :width], task.last[:n]
    good, bad = (_answers(sets[:n], net.unembed.out_features) for sets in (task.good, task.bad))
    clean, corrupt = _run(net, clean_ids), _run(net, corrupt_ids)
    metrics = [_metric(net, _at(run.mid[-1] + run.mlp[-1], last), good, bad) for run in (clean, corrupt)]
    return _Setting(net, clean, corrupt, clean_ids, mask, last, good, bad, *metrics)


def _name(part: Part) -> str:
    layer, head = part
    return "input" if part == INPUT else f"m{layer}" if head is None else f"a{layer}.h{head}"


def _parts(net: _Net) -> list[Part]:
    """Every head and MLP in the order in which they act."""
    return [(i, h) for i, b in enumerate(net.blocks) for h in (*range(len(b.write)), None)]


def _output(run: _Run, part: Part) -> Tensor:
    layer, head = part
    return run.mlp[layer] if head is None else run.z[layer][:, :, head]


def _gap(s: _Setting) -> float:
    gap = (s.metric - s.corrupt_metric).mean().item()
    return gap if gap > 0 else float("nan")


def _effect(s: _Setting, part: Part, value: Tensor) -> float:
    patched = _patch(s.net, s.clean, s.last, part, value)
    return (s.metric - _metric(s.net, patched.x, s.good, s.bad)).mean().item()


# --- 1. exact patching ----------------------------------------------------------------------------


@torch.no_grad()
def node_effects(model: nn.Module, task: Task) -> pd.DataFrame:
    """Exact patching: what the metric loses when one head or MLP takes its value from the corrupt run.

    >>> node_effects(hf_model, task)          # 4 layers of 4 heads -> 20 rows
       part layer head effect normalised

    All positions are patched at once. A head is its slice of the output projection's input, an MLP its
    output. `effect` is mean(metric(clean) - metric(patched)), in logits, positive where corrupting hurts;
    `head` is missing for an MLP. `model`: GPT2LMHeadModel or LlamaForCausalLM in eval mode (else
    GimkitError); `task`: n prompt pairs.
    """
    s = _set_up(model, task)
    rows = [(part, _effect(s, part, _output(s.corrupt, part))) for part in _parts(s.net)]
    return pd.DataFrame(
        [(_name(p), p[0], p[1], effect, effect / _gap(s)) for p, effect in rows],
        columns=["part", "layer", "head", "effect", "normalised"],
    ).astype({"head": "Int64"})


def layers_taking_part(nodes: pd.DataFrame, threshold: float = 0.1) -> int:
    """Number of layers with a head or MLP of |normalised effect| at least `threshold` (0.1: 10% of the gap).

    >>> layers_taking_part(node_effects(hf_model, task))      # an int
    """
    return int(nodes.loc[nodes.normalised.abs() >= threshold, "layer"].nunique())


# --- 2. path patching -----------------------------------------------------------------------------


def _strongest(nodes: pd.DataFrame, limit: int, threshold: float = 0.05) -> list[Part]:
    can_receive = (nodes.layer > 0) | nodes["head"].isna()
    order = nodes[can_receive & (nodes.normalised.abs() >= threshold)].normalised.abs().nlargest(limit).index
    chosen = nodes.loc[order]
    return [(int(i), None if pd.isna(h) else int(h)) for i, h in zip(chosen.layer, chosen["head"], strict=True)]


def _sent(s: _Setting, sender: Part) -> Tensor:
    """Corrupt minus clean contribution [n, S, D] of a sender to the residual stream."""
    if sender == INPUT:
        return s.corrupt.x[0] - s.clean.x[0]
    difference = _output(s.corrupt, sender) - _output(s.clean, sender)
    layer, head = sender
    return difference if head is None else difference @ s.net.blocks[layer].write[head]


def _received(s: _Setting, layer: int, heads: list[int | None], sent: Tensor | None):
    """Yield (receiver, kind, its new output) when `sent` is added to what one layer's receivers read.

    `sent` None stands for everything: the receivers' q, k or v (an MLP's whole input) is the corrupt run's.
    """
    block = s.net.blocks[layer]
    if None in heads:
        mid = s.corrupt.mid[layer] if sent is None else s.clean.mid[layer] + sent
        yield (layer, None), "", block.mlp(mid)
    attention_heads = [h for h in heads if h is not None]
    if attention_heads:
        new = s.corrupt.qkv[layer] if sent is None else block.qkv(s.clean.x[layer] + sent)
        for slot, kind in enumerate("qkv"):
            mixed = list(s.clean.qkv[layer])
            mixed[slot] = new[slot]
            z = _attend(*(t[:, :, attention_heads] for t in mixed), block.scaling)
            for at, head in enumerate(attention_heads):
                yield (layer, head), kind, z[:, :, at]


@torch.no_grad()
def path_effects(
    model: nn.Module, task: Task, receivers: list[Part] | None = None, limit: int = 8, n: int = 32
) -> pd.DataFrame:
    """Path patching: which earlier parts a head's query, key or value (or an MLP's input) really depends on.

    >>> path_effects(hf_model, task)          # one row an edge, strongest first
       edge sender receiver kind layer from_head to_head effect normalised

    For the edge sender -> receiver<kind>, the sender's contribution to the residual stream is replaced by the
    corrupt run's in that one input alone; all other inputs of the receiver stay clean, its norm is computed
    live, and everything after the receiver runs on. `effect` is the mean loss of the metric, in logits. Rows
    with sender `all` replace the whole q, k or v (the whole input of an MLP) by the corrupt run's. With
    grouped key/value heads the k and v of one query head are replaced, not those of its group.

    `receivers`: list of (layer, head), head None for an MLP; by default the `limit` parts with the largest
    exact patching effect, of at least 5% of the gap. `n`: number of prompts used. As Wang et al. 2022 (IOI),
    section 3, except that one edge is patched at a time and MLPs are parts like heads, not let through.
    """
    if receivers is None:
        receivers = _strongest(node_effects(model, task), limit)
    s = _set_up(model, task, n)
    gap, rows = _gap(s), []
    for layer in sorted({layer for layer, _ in receivers}):
        heads = [h for i, h in receivers if i == layer]
        earlier = [p for p in _parts(s.net) if p[0] < layer]
        same = [p for p in _parts(s.net) if p[0] == layer and p[1] is not None]  # an MLP also reads its layer's heads
        for sender in (None, INPUT, *earlier, *same):
            here = [None] if sender in same else heads
            if sender in same and None not in heads:
                continue
            sent = None if sender is None else _sent(s, sender)
            for receiver, kind, value in _received(s, layer, here, sent):
                source = "all" if sender is None else _name(sender)
                edge = f"{source}->{_name(receiver)}" + (f"<{kind}>" if kind else "")
                effect = _effect(s, receiver, value)
                from_head = sender is not None and sender[1] is not None
                to_head = receiver[1] is not None
                rows.append((edge, source, _name(receiver), kind, layer, from_head, to_head, effect, effect / gap))
    columns = ["edge", "sender", "receiver", "kind", "layer", "from_head", "to_head", "effect", "normalised"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values("effect", key=abs, ascending=False, ignore_index=True)


def depth(edges: pd.DataFrame, threshold: float = 0.05) -> int:
    """Number of edges in the longest chain of edges with |normalised effect| at least `threshold` (or 0).

    >>> depth(path_effects(hf_model, task))   # 3 for input->m0, m0->a2.h1<v>, a2.h1->a3.h0<q>

    The last step, from a part to the logits, is not counted. Edges of a chain are each strong enough by
    themselves; the chain as a whole was not patched.
    """
    strong = edges[(edges.normalised.abs() >= threshold) & (edges.sender != "all")].copy()
    longest: dict[str, int] = {}
    strong = strong.assign(is_mlp=~strong.to_head).sort_values(["layer", "is_mlp"])  # the order in which parts act
    for sender, receiver in zip(strong.sender, strong.receiver, strict=True):
        longest[receiver] = max(longest.get(receiver, 0), longest.get(sender, 0) + 1)
    return max(longest.values(), default=0)


def late_dependence(edges: pd.DataFrame, kind: str, n_layers: int) -> float:
    """Largest |normalised effect| of an edge from a head into the q, k or v (`kind`) of a late head.

    >>> late_dependence(edges, "q", n_layers=4)      # a float; late: in layers 2 and 3

    Late heads are those of the later half of the layers. 0.0 if there is no such edge.
    """
    late = edges[edges.from_head & edges.to_head & (edges.kind == kind) & (edges.layer >= (n_layers + 1) // 2)]
    return float(late.normalised.abs().max()) if len(late) else 0.0


# --- 3. attention self-repair ---------------------------------------------------------------------


def joint_ablation(scores: Tensor, values: Tensor, threshold: float = 1.0) -> pd.DataFrame:
    """Ablate the two attention scores that contribute most, one at a time and together.

    >>> joint_ablation(torch.tensor([[6., 6, 0, 0, 0]]), torch.tensor([[10., 10, 0, 0, 0]]))
       row  i  j     d1     d2  joint  interaction
         0  0  1  0.035  0.035  1.161        0.940

    scores [R, S]: attention scores, -inf where masked; values [R, S]: what each position is worth, c_k, so
    that a row's output is o = sum_k softmax(scores)_k c_k. Kept are rows with two contributions above
    `threshold` (in units of o). An ablated score becomes the mean of the row's unmasked scores; d1, d2 and
    joint are the losses of o, and interaction is (joint - d1 - d2) / joint, 0 where joint is 0. Source: GIM
    (arXiv 2505.17630), its self-repair analysis, as in its code.
    """
    top = (scores.softmax(-1) * values).topk(2, dim=-1)
    rows = (top.values[:, 1] > threshold).nonzero().squeeze(-1)
    a, c, (i, j) = scores[rows], values[rows], top.indices[rows].T
    mean = a.masked_fill(a.isinf(), torch.nan).nanmean(-1, keepdim=True)
    place = torch.arange(a.shape[-1], device=a.device)
    first, second = place == i[:, None], place == j[:, None]

    def output(ablated: Tensor) -> Tensor:
        return (torch.where(ablated, mean, a).softmax(-1) * c).sum(-1)

    o = output(torch.zeros_like(first))
    d1, d2, joint = (o - output(ablated) for ablated in (first, second, first | second))
    interaction = torch.where(joint == 0, 0, (joint - d1 - d2) / joint)
    columns = {"row": rows, "i": i, "j": j, "d1": d1, "d2": d2, "joint": joint, "interaction": interaction}
    return pd.DataFrame({name: t.numpy() for name, t in columns.items()})


@torch.no_grad()
def attention_self_repair(model: nn.Module, task: Task, threshold: float = 1.0) -> pd.DataFrame:
    """Joint against single ablation of attention scores, for each head and query of the clean prompts.

    >>> attention_self_repair(hf_model, task)
       example layer head query i j d1 d2 joint interaction

    A position's worth is c_k = z_q . v_k, with z_q the head's own output at the query, so o = ||z_q||^2; see
    `joint_ablation`. One row for each (example, layer, head, query) with two contributions above `threshold`;
    i and j are the ablated positions. Padding is left out.
    """
    s = _set_up(model, task)
    frames = []
    for layer, block in enumerate(s.net.blocks):
        q, k, v = s.clean.qkv[layer]
        scores = _scores(q, k, block.scaling)
        values = torch.einsum("nqhd,nkhd->nhqk", s.clean.z[layer], v)
        where = s.mask[:, None, :].expand(scores.shape[:3]).nonzero()
        real = where.unbind(1)
        frame = joint_ablation(scores[real], values[real], threshold)
        example, head, query = where[frame.pop("row").tolist()].T.numpy()
        labels = pd.DataFrame({"example": example, "layer": layer, "head": head, "query": query})
        frames.append(pd.concat([labels, frame], axis=1))
    return pd.concat(frames, ignore_index=True)


def repair_summary(repair: pd.DataFrame) -> dict[str, float]:
    """Five numbers about a frame of `attention_self_repair`.

    >>> repair_summary(attention_self_repair(hf_model, task))
    {'rows': ..., 'above': ..., 'above_1.1': ..., 'median_ie': ..., 'q95_ie': ...}

    `above`: share of rows where the joint effect exceeds the sum of the two single ones; `above_1.1`: exceeds
    1.1 times that sum; median and 95% quantile of the interaction. NaN without rows.
    """
    alone = repair.d1 + repair.d2
    return {
        "rows": len(repair),
        "above": (repair.joint > alone).mean(),
        "above_1.1": (repair.joint > 1.1 * alone).mean(),
        "median_ie": repair.interaction.median(),
        "q95_ie": repair.interaction.quantile(0.95),
    }


# --- 4. name movers -------------------------------------------------------------------------------


def _read_out(s: _Setting, weights: Tensor) -> Tensor:
    """Directions g [n, D]: write . g is a write's direct effect on weights . logits, the final norm's scale frozen.

    `weights` [n, V]: how much each token's logit counts.
    """
    norm, x = s.net.norm, _at(s.clean.mid[-1] + s.clean.mlp[-1], s.last)
    g = weights @ s.net.unembed.weight * norm.weight
    if isinstance(norm, nn.LayerNorm):
        scale = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        return (g - g.mean(-1, keepdim=True)) / scale
    return g / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()


def _shares(s: _Setting) -> tuple[Tensor, Tensor]:
    """How the metric weighs the logits of good and of bad tokens [n, V]; one-hot for a single answer token."""
    logits = s.net.unembed(s.net.norm(_at(s.clean.mid[-1] + s.clean.mlp[-1], s.last)))
    return tuple(logits.masked_fill(~keep, -torch.inf).softmax(-1) for keep in (s.good, s.bad))


@torch.no_grad()
def direct_attribution(model: nn.Module, task: Task, share: float = 0.1, attends: float = 0.5) -> pd.DataFrame:
    """Direct logit attribution of every head at the last token, and which answer token it attends to.

    >>> direct_attribution(hf_model, task)    # one row a head
       part layer head dla share good_logit bad_logit attention_good attention_bad top_good top_bad role

    `dla`: mean of z W_O . (unembed[good] - unembed[bad]) through the final norm with its scale frozen, in
    logits; for sets of answers, the metric's own weights on them. `share`: dla / mean metric of the clean
    run. `good_logit`, `bad_logit`: what the head writes on the good and on the bad tokens' logits, relative
    to the vocabulary's mean. `attention_*`: mean attention from the last token to all positions holding a
    good (bad) token; `top_*`: share of prompts whose most attended position holds one. `role`: `name mover`
    (share >= `share`, top_good >= `attends`, good_logit > 0: attends to the answer and writes it),
    `suppressor` (share >= `share`, top_bad >= `attends`, bad_logit < 0: attends to the wrong name and writes
    against it), or empty. All attention columns are 0 for tasks whose prompts do not contain the answers.
    """
    s = _set_up(model, task)
    good, bad = _shares(s)
    uniform = torch.full_like(good, 1 / good.shape[1])
    directions = [_read_out(s, w) for w in (good - bad, good - uniform, bad - uniform)]
    holds = [answers.gather(1, s.ids) & s.mask for answers in (s.good, s.bad)]
    total, rows = s.metric.mean().item(), []
    for layer, block in enumerate(s.net.blocks):
        q, k, _ = s.clean.qkv[layer]
        attention = _at(_scores(q, k, block.scaling).softmax(-1).transpose(1, 2), s.last)  # [n, H, S]
        top = attention.argmax(-1)
        written = torch.einsum("nhd,hde->nhe", _at(s.clean.z[layer], s.last), block.write)
        columns = [torch.einsum("nhe,ne->h", written, g) / len(g) for g in directions]
        columns += [(attention * here[:, None]).sum(-1).mean(0) for here in holds]
        columns += [here.gather(1, top).float().mean(0) for here in holds]
        for head, (dla, *rest) in enumerate(torch.stack(columns, 1).tolist()):
            rows.append((_name((layer, head)), layer, head, dla, dla / total if total > 0 else float("nan"), *rest))
    names = ["part", "layer", "head", "dla", "share", "good_logit", "bad_logit"]
    names += ["attention_good", "attention_bad", "top_good", "top_bad"]
    frame = pd.DataFrame(rows, columns=names)
    enough = frame.share >= share
    frame["role"] = ""
    frame.loc[enough & (frame.top_bad >= attends) & (frame.bad_logit < 0), "role"] = "suppressor"
    frame.loc[enough & (frame.top_good >= attends) & (frame.good_logit > 0), "role"] = "name mover"
    return frame


# --- 5. compensation ------------------------------------------------------------------------------


def _mean_from_the_end(z: Tensor, last: Tensor) -> Tensor:
    """Replace z [n, S, d] by its mean over prompts, at equal distance from each prompt's last token."""
    distance = last[:, None] - torch.arange(z.shape[1], device=z.device)  # negative on padding
    mean = z.new_zeros(z.shape[1], z.shape[2])
    for steps in range(z.shape[1]):
        here = distance == steps
        if here.any():
            mean[steps] = z[here].mean(0)
    return mean[distance.clamp(min=0)]


@torch.no_grad()
def compensation(model: nn.Module, task: Task, ablation: str = "mean") -> pd.DataFrame:
    """Ablate each head at all positions: its direct effect, the total effect, and who makes up for the loss.

    >>> compensation(hf_model, task)          # one row for each (ablated head, later part)
       ablated layer later later_is_head direct direct_share total compensated gain gain_share

    `direct`: what the ablated head's own direct logit attribution loses (final norm frozen at the clean run's
    scale), in logits; `direct_share` of the mean clean metric; `total`: what the metric really loses;
    `compensated`: 1 - total / direct, the share that the rest of the model (later parts and the final norm's
    scale) makes up for; `gain`: how much the later part's direct attribution rises, `gain_share` of `direct`.
    Shares say little where `direct` is small.

    `ablation`: `mean` puts the mean over the clean prompts at equal distance from the last token, `corrupt`
    the corrupt run's value. As the backup heads of Wang et al. 2022, section 3.4, and the direct and total
    effects of McGrath et al. 2023 (the Hydra effect).
    """
    if ablation not in ("mean", "corrupt"):
        raise GimkitError(f"unknown ablation {ablation!r}; use 'mean' or 'corrupt'")
    s = _set_up(model, task)
    good, bad = _shares(s)
    g = _read_out(s, good - bad)
    metric, rows = s.metric.mean().item(), []

    def writes(z: Tensor, layer: int) -> Tensor:  # direct attribution of each head, [n, H]
        return torch.einsum("nhd,hde,ne->nh", z, s.net.blocks[layer].write, g)

    clean_heads = [writes(_at(z, s.last), layer) for layer, z in enumerate(s.clean.z)]
    clean_mlps = [(_at(out, s.last) * g).sum(-1) for out in s.clean.mlp]
    for layer, head in (part for part in _parts(s.net) if part[1] is not None):
        z = s.clean.z[layer][:, :, head]
        value = _mean_from_the_end(z, s.last) if ablation == "mean" else s.corrupt.z[layer][:, :, head]
        tail = _patch(s.net, s.clean, s.last, (layer, head), value)
        written = _at(z - value, s.last) @ s.net.blocks[layer].write[head]
        direct = (written * g).sum(-1).mean().item()
        total = (s.metric - _metric(s.net, tail.x, s.good, s.bad)).mean().item()
        gains = {(i, None): (out * g).sum(-1) - clean_mlps[i] for i, out in tail.mlp.items()}
        for i, later_z in tail.z.items():
            gains |= {(i, h): gain for h, gain in enumerate((writes(later_z, i) - clean_heads[i]).T)}
        share = direct / metric if metric > 0 else float("nan")
        compensated = 1 - total / direct if direct else float("nan")
        for part, gain in gains.items():
            gain = gain.mean().item()
            gain_share = gain / direct if direct else float("nan")
            part_columns = (_name((layer, head)), layer, _name(part), part[1] is not None)
            rows.append((*part_columns, direct, share, total, compensated, gain, gain_share))
    names = ["ablated", "layer", "later", "later_is_head", "direct", "direct_share", "total", "compensated"]
    return pd.DataFrame(rows, columns=[*names, "gain", "gain_share"])


def compensation_summary(frame: pd.DataFrame, share: float = 0.1) -> dict[str, float]:
    """Compensation among the heads whose direct effect is at least `share` of the clean metric.

    >>> compensation_summary(compensation(hf_model, task))
    {'ablated_heads': ..., 'compensated': ..., 'backed_up_heads': ..., 'backup_share': ...}

    `ablated_heads`: number of such heads; `compensated`: the largest 1 - total / direct among them;
    `backed_up_heads`: how many have a later head that gains at least `share` of the lost direct effect;
    `backup_share`: the largest such gain of one later head. NaN where there is none.
    """
    important = frame[frame.direct_share >= share]
    by_heads = important[important.later_is_head]
    return {
        "ablated_heads": important.ablated.nunique(),
        "compensated": important.compensated.max(),
        "backed_up_heads": by_heads.ablated[by_heads.gain_share >= share].nunique(),
        "backup_share": by_heads.gain_share.max(),
    }


# --- all of them ----------------------------------------------------------------------------------


def phenomena(hf_model: nn.Module, tasks: dict[str, Task]) -> dict[str, float]:
    """Every measurement of this module on every task, as one flat row of numbers.

    >>> pd.DataFrame([phenomena(hf_model, {"ioi": ioi, "odd": odd})]).to_csv("seeds.csv")
    ioi.accuracy ioi.metric ioi.corrupt_metric ioi.layers ioi.depth ioi.late_q ... odd.backup_share

    For each task: `accuracy` (share of clean prompts with a positive metric), mean `metric` and
    `corrupt_metric`; `layers` (`layers_taking_part`); `depth`, `late_q`, `late_k`, `late_v`
    (`late_dependence`); `rows`, `above`, `above_1.1`, `median_ie`, `q95_ie` (`repair_summary`);
    `name_movers`, `suppressors` (numbers of heads) and `top_dla` (largest share of one head);
    `ablated_heads`, `compensated`, `backed_up_heads`, `backup_share` (`compensation_summary`, mean ablation).
    """
    row = {}
    for name, task in tasks.items():
        with torch.no_grad():
            s = _set_up(hf_model, task)
        nodes = node_effects(hf_model, task)
        edges = path_effects(hf_model, task, _strongest(nodes, limit=8))
        heads = direct_attribution(hf_model, task)
        numbers = {
            "accuracy": (s.metric > 0).float().mean().item(),
            "metric": s.metric.mean().item(),
            "corrupt_metric": s.corrupt_metric.mean().item(),
            "layers": layers_taking_part(nodes),
            "depth": depth(edges),
            **{f"late_{kind}": late_dependence(edges, kind, len(s.net.blocks)) for kind in "qkv"},
            **repair_summary(attention_self_repair(hf_model, task)),
            "name_movers": (heads.role == "name mover").sum(),
            "suppressors": (heads.role == "suppressor").sum(),
            "top_dla": heads.share.max(),
            **compensation_summary(compensation(hf_model, task)),
        }
        row |= {f"{name}.{key}": float(value) for key, value in numbers.items()}
    return row
