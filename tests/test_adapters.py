"""Adapters and quantised weights: scores are those of the model that computes the same with plain weights."""

import copy
import functools

import peft
import pytest
import torch
from entry_points import ALL, EDGES, solved
from in_float64 import precise
from made_up import random_task
from nnsight import NNsight
from tiny import build

import gimkit
from gimkit.circuits import patching
from gimkit.interventions import residual_stream, weights

MLP = ["gate_proj", "up_proj", "down_proj"]
TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", *MLP],
    "qwen2": ["q_proj", "v_proj"],  # with biases, and a k without adapter
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "gemma2": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"],
}


def lora(name, **options):
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[name], init_lora_weights=False,
                           fan_in_fan_out=name == "gpt2", **options)


@functools.cache
def adapted(name):
    """A model with a LoRA whose matrices are random, the same model merged, and a task of answers that it gives."""
    torch.manual_seed(0)
    model = peft.get_peft_model(precise(name), lora(name)).eval().double()
    merged = copy.deepcopy(model).merge_and_unload()
    return model, merged, solved(merged, random_task(3))


@functools.cache
def wanted(name, what):
    _, merged, task = adapted(name)
    return ALL[what](NNsight(merged), task)


def off(got, want):
    """The largest difference, as a share of the values' size; infinite between different numbers of values."""
    if got.shape != want.shape:
        return torch.inf
    return ((got - want).abs().max() / (1 + want.abs().max())).item()


SOME = ("attribute", "nodes gradient", "neurons", "among forward", "edges gim", "edges exact", "run", "head_roles",
        "head_repair")


@pytest.mark.parametrize("name, what", [*(("llama", what) for what in ALL),
                                        *((name, what) for name in TARGETS if name != "llama" for what in SOME)])
def test_lora_scores_are_the_merged_models(name, what, wide_softmax):
    model, _, task = adapted(name)
    inside = model.base_model.model  # as peft.inject_adapter_in_model leaves a model
    got = ALL[what](NNsight(inside if name in ("qwen2", "gpt_neox") else model), task)
    assert off(got, wanted(name, what)) < 1e-9
    assert off(ALL[what](base(name), task), wanted(name, what)) > 1e-3  # the adapter matters to each of them


@functools.cache
def base(name):
    return NNsight(precise(name))


@pytest.mark.parametrize("what", EDGES)
def test_weights_without_the_adapter_are_noticed(what, monkeypatch):
    """A control: where the wrapped layer's weight is read, the check refuses it; without the check scores differ."""
    model, _, task = adapted("llama")
    monkeypatch.setattr(weights, "holds_weight", lambda module: True)
    with pytest.raises(gimkit.GimkitError, match="_proj: its output is not its weight times its input: .* adapter"):
        EDGES[what](NNsight(model), task)
    monkeypatch.setattr(weights, "check_agrees", lambda *arguments: None)
    monkeypatch.setattr(residual_stream, "check_agrees", lambda *arguments: None)
    monkeypatch.setattr(patching, "check_whole_circuit", lambda *arguments: None)
    assert off(EDGES[what](NNsight(model), task), wanted("llama", what)) > 1e-3


@pytest.mark.parametrize("state", ["dora", "two adapters", "disabled", "merged in place", "vera", "ia3"])
def test_other_states_of_an_adapter(state):
    torch.manual_seed(0)
    config, task = lora("llama", use_dora=state == "dora"), random_task(2)
    if state == "vera":
        config = peft.VeraConfig(r=4, target_modules=["q_proj"], init_weights=False)
    if state == "ia3":
        config = peft.IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"],
                                init_ia3_weights=False)
    model = peft.get_peft_model(build("llama", gain=0.5), config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    if state == "two adapters":
        model.add_adapter("other", lora("llama"))
        model.base_model.set_adapter(["default", "other"])
    plain = build("llama", gain=0.5) if state == "disabled" else copy.deepcopy(model).merge_and_unload()
    if state == "disabled":
        model.base_model.disable_adapter_layers()
    if state == "merged in place":
        model.merge_adapter()
    got, want = (gimkit.score_edges(NNsight(hf), task, "gradient").scores for hf in (model, plain))
    assert off(got, want) < 1e-5


def test_adapters_that_gimkit_cannot_see_into():
    hf, task = build("llama"), random_task(2)
    norms = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["input_layernorm"])
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    for config, message in ((norms, "input_layernorm .*adapter's own copy of a norm.*merge_and_unload"),
                            (prompts, "virtual tokens before the prompt")):
        with pytest.raises(gimkit.GimkitError, match=message):
            gimkit.score_nodes(NNsight(peft.get_peft_model(copy.deepcopy(hf), config)), task)


