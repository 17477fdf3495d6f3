"""Attention spelled out: softmax rows by hand, with any head's queries, keys or values replaced, its pattern moved.

It runs in place of the model's own attention on a copy of a transformers model: one prompt, no padding.
"""

import copy
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "literal_heads"


class Heads:
    """What `model`'s attention sees and returns, layer by layer, on the runs within `literal`.

    seen: per layer (q, k, v, pattern, output), keys and values repeated for each query head.
    replaced: {(layer, head, "q", "k" or "v"): [seq, head_dim]}. moved: {layer: what is added to the pattern}.
    """

    def __init__(self, model):
        self.model, self.replaced, self.moved, self.seen, self.rows = model, {}, {}, [], []

    def pattern(self, layer, q, k):
        """The softmax rows of queries and keys [heads, seq, head_dim] in a layer of the latest run."""
        mask, scaling, softcap, sinks = self.rows[layer]
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(mask, -torch.inf)
        top = scores.max(-1, keepdim=True).values if sinks is None else scores.max()
        weights = torch.exp(scores - top)
        total = weights.sum(-1, keepdim=True)
        return weights / (total if sinks is None else total + torch.exp(sinks.view(-1, 1, 1) - top))

    def attention(self, module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **rest):
        layer, (q, k, v) = len(self.seen), (x[0] for x in (query, key, value))
        k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
        q, k, v = q.clone(), k.clone(), v.clone()
        for (where, head, which), new in self.replaced.items():
            if where == layer:
                {"q": q, "k": k, "v": v}[which][head] = new
        seq = q.shape[1]
        mask = torch.ones(seq, seq).triu(1).bool() if attention_mask is None else attention_mask[0, 0] < 0
        self.rows.append((mask, scaling, softcap, s_aux))
        pattern = self.pattern(layer, q, k)
        if layer in self.moved:
            pattern = pattern + self.moved[layer]
        out = pattern @ v
        self.seen.append((q, k, v, pattern, out))
        return out.transpose(0, 1)[None].contiguous(), None

    def run(self, ids, replaced=None, moved=None):
        """The logits [seq, vocab] of one run."""
        self.seen, self.rows, self.replaced, self.moved = [], [], replaced or {}, moved or {}
        return self.model(ids, use_cache=False).logits[0]


@contextmanager
def literal(hf):
    """The model's `Heads`, on a copy."""
    heads = Heads(copy.deepcopy(hf))
    AttentionInterface._global_mapping[NAME] = heads.attention
    AttentionMaskInterface._global_mapping[NAME] = eager_mask
    try:
        heads.model.set_attn_implementation(NAME)
        yield heads
    finally:
        del AttentionInterface._global_mapping[NAME], AttentionMaskInterface._global_mapping[NAME]
