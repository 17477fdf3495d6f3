"""Token scores in forward mode against the backward pass and the oracle; the guards; how the mode is chosen."""

import pytest
import torch
from in_float64 import precise
from made_up import random_task
from nnsight import NNsight
from oracle import oracle_gradient
from test_rules import PARTS, SUBSETS, for_oracle, relative
from tiny import build, token_ids

import gimkit
from gimkit.jvp import scores
from gimkit.remote import capabilities, trace

torch.set_num_threads(1)
NAMES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_neox", "gpt_neox_serial", "phi3",
         "olmo2")
NEUTRAL = 4


def both(model, method, ids=None, **options):
    """Token scores in forward and in reverse mode."""
    ids = token_ids(1, 9)[0] if ids is None else ids
    given = dict(target=(5, 7), baseline=NEUTRAL, method=method, steps=3) | options
    return [gimkit.attribute(model, ids, backend=backend, **given) for backend in ("forward", "reverse")]


@pytest.mark.parametrize("method", ["gim", "gradient", "attnlrp", "relp", "transformer-lrp", "ig"])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_the_backward_pass(name, method, wide_softmax):
    forward, reverse = both(NNsight(precise(name)), method)
    assert forward.scores.dtype == torch.float64 and relative(forward.scores, reverse.scores) < 1e-12


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_subset_of_the_rules(name, subset):
    rules = gimkit.Rules(**{k: v for part in subset for k, v in PARTS[part].items()})
    forward, reverse = both(NNsight(precise(name)), rules)
    assert relative(forward.scores, reverse.scores) < 1e-12


def test_every_number_of_the_rules():
    """The control: rules with a value of their own at each place, then each one moved."""
    model = NNsight(precise("llama"))
    rules = gimkit.Rules(temperature=1.7, freeze_norm=True, q=0.3, k=0.4, v=0.6, gate=0.7, up=0.8)
    forward, reverse = both(model, rules)
    assert relative(forward.scores, reverse.scores) < 1e-12
    for name in ("temperature", "q", "k", "v", "gate", "up"):
        moved, _ = both(model, rules._replace(**{name: 0.5}))
        assert relative(moved.scores, forward.scores) > 1e-3, name


@pytest.mark.parametrize("method", ["gim", "gradient", "attnlrp"])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_against_the_oracle(name, method):
    hf, ids = build(name), token_ids(1, 9)
    got = gimkit.attribute(NNsight(hf), ids[0], 5, method=method, baseline=NEUTRAL, backend="forward").scores
    gradient, _ = oracle_gradient(hf, ids, lambda logits: logits[0, -1, 5], for_oracle(gimkit.RULES[method]))
    embed = hf.get_input_embeddings()
    want = ((embed(ids) - embed(torch.tensor([[NEUTRAL]]))) * gradient).sum(-1)[0]
    assert relative(got, want) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_eager_attention(name):
    forward, reverse = both(NNsight(build(name, attn="eager")), "gim")
    assert relative(forward.scores, reverse.scores) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_half_precision(name):
    """bfloat16 forward mode against the float32 backward pass on the same rounded weights."""
    half = NNsight(build(name, torch.bfloat16, gain=0.5))
    whole = NNsight(build(name, gain=0.5).to(torch.bfloat16).float())
    got, want = both(half, "gim", target=5)[0], both(whole, "gim", target=5)[1]
    assert relative(got.scores, want.scores) < 0.02


@pytest.mark.parametrize(("name", "layer"), [("gpt2", "transformer.h.1.mlp.c_fc"),
                                             ("llama", "model.layers.1.mlp.gate_proj")])
def test_a_dead_unit_has_slope_zero_under_the_identity_rule(name, layer):
    hf = build(name)
    with torch.no_grad():
        for part in hf.get_submodule(layer).parameters():
            part.zero_()
    forward, reverse = (scores.scores for scores in both(NNsight(hf), "attnlrp"))
    assert forward.isfinite().all() and relative(forward, reverse) < 1e-5


