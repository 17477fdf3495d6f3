"""What an ordinary key can run: in NDIF's sandbox, without weights and gradients; a request takes seconds."""

import json

import pytest
import torch
from nnsight import CONFIG
from nnsight.schema.request import RequestModel
from test_trusted import ENTRY_POINTS

import gimkit

pytestmark = pytest.mark.xdist_group("ndif")
WITHOUT_GRADIENTS = ("attribute occlusion", "token_faithfulness", "run", "self_repair", "head_repair")


@pytest.fixture(autouse=True)
def ordinary_key(monkeypatch, trusted_key):
    monkeypatch.setattr(CONFIG.API, "APIKEY", "ordinary")
    envelope = RequestModel.metadata  # a service with auth off takes the request's own word
    monkeypatch.setattr(RequestModel, "metadata", lambda self: json.dumps(json.loads(envelope(self)) | {
        "trusted": False}))


def same(here, there, tolerance=1e-6):
    return bool((here - there).abs().max() <= tolerance * here.abs().max())


@pytest.mark.parametrize("name", WITHOUT_GRADIENTS)
def test_the_sandbox_gives_what_this_process_gives(server, llama, name):
    task = gimkit.tasks.ioi(llama.here, n=2)
    here, there = (ENTRY_POINTS[name](model, task, remote) for model, remote in
                   ((llama.here, False), (llama.there, server)))
    assert here.isfinite().all() and same(here, there)


def test_attribution_falls_back_to_forward_mode(server, llama):
    question = ("Mary drove to the farm with John . John lent a map to", "Mary")
    with pytest.warns(UserWarning, match="refuses gradients"):
        there = gimkit.attribute(llama.there, *question, remote=server)
    assert same(gimkit.attribute(llama.here, *question).scores, there.scores, 1e-5)


@pytest.mark.filterwarnings("ignore:the server refuses gradients")
@pytest.mark.parametrize("name", ["score_nodes", "score_nodes, answers of several tokens", "score_edges nodes",
                                  "attribute, an answer of several tokens", "attribute, a function"])
def test_what_forward_mode_knows(server, llama, name):
    task, score = gimkit.tasks.ioi(llama.here, n=2), ENTRY_POINTS[name]
    assert same(score(llama.here, task, False), score(llama.there, task, server), 1e-5)


@pytest.mark.xfail(strict=True, raises=gimkit.GimkitError, reason="NDIF's sandbox joins no tensors by a graph")
@pytest.mark.parametrize("score", [
    lambda model, task, remote: gimkit.attribute(model, task[0].clean, 7, backend="reverse", remote=remote),
    lambda model, task, remote: gimkit.score_edges(model, task, remote=remote),
    ], ids=["attribute", "score_edges"])
def test_a_backward_pass(server, llama, score):
    score(llama.there, gimkit.tasks.ioi(llama.here, n=1), server)


@pytest.mark.xfail(strict=True, reason="NDIF's sandbox joins no tensors by a graph")
def test_gradients_reach_what_was_read(server, llama):
    """The reason for the refusals above, without gimkit: when this passes, they can go."""
    model = llama.there
    with model.trace(input_ids=torch.tensor([[1, 5, 9]]), use_cache=False, remote=server):
        leaf = model.model.embed_tokens.output.detach().requires_grad_(True)
        model.model.embed_tokens.output = leaf
        gradient = torch.autograd.grad(model.output.logits.sum(), leaf)[0].save()
    assert gradient.abs().sum() > 0
