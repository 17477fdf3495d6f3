"""The state a model is in, and what is set around a call: either the numbers stay, or one clear line."""

import threading
from contextlib import contextmanager

import pytest
import torch
from made_up import random_task
from nnsight import NNsight
from test_apply import tokenizer
from test_rules import gradient
from tiny import build, token_ids

import gimkit
from gimkit import circuits, l3d
from gimkit.model.residual_stream import graph_of, residual_stream_of
from gimkit.tokens.layers import layer_scores

torch.set_num_threads(1)
IDS = token_ids(1, 6)[0]
BASELINE = 3


def subnetworks(model):
    module = l3d.NextToken(model)
    samples = module.inputs(token_ids(4, 5), torch.full((4,), 4))
    found = l3d.decompose(module, samples, parameters="*attn*weight", n=2, epochs=1, batch=2, divergence="kl",
                          progress=False)
    return l3d.activity(found, module, samples, references=1).impact


def half_of_the_edges(model, task):
    graph = graph_of(residual_stream_of(model))
    drawn = torch.rand(graph.real.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    return gimkit.run(model, task, circuits.Circuit(graph, graph.real & drawn))


TOKENS = {
    **{f"attribute, {method}": lambda model, task, method=method:
       gimkit.attribute(model, IDS, 5, baseline=BASELINE, method=method, steps=3).scores
       for method in ("gim", "relp", "ig", "deeplift", "pattern-difference", "occlusion", "lime")},
    "attribute, forward": lambda model, task:
        gimkit.attribute(model, IDS, 5, baseline=BASELINE, backend="forward").scores,
    "shapley": lambda model, task: gimkit.tokens.shapley(model, IDS[:4], 5, baseline=BASELINE).scores,
    "token faithfulness": lambda model, task:
        gimkit.tokens.token_faithfulness(model, [IDS], [torch.arange(6.0)], [5], baseline=BASELINE).without_best,
    "layers, gim": lambda model, task: layer_scores(model, IDS, 5),
    "layers, ig": lambda model, task: layer_scores(model, IDS, 5, method="ig", steps=2),
    "self-repair": lambda model, task: torch.tensor(gimkit.self_repair(model, [IDS]).rows["d12"].to_numpy()),
    "L3D": lambda model, task: subnetworks(model),
}
PAIRS = {
    **{f"nodes, {method}": lambda model, task, method=method: gimkit.score_nodes(model, task, method, steps=2).scores
       for method in ("gim", "gradient", "nap-ig", "ig-activations", "atp*", "exact")},
    "nodes, forward": lambda model, task: gimkit.score_nodes(model, task, backend="forward").scores,
    "node Shapley values": lambda model, task: circuits.shapley_nodes(model, task, orders=1).scores,
    "neurons": lambda model, task: gimkit.circuits.score_neurons(model, task).scores,
    **{f"edges, {method}": lambda model, task, method=method: gimkit.score_edges(model, task, method, steps=2).scores
       for method in ("gim", "gradient", "ig-activations", "gp")},
    "edges among, forward": lambda model, task: gimkit.score_edges(
        model, task, nodes=["input", "a0.h1", "m1", "logits"], backend="forward").scores,
    "head repair": lambda model, task: gimkit.selfrepair.head_repair(model, task).effects.mean(0),
    "run": half_of_the_edges,
    "roles": lambda model, task: torch.tensor(circuits.head_roles(model, task)["writes_right"]),
}
ENTRIES = TOKENS | PAIRS
each_entry = pytest.mark.parametrize("name", ENTRIES)


@pytest.fixture(scope="module")
def usual():
    """What each function gives for a tiny GPT-2 in evaluation mode, with nothing set around it."""
    model, task = NNsight(build("gpt2")), random_task(3, 6)
    return {name: score(model, task) for name, score in ENTRIES.items()}


def same(a, b):
    return torch.equal(a.nan_to_num(), b.nan_to_num())


# --- noise ---


def dropout_everywhere(hf):  # GPT-2's config has 0.1 at the embedding, in attention and after each part
    hf.train()


def attention_dropout(hf):
    hf.transformer.h[1].attn.train()


def late_dropout(hf):
    hf.transformer.h[-1].mlp.dropout.train()


def functional_dropout(hf):
    mlp, forward = hf.transformer.h[1].mlp, hf.transformer.h[1].mlp.forward
    mlp.forward = lambda x: torch.nn.functional.dropout(forward(x), 0.5)  # in evaluation mode too


FEW = ["attribute, gim", "attribute, occlusion", "nodes, forward", "edges, gp", "run"]


@pytest.mark.parametrize(("noise", "name"), [
    *((dropout_everywhere, name) for name in ENTRIES if name != "L3D"), (functional_dropout, "L3D"),
    *((noise, name) for noise in (attention_dropout, late_dropout, functional_dropout) for name in FEW)])
def test_dropout_is_refused(noise, name):
    hf = build("gpt2")
    noise(hf)
    with pytest.raises(gimkit.GimkitError, match=r"call model.eval\(\) first") as caught:
        ENTRIES[name](NNsight(hf), random_task(3, 6))
    assert "\n" not in str(caught.value)


def test_l3d_uses_evaluation_mode_and_gives_each_part_its_own_back(usual):
    hf = build("gpt2")
    late_dropout(hf)
    modes = [part.training for part in hf.modules()]
    assert same(ENTRIES["L3D"](NNsight(hf), None), usual["L3D"])
    assert modes == [part.training for part in hf.modules()]


@each_entry
def test_training_mode_without_noise_changes_nothing(usual, name):
    hf = build("gpt2").train()
    for part in hf.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    assert same(ENTRIES[name](NNsight(hf), random_task(3, 6)), usual[name])


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in ("run", "roles", "head repair")])
def test_what_is_clean_on_both_sides_scores_zero(name):
    task = random_task(3, 6)
    task.corrupt[:] = task.clean
    assert not PAIRS[name](NNsight(build("gpt2")), task).any()


