"""The oracle against things that know nothing of it: plain autograd, Jacobians in numpy, finite differences."""

import math

import numpy as np
import pytest
import torch
from oracle import (
    FP64_REAL,
    GIM,
    PLAIN,
    FrozenNorm,
    IdentityActivation,
    OracleRules,
    ScaleGradient,
    TemperatureSoftmax,
    _attention,
    _prepare,
    _registered,
    gated_mlps,
    norms,
    oracle_gradient,
    plain_gradient,
    run,
)
from tiny import GIM_NAMES, LAYERS, REFUSED_NAMES, TRIED_NAMES, VOCAB, build, implementations, token_ids
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

torch.set_num_threads(1)
F64 = torch.float64
EVERY = [(name, attn) for name in GIM_NAMES for attn in implementations(name)]
ONE_RULE = {
    "temperature": OracleRules(temperature=2.0),
    "freeze_norm": OracleRules(freeze_norm=True),
    "q_scale": OracleRules(q_scale=0.25),
    "k_scale": OracleRules(k_scale=0.25),
    "v_scale": OracleRules(v_scale=0.5),
    "gate_scale": OracleRules(gate_scale=0.5),
    "up_scale": OracleRules(up_scale=0.5),
    "activation_identity": OracleRules(activation_identity=True),
    "detach_attention": OracleRules(detach_attention=True),
}


def target(logits):
    weights = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    return (logits[:, -1] * weights.to(logits)).sum()


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


# --- each operation against its Jacobian, written out in numpy ---


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_softmax_jacobian(temperature):
    a, g = np.array([0.3, -1.2, 2.0, 0.7, -np.inf]), np.array([0.5, -1.0, 2.0, 0.1, 3.0])
    s = np.exp(a / temperature) / np.exp(a / temperature).sum()
    jacobian = np.diag(s) - np.outer(s, s)  # no 1 / temperature
    x = torch.tensor(a, requires_grad=True)
    y = TemperatureSoftmax.apply(x, temperature)
    y.backward(torch.tensor(g))
    np.testing.assert_allclose(y.detach().numpy(), np.exp(a) / np.exp(a).sum(), atol=1e-15)
    np.testing.assert_allclose(x.grad.numpy(), jacobian @ g, atol=1e-15)
    assert x.grad[-1] == 0


@pytest.mark.parametrize("centred", [True, False])
def test_norm_jacobian(centred):
    x, w, g = (
        np.array([1.0, -2.0, 0.5, 3.0]),
        np.array([0.5, 2.0, -1.0, 1.5]),
        np.array([1.0, 0.2, -0.7, 0.4]),
    )
    projection = np.eye(4) - centred * np.ones((4, 4)) / 4
    denominator = math.sqrt(((projection @ x) ** 2).mean() + 1e-5)
    jacobian = np.diag(w) @ projection / denominator
    leaf = torch.tensor(x, requires_grad=True)
    value = torch.tensor(jacobian @ x)
    FrozenNorm.apply(leaf, value, torch.tensor(w), torch.tensor([denominator]), centred).backward(torch.tensor(g))
    np.testing.assert_allclose(leaf.grad.numpy(), jacobian.T @ g, atol=1e-14)


def test_product_and_activation_jacobians():
    a, b = (torch.tensor(v, requires_grad=True) for v in (3.0, 5.0))
    (ScaleGradient.apply(a, 0.5) * ScaleGradient.apply(b, 0.25)).backward()
    assert (a.grad, b.grad) == (2.5, 0.75)
    x = torch.tensor([1.0, -2.0, 0.0], requires_grad=True)
    IdentityActivation.apply(x, torch.nn.functional.silu(x).detach()).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2)), 0], rtol=1e-6)


# --- rules off: plain autograd, on every architecture; the model comes back as it was ---


