"""A small transformer's forward pass taken apart, so that any part of it can be replaced and the rest resumed.

Plain torch on a `GPT2LMHeadModel` or `LlamaForCausalLM`, no gradients, no nnsight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from gimkit.errors import GimkitError

if TYPE_CHECKING:
    from gimkit.tasks import Task

Part = tuple[int, int | None]  # (layer, head), or (layer, None) for the MLP
INPUT: Part = (-1, None)  # the embeddings, as a sender


class Block(NamedTuple):
    qkv: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # residual -> q, k, v after rotary, each [n, S, H, d]
    project: Callable[[Tensor], Tensor]  # [..., H * d] -> [..., D]
    write: Tensor  # [H, d, D], what each head's output is multiplied by
    mlp: Callable[[Tensor], Tensor]  # residual -> MLP output, its norm included
    scaling: float


class Net(NamedTuple):
    embed: Callable[[Tensor], Tensor]
    blocks: list[Block]
    norm: nn.Module
    unembed: nn.Linear


class Run(NamedTuple):
    """One forward pass kept whole, by layer: residual before it, q/k/v, head outputs, residual between, MLP output."""

    x: list[Tensor]
    qkv: list[tuple[Tensor, Tensor, Tensor]]
    z: list[Tensor]
    mid: list[Tensor]
    mlp: list[Tensor]


class Tail(NamedTuple):
    """What is left of a resumed pass at the last token: final residual [n, D], head outputs, MLP outputs."""

    x: Tensor
    z: dict[int, Tensor]
    mlp: dict[int, Tensor]


class Setting(NamedTuple):
    net: Net
    clean: Run
    corrupt: Run
    ids: Tensor
    mask: Tensor
    last: Tensor
    good: Tensor  # [n, V], True at answers
    bad: Tensor
    metric: Tensor  # [n], clean
    corrupt_metric: Tensor


def gpt2_block(block: nn.Module) -> Block:
    attn = block.attn
    heads, d = attn.num_heads, attn.head_dim

    def qkv(x):
        return tuple(t.unflatten(-1, (heads, d)) for t in attn.c_attn(block.ln_1(x)).split(heads * d, dim=-1))

    write = attn.c_proj.weight.view(heads, d, -1)
    return Block(qkv, attn.c_proj, write, lambda x: block.mlp(block.ln_2(x)), attn.scaling)


def llama_block(block: nn.Module, rotary: nn.Module) -> Block:
    attn = block.self_attn
    d = attn.head_dim

    def qkv(x):
        h = block.input_layernorm(x)
        q, k, v = (proj(h).unflatten(-1, (-1, d)) for proj in (attn.q_proj, attn.k_proj, attn.v_proj))
        cos, sin = rotary(x, torch.arange(x.shape[1], device=x.device)[None])
        q, k = apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
        return q, *(t.repeat_interleave(attn.num_key_value_groups, dim=2) for t in (k, v))

    write = attn.o_proj.weight.T.unflatten(0, (-1, d))
    return Block(qkv, attn.o_proj, write, lambda x: block.mlp(block.post_attention_layernorm(x)), attn.scaling)


def take_apart(model: nn.Module) -> Net:
    if model.training:
        raise GimkitError("the model is in training mode, so dropout would act: call model.eval() first")
    if isinstance(model, GPT2LMHeadModel):
        base = model.transformer

        def embed(ids):
            return base.wte(ids) + base.wpe(torch.arange(ids.shape[1], device=ids.device))

        return Net(embed, [gpt2_block(b) for b in base.h], base.ln_f, model.lm_head)
    if isinstance(model, LlamaForCausalLM):
        base = model.model
        blocks = [llama_block(b, base.rotary_emb) for b in base.layers]
        return Net(base.embed_tokens, blocks, base.norm, model.lm_head)
    raise GimkitError(f"cannot measure a {type(model).__name__}: give a GPT2LMHeadModel or a LlamaForCausalLM")


def attention_scores(q: Tensor, k: Tensor, scaling: float) -> Tensor:
    """Attention scores [n, H, S, S] of q, k [n, S, H, d], -inf above the diagonal."""
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k) * scaling
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(hidden, -torch.inf)


def attend(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    return torch.einsum("nhqk,nkhd->nqhd", attention_scores(q, k, scaling).softmax(-1), v)


def run_whole(net: Net, ids: Tensor) -> Run:
    run, x = Run([], [], [], [], []), net.embed(ids)
    for block in net.blocks:
        qkv = block.qkv(x)
        z = attend(*qkv, block.scaling)
        mid = x + block.project(z.flatten(2))
        mlp = block.mlp(mid)
        for kept, value in zip(run, (x, qkv, z, mid, mlp), strict=True):
            kept.append(value)
        x = mid + mlp
    return run


def at(x: Tensor, last: Tensor) -> Tensor:
    return x[torch.arange(len(x), device=x.device), last]


def resume(net: Net, run: Run, last: Tensor, part: Part, value: Tensor) -> Tail:
    """Resume `run` with one part's output (a head's z [n, S, d], or an MLP's output [n, S, D]) replaced."""
    layer, head = part
    final = len(net.blocks) - 1
    z_last, mlp_last = {}, {}
    mid = run.mid[layer]
    mlp = value
    if head is not None:
        mid = mid + (value - run.z[layer][:, :, head]) @ net.blocks[layer].write[head]
        if layer == final:  # nothing after this reads another position
            mid = at(mid, last)
        mlp = net.blocks[layer].mlp(mid)
    x = mid + mlp
    mlp_last[layer] = mlp if mlp.dim() == 2 else at(mlp, last)
    for later in range(layer + 1, final + 1):
        block = net.blocks[later]
        z = attend(*block.qkv(x), block.scaling)
        z_last[later] = at(z, last)
        if later == final:
            x, z = at(x, last), z_last[later]
        mid = x + block.project(z.flatten(-2))
        mlp = block.mlp(mid)
        mlp_last[later] = mlp if mlp.dim() == 2 else at(mlp, last)
        x = mid + mlp
    return Tail(x if x.dim() == 2 else at(x, last), z_last, mlp_last)


