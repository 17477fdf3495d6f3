"""Tiny models that compute in float64 throughout, where transformers would drop to float32."""

import types

import torch
from tiny import build


def rms_forward(norm, x):
    """An RMSNorm that stays in float64; transformers' own drop to float32."""
    gain = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    return gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def precise(name, attn=None):
    """A tiny model in float64; one that runs eagerly also needs the fixture `wide_softmax`."""
    hf = build(name, torch.float64, attn)
    for module in hf.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(rms_forward, module)
    return hf