@pytest.mark.parametrize("name,attn", EVERY)
def test_rules_off_is_plain_autograd(name, attn):
    ids = token_ids()
    for dtype in (torch.float32, F64):
        model = build(name, dtype, attn)
        expected, logits = plain_gradient(model, ids, target)
        gradient, oracle_logits = oracle_gradient(model, ids, target, PLAIN)
        real = dtype is F64 and attn in FP64_REAL.get(name, ())
        assert relative(gradient, expected) < (1e-12 if real else 1e-5)
        assert relative(oracle_logits, logits) < (1e-12 if real else 1e-5)
        assert gradient.dtype == dtype


def test_nothing_is_left_behind():
    model, ids = build("mixtral"), token_ids()
    before, keys = model(ids).logits, set(AttentionInterface._global_mapping)
    oracle_gradient(model, ids, target, GIM)
    assert torch.equal(model(ids).logits, before)
    assert set(AttentionInterface._global_mapping) == keys
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(m) for m in model.modules())


# --- every rule acts, on every architecture ---

PLACES = {  # name -> (gated products, norms); (LAYERS, 2 * LAYERS + 1) where not listed
    **dict.fromkeys(("gpt2", "gpt_neox", "gpt_neox_serial"), (0, 2 * LAYERS + 1)),
    **dict.fromkeys(("qwen3", "qwen3_moe", "olmo2", "gemma2"), (LAYERS, 4 * LAYERS + 1)),
    "gemma3": (LAYERS, 6 * LAYERS + 1),
}


@pytest.mark.parametrize("name", GIM_NAMES)
def test_every_rule_changes_the_gradient(name):
    model, ids = build(name), token_ids()
    gated, normed = PLACES.get(name, (LAYERS, 2 * LAYERS + 1))
    assert (len(gated_mlps(model)), len(norms(model))) == (gated, normed)
    plain, logits = oracle_gradient(model, ids, target, PLAIN)
    for rule, rules in ONE_RULE.items():
        gradient, same_logits = oracle_gradient(model, ids, target, rules)
        assert relative(same_logits, logits) < 1e-5
        if gated or rule not in ("gate_scale", "up_scale"):
            assert relative(gradient, plain) > 0.01, rule
        else:
            assert torch.equal(gradient, plain)


@pytest.mark.parametrize("name", TRIED_NAMES)
def test_gim_on_further_architectures(name):
    model, ids = build(name), token_ids()
    gradient, _ = oracle_gradient(model, ids, target, GIM)
    assert gradient.isfinite().all()
    assert relative(gradient, plain_gradient(model, ids, target)[0]) > 0.1


@pytest.mark.parametrize("name", [n for n in REFUSED_NAMES if n not in ("mamba", "t5")])
def test_no_silent_oracle_without_attention_interface(name):
    with pytest.raises((NotImplementedError, AssertionError, KeyError)):
        oracle_gradient(build(name), token_ids(), target, PLAIN)


# --- which models really compute in float64 ---


class _Float32Results(TorchFunctionMode):
    seen = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.seen |= any(t.dtype is torch.float32 and t.requires_grad for t in tensors)
        return result


@pytest.mark.parametrize("name", GIM_NAMES + TRIED_NAMES)
def test_table_of_true_float64(name):
    real = []
    for attn in implementations(name):
        model = build(name, F64, attn)
        with _Float32Results() as watch:
            run(model, token_ids())
        real += [] if watch.seen else [attn]
    assert tuple(real) == FP64_REAL.get(name, ())


# --- padding ---


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gpt_oss"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_is_single_prompts(name, side):
    model, lengths = build(name), (10, 7)  # in float64, transformers' eager attention is NaN at left pads
    prompts = [token_ids(1, n, seed=n)[0] for n in lengths]
    ids, mask = torch.zeros(2, 10, dtype=torch.long), torch.zeros(2, 10, dtype=torch.long)
    spans = [slice(10 - n, 10) if side == "left" else slice(0, n) for n in lengths]
    for row, span in enumerate(spans):
        ids[row, span], mask[row, span] = prompts[row], 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    last = torch.tensor([span.stop - 1 for span in spans])
    batch, _ = oracle_gradient(model, ids, lambda x: x[[0, 1], last, 5].sum(), GIM, mask, position_ids=positions)
    assert (batch[mask == 0] == 0).all()
    for row, span in enumerate(spans):
        single, _ = oracle_gradient(model, prompts[row][None], lambda x: x[0, -1, 5], GIM)
        assert relative(batch[row, span], single[0]) < 1e-5


