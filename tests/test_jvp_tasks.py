"""Scores of nodes and of chosen edges in forward mode, against the backward pass and literal patching."""

import pytest
import torch
from in_float64 import precise
from made_up import literal_metric, random_task
from nnsight import NNsight
from test_edges import literal_scores
from test_jvp_tokens import NAMES, broken, in_block, refusing  # noqa: F401
from test_nodes import changed, places, rows, value_of
from test_rules import PARTS, SUBSETS, relative
from tiny import build

import gimkit
from gimkit.jvp import scores

torch.set_num_threads(1)


def both(model, method, task=None, **options):
    """Node scores [n, nodes] in forward and in reverse mode."""
    task = task or random_task()
    return [gimkit.score_nodes(model, task, method, backend=backend, **options).per_example
            for backend in ("forward", "reverse")]


@pytest.mark.parametrize("method", ["gim", "gradient", "relp"])
@pytest.mark.parametrize("name", NAMES)
def test_nodes_are_those_of_the_backward_pass(name, method, wide_softmax):
    forward, reverse = both(NNsight(precise(name)), method)
    assert relative(forward, reverse) < 1e-12


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_every_subset_of_the_rules(name, subset, wide_softmax):
    rules = gimkit.Rules(**{k: v for part in subset for k, v in PARTS[part].items()})
    forward, reverse = both(NNsight(precise(name)), rules, random_task(2))
    assert relative(forward, reverse) < 1e-12


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_probability(name, wide_softmax):
    forward, reverse = both(NNsight(precise(name)), "gim", metric="probability")
    assert relative(forward, reverse) < 1e-12


def test_the_gradient_is_the_slope_of_the_metric():
    """Central differences: move each node's output towards its corrupt value."""
    hf, task, step, row = precise("llama"), random_task(), 1e-5, 3
    got = gimkit.score_nodes(NNsight(hf), task, "gradient", backend="forward")
    clean, corrupt = rows(task, row)
    for node, place in places(hf).items():
        difference = value_of(hf, place, clean) - value_of(hf, place, corrupt)
        ends = []
        for sign in (1, -1):
            with changed(place, lambda value, move=sign * step * difference: value + move):
                ends.append(literal_metric(hf, task.clean, task, row))
        want = (ends[0] - ends[1]) / (2 * step)
        assert got.per_example[row, got.nodes.index(node)].item() == pytest.approx(want, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_chunks_and_batches_change_nothing(name, monkeypatch, wide_softmax):
    model = NNsight(precise(name))
    whole, _ = both(model, "gim")
    assert relative(both(model, "gim", batch_size=1)[0], whole) < 1e-12
    for most in (1, 7, 40):
        monkeypatch.setattr(scores, "rows_at_once", lambda plan, seq, most=most: most)
        assert relative(both(model, "gim")[0], whole) < 1e-12


def test_a_false_plan_is_refused(monkeypatch):
    broken(monkeypatch, in_block(window=None))
    with pytest.raises(gimkit.GimkitError, match="self_attn: forward mode recomputes this"):
        gimkit.score_nodes(NNsight(build("mistral")), random_task(), backend="forward")


@pytest.mark.parametrize("method", ["nap-ig", "ig-activations", "atp*"])
def test_other_methods_are_refused(method):
    with pytest.raises(gimkit.GimkitError, match="has no forward mode.*use any rules"):
        gimkit.score_nodes(NNsight(build("gpt2")), random_task(), method, backend="forward")


def test_forward_mode_takes_over_where_gradients_are_refused(refusing):  # noqa: F811
    model, task = NNsight(build("gpt2")), random_task()
    with pytest.warns(UserWarning, match="the server refuses gradients"):
        got = gimkit.score_nodes(model, task, remote=True)
    assert torch.equal(got.per_example, gimkit.score_nodes(model, task, backend="forward").per_example)
    with pytest.warns(UserWarning, match="the server refuses gradients"):
        got = gimkit.score_edges(model, task, nodes=CHOSEN, remote=True)
    assert torch.equal(got.scores, edges(model, "gim", task)[0].scores)
    with pytest.raises(gimkit.GimkitError, match="refuses gradients to this key, and atp"):
        gimkit.score_nodes(model, task, "atp*", remote=True)
    with pytest.raises(gimkit.GimkitError, match="refuses gradients to this key, and forward mode would need a row"):
        gimkit.score_edges(model, task, remote=True)


def test_the_same_on_a_serialised_model():
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.ioi(model, n=2, seed=0)
    near, far = (gimkit.score_nodes(model, task, backend="forward", remote=remote).per_example
                 for remote in (False, "local"))
    assert relative(far, near) < 1e-6


# --- edges among chosen nodes ---

CHOSEN = ["input", "a0.h1", "m0", "a1.h0", "a1.h3", "m1", "a2.h2", "m2", "logits"]


def edges(model, method, task=None, chosen=CHOSEN, **options):
    """The same edges' scores in forward and in reverse mode."""
    task = task or random_task()
    return [gimkit.score_edges(model, task, method, nodes=chosen, backend=backend, **options)
            for backend in ("forward", "reverse")]


@pytest.mark.parametrize("method", ["gim", "gradient", "attnlrp"])
@pytest.mark.parametrize("name", NAMES)
def test_edges_are_those_of_the_backward_pass(name, method, wide_softmax):
    model = NNsight(precise(name))
    if (name, method) == ("olmo2", "gradient"):
        with pytest.raises(gimkit.GimkitError, match="q_norm normalises all heads together"):
            edges(model, method)
        return
    forward, reverse = edges(model, method)
    assert forward.edges == reverse.edges and len(forward.edges) == (57 if name == "gpt_neox" else 61)
    assert relative(forward.scores, reverse.scores) < 1e-12


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_edges_by_their_definition(name):
    hf, task = build(name), random_task(2)
    got, _ = edges(NNsight(hf), "gim", task)
    graph = gimkit.circuits.Graph(3, 4, False, 32)
    want = literal_scores(hf, task, graph, rules=gimkit.RULES["gim"])
    assert relative(got.scores, torch.stack([want[graph.edges[name]] for name in got.edges])) < 1e-5


def test_chunks_of_edges_change_nothing(monkeypatch, wide_softmax):
    model = NNsight(precise("gemma2"))
    whole, _ = edges(model, "gim")
    for most in (1, 13, 40):
        monkeypatch.setattr(scores, "rows_at_once", lambda plan, seq, most=most: most)
        assert relative(edges(model, "gim")[0].scores, whole.scores) < 1e-12
    assert len(whole.frame()) == len(whole.edges) and whole.frame().source[0] == "input"


def test_bad_choices():
    model, task = NNsight(build("gpt2")), random_task()
    for chosen, message in ((["a0.h9"], "unknown nodes a0.h9"), ("m0", "unknown nodes"), ([], "no edge joins"),
                            (["a1.h1", "a1.h2"], "no edge joins a1.h1, a1.h2")):
        with pytest.raises(gimkit.GimkitError, match=message):
            edges(model, "gim", task, chosen)
    with pytest.raises(gimkit.GimkitError, match="gp scores all edges at once: leave nodes= out"):
        edges(model, "gp", task)


@pytest.mark.parametrize("method", ["gim", "gp", "ig-inputs"])
def test_all_edges_have_no_forward_mode(method):
    with pytest.raises(gimkit.GimkitError, match="a row for each of 262 edges.*nodes="):
        gimkit.score_edges(NNsight(build("gpt2")), random_task(), method, backend="forward")
