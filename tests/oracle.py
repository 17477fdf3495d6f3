"""An independent oracle for the backward rules, from the formulas, on a copy of a transformers model.

It shares no code with the package. Every choice that the formulas leave open is stated here:

- The softmax row is the masked, scaled score after any softcap. The softcap keeps its own derivative,
  because the rule replaces the softmax alone. A sink is one more entry of the row, so it is tempered too.
  No additional 1/T.
- Every norm is frozen, those of queries, keys and of low-rank attention included; a LayerNorm's centring
  is differentiated.
- A gated product gives its scales to act(gate) and to up; for gpt-oss those factors are
  gate * sigmoid(alpha * gate) and up + 1. Clamps keep their derivative. Routing weights, the router's
  softmax and sigmoid gates over whole experts are no gated products: they keep the plain gradient.
- activation_identity treats act(x) as x * (act(x) / x) with the bracket constant, in gated and ungated
  MLPs alike; with a gated product it acts on act(gate).

Attention is computed eagerly, whatever the model uses. Arithmetic of the rules runs in float64 where the
model's own value is not needed. The softmax runs in float64 for a float64 model, even where the model's
eager code drops to float32, and in float32 otherwise.
"""

import copy
import re
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd import Function
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.moe import _default_apply_gate
from transformers.masking_utils import eager_mask

NAME = "gim_oracle"


class OracleRules(NamedTuple):
    """The settings; as they stand, the plain gradient."""

    temperature: float = 1.0
    freeze_norm: bool = False
    q_scale: float = 1.0
    k_scale: float = 1.0
    v_scale: float = 1.0
    gate_scale: float = 1.0
    up_scale: float = 1.0
    activation_identity: bool = False
    detach_attention: bool = False


PLAIN = OracleRules()
GIM = OracleRules(
    temperature=2.0, freeze_norm=True, q_scale=0.25, k_scale=0.25, v_scale=0.5, gate_scale=0.5, up_scale=0.5
)

# Of the models of tiny.py, those that compute in float64 throughout, with the attention implementations for
# which that holds. The others drop to float32 on the way: every RMSNorm of transformers does, so do Cohere's
# and Olmo's LayerNorm, most routers, and the eager softmax of all but GPT-2 and BioGPT. (Rotary tables are
# float32 constants everywhere: harmless.)
FP64_REAL = {
    "gpt2": ("sdpa", "eager"),
    "biogpt": ("sdpa", "eager"),
    **{
        name: ("sdpa",)
        for name in (
            "gpt_neox",
            "gpt_neox_serial",
            "stablelm",
            "stablelm_parallel",
            "starcoder2",
            "phi",
            "phimoe",
            "nemotron",
            "persimmon",
            "gpt_bigcode",
            "opt",
            "jais2",
            "gptj",
            "codegen",
        )
    },
}


class TemperatureSoftmax(Function):
    """s = softmax(a) forward; dL/da = s^ (g - sum s^ g) with s^ = softmax(a / T) backward."""

    @staticmethod
    def forward(ctx, a, temperature):
        ctx.save_for_backward(_softmax((a - a.max(-1, keepdim=True).values) / temperature))  # a may be finfo.min
        return _softmax(a)

    @staticmethod
    def backward(ctx, g):
        (s,) = ctx.saved_tensors
        return s * (g - (s * g).sum(-1, keepdim=True)), None


def _softmax(a):
    e = torch.exp(a - a.max(-1, keepdim=True).values)
    return e / e.sum(-1, keepdim=True)


class ScaleGradient(Function):
    """x forward, scale * g backward; scale 0 detaches."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.scale, None


class FrozenNorm(Function):
    """The given value forward; w g / denominator backward, with its mean taken off where the norm centres."""

    @staticmethod
    def forward(ctx, x, value, weight, denominator, centred):
        ctx.save_for_backward(weight, denominator)
        ctx.centred = centred
        return value.clone()

    @staticmethod
    def backward(ctx, g):
        weight, denominator = ctx.saved_tensors
        gradient = g.double() * weight / denominator
        if ctx.centred:
            gradient = gradient - gradient.mean(-1, keepdim=True)
        return gradient.to(g.dtype), None, None, None, None


class IdentityActivation(Function):
    """act(x) forward, g * act(x) / x backward (0 at x = 0)."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.save_for_backward(torch.where(x == 0, 0, value / x))
        return value.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None


# --- attention ---