# --- finite differences ---


def directional(f, x, n=6, h=1e-5):
    """Central differences of f at x along n random directions -> (directions, derivatives)."""
    random = np.random.default_rng(0)
    directions = [d / np.linalg.norm(d) for d in random.normal(size=(n, *x.shape))]
    return directions, np.array([(f(x + h * d) - f(x - h * d)) / (2 * h) for d in directions])


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "starcoder2", "stablelm"])
def test_plain_gradient_by_finite_differences(name):
    model, ids = build(name, F64, "sdpa"), token_ids(1)
    gradient, _ = oracle_gradient(model, ids, target, PLAIN)
    base = run(model, ids)[0].detach()

    def f(x):
        with torch.no_grad():
            return target(model(inputs_embeds=torch.from_numpy(x), use_cache=False).logits).item()

    directions, derivatives = directional(f, base.numpy())
    np.testing.assert_allclose([(gradient.numpy() * d).sum() for d in directions], derivatives, rtol=1e-5, atol=1e-6)


class Tape:
    """Values of a first run, given back in order in later runs: what a rule holds constant."""

    def __init__(self):
        self.values, self.recording, self.place = [], True, 0

    def __call__(self, value):
        if self.recording:
            self.values.append(value)
            return value
        self.place = (self.place + 1) % len(self.values)
        return self.values[self.place - 1]

    def scale(self, x, factor):
        """x at the base point; its distance from there counts `factor` times."""
        base = self(x)
        return base + factor * (x - base)


def _np_softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _np_attention(tape, rules, q, k, v):
    """A function with the model's value and the rules' derivative; q, k, v [heads, S, d]."""
    q, k, v = tape.scale(q, rules.q_scale), tape.scale(k, rules.k_scale), tape.scale(v, rules.v_scale)
    a = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    a = np.where(np.tri(a.shape[-1], dtype=bool), a, -np.inf)
    base, tempered = tape(_np_softmax(a)), _np_softmax(a / rules.temperature)
    # T * softmax(a / T) has the derivative s^ (delta - s^) without 1/T
    pattern = base + rules.temperature * (tempered - tape(tempered))
    return (tape(pattern) if rules.detach_attention else pattern) @ v


def _np_norm(tape, rules, x, weight, bias, eps, centred):
    spread = x - x.mean(-1, keepdims=True) if centred else x
    denominator = np.sqrt((spread**2).mean(-1, keepdims=True) + eps)
    if rules.freeze_norm:
        denominator = tape(denominator)
    return weight * spread / denominator + bias


def _np_activation(tape, rules, act, x):
    return x * tape(act(x) / x) if rules.activation_identity else act(x)


def _np_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _np_silu(x):
    return x / (1 + np.exp(-x))


def _heads(x, n):
    return x.reshape(len(x), n, -1).transpose(1, 0, 2)


