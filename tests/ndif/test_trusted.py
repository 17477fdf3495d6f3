"""Every entry point on a server gives what it gives here; the client has no weights, the server no gimkit."""

from dataclasses import replace

import pytest
import torch
from cloudpickle import cloudpickle
from nnsight.intervention.backends.remote import RemoteError

import gimkit
from gimkit.remote import where
from gimkit.remote.server import Server
from gimkit.tokens.layers import layer_faithfulness, layer_scores

pytestmark = pytest.mark.xdist_group("ndif")  # one worker, so one server


def question(task):
    return task[0].clean, task[0].answer


def table(frame):
    return torch.tensor(frame.select_dtypes("number").to_numpy())


def circuits(model, task):
    graph = gimkit.score_edges(model, task, "random").graph
    scores = torch.randn(graph.real.shape, generator=torch.Generator().manual_seed(0))
    return gimkit.circuits.EdgeScores("task", "random", graph, scores * graph.real)


def longer(task):
    """The task with answers of two tokens and of three."""
    return replace(task, good=tuple(ids + (5,) for ids in task.good), bad=tuple(ids + (7, 9) for ids in task.bad),
                   sequences=True)


CHOSEN = ["input", "a0.h1", "m1", "a2.h1", "logits"]
ENTRY_POINTS = {
    "attribute": lambda m, t, r: gimkit.attribute(m, *question(t), remote=r).scores,
    "attribute, the model's own answer": lambda m, t, r: gimkit.attribute(m, t[0].clean, remote=r).scores,
    "attribute, an answer of several tokens": lambda m, t, r: gimkit.attribute(m, t[0].clean, "Mary and John",
                                                                               remote=r).scores,
    "attribute, a function": lambda m, t, r: gimkit.attribute(m, t[0].clean, lambda logits: logits[[5, 9]].sum(),
                                                              remote=r).scores,
    "attribute ig": lambda m, t, r: gimkit.attribute(m, *question(t), method="ig", remote=r).scores,
    "attribute deeplift": lambda m, t, r: gimkit.attribute(m, *question(t), method="deeplift", remote=r).scores,
    "attribute occlusion": lambda m, t, r: gimkit.attribute(m, *question(t), method="occlusion", remote=r).scores,
    "shapley": lambda m, t, r: gimkit.tokens.shapley(m, *question(t), free=[2, 5, 9], remote=r).scores,
    "token_faithfulness": lambda m, t, r: token_faithfulness(m, t, r),
    "score_nodes": lambda m, t, r: gimkit.score_nodes(m, t, remote=r).per_example,
    "score_nodes nap-ig": lambda m, t, r: gimkit.score_nodes(m, t, "nap-ig", steps=2, remote=r).per_example,
    "score_nodes, answers of several tokens": lambda m, t, r: gimkit.score_nodes(m, longer(t), remote=r).per_example,
    "score_edges, answers of several tokens": lambda m, t, r: gimkit.score_edges(m, longer(t), remote=r).scores,
    "score_nodes atp*": lambda m, t, r: gimkit.score_nodes(m, t, "atp*", remote=r).per_example,
    "score_nodes exact": lambda m, t, r: gimkit.score_nodes(m, t, "exact", remote=r).per_example,
    "score_neurons": lambda m, t, r: gimkit.circuits.score_neurons(m, t, remote=r).scores,
    "score_edges": lambda m, t, r: gimkit.score_edges(m, t, remote=r).scores,
    "score_edges gp": lambda m, t, r: gimkit.score_edges(m, t, "gp", steps=2, remote=r).scores,
    "score_edges nodes": lambda m, t, r: gimkit.score_edges(m, t, nodes=CHOSEN, remote=r).scores,
    "score_edges exact": lambda m, t, r: gimkit.score_edges(m, t[:1], "exact", remote=r).scores,
    "run": lambda m, t, r: gimkit.run(m, t, circuits(m, t).top(200), metric="kl", remote=r),
    "faithfulness": lambda m, t, r: gimkit.faithfulness(m, t, circuits(m, t), absolute=False, sizes=(0.1, 0.5),
                                                        remote=r).per_example,
    "head_roles": lambda m, t, r: table(gimkit.circuits.head_roles(m, t, remote=r).fillna(0)),
    "shapley_nodes": lambda m, t, r: gimkit.circuits.shapley_nodes(m, t[:1], orders=1, remote=r).scores,
    "self_repair": lambda m, t, r: table(gimkit.self_repair(m, t, threshold=0.1, remote=r).frame()),
    "head_repair": lambda m, t, r: gimkit.selfrepair.head_repair(m, t, remote=r).effects,
    "layer_scores": lambda m, t, r: layer_scores(m, *question(t), remote=r),
    "layer_faithfulness": lambda m, t, r: layer_faithfulness(
        m, [t[0].clean], [layer_scores(m, t[0].clean, method="gradient", remote=r)], remote=r)[1].without_rest,
}


def token_faithfulness(model, task, remote):
    ids = task.clean[0]
    return gimkit.tokens.token_faithfulness(model, [ids], [torch.arange(len(ids)) / 10], remote=remote).without_rest


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_the_server_gives_what_this_process_gives(server, models, name):
    task = gimkit.tasks.ioi(models.here, n=3)
    here, there = (ENTRY_POINTS[name](model, task, remote) for model, remote in
                   ((models.here, False), (models.there, server)))
    finite = here.isfinite()
    assert here.shape == there.shape and finite.any() and torch.equal(finite, there.isfinite())
    assert (here - there)[finite].abs().max() <= 1e-6 * here[finite].abs().max()
    assert not models.there.dispatched and all(p.is_meta for p in models.there._module.parameters())


def test_a_trace_of_ones_own(server, llama):
    found = []
    away = {"remote": server}
    for model, place in ((llama.here, {}), (llama.there, away), (gimkit.apply(llama.there), away)):
        with model.trace(torch.tensor([[1, 5, 9]]), use_cache=False, **place):
            logits = model.output.logits[0, -1].save()
        found.append(logits)
    assert (found[0] - found[1]).abs().max() < 1e-5 and torch.equal(found[1], found[2])
    assert isinstance(llama.there._remote_backend(server), Server), "not nnsight's, which executes what comes back"


def test_tasks_are_made_without_weights(llama):
    assert torch.equal(gimkit.tasks.ioi(llama.there, n=4).clean, gimkit.tasks.ioi(llama.here, n=4).clean)


def test_the_blocked_gradient_of_attention_runs_there(server, llama):
    edited = gimkit.apply(llama.there)
    embedding, path = "model.embed_tokens", "model.layers.1.self_attn"
    with edited.trace(input_ids=torch.tensor([[1, 5, 9]]), use_cache=False, **where(llama.there, server)):
        edited.get(embedding).output = edited.get(embedding).output.detach().requires_grad_(True)
        name = type(edited.get(path).source.attention_interface_1.output[0].grad_fn).__name__.save()
    assert name == "BlockedBackward"


@pytest.mark.parametrize("forgotten", ["gimkit.interventions.backward_rules", "gimkit.interventions.token_scores",
                                       "gimkit.interventions.blocked_attention"])
def test_a_module_that_is_not_registered_is_missed(server, llama, monkeypatch, forgotten):
    monkeypatch.setattr(cloudpickle, "_PICKLE_BY_VALUE_MODULES", set(gimkit.remote.SHIPPED) - {forgotten})
    with pytest.raises((RemoteError, gimkit.GimkitError), match="No module named 'gimkit'"):
        gimkit.attribute(llama.there, [1, 5, 9], 7, baseline=0, remote=server)
