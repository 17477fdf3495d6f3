"""gimkit's rules against the oracle, on every architecture, and what apply promises around them."""

import itertools

import pytest
import torch
from nnsight import NNsight
from oracle import FP64_REAL, OracleRules, oracle_gradient
from tiny import GIM_NAMES, LAYERS, REFUSED_NAMES, TRIED_NAMES, VOCAB, build, implementations, token_ids

import gimkit
from gimkit.interventions import backward_rules
from gimkit.model.architecture import architecture_of

torch.set_num_threads(1)
TWICE = ("diffllama", "nanochat")  # refused: attention_interface, and the final norm, are called twice
WORKS = [name for name in GIM_NAMES + TRIED_NAMES if name not in TWICE]
EVERY = [(name, attn) for name in WORKS for attn in implementations(name)]
PARTS = {
    "norm": dict(freeze_norm=True),
    "temperature": dict(temperature=2.0),
    "qkv": dict(q=0.25, k=0.25, v=0.5),
    "product": dict(gate=0.5, up=0.5),
}
SUBSETS = [subset for size in range(5) for subset in itertools.combinations(PARTS, size)]


def target(logits):
    weights = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    return (logits[:, -1] * weights.to(logits)).sum()


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def gradient(model, ids, aim=target, **inputs):
    """The gradient at the embedding's output [rows, seq, width] and the logits, through an nnsight trace."""
    embedding = architecture_of(model).embedding
    with model.trace(input_ids=ids, use_cache=False, **inputs):
        leaf = model.get(embedding).output.detach().requires_grad_(True)
        model.get(embedding).output = leaf
        logits = model.output.logits
        found = torch.autograd.grad(aim(logits), leaf)[0].save()
        logits = logits.detach().save()
    return found, logits


def for_oracle(rules):
    """The same settings in the oracle's words."""
    return OracleRules(rules.temperature, rules.freeze_norm, rules.q, rules.k, rules.v, rules.gate, rules.up,
                       rules.identity_activation, rules.detach_attention)


def check(name, rules, dtype=torch.float32, attn=None, tolerance=1e-5):
    hf, ids = build(name, dtype, attn), token_ids()
    model = NNsight(hf)
    want, _ = oracle_gradient(hf, ids, target, for_oracle(rules))
    got, logits = gradient(gimkit.apply(model, rules), ids)
    _, plain_logits = gradient(model, ids)
    assert torch.equal(logits, plain_logits)
    assert relative(got, want) < tolerance
    return got


def by_a_second_run(monkeypatch):
    """From here on no kernel is known, so that each runs twice."""
    monkeypatch.setattr(backward_rules, "blocked_attention", lambda *arguments: None)


@pytest.fixture(params=["blocks", "second run"])
def either_way(request, monkeypatch):
    if request.param == "second run":
        by_a_second_run(monkeypatch)


def check_both_ways(name, dtype, attn, to_oracle, to_each_other, monkeypatch):
    """GIM by blocks, which every kernel here must be taken for, and by a second run of the kernel."""
    blocked_attention, by_blocks = backward_rules.blocked_attention, []

    def watched(*arguments):
        by_blocks.append(blocked_attention(*arguments))
        return by_blocks[-1]

    monkeypatch.setattr(backward_rules, "blocked_attention", watched)
    got = check(name, gimkit.RULES["gim"], dtype, attn, to_oracle)
    assert len(by_blocks) == LAYERS and all(output is not None for output in by_blocks)
    by_a_second_run(monkeypatch)
    assert relative(got, check(name, gimkit.RULES["gim"], dtype, attn, to_oracle)) < to_each_other


@pytest.mark.parametrize(("name", "attn"), EVERY)
def test_gim_on_every_architecture(name, attn, monkeypatch):
    check_both_ways(name, torch.float32, attn, 1e-5, 1e-6, monkeypatch)