def numpy_gpt2(w, x, tape, rules):
    """Logits [S, V] of GPT-2 written out in numpy, from the output of the token embedding x [S, D]."""

    def norm(x, name):
        return _np_norm(tape, rules, x, w[f"{name}.weight"], w[f"{name}.bias"], 1e-5, centred=True)

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = x + w["transformer.wpe.weight"][: len(x)]
    for i in range(LAYERS):
        b = f"transformer.h.{i}"
        q, k, v = (_heads(part, 4) for part in np.split(linear(norm(x, f"{b}.ln_1"), f"{b}.attn.c_attn"), 3, -1))
        z = _np_attention(tape, rules, q, k, v).transpose(1, 0, 2).reshape(len(x), -1)
        x = x + linear(z, f"{b}.attn.c_proj")
        h = linear(norm(x, f"{b}.ln_2"), f"{b}.mlp.c_fc")
        x = x + linear(_np_activation(tape, rules, _np_gelu, h), f"{b}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["transformer.wte.weight"].T


def numpy_llama(w, x, tape, rules):
    """Logits [S, V] of Llama, or of Qwen3 (norms of q and k), in numpy, from the token embedding's output x [S, D]."""
    d = 8
    angle = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(np.tile(angle, 2)), np.sin(np.tile(angle, 2))

    def norm(x, name):
        return _np_norm(tape, rules, x, w[f"{name}.weight"], 0, 1e-6, centred=False)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T

    def rotate(x):
        return x * cos + np.concatenate([-x[..., d // 2 :], x[..., : d // 2]], -1) * sin

    for i in range(LAYERS):
        b = f"model.layers.{i}"
        h = norm(x, f"{b}.input_layernorm")
        q, k, v = (_heads(linear(h, f"{b}.self_attn.{p}_proj"), n) for p, n in (("q", 4), ("k", 2), ("v", 2)))
        if f"{b}.self_attn.q_norm.weight" in w:
            q, k = norm(q, f"{b}.self_attn.q_norm"), norm(k, f"{b}.self_attn.k_norm")
        k, v = np.repeat(rotate(k), 2, 0), np.repeat(v, 2, 0)
        z = _np_attention(tape, rules, rotate(q), k, v).transpose(1, 0, 2).reshape(len(x), -1)
        x = x + linear(z, f"{b}.self_attn.o_proj")
        h = norm(x, f"{b}.post_attention_layernorm")
        gate, up = linear(h, f"{b}.mlp.gate_proj"), linear(h, f"{b}.mlp.up_proj")
        act = _np_activation(tape, rules, _np_silu, gate)
        gated = tape.scale(act, rules.gate_scale) * tape.scale(up, rules.up_scale)
        x = x + linear(gated, f"{b}.mlp.down_proj")
    return norm(x, "model.norm") @ w["lm_head.weight"].T


@pytest.mark.parametrize("rule", ["plain", *ONE_RULE, "gim"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_rules_by_finite_differences_of_a_model_written_out(name, rule):
    """Each rule is the true derivative of a function that equals the model at the base point."""
    rules = {"plain": PLAIN, "gim": GIM, **ONE_RULE}[rule]
    _check_written_out(name, rules, rules)


def test_finite_differences_tell_rules_apart():
    for rules in (PLAIN, GIM._replace(temperature=1.0), GIM._replace(k_scale=0.5), GIM._replace(freeze_norm=False)):
        with pytest.raises(AssertionError, match="finite differences"):
            _check_written_out("gpt2", GIM, rules)


def _check_written_out(name, rules, numpy_rules):
    model, ids = build(name, F64, "eager"), token_ids(1)
    gradient, logits = oracle_gradient(model, ids, target, rules)
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    forward, tape = numpy_gpt2 if name == "gpt2" else numpy_llama, Tape()
    base = run(model, ids)[0].detach().numpy()[0]
    tolerance = 1e-10 if name == "gpt2" else 1e-5  # Llama's norms run in float32
    np.testing.assert_allclose(
        forward(weights, base, tape, numpy_rules), logits[0].numpy(), rtol=tolerance, atol=tolerance
    )
    tape.recording = False

    def f(x):
        return target(torch.from_numpy(forward(weights, x, tape, numpy_rules))[None]).item()

    directions, derivatives = directional(f, base)
    explicit = np.array([(gradient[0].numpy() * d).sum() for d in directions])
    error = np.abs(explicit - derivatives).max() / np.abs(derivatives).max()
    assert error < (1e-7 if name == "gpt2" else 1e-5), f"finite differences disagree by {error:.2g}"


# --- what only some models have, on its own ---


def test_attention_with_softcap_sinks_and_shared_heads():
    random = np.random.default_rng(2)
    shape, split, cap = (8, 5, 4), [4, 6], 1.5  # 4 query heads, 2 key heads, 2 value heads; 5 positions, 4 dimensions
    x, sinks, out_weights = random.normal(size=shape), random.normal(size=(4, 1, 1)), random.normal(size=(5, 4, 4))
    allowed = np.tri(5, dtype=bool) & ~np.tri(5, k=-3, dtype=bool)
    mask = torch.zeros(1, 1, 5, 5, dtype=F64).masked_fill(~torch.from_numpy(allowed), torch.finfo(F64).min)

    def f(x, tape):
        q, k, v = (np.repeat(part, 4 // len(part), 0) for part in np.split(x, split))
        q, k, v = tape.scale(q, 0.25), tape.scale(k, 0.25), tape.scale(v, 0.5)
        a = np.where(allowed, cap * np.tanh(q @ k.transpose(0, 2, 1) * 0.7 / cap), -np.inf)
        a = np.concatenate([a, np.broadcast_to(sinks, (4, 5, 1))], -1)
        pattern = tape(_np_softmax(a)) + 2 * (_np_softmax(a / 2) - tape(_np_softmax(a / 2)))
        return ((pattern[..., :-1] @ v).transpose(1, 0, 2) * out_weights).sum()

    leaf, tape = torch.tensor(x, requires_grad=True), Tape()
    q, k, v = (part[None] for part in leaf.tensor_split(split))
    out, _ = _attention(GIM, [])(None, q, k, v, mask, 0.7, softcap=cap, s_aux=torch.from_numpy(sinks.ravel()))
    value = (out[0] * torch.from_numpy(out_weights)).sum()
    assert abs(value.item() - f(x, tape)) < 1e-12
    value.backward()
    tape.recording = False
    directions, derivatives = directional(lambda x: f(x, tape), x)
    np.testing.assert_allclose([(leaf.grad.numpy() * d).sum() for d in directions], derivatives, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["gpt_oss", "mixtral"])
@pytest.mark.parametrize("identity", [False, True])
def test_experts(name, identity):
    rules = OracleRules(gate_scale=0.5, up_scale=0.3, activation_identity=identity)
    model = build(name, F64)
    experts = next(m for m in model.modules() if hasattr(m, "gate_up_proj"))
    random, tokens = np.random.default_rng(3), 3
    x, out_weights = random.normal(size=(tokens, 32)), random.normal(size=(tokens, 32))
    index, weights = np.array([[0, 2], [3, 1], [2, 1]]), random.uniform(size=(tokens, 2))
    w = {k: v.numpy() for k, v in experts.state_dict().items()}

    def product(h, tape):
        if name == "mixtral":
            gate, up = np.split(h, 2)
            act = _np_activation(tape, rules, _np_silu, gate)
        else:
            gate, up = np.minimum(h[0::2], experts.limit), np.clip(h[1::2], -experts.limit, experts.limit) + 1
            act = _np_activation(tape, rules, lambda g: g / (1 + np.exp(-experts.alpha * g)), gate)
        return tape.scale(act, rules.gate_scale) * tape.scale(up, rules.up_scale)

    def f(x, tape):
        y = np.zeros((tokens, 32))
        for t in range(tokens):
            for e, weight in zip(index[t], weights[t], strict=True):
                if name == "mixtral":
                    y[t] += weight * w["down_proj"][e] @ product(w["gate_up_proj"][e] @ x[t], tape)
                else:
                    h = x[t] @ w["gate_up_proj"][e] + w["gate_up_proj_bias"][e]
                    y[t] += weight * (product(h, tape) @ w["down_proj"][e] + w["down_proj_bias"][e])
        return (y * out_weights).sum()

    given = torch.from_numpy(index), torch.from_numpy(weights)
    own = (experts(torch.from_numpy(x), *given) * torch.from_numpy(out_weights)).sum()
    with _registered(_attention(rules, [])):
        _prepare(model, rules)
    leaf, tape = torch.tensor(x, requires_grad=True), Tape()
    value = (experts(leaf, *given) * torch.from_numpy(out_weights)).sum()
    value.backward()
    np.testing.assert_allclose([own.item(), value.item()], f(x, tape), rtol=1e-12)
    tape.recording = False
    directions, derivatives = directional(lambda x: f(x, tape), x)
    np.testing.assert_allclose([(leaf.grad.numpy() * d).sum() for d in directions], derivatives, rtol=1e-6, atol=1e-7)
