"""Which parts a small transformer's answer depends on: exact patching of parts, and of paths between them.

Names: `a2.h1` is head 1 of layer 2, `m2` the MLP of layer 2, `input` the embeddings; `a0.h3->a2.h1<q>` an
edge. The metric of a prompt is logsumexp(logits[last, good]) - logsumexp(logits[last, bad]). Effects are
means over prompts; *normalised* effects are divided by mean(metric(clean) - metric(corrupt)) and are NaN
where that is not positive, because then the model does not tell clean from corrupt and a share of it means
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn

from tests.oracles.apart import (
    INPUT,
    Part,
    Setting,
    attend,
    effect_of,
    every_part,
    gap_of,
    name_of,
    output_of,
    set_up,
)

if TYPE_CHECKING:
    from gimkit.tasks import Task


@torch.no_grad()
def node_effects(model: nn.Module, task: Task) -> pd.DataFrame:
    """Exact patching: what the metric loses when one head or MLP takes its value from the corrupt run.

    >>> node_effects(model._module, task[:8]).shape      # a row for each of 20 heads and 5 MLPs
    (25, 5)

    All positions are patched at once. A head is its slice of the output projection's input, an MLP its
    output. `effect` is mean(metric(clean) - metric(patched)), in logits, positive where corrupting hurts;
    `head` is missing for an MLP. `model`: GPT2LMHeadModel or LlamaForCausalLM in eval mode (else
    GimkitError); `task`: n prompt pairs.
    """
    s = set_up(model, task)
    rows = [(part, effect_of(s, part, output_of(s.corrupt, part))) for part in every_part(s.net)]
    return pd.DataFrame(
        [(name_of(p), p[0], p[1], effect, effect / gap_of(s)) for p, effect in rows],
        columns=["part", "layer", "head", "effect", "normalised"],
    ).astype({"head": "Int64"})


def layers_taking_part(nodes: pd.DataFrame, threshold: float = 0.1) -> int:
    """Number of layers with a head or MLP of |normalised effect| at least `threshold` (0.1: 10% of the gap).

    >>> layers_taking_part(node_effects(model._module, task[:8]))
    4
    """
    return int(nodes.loc[nodes.normalised.abs() >= threshold, "layer"].nunique())


def strongest(nodes: pd.DataFrame, limit: int, threshold: float = 0.05) -> list[Part]:
    can_receive = (nodes.layer > 0) | nodes["head"].isna()
    order = nodes[can_receive & (nodes.normalised.abs() >= threshold)].normalised.abs().nlargest(limit).index
    chosen = nodes.loc[order]
    return [(int(i), None if pd.isna(h) else int(h)) for i, h in zip(chosen.layer, chosen["head"], strict=True)]


def _sent(s: Setting, sender: Part, layer: int, through_mlps: bool) -> Tensor:
    """What a corrupt sender changes in the stream that a layer reads, [n, S, D]; heads in between stay clean."""
    first, head = sender
    if sender == INPUT:
        change = s.corrupt.x[0] - s.clean.x[0]
    else:
        change = output_of(s.corrupt, sender) - output_of(s.clean, sender)
        if head is not None:
            change = change @ s.net.blocks[first].write[head]
    if through_mlps:
        for between in range(first + (head is None), layer):
            answer = s.net.blocks[between].mlp(s.clean.mid[between] + change)
            change = change + answer - s.clean.mlp[between]
    return change


def _received(s: Setting, layer: int, heads: list[int | None], sent: Tensor | None):
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
            z = attend(*(t[:, :, attention_heads] for t in mixed), block.scaling)
            for at, head in enumerate(attention_heads):
                yield (layer, head), kind, z[:, :, at]


@torch.no_grad()
def path_effects(
    model: nn.Module, task: Task, receivers: list[Part] | None = None, limit: int = 8, n: int = 32,
    through_mlps: bool = False,
) -> pd.DataFrame:
    """Path patching: which earlier parts a head's query, key or value (or an MLP's input) really depends on.

    >>> path_effects(model._module, task[:8], receivers=[(1, 0)])["edge"].tolist()[:2]      # strongest first
    ['a0.h0->a1.h0<q>', 'a0.h1->a1.h0<q>']

    For the edge sender -> receiver<kind>, the sender's contribution to the residual stream is replaced by the
    corrupt run's in that one input alone; all other inputs of the receiver stay clean, its norm is computed
    live, and everything after the receiver runs on. `effect` is the mean loss of the metric, in logits. Rows
    with sender `all` replace the whole q, k or v (the whole input of an MLP) by the corrupt run's. With
    grouped key/value heads the k and v of one query head are replaced, not those of its group.

    `receivers`: list of (layer, head), head None for an MLP; by default the `limit` parts with the largest
    exact patching effect, of at least 5% of the gap. `n`: number of prompts used. `through_mlps`: MLPs between
    sender and receiver answer the sender's change, so that a path through them counts too; that is the path patching
    of Wang et al. 2022 (IOI), section 3. Without it MLPs are parts like heads and an edge is a direct one.
    """
    if receivers is None:
        receivers = strongest(node_effects(model, task), limit)
    s = set_up(model, task, n)
    gap, rows = gap_of(s), []
    for layer in sorted({layer for layer, _ in receivers}):
        heads = [h for i, h in receivers if i == layer]
        earlier = [p for p in every_part(s.net) if p[0] < layer]
        same = [p for p in every_part(s.net) if p[0] == layer and p[1] is not None]  # read by the MLP
        for sender in (None, INPUT, *earlier, *same):
            here = [None] if sender in same else heads
            if sender in same and None not in heads:
                continue
            sent = None if sender is None else _sent(s, sender, layer, through_mlps)
            for receiver, kind, value in _received(s, layer, here, sent):
                source = "all" if sender is None else name_of(sender)
                edge = f"{source}->{name_of(receiver)}" + (f"<{kind}>" if kind else "")
                effect = effect_of(s, receiver, value)
                from_head = sender is not None and sender[1] is not None
                to_head = receiver[1] is not None
                rows.append((edge, source, name_of(receiver), kind, layer, from_head, to_head, effect, effect / gap))
    columns = ["edge", "sender", "receiver", "kind", "layer", "from_head", "to_head", "effect", "normalised"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values("effect", key=abs, ascending=False, ignore_index=True)


def depth(edges: pd.DataFrame, threshold: float = 0.05) -> int:
    """Number of edges in the longest chain of edges with |normalised effect| at least `threshold` (or 0).

    >>> chain = [("input", "m0", False), ("m0", "a2.h1", True), ("a2.h1", "a3.h0", True)]
    >>> edges = pd.DataFrame(chain, columns=["sender", "receiver", "to_head"])
    >>> depth(edges.assign(layer=[0, 2, 3], normalised=0.5))
    3

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
    """Largest |normalised effect| of a path from a head into the q, k or v (`kind`) of a late head.

    >>> edge = {"from_head": True, "to_head": True, "kind": "q", "layer": 3, "normalised": -0.5}
    >>> late_dependence(pd.DataFrame([edge]), "q", n_layers=4)                           # late: in layers 2 and 3
    0.5

    Late heads are those of the later half of the layers. 0.0 if there is no such edge.
    """
    late = edges[edges.from_head & edges.to_head & (edges.kind == kind) & (edges.layer >= (n_layers + 1) // 2)]
    return float(late.normalised.abs().max()) if len(late) else 0.0