# --- quantised weights ---


class Int8(torch.nn.Module):
    """A Linear of int8 weights, a scale a row; it may round what it reads too, with a slope as if it did not."""

    def __init__(self, linear, rounds=False, slope=True):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.rounds, self.slope, self.bias = rounds, slope, linear.bias
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))

    def forward(self, x):
        if self.rounds:
            scale = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
            rounded = (x / scale).round() * scale
            x = x + (rounded - x).detach() if self.slope else rounded
        return torch.nn.functional.linear(x, self.weight * self.scale, self.bias)


def quantised(**options):
    """A model whose blocks have Int8 projections, and the model of the same weights as floating-point numbers."""
    hf, plain = build("qwen2", gain=0.5), build("qwen2", gain=0.5)
    for path, module in list(hf.model.layers.named_modules(prefix="model.layers")):
        if isinstance(module, torch.nn.Linear):
            parent, _, key = path.rpartition(".")
            int8 = Int8(module, **options)
            setattr(hf.get_submodule(parent), key, int8)
            plain.get_submodule(path).weight.copy_(int8.weight * int8.scale)
    return hf, plain


@pytest.mark.parametrize("what", SOME)
def test_quantised_scores_are_those_of_their_dequantised_weights(what):
    hf, plain = quantised()
    task = solved(plain, random_task(3))
    assert off(ALL[what](NNsight(hf), task), ALL[what](NNsight(plain), task)) < 1e-5
    assert off(ALL[what](NNsight(build("qwen2", gain=0.5)), task), ALL[what](NNsight(plain), task)) > 1e-4


@pytest.mark.parametrize("what", SOME)
def test_rounded_activations_change_scores_by_their_rounding(what):
    """As int8 kernels on a GPU round what a projection reads: a hundredth of it, not refused."""
    hf, plain = quantised(rounds=True)
    task = solved(plain, random_task(3))
    assert off(ALL[what](NNsight(hf), task), ALL[what](NNsight(plain), task)) < 0.05


def test_projections_without_a_slope_are_refused_where_gradients_count():
    hf, _ = quantised(rounds=True, slope=False)
    model, task = NNsight(hf), random_task(2)
    for what in ("attribute", "attribute ig", "nodes gim", "neurons", "edges gim"):
        with pytest.raises(gimkit.GimkitError, match=r"layers.0.self_attn.q_proj \(Int8\) lets no gradient through"):
            ALL[what](model, task)
    for what in ("attribute occlusion", "nodes exact", "edges exact"):
        assert ALL[what](model, task).isfinite().all()


def test_a_projection_that_is_not_linear_is_refused():
    class Bent(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.in_features, self.out_features, self.linear = linear.in_features, linear.out_features, linear

        def forward(self, x):
            y = self.linear(x)
            return y + 0.1 * torch.tanh(y)

    hf = build("llama", gain=0.5)
    hf.model.layers[1].self_attn.o_proj = Bent(hf.model.layers[1].self_attn.o_proj)
    model, task = NNsight(hf), solved(hf, random_task(3))
    for what, score in ALL.items():
        if what in EDGES:
            with pytest.raises(gimkit.GimkitError, match="layers.1.self_attn.o_proj: its output is not its weight"):
                score(model, task)