def masked_lse(logits: Tensor, keep: Tensor) -> Tensor:
    return logits.masked_fill(~keep, -torch.inf).logsumexp(-1)


def metric_of(net: Net, x: Tensor, good: Tensor, bad: Tensor) -> Tensor:
    logits = net.unembed(net.norm(x))
    return masked_lse(logits, good) - masked_lse(logits, bad)


def answer_mask(sets, vocabulary: int) -> Tensor:
    mask = torch.zeros(len(sets), vocabulary, dtype=torch.bool)
    for row, ids in zip(mask, sets, strict=True):
        row[list(ids)] = True
    return mask


def set_up(model: nn.Module, task: Task, n: int | None = None) -> Setting:
    net = take_apart(model)
    mask = task.mask[:n]
    mask = mask[:, : int(mask.sum(1).max())]
    width = mask.shape[1]
    clean_ids, corrupt_ids, last = task.clean[:n, :width], task.corrupt[:n, :width], task.last[:n]
    good, bad = (answer_mask(sets[:n], net.unembed.out_features) for sets in (task.good, task.bad))
    clean, corrupt = run_whole(net, clean_ids), run_whole(net, corrupt_ids)
    metrics = [metric_of(net, at(run.mid[-1] + run.mlp[-1], last), good, bad) for run in (clean, corrupt)]
    return Setting(net, clean, corrupt, clean_ids, mask, last, good, bad, *metrics)


def name_of(part: Part) -> str:
    layer, head = part
    return "input" if part == INPUT else f"m{layer}" if head is None else f"a{layer}.h{head}"


def every_part(net: Net) -> list[Part]:
    """Every head and MLP in the order in which they act."""
    return [(i, h) for i, b in enumerate(net.blocks) for h in (*range(len(b.write)), None)]


def output_of(run: Run, part: Part) -> Tensor:
    layer, head = part
    return run.mlp[layer] if head is None else run.z[layer][:, :, head]


def gap_of(s: Setting) -> float:
    gap = (s.metric - s.corrupt_metric).mean().item()
    return gap if gap > 0 else float("nan")


def effect_of(s: Setting, part: Part, value: Tensor) -> float:
    patched = resume(s.net, s.clean, s.last, part, value)
    return (s.metric - metric_of(s.net, patched.x, s.good, s.bad)).mean().item()
