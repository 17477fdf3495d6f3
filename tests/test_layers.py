"""Layer-wise scores and faithfulness against hooks on a tiny model, one run at a time."""

import pytest
import torch
from nnsight import NNsight
from tiny import build

import gimkit
from gimkit.tokens.layers import layer_faithfulness, layer_scores

torch.set_num_threads(1)


def blocks_of(hf):
    return hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers


def prompt_of(length=9, seed=0):
    return torch.randint(4, 61, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def run(hf, prompt, layer, change):
    """The last logits when change(x) replaces the input of a block; and the gradient of the target's logit there."""
    def hook(module, arguments):
        return (change(arguments[0]), *arguments[1:])

    handle = blocks_of(hf)[layer].register_forward_pre_hook(hook)
    try:
        return hf(torch.tensor([prompt]), use_cache=False).logits[0, -1]
    finally:
        handle.remove()


def literal_scores(hf, prompt, target, layer, shares):
    """Mean over points of (x - mean) . gradient, by a leaf at a block's input."""
    seen, total = [], 0
    for share in shares:
        def point(x, share=share):
            mean = x.mean(1, keepdim=True)
            seen[:] = [x.detach(), (mean + share * (x - mean)).detach().requires_grad_(True)]
            return seen[1]

        run(hf, prompt, layer, point)[target].backward()
        total = total + seen[1].grad / len(shares)
    return ((seen[0] - seen[0].mean(1, keepdim=True)) * total).sum(-1)[0]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("method", ["gradient", "ig"])
def test_scores_against_hooks(name, method):
    hf, prompt = build(name), prompt_of()
    found = layer_scores(NNsight(hf), prompt, 5, method=method, steps=4)
    shares = [1.0] if method == "gradient" else [0.125, 0.375, 0.625, 0.875]
    for layer in range(len(blocks_of(hf))):
        assert torch.allclose(found[layer], literal_scores(hf, prompt, 5, layer, shares), rtol=1e-3, atol=1e-5)


def test_gims_scores_have_gims_gradient_and_the_first_layer_is_the_embedding():
    hf, prompt = build("llama"), prompt_of()
    model = NNsight(hf)
    edited = gimkit.apply(model)
    with edited.trace(input_ids=torch.tensor([prompt]), use_cache=False):
        x = edited.model.embed_tokens.output.detach().requires_grad_(True)
        edited.model.embed_tokens.output = x
        gradient = torch.autograd.grad(edited.output.logits[0, -1, 5], x)[0].save()
        x = x.detach().save()
    want = ((x - x.mean(1, keepdim=True)) * gradient).sum(-1)[0]
    assert torch.allclose(layer_scores(model, prompt, 5)[0], want, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(want, layer_scores(model, prompt, 5, method="gradient")[0], rtol=0.05)


def literal_faithfulness(hf, prompt, target, scores, layer):
    def f(removed):
        def change(x):
            y = x.clone()
            y[:, list(removed)] = x.mean(1, keepdim=True)
            return y

        with torch.no_grad():
            return float(run(hf, prompt, layer, change)[target].double())

    order = sorted(range(1, len(prompt) - 1), key=lambda i: scores[layer, i].item(), reverse=True)
    n, whole = len(order), f(())
    best = [(whole - f(order[:k])) / whole for k in range(1, n + 1)]
    rest = [(whole - f(order[::-1][:int(r * n)])) / whole for r in (0.5, 0.8, 0.9, 0.95, 0.99)]
    return sum(best) / n, sum(rest) / 5


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_faithfulness_against_hooks(name, monkeypatch):
    monkeypatch.setattr("gimkit.tokens.layers.MOST_TOKENS", 40)  # a few rows at a time
    hf, prompts = build(name), [prompt_of(9), prompt_of(7, seed=1)]
    with torch.no_grad():
        targets = [int(hf(torch.tensor([prompt])).logits[0, -1].argmax()) for prompt in prompts]
    layers = len(blocks_of(hf))
    scores = [torch.randn(layers, len(prompt), generator=torch.Generator().manual_seed(3)) for prompt in prompts]
    for given in (targets, None):  # the top prediction is the default
        found = layer_faithfulness(NNsight(hf), prompts, scores, given)
        assert len(found) == layers
        for layer, result in enumerate(found):
            for i in range(2):
                want = literal_faithfulness(hf, prompts[i], targets[i], scores[i], layer)
                got = result.comprehensiveness()[i].item(), result.sufficiency()[i].item()
                assert got == pytest.approx(want, rel=1e-3, abs=1e-5)


def test_bad_input():
    model = NNsight(build("llama"))
    with pytest.raises(gimkit.GimkitError, match="unknown method 'atp'"):
        layer_scores(model, prompt_of(), 5, method="atp")
    with pytest.raises(gimkit.GimkitError, match="prompt 0: scores have the shape"):
        layer_faithfulness(model, [prompt_of()], [torch.zeros(1, 3)], [5])
    with pytest.raises(gimkit.GimkitError, match="at least 3"):
        layer_scores_of_two = torch.zeros(len(blocks_of(model._module)), 2)
        layer_faithfulness(model, [[4, 5]], [layer_scores_of_two], [5])