# --- what is set around a call ---


@contextmanager
def switched_off():
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(True)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, switched_off,
                                    lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
                         ids=["no_grad", "inference_mode", "set_grad_enabled", "autocast"])
@each_entry
def test_contexts_change_nothing(usual, around, name):
    model = NNsight(build("gpt2"))
    with around():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        found = ENTRIES[name](model, random_task(3, 6))  # the task's tensors are made in here too
        assert before == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    assert same(found, usual[name])


def test_loading_and_editing_in_inference_mode():
    with torch.inference_mode():
        model = gimkit.load("mini-llama")
        task = gimkit.tasks.ioi(model, n=2)
        scores = gimkit.score_nodes(model, task)
        gimkit.apply(model)
    assert torch.equal(scores.scores, gimkit.score_nodes(model, task).scores)


def test_remote_requests_carry_no_inference_tensors():
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.ioi(model, n=2)
    with torch.inference_mode():
        scores = gimkit.score_edges(model, gimkit.tasks.ioi(model, n=2), "gp", steps=2, remote="local").scores
    assert torch.equal(scores, gimkit.score_edges(model, task, "gp", steps=2).scores)


# --- states with one clear line ---


def checkpointing():
    hf = build("llama").train()
    hf.gradient_checkpointing_enable()
    return hf


def tuples():
    hf = build("llama")
    hf.config.return_dict = False
    return hf


def partly_missing():
    hf = build("llama")
    hf.model.layers[2].to("meta")
    return hf


def made_in_inference_mode():
    with torch.inference_mode():
        return build("llama")


@pytest.mark.parametrize(("state", "message"), [
    (checkpointing, r"checkpoints its blocks.*model.eval\(\)"), (tuples, "set model.config.return_dict = True"),
    (partly_missing, r"model.layers.2.self_attn.q_proj.weight are not in memory \(offloaded"),
    (made_in_inference_mode, r"was made in torch.inference_mode\(\)"),
])
@pytest.mark.parametrize("name", FEW)
def test_one_clear_line(state, message, name):
    with pytest.raises(gimkit.GimkitError, match=message) as caught:
        ENTRIES[name](NNsight(state()), random_task(3, 6))
    assert "\n" not in str(caught.value) and "sandbox" not in str(caught.value)


def test_checkpointing_in_evaluation_mode_and_after_it_was_switched_off():
    task = random_task(3, 6)
    want = gimkit.score_nodes(NNsight(build("llama")), task).scores
    for change in ("eval", "gradient_checkpointing_disable"):
        model = NNsight(checkpointing())
        getattr(model, change)()  # as the message says
        assert torch.equal(gimkit.score_nodes(model, task).scores, want)


def test_weights_that_nnsight_has_not_loaded_yet(tmp_path):
    hf = build("llama")
    hf.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    lazy = gimkit.load(str(tmp_path), remote=True)
    assert lazy.device.type == "meta"
    early = gimkit.apply(lazy)
    found = ENTRIES["attribute, gim"](lazy, None)
    assert torch.equal(found, ENTRIES["attribute, gim"](NNsight(hf), None))
    loaded = lazy._module  # once, and for every copy
    assert lazy.dispatched and torch.equal(found, ENTRIES["attribute, gim"](lazy, None)) and lazy._module is loaded
    assert torch.equal(gradient(early, token_ids())[0], gradient(gimkit.apply(NNsight(hf)), token_ids())[0])
    assert early._module is loaded


# --- threads ---


def test_threads_take_turns(usual):
    model, found, errors = NNsight(build("gpt2")), [], []
    names = [*FEW, "attribute, lime"]  # which seeds torch's own generator
    def work():
        try:
            found.append({name: ENTRIES[name](model, random_task(3, 6)) for name in names})
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(found) == 3
    assert all(same(scores[name], usual[name]) for scores in found for name in names)


# --- L3D ---


def test_l3d_takes_models_of_any_dtype():
    hf, ids, last = build("gpt2", torch.bfloat16), token_ids(4, 5), torch.full((4,), 4)
    module = l3d.NextToken(NNsight(hf))
    assert torch.allclose(module(*module.inputs(ids, last)), hf(ids).logits[:, -1], rtol=0.05, atol=0.05)


def test_l3d_takes_no_edited_model():
    """Its rules act in traces; L3D opens none, so they would be missing in silence."""
    edited = gimkit.apply(NNsight(build("gpt2")))
    for use in (l3d.NextToken, lambda model: l3d.decompose(model, token_ids(4, 5), n=2)):
        with pytest.raises(gimkit.GimkitError, match="already carries the rules gim"):
            use(edited)