def _attention(rules, calls):
    def attention(module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None,
                  position_bias=None, **kwargs):
        calls.append(module)
        query = ScaleGradient.apply(query, rules.q_scale)
        key = ScaleGradient.apply(key, rules.k_scale).repeat_interleave(query.shape[1] // key.shape[1], 1)
        value = ScaleGradient.apply(value, rules.v_scale).repeat_interleave(query.shape[1] // value.shape[1], 1)
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if attention_mask is not None:
            scores = scores + attention_mask[..., : key.shape[-2]]
        if position_bias is not None:
            scores = scores + position_bias
        if s_aux is not None:
            sink = s_aux.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sink], -1)
        wide = torch.promote_types(scores.dtype, torch.float32)
        pattern = TemperatureSoftmax.apply(scores.to(wide), rules.temperature).to(query.dtype)
        if rules.detach_attention:
            pattern = pattern.detach()
        pattern = pattern[..., : key.shape[-2]]
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    return attention


# --- norms ---

_NORM_CLASS = re.compile(r"(RMSNorm|LayerNorm|LayerNorm1P|L2Norm)$")
_ONE_PLUS_WEIGHT = ("Gemma", "Gemma2", "Gemma3", "VaultGemma")


def _norm_parts(norm, x):
    """(weight, bias, denominator, centred) in float64, by the norm's class."""
    name, x = type(norm).__name__, x.double()
    centred = "LayerNorm" in name
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-5))  # Olmo's LayerNorm writes 1e-5 in its code
    weight = getattr(norm, "weight", None)
    bias = getattr(norm, "bias", None)
    weight = torch.ones((), dtype=torch.float64) if weight is None else weight.detach().double()
    if name.endswith("LayerNorm1P") or name in {f"{p}RMSNorm" for p in _ONE_PLUS_WEIGHT}:
        weight = 1 + weight
    spread = x - x.mean(-1, keepdim=True) if centred else x
    bias = torch.zeros_like(weight) if bias is None else bias.detach().double()
    return weight, bias, (spread.pow(2).mean(-1, keepdim=True) + eps).sqrt(), centred


def _freeze(norm):
    original = norm.forward

    def forward(x):
        with torch.no_grad():
            value = original(x)
            weight, bias, denominator, centred = _norm_parts(norm, x)
            spread = x.double() - x.double().mean(-1, keepdim=True) if centred else x.double()
            formula = weight * spread / denominator + bias
        _assert_close(value, formula, f"the formula for {type(norm).__name__}")
        return FrozenNorm.apply(x, value, weight, denominator, centred)

    norm.forward = forward


def norms(model):
    """The norms of a model, in the order of its modules; raises on an unknown class named like a norm."""
    found = [m for m in model.modules() if _NORM_CLASS.search(type(m).__name__)]
    for module in model.modules():
        if "Norm" in type(module).__name__ and not any(m in found for m in module.modules()):
            raise NotImplementedError(f"the oracle does not know the norm {type(module).__name__}")
    return found


# --- gated products ---

_ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation_func")


def _activation(module):
    return next((getattr(module, name) for name in _ACTIVATIONS if callable(getattr(module, name, None))), None)


def _gated(activation, gate, up, rules):
    return ScaleGradient.apply(activation(gate), rules.gate_scale) * ScaleGradient.apply(up, rules.up_scale)


def _gate_mlp(mlp, rules):
    activation = _activation(mlp)

    def forward(x):
        if hasattr(mlp, "gate_up_proj"):
            gate, up = mlp.gate_up_proj(x).chunk(2, -1)
        else:
            gate, up = mlp.gate_proj(x), mlp.up_proj(x)
        return mlp.down_proj(_gated(activation, gate, up, rules))

    mlp.forward = forward


def _gate_experts(experts, rules):
    clamped = type(experts).__name__ == "GptOssExperts"
    if not clamped and getattr(type(experts), "_apply_gate", None) is not _default_apply_gate:
        raise NotImplementedError(f"the oracle does not know the experts {type(experts).__name__}")
    transposed = experts.is_transposed

    def swish(gate):
        value = gate * torch.sigmoid(experts.alpha * gate)
        return IdentityActivation.apply(gate, value.detach()) if rules.activation_identity else value

    def forward(x, index, weights):
        into, out = experts.gate_up_proj[index], experts.down_proj[index]  # [tokens, k, ., .]
        into, out = (into, out) if transposed else (into.transpose(-1, -2), out.transpose(-1, -2))
        hidden = torch.einsum("td,tkdi->tki", x, into)
        if experts.has_bias:
            hidden = hidden + experts.gate_up_proj_bias[index]
        if clamped:
            gate = hidden[..., 0::2].clamp(max=experts.limit)
            up = hidden[..., 1::2].clamp(-experts.limit, experts.limit)
            hidden = _gated(swish, gate, up + 1, rules)
        else:
            hidden = _gated(experts.act_fn, *hidden.chunk(2, -1), rules)
        y = torch.einsum("tki,tkid->tkd", hidden, out)
        if experts.has_bias:
            y = y + experts.down_proj_bias[index]
        return (y * weights[..., None]).sum(1).to(x.dtype)

    experts.forward = forward