@pytest.mark.parametrize("method", ["gim", "ig"])
def test_chunks_change_nothing(method, monkeypatch):
    model = NNsight(precise("llama"))
    whole, _ = both(model, method, target=None)
    for most in (1, 4, 20):
        monkeypatch.setattr(scores, "rows_at_once", lambda plan, seq, most=most: most)
        parts, _ = both(model, method, target=None)
        assert parts.target == whole.target and relative(parts.scores, whole.scores) < 1e-12


def test_free_tokens_and_one_token():
    model = NNsight(precise("gpt2"))
    for method in ("gim", "ig"):
        forward, reverse = both(model, method, free=[2, 5], target=None)
        assert forward.target == reverse.target and relative(forward.scores, reverse.scores) < 1e-12
        assert forward.scores.nonzero()[:, 0].tolist() == [2, 5]
        forward, reverse = both(model, method, torch.tensor([7]))
        assert relative(forward.scores, reverse.scores) < 1e-12


def test_the_model_is_left_as_it_was():
    hf, ids = build("llama"), token_ids(1, 9)
    before = hf(ids).logits
    both(NNsight(hf), "gim", ids[0])
    assert torch.equal(hf(ids).logits, before)


# --- guards ---


def broken(monkeypatch, change):
    """Give forward mode a false plan."""
    plan_of = scores.plan_of

    def false_plan(*arguments):
        plan = plan_of(*arguments)
        change(plan)
        return plan

    monkeypatch.setattr(scores, "plan_of", false_plan)


def in_block(**wrong):
    return lambda plan: plan["blocks"][1].update(wrong)


def other_eps(plan):
    path, eps, centred = plan["blocks"][1]["before_mlp"]
    plan["blocks"][1]["before_mlp"] = (path, eps + 1, centred)


@pytest.mark.parametrize(("name", "change", "place"), [
    ("mistral", in_block(window=None), "self_attn"),
    ("mistral", in_block(window=5), "self_attn"),
    ("llama", in_block(window=8), "self_attn"),
    ("llama", in_block(scaling=1.0), "self_attn"),
    ("gemma2", in_block(softcap=None), "self_attn"),
    ("gemma2", lambda plan: plan.update(softcap=None), "lm_head"),
    ("gpt2", in_block(function="SiLU"), "mlp"),
    ("llama", in_block(function="ReLU"), "mlp"),
    ("llama", other_eps, "post_attention_layernorm"),
    ("gpt2", other_eps, "ln_2"),
])
def test_a_false_plan_is_refused(name, change, place, monkeypatch):
    model = NNsight(build(name))
    broken(monkeypatch, change)
    with pytest.raises(gimkit.GimkitError, match=f"{place}: forward mode recomputes this"):
        gimkit.attribute(model, token_ids(1, 9)[0], 5, baseline=NEUTRAL, backend="forward")


@pytest.mark.parametrize(("name", "method", "message"), [
    ("mixtral", "gim", "has experts"),
    ("gpt_oss", "gim", "has experts"),
    ("opt", "gim", "does not cover these blocks"),
    ("apertus", "gim", "does not cover these blocks"),
    ("llama", "deeplift", "deeplift has no forward mode"),
    ("llama", "pattern-difference", "pattern-difference has no forward mode"),
])
def test_what_it_cannot_do_is_refused(name, method, message):
    with pytest.raises(gimkit.GimkitError, match=message):
        gimkit.attribute(NNsight(build(name)), [7, 8, 9], 5, method=method, baseline=NEUTRAL, backend="forward")


def test_an_edited_model_is_refused():
    with pytest.raises(gimkit.GimkitError, match="already carries"):
        gimkit.attribute(gimkit.apply(NNsight(build("gpt2"))), [7, 8], 5, baseline=NEUTRAL, backend="forward")


# --- which backend ---


@pytest.fixture
def refusing(monkeypatch):
    """A server, played by this machine, whose sandbox joins no tensors by a graph."""
    monkeypatch.setattr(capabilities, "gradient_arrives", lambda model, embedding: False)
    monkeypatch.setattr(trace, "where", lambda model, remote: {})


