"""GIM's "AtP*" of tokens and layers against an autograd function in eager attention of the model's own."""

import copy

import pytest
import torch
from nnsight import NNsight
from test_layers import blocks_of, prompt_of, run
from test_rules import relative
from tiny import build
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import gimkit
from gimkit.tokens.layers import layer_scores

torch.set_num_threads(1)
NEUTRAL, TARGET = 3, 5


class DifferenceSoftmax(torch.autograd.Function):
    """softmax(a) forward; dL/da = (s - s') g backward."""

    @staticmethod
    def forward(ctx, a, other):
        s = torch.softmax(a, -1)
        ctx.save_for_backward(s - other)
        return s

    @staticmethod
    def backward(ctx, g):
        return ctx.saved_tensors[0] * g, None


def with_literal_attention(hf):
    """A copy whose attention is eager; it keeps patterns in .kept, and where .others has some, takes them as s'."""
    hf = copy.deepcopy(hf)
    hf.kept, hf.others = [], []

    def attention(module, query, key, value, attention_mask, scaling=None, softcap=None, **options):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores + attention_mask[..., :key.shape[-2]]
        pattern = (DifferenceSoftmax.apply(scores, hf.others[len(hf.kept)]) if hf.others
                   else torch.softmax(scores, -1))
        hf.kept.append(pattern.detach())
        return (pattern @ value).transpose(1, 2), pattern

    AttentionInterface.register("pattern_difference", attention)
    AttentionMaskInterface.register("pattern_difference", eager_mask)
    hf.set_attn_implementation("pattern_difference")
    return hf


def last_logits(hf, ids, embeddings=None):
    hf.kept = []
    given = {"input_ids": ids} if embeddings is None else {"inputs_embeds": embeddings}
    return hf(**given, use_cache=False).logits[0, -1]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_tokens(name):
    hf, prompt, free = build(name), torch.tensor([prompt_of()]), [1, 2, 4, 6]
    neutral = prompt.clone()
    neutral[0, free] = NEUTRAL
    literal = with_literal_attention(hf)
    with torch.no_grad():
        last_logits(literal, neutral)
    literal.others = literal.kept
    seen = []
    handle = literal.get_input_embeddings().register_forward_hook(
        lambda module, given, out: seen.append(out.detach().requires_grad_(True)) or seen[-1])
    last_logits(literal, prompt)[TARGET].backward()
    handle.remove()
    twin = hf.get_input_embeddings()(neutral).detach()
    want = ((seen[0].detach() - twin) * seen[0].grad).sum(-1)[0]
    scores = gimkit.attribute(NNsight(hf), prompt[0], target=TARGET, method="pattern-difference", baseline=NEUTRAL,
                              free=free).scores
    assert relative(scores, want) < 1e-4
    plain = gimkit.attribute(NNsight(hf), prompt[0], target=TARGET, method="gradient", baseline=NEUTRAL, free=free)
    assert relative(plain.scores, want) > 0.05
    assert scores[[0, 3, 5, 7, 8]].abs().sum() == 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_layers(name):
    hf, prompt = build(name), prompt_of()
    model = NNsight(hf)
    found = layer_scores(model, prompt, TARGET, method="pattern-difference")
    for layer in range(len(blocks_of(hf))):
        literal, seen = with_literal_attention(hf), []

        def leaf(x, seen=seen):
            seen.append(x.detach().requires_grad_(True))
            return seen[-1]

        with torch.no_grad():
            run(literal, prompt, layer, lambda x: x.mean(1, keepdim=True).expand_as(x))
        patterns = literal.kept
        literal.kept = []
        with torch.no_grad():
            run(literal, prompt, layer, lambda x: x)
        literal.others = [*literal.kept[:layer], *patterns[layer:]]
        literal.kept = []
        run(literal, prompt, layer, leaf)[TARGET].backward()
        want = ((seen[0] - seen[0].mean(1, keepdim=True)).detach() * seen[0].grad).sum(-1)[0]
        assert relative(found[layer], want) < 1e-4
    assert relative(layer_scores(model, prompt, TARGET, method="gradient"), found) > 0.05


def test_the_forward_pass_is_untouched():
    hf, prompt = build("gpt2"), torch.tensor([prompt_of()] * 2)
    model = NNsight(hf)
    from gimkit.interventions.attention import put_pattern_difference
    from gimkit.model.architecture import architecture_of

    with model.trace(input_ids=prompt, use_cache=False):
        for block in architecture_of(model).blocks:
            put_pattern_difference(model.get(block.attention))
        logits = model.output.logits.save()
    assert torch.equal(logits, hf(prompt, use_cache=False).logits)
