"""Comprehensiveness and sufficiency against a literal loop over prompts, and what is undefined."""

import math

import pytest
import torch
from nnsight import NNsight
from test_apply import tokenizer
from tiny import build

import gimkit
from gimkit.tokens.faithfulness import SHARES, TokenFaithfulness

torch.set_num_threads(1)
NEUTRAL, TARGET = 3, 5


def prompt_of(length, seed=0):
    return torch.randint(4, 61, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def noise(length, seed=9):
    return torch.randn(length, generator=torch.Generator().manual_seed(seed))


def positive(hf, prompt):
    """The most likely token: its logit is above 0 in these models."""
    with torch.no_grad():
        logits = hf(torch.tensor([prompt])).logits[0, -1]
    assert logits.max() > 0
    return int(logits.argmax())


def literal(hf, prompt, target, scores, zero_filled=False):
    """The protocol, one forward at a time: [logit, probability] of comprehensiveness and of sufficiency."""
    def f(removed):
        ids = [NEUTRAL if i in removed else token for i, token in enumerate(prompt)]
        with torch.no_grad():
            logits = hf(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        return torch.stack([logits[target], logits.softmax(-1)[target]])

    order = sorted(range(1, len(prompt) - 1), key=lambda i: scores[i].item(), reverse=True)
    n, full = len(order), f(())
    losses = [(full - f(order[:k])) / full for k in range(1, 51) if k <= n]
    comprehensiveness = sum(losses) / (50 if zero_filled else len(losses))
    worst = order[::-1]
    sufficiency = sum((full - f(worst[:int(r * n)])) / full for r in (0.5, 0.8, 0.9, 0.95, 0.99)) / 5
    return comprehensiveness.tolist(), sufficiency.tolist()


@pytest.mark.parametrize(("name", "length"), [("gpt2", 9), ("llama", 3), ("gemma2", 12), ("llama", 60)])
def test_a_literal_loop(name, length):
    hf, prompt, scores = build(name), prompt_of(length), noise(length)
    target = positive(hf, prompt)
    result = gimkit.tokens.token_faithfulness(NNsight(hf), [prompt], [scores], [target], baseline=NEUTRAL)
    for zero_filled in (False, True):
        want = literal(hf, prompt, target, scores, zero_filled)
        for column, scale in enumerate(("logit", "probability")):
            got = (result.comprehensiveness(scale, zero_filled).item(), result.sufficiency(scale).item())
            assert got == pytest.approx((want[0][column], want[1][column]), rel=1e-3, abs=1e-5)
    assert SHARES == (0.5, 0.8, 0.9, 0.95, 0.99) and result.without_best.shape == (1, 50, 2)


def test_more_rows_than_a_forward_takes(monkeypatch):
    hf, prompt = build("gpt2"), prompt_of(20)
    whole = gimkit.tokens.token_faithfulness(NNsight(hf), [prompt], [noise(20)], baseline=NEUTRAL)
    from gimkit.tokens import masking
    monkeypatch.setattr(masking.masked_values, "__defaults__", (False, 45))  # two rows at a time
    parts = gimkit.tokens.token_faithfulness(NNsight(hf), [prompt], [noise(20)], baseline=NEUTRAL)
    assert torch.allclose(whole.without_best, parts.without_best, atol=1e-5, equal_nan=True)


def test_the_right_order_beats_its_reverse():
    """A control: with leave-one-out as scores, their negative must be worse on both measures."""
    model = gimkit.load("mini-llama")
    pairs = gimkit.tasks.ioi(model, n=6).pairs
    prompts, targets = [pair.clean for pair in pairs], [pair.answer for pair in pairs]
    scores = [gimkit.attribute(model, *both, method="occlusion") for both in zip(prompts, targets)]
    right, wrong = (gimkit.tokens.token_faithfulness(model, prompts, s, targets)
                    for s in (scores, [-s.scores for s in scores]))
    assert right.comprehensiveness().mean() > wrong.comprehensiveness().mean()
    assert right.sufficiency().mean() < wrong.sufficiency().mean()
    assert (right.method, wrong.method) == ("occlusion", "own scores")
    assert callable(gimkit.faithfulness)  # the circuits' measure keeps its name


def test_a_logit_that_is_not_above_zero_is_counted_not_divided_by():
    hf, prompt = build("gpt2"), prompt_of(8)
    with torch.no_grad():
        worst = int(hf(torch.tensor([prompt])).logits[0, -1].argmin())
    best = positive(hf, prompt)
    result = gimkit.tokens.token_faithfulness(NNsight(hf), [prompt] * 2, [noise(8)] * 2, [best, worst],
                                              baseline=NEUTRAL)
    assert result.full[1, 0] < 0
    for values in (result.comprehensiveness(), result.comprehensiveness(zero_filled=True), result.sufficiency()):
        assert values.isnan().tolist() == [False, True]
    assert result.comprehensiveness("probability").isfinite().all()
    table = result.summary(resamples=20).set_index(["scale", "measure"])
    assert table.loc[("logit", "sufficiency"), ["n", "undefined"]].tolist() == [1, 1]
    assert table.loc[("probability", "sufficiency"), ["n", "undefined"]].tolist() == [2, 0]
    none = TokenFaithfulness("x", result.full[1:], result.without_best[1:], result.without_rest[1:]).summary()
    assert math.isnan(none.value[0]) and none.undefined[0] == 1


def test_a_hand_made_result():
    """f = 2, and 1, 0 without the best one and two tokens: losses 1/2 and 1; without the rest 1.5 each: 1/4."""
    best = torch.full((1, 50, 2), torch.nan)
    best[0, :2, 0] = torch.tensor([1.0, 0.0])
    best[0, :2, 1] = torch.tensor([0.5, 0.5])
    result = TokenFaithfulness("x", torch.tensor([[2.0, 1.0]]), best, torch.full((1, 5, 2), 1.5))
    assert result.comprehensiveness().item() == 0.75
    assert result.comprehensiveness(zero_filled=True).item() == pytest.approx(1.5 / 50)
    assert result.sufficiency().item() == 0.25 and result.comprehensiveness("probability").item() == 0.5
    frame = result.frame()
    assert len(frame) == 2 and list(frame.columns) == ["example", "method", "scale", "full", "comprehensiveness",
                                                       "comprehensiveness_zero_filled", "sufficiency"]
    assert "undefined" in str(result)


def test_texts():
    from nnsight import TransformersModel

    model = TransformersModel(build("gpt2"), task="text-generation", tokenizer=tokenizer())
    prompts = ["w7 w8 w9 w10", "w11 w12 w13"]
    scores = [gimkit.attribute(model, prompt) for prompt in prompts]
    result = gimkit.tokens.token_faithfulness(model, prompts, scores)
    assert result.method == "gim" and result.full.shape == (2, 2)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(prompts=[prompt_of(8), [7]], scores=[noise(8), noise(1)]), "prompt 1: this prompt has 1 token"),
    (dict(prompts=[prompt_of(65)], scores=[noise(65)]), "prompt 0: the prompt has 65 tokens, but .* holds 64"),
    (dict(prompts=[prompt_of(8)], scores=[noise(7)]), r"prompt 0: it has 8 tokens, but the scores .* \(7,\)"),
    (dict(prompts=[prompt_of(8)], scores=[noise(8) * math.nan]), "prompt 0: .*NaN"),
    (dict(prompts=[prompt_of(8)], scores=[]), "1 prompts, 0 scores"),
    (dict(prompts=[], scores=[]), "at least one"),
    (dict(prompts=[prompt_of(8)], scores=[noise(8)], targets=[(5, 6)]), "prompt 0: the target is one answer here"),
])
def test_bad_input(arguments, message):
    with pytest.raises(gimkit.GimkitError, match=message):
        gimkit.tokens.token_faithfulness(NNsight(build("gpt2")), **arguments, baseline=NEUTRAL)


def test_unknown_scale():
    result = TokenFaithfulness("x", torch.ones(1, 2), torch.ones(1, 50, 2), torch.ones(1, 5, 2))
    with pytest.raises(gimkit.GimkitError, match="unknown scale 'logits'; use logit or probability"):
        result.sufficiency("logits")