def test_forward_mode_takes_over_where_gradients_are_refused(refusing):
    model = NNsight(build("gpt2"))
    with pytest.warns(UserWarning, match="the server refuses gradients"):
        got = gimkit.attribute(model, [7, 8, 9], 5, baseline=NEUTRAL, remote=True)
    want = gimkit.attribute(model, [7, 8, 9], 5, baseline=NEUTRAL, backend="forward")
    assert torch.equal(got.scores, want.scores)


def test_what_needs_gradients_then_says_so(refusing):
    with pytest.raises(gimkit.GimkitError, match="refuses gradients to this key, and deeplift has no forward mode"):
        gimkit.attribute(NNsight(build("gpt2")), [7, 8, 9], 5, method="deeplift", baseline=NEUTRAL, remote=True)


def test_forward_mode_takes_over_nowhere_else(refusing, recwarn):
    model = NNsight(build("gpt2"))
    for options in (dict(backend="reverse", remote=True), dict(remote=False)):
        gimkit.attribute(model, [7, 8, 9], 5, baseline=NEUTRAL, **options)
    gimkit.attribute(model, [7, 8, 9], 5, method="occlusion", baseline=NEUTRAL, remote=True)
    assert not recwarn.list
    with pytest.raises(gimkit.GimkitError, match="unknown backend 'fwd'; use auto, reverse, forward"):
        gimkit.attribute(model, [7, 8, 9], 5, baseline=NEUTRAL, backend="fwd")


def test_a_server_is_asked_once_whether_it_gives_gradients(monkeypatch):
    model, asked, run = NNsight(build("gpt2")), [], trace.in_trace
    monkeypatch.setattr(capabilities, "in_trace",
                        lambda *given, **options: asked.append(given) or run(*given, **options))
    assert capabilities.gives_gradients(model) and capabilities.gives_gradients(model) and len(asked) == 1
    monkeypatch.setattr(capabilities, "in_trace", lambda *given, **options: run(*given, gradients=False, **options))
    assert not capabilities.gives_gradients(NNsight(build("gpt2")))  # as in a sandbox, where no graph is kept


def test_a_large_job_says_what_it_moves(refusing, monkeypatch):
    monkeypatch.setattr(scores, "LARGE", 1000)
    model = NNsight(build("gpt2"))
    with pytest.warns(UserWarning, match=r"12 rows in 1 forward passes; about 0.0 GiB"):
        gimkit.attribute(model, token_ids(1, 9)[0], 5, baseline=NEUTRAL, backend="forward", remote=True)


def test_the_estimate_of_what_moves():
    """By hand: a GPT-2 block reads both norms' inputs and outputs (4 widths), q, k, v (3), heads (1), the MLP (8)."""
    model = NNsight(build("gpt2"))
    assert scores._numbers_per_token(model, scores.plan_of(model, gimkit.RULES["gim"])) == 3 * 16 * 32 + 4 * 32


def test_the_same_on_a_serialised_model():
    """remote="local" sends the trace through nnsight's serialiser and back."""
    model = gimkit.load("mini-llama")
    near, far = (gimkit.attribute(model, "Mary went home with", "John", backend="forward", remote=remote).scores
                 for remote in (False, "local"))
    assert relative(far, near) < 1e-6


# --- hooks ---


@pytest.mark.parametrize("score", [
    lambda model, backend: gimkit.attribute(model, [7, 8, 9], 5, baseline=NEUTRAL, backend=backend).scores,
    lambda model, backend: gimkit.score_nodes(model, random_task(2, 6), backend=backend).scores],
    ids=["tokens", "nodes"])
def test_a_linear_hook_counts_and_another_one_is_refused(score):
    hf = build("llama")
    model, plain = NNsight(hf), score(NNsight(build("llama")), "reverse")
    hook = hf.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output * 1.5)
    forward, reverse = score(model, "forward"), score(model, "reverse")
    assert relative(forward, reverse) < 1e-5 and relative(forward, plain) > 1e-3
    hook.remove()
    hf.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output.clamp(-1e-3, 1e-3))
    with pytest.raises(gimkit.GimkitError, match="not linear"):
        score(model, "forward")