@pytest.mark.parametrize(("name", "attn"), [(n, a) for n in FP64_REAL if n in WORKS for a in FP64_REAL[n]])
def test_gim_in_float64(name, attn, monkeypatch):
    check_both_ways(name, torch.float64, attn, 1e-10, 1e-12, monkeypatch)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
@pytest.mark.parametrize(("name", "attn"), [(n, a) for n in ("gpt2", "llama") for a in implementations(n)])
def test_every_subset_of_the_rules(name, attn, subset):
    check(name, gimkit.Rules(**{k: v for part in subset for k, v in PARTS[part].items()}), attn=attn)


@pytest.mark.parametrize("preset", gimkit.RULES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_presets(name, preset):
    check(name, gimkit.RULES[preset])


def test_the_two_branches_of_a_product_can_differ():
    check("llama", gimkit.Rules(gate=0.3, up=0.7))
    with pytest.raises(gimkit.GimkitError, match="fused"):
        gimkit.apply(NNsight(build("phi3")), gimkit.Rules(gate=0.3, up=0.7))


@pytest.mark.parametrize("name", GIM_NAMES)
def test_no_rule_is_a_no_op(name):
    """The control: leave one rule out of GIM, and the gradient differs from the oracle's whole GIM."""
    hf, ids = build(name), token_ids()
    whole, _ = oracle_gradient(hf, ids, target, for_oracle(gimkit.RULES["gim"]))
    gated = any(block.products for block in architecture_of(NNsight(hf)).blocks)
    for part, settings in PARTS.items():
        off = gimkit.RULES["gim"]._replace(**{key: gimkit.Rules._field_defaults[key] for key in settings})
        got, _ = gradient(gimkit.apply(NNsight(hf), off), ids)
        if part == "product" and not gated:
            assert relative(got, whole) < 1e-5
        else:
            assert relative(got, whole) > 1e-3, part


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mistral", "gpt_neox", "gpt_oss"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name, side, either_way):
    model = gimkit.apply(NNsight(build(name)))
    prompts = [token_ids(1, length, seed=length)[0] for length in (5, 8, 10)]
    longest = max(map(len, prompts))
    ids, mask, positions = (torch.zeros(3, longest, dtype=torch.long) for _ in range(3))
    places = []
    for row, prompt in enumerate(prompts):
        where = slice(longest - len(prompt), longest) if side == "left" else slice(0, len(prompt))
        ids[row, where], mask[row, where], positions[row, where] = prompt, 1, torch.arange(len(prompt))
        places.append(where)
    last = [place.stop - 1 for place in places]
    batched, _ = gradient(model, ids, lambda logits: logits[range(3), last, 5].sum(),
                          attention_mask=mask, position_ids=positions)
    for row, prompt in enumerate(prompts):
        single, _ = gradient(model, prompt[None], lambda logits: logits[0, -1, 5])
        assert relative(batched[row, places[row]], single[0]) < 1e-5
        outside = torch.ones(longest, dtype=torch.bool)
        outside[places[row]] = False
        assert not batched[row, outside].any()


@pytest.mark.parametrize("temperature", [0.5, 0.01, 1e-8])
@pytest.mark.parametrize(("name", "attn"), [("gpt2", "eager"), ("llama", "eager"), ("llama", "sdpa"),
                                            ("gemma2", "eager"), ("gpt_oss", "eager")])
def test_low_temperatures_with_left_padding(name, attn, temperature, either_way):
    """A float mask divided by a temperature below 1 leaves float32's range, and a padded row holds nothing else."""
    hf, ids, rules = build(name, attn=attn), token_ids(2, 8), gimkit.RULES["gim"]._replace(temperature=temperature)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    inputs = dict(attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    want, _ = oracle_gradient(hf, ids, target, for_oracle(rules), **inputs)
    got, logits = gradient(gimkit.apply(NNsight(hf), rules), ids, **inputs)
    assert torch.equal(logits, gradient(NNsight(hf), ids, **inputs)[1])
    assert relative(got, want) < 1e-5


def test_a_temperature_whose_scores_leave_the_range_is_refused_by_a_second_run(monkeypatch):
    """Blocks take the largest score off first."""
    check("gpt2", gimkit.Rules(temperature=1e-38), attn="eager")
    by_a_second_run(monkeypatch)
    model = gimkit.apply(NNsight(build("gpt2", attn="eager")), gimkit.Rules(temperature=1e-38))
    with pytest.raises(gimkit.GimkitError, match="temperature 1e-38 leave the range of torch.float32"):
        gradient(model, token_ids())


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_position_biases_are_tempered(name):
    """Sdpa adds to its scores the position_bias that a model, or here the caller, hands down to it."""
    hf, ids = build(name, attn="sdpa"), token_ids()
    bias = 2 * torch.randn(1, 4, 10, 10, generator=torch.Generator().manual_seed(0))
    want, _ = oracle_gradient(hf, ids, target, for_oracle(gimkit.RULES["gim"]), position_bias=bias)
    got, logits = gradient(gimkit.apply(NNsight(hf)), ids, position_bias=bias)
    assert torch.equal(logits, gradient(NNsight(hf), ids, position_bias=bias)[1])
    assert relative(got, want) < 1e-5
    assert relative(gradient(NNsight(hf), ids)[1], logits) > 0.1  # the bias matters


@pytest.mark.parametrize(("name", "first"), [("gpt2", "transformer.h.1.mlp.c_fc"),
                                             ("llama", "model.layers.1.mlp.gate_proj")])
def test_a_dead_unit_has_slope_zero_under_the_identity_rule(name, first):
    """act(x) / x is 0 / 0 there."""
    hf, ids, rules = build(name), token_ids(), gimkit.RULES["attnlrp"]
    with torch.no_grad():
        layer = hf.get_submodule(first)
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias[:20] = 0
    want, _ = oracle_gradient(hf, ids, target, for_oracle(rules))
    got, logits = gradient(gimkit.apply(NNsight(hf), rules), ids)
    assert torch.equal(logits, gradient(NNsight(hf), ids)[1])
    assert torch.isfinite(got).all() and relative(got, want) < 1e-5


@pytest.mark.parametrize("name", GIM_NAMES)
def test_bfloat16_stays_close(name):
    """GIM in bfloat16 against the oracle on the same rounded weights in float32.

    The weights are gentler than elsewhere: on steep ones bfloat16 itself moves plain autograd by up to 17%.
    """
    half, ids = build(name, torch.bfloat16, gain=0.5), token_ids()
    rules = for_oracle(gimkit.RULES["gim"])
    want, _ = oracle_gradient(build(name, gain=0.5).to(torch.bfloat16).float(), ids, target, rules)
    got, _ = gradient(gimkit.apply(NNsight(half)), ids)
    assert torch.isfinite(got).all()
    assert relative(got.float(), want) < 0.03


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_refused_by_name(name):
    with pytest.raises(gimkit.GimkitError, match="use a decoder-only model"):
        gimkit.apply(NNsight(build(name)))


@pytest.mark.parametrize("name", TWICE)
def test_what_is_called_twice_is_refused(name):
    with pytest.raises(gimkit.GimkitError, match="more than once"):
        gimkit.apply(NNsight(build(name)))


@pytest.mark.parametrize("name", WORKS)
def test_every_edited_module_runs_once(name):
    """What the static check cannot see: in a real forward pass each module that a rule acts on is called once."""
    hf = build(name)
    counts = {}
    for paths in gimkit.receipt(gimkit.apply(NNsight(hf))).places.values():
        for path in paths:
            hf.get_submodule(path).register_forward_pre_hook(
                lambda *_, path=path: counts.__setitem__(path, counts[path] + 1))
            counts[path] = 0
    hf(token_ids(), use_cache=False)
    assert set(counts.values()) == {1}