class _IdentityActivationModule(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.activation = activation

    def forward(self, x):
        return IdentityActivation.apply(x, self.activation(x).detach())


def _is_experts(module):
    return isinstance(getattr(module, "gate_up_proj", None), nn.Parameter)


def gated_mlps(model):
    """The modules with a gated product act(gate) * up, dense ones and fused experts."""
    found = []
    for module in model.modules():
        children = dict(module.named_children())
        dense = "down_proj" in children and ({"gate_proj", "up_proj"} <= children.keys() or "gate_up_proj" in children)
        if dense or _is_experts(module):
            found.append(module)
    return found


# --- the oracle ---


@contextmanager
def _registered(attention):
    """The oracle's attention and mask, known to transformers under their own name within the block only."""
    AttentionInterface._global_mapping[NAME] = attention
    AttentionMaskInterface._global_mapping[NAME] = eager_mask
    try:
        yield
    finally:
        del AttentionInterface._global_mapping[NAME], AttentionMaskInterface._global_mapping[NAME]


def _prepare(model, rules):
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise NotImplementedError(f"{type(model).__name__} does not go through the attention interface")
    if rules.activation_identity:
        for module in list(model.modules()):
            for name in _ACTIVATIONS:
                if isinstance(getattr(module, name, None), nn.Module):
                    setattr(module, name, _IdentityActivationModule(getattr(module, name)))
    for module in gated_mlps(model):
        (_gate_experts if _is_experts(module) else _gate_mlp)(module, rules)
    if rules.freeze_norm:
        for norm in norms(model):
            _freeze(norm)


def _assert_close(a, b, what):
    difference = (a.double() - b.double()).abs().max().item()
    allowed = 1e-4 * max(1.0, b.double().abs().max().item())
    assert difference <= allowed, f"{what}: off by {difference:.3g}"


def run(model, input_ids, attention_mask=None, **inputs):
    """A plain forward run -> (output of the input embedding as a leaf [B, S, D], logits [B, S, V])."""
    leaves = []

    def as_leaf(module, args, output):
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1]

    given = {k: v for k, v in dict(inputs, attention_mask=attention_mask).items() if v is not None}
    hook = model.get_input_embeddings().register_forward_hook(as_leaf)
    try:
        with torch.enable_grad():
            logits = model(input_ids=input_ids, use_cache=False, **given).logits
    finally:
        hook.remove()
    (leaf,) = leaves
    return leaf, logits


def plain_gradient(model, input_ids, target_fn, attention_mask=None, **inputs):
    """Plain autograd on the model as it is -> (gradient at the embedding's output [B, S, D], logits)."""
    leaf, logits = run(model, input_ids, attention_mask, **inputs)
    (gradient,) = torch.autograd.grad(target_fn(logits), leaf)
    return gradient, logits.detach()


def oracle_gradient(hf_model, input_ids, target_fn, rules, attention_mask=None, **inputs):
    """The rules' gradient at the input embedding's output [B, S, D], and the logits [B, S, V].

    g, logits = oracle_gradient(build("llama"), ids, lambda logits: logits[:, -1, 5].sum(), GIM)

    target_fn maps logits [B, S, V] to one number. Works on a copy, so the model stays as it was, and checks
    that the copy's logits are the model's: for float32 and float64 only. For a bfloat16 model, ask about the
    same weights in float32 (`model.float()`).
    """
    rules = rules if isinstance(rules, OracleRules) else OracleRules(**rules)
    model = copy.deepcopy(hf_model)
    with torch.no_grad():
        reference = run(model, input_ids, attention_mask, **inputs)[1].detach()
    calls = []
    with _registered(_attention(rules, calls)):
        _prepare(model, rules)
        gradient, logits = plain_gradient(model, input_ids, target_fn, attention_mask, **inputs)
    assert calls, f"no attention of {type(hf_model).__name__} reached the oracle"
    real = slice(None) if attention_mask is None else attention_mask.bool()
    _assert_close(logits[real], reference[real], f"the oracle's logits for {type(hf_model).__name__}")
    return gradient, logits
