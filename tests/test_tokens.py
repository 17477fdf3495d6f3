"""Token attribution against the oracle, finite differences and a literal integral; and what users get wrong."""

import pytest
import torch
from nnsight import NNsight, TransformersModel
from oracle import oracle_gradient
from test_edits import tokenizer
from test_rules import for_oracle, relative
from tiny import build, token_ids

import gimkit

torch.set_num_threads(1)
PROMPT, NEUTRAL = token_ids(1, 7)[0], 3


def with_tokenizer(name="gpt2"):
    return TransformersModel(build(name), task="text-generation", tokenizer=tokenizer())


@pytest.mark.parametrize("method", ["gim", "gradient", "transformer-lrp"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gemma3", "gpt_neox"])
def test_rules_times_embedding_difference(name, method):
    hf = build(name)
    got = gimkit.attribute(NNsight(hf), PROMPT, target=5, method=method, baseline=NEUTRAL)
    gradient, _ = oracle_gradient(hf, PROMPT[None], lambda logits: logits[0, -1, 5], for_oracle(gimkit.RULES[method]))
    embed = hf.get_input_embeddings()
    want = ((embed(PROMPT) - embed(torch.tensor(NEUTRAL))) * gradient[0]).sum(-1)
    assert got.scores.shape == (7,) and relative(got.scores, want) < 1e-4


def logit_with(hf, embeddings):
    with torch.no_grad():
        return hf(inputs_embeds=embeddings, use_cache=False).logits[0, -1]


def test_gradient_is_the_slope_in_each_token():
    hf, step = build("gpt2", torch.float64), 1e-5
    got = gimkit.attribute(NNsight(hf), PROMPT, target=(5, 9), method="gradient", baseline=NEUTRAL)
    x = hf.get_input_embeddings()(PROMPT)[None]
    neutral = hf.get_input_embeddings()(torch.tensor(NEUTRAL))
    for position in range(7):
        direction = torch.zeros_like(x)
        direction[0, position] = x[0, position] - neutral
        up, down = (logit_with(hf, x + sign * step * direction) for sign in (1, -1))
        want = ((up[5] - up[9]) - (down[5] - down[9])) / (2 * step)
        assert got.scores[position].item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_integrated_gradients_are_complete_and_the_literal_sum(name):
    hf = build(name)
    model, embed = NNsight(hf), hf.get_input_embeddings()
    x, neutral = embed(PROMPT)[None].detach(), embed(torch.tensor(NEUTRAL)).detach()
    literal = torch.zeros(7)
    for k in range(4):
        point = (neutral + (k + 0.5) / 4 * (x - neutral)).requires_grad_(True)
        logit = hf(inputs_embeds=point, use_cache=False).logits[0, -1, 5]
        literal += ((x - neutral) * torch.autograd.grad(logit, point)[0]).sum(-1)[0] / 4
    four = gimkit.attribute(model, PROMPT, target=5, method="ig", steps=4, baseline=NEUTRAL)
    assert relative(four.scores, literal) < 1e-4
    change = (logit_with(hf, x) - logit_with(hf, neutral.expand_as(x)))[5].item()
    many = gimkit.attribute(model, PROMPT, target=5, method="ig", steps=400, baseline=NEUTRAL)
    gaps = [abs(scores.scores.sum().item() - change) for scores in (four, many)]
    assert gaps[1] < 0.01 * abs(change) and gaps[1] < gaps[0]


def test_texts_targets_and_display():
    model = with_tokenizer()
    scores = gimkit.attribute(model, "w7 w8 w9", target="w5")
    assert scores.tokens == ("w7", "w8", "w9") and scores.target == "w5" and scores.method == "gim"
    ids = gimkit.attribute(model, [7, 8, 9], target=5)
    assert torch.equal(ids.scores, scores.scores)
    pair = gimkit.attribute(model, "w7 w8 w9", target=("w5", "w6"))
    other = gimkit.attribute(model, "w7 w8 w9", target="w6")
    assert relative(pair.scores, scores.scores - other.scores) < 1e-4 and pair.target == "w5 - w6"
    top = gimkit.attribute(model, "w7 w8 w9")
    with torch.no_grad():
        best = int(model._module(torch.tensor([[7, 8, 9]])).logits[0, -1].argmax())
    assert top.target == f"w{best}"
    assert list(scores.frame().columns) == ["position", "token", "score", "method", "target"]
    assert "w8" in str(scores)


def test_html_is_escaped():
    scores = gimkit.tokens.TokenScores(("<script>", "a&b"), torch.tensor([1.0, -2.0]), "<b>", "gim")
    page = scores._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "a&amp;b" in page and "&lt;b&gt;" in page


def test_the_control_differs():
    """GIM and the plain gradient disagree, temperature 1 without other rules is the plain gradient."""
    model = with_tokenizer("llama")
    gim, plain = (gimkit.attribute(model, "w7 w8 w9 w10", target="w5", method=m) for m in ("gim", "gradient"))
    none = gimkit.attribute(model, "w7 w8 w9 w10", target="w5", method=gimkit.Rules(temperature=1.0))
    assert relative(gim.scores, plain.scores) > 0.1 and torch.equal(none.scores, plain.scores)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(prompt=""), "prompt is empty"),
    (dict(prompt="   "), "prompt is empty"),
    (dict(prompt=[]), "prompt is empty"),
    (dict(prompt=[[1, 2], [3, 4]]), "one text or a row of token ids"),
    (dict(target="nowhere"), "not in the tokenizer's vocabulary"),
    (dict(target=("w1", "w2", "w3")), "not 3 tokens"),
    (dict(target=2.5), "text or an id"),
    (dict(method="gmi"), "unknown method 'gmi'.*ig"),
    (dict(method="ig", steps=0), "steps must be at least 1"),
])
def test_bad_input(arguments, message):
    with pytest.raises(gimkit.GimkitError, match=message):
        gimkit.attribute(with_tokenizer(), **{"prompt": "w7 w8", "target": "w5", **arguments})


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_prompt_of_one_token(name):
    """Its one token bears the whole change of the logit; what orders or fits several tokens says so."""
    def score(method, **options):
        return gimkit.attribute(NNsight(build(name)), [7], 5, method=method, baseline=NEUTRAL, **options).scores

    assert torch.allclose(score("ig", steps=200), score("occlusion"), rtol=1e-3)
    assert score("gim").shape == (1,)
    for method in ("lime", "kernelshap"):
        with pytest.raises(gimkit.GimkitError, match=f"{method} fits a line over several tokens"):
            score(method)
    with pytest.raises(gimkit.GimkitError, match="prompt 0: this prompt has 1 token"):
        gimkit.tokens.token_faithfulness(NNsight(build(name)), [[7]], [score("gim")], [5], baseline=NEUTRAL)


def test_a_target_of_several_tokens_says_which():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE({"a": 0, "b": 1, " ": 2, "ab": 3, "x": 4}, [("a", "b")]))
    pieces.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    model = TransformersModel(build("gpt2"), task="text-generation",
                              tokenizer=PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="x"))
    with pytest.raises(gimkit.GimkitError, match="not one token but .*'ab', 'ab'"):
        gimkit.attribute(model, "ab a", target="abab")


def test_without_a_tokenizer():
    model = NNsight(build("gpt2"))
    for arguments in (dict(prompt="words", target=5, baseline=3), dict(prompt=[5, 6], target="w5", baseline=3),
                      dict(prompt=[5, 6], target=5)):
        with pytest.raises(gimkit.GimkitError, match="no tokenizer"):
            gimkit.attribute(model, **arguments)
