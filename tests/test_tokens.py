"""Token attribution against the oracle, finite differences and a literal integral; and what users get wrong."""

import warnings

import numpy
import pytest
import torch
from made_up import random_task
from nnsight import NNsight, TransformersModel
from oracle import oracle_gradient
from small_tokenizers import bytes_and_merges, pieces
from test_apply import tokenizer
from test_rules import for_oracle, relative
from tiny import build, token_ids

import gimkit
from gimkit.model.tokenizer import answer_ids, encode
from gimkit.tokens.layers import layer_faithfulness, layer_scores

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
    assert list(scores.frame().columns) == ["position", "token", "score", "method", "metric", "target"]
    assert "w8" in str(scores)


def test_html_is_escaped():
    scores = gimkit.tokens.TokenScores(("<script>", "a&b"), torch.tensor([1.0, -2.0]), "<b>", "gim")
    page = scores._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "a&amp;b" in page and "&lt;b&gt;" in page


def test_the_control_differs():
    """GIM and the plain gradient disagree, temperature 1 without other rules is the plain gradient."""
    model = with_tokenizer("llama")
    gim, plain = (gimkit.attribute(model, "w7 w8 w9 w1", target="w5", method=m) for m in ("gim", "gradient"))
    none = gimkit.attribute(model, "w7 w8 w9 w1", target="w5", method=gimkit.Rules(temperature=1.0))
    assert relative(gim.scores, plain.scores) > 0.1 and torch.equal(none.scores, plain.scores)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(prompt=""), "prompt is empty"),
    (dict(prompt="   "), "prompt is empty"),
    (dict(prompt=[]), "prompt is empty"),
    (dict(prompt=[[1, 2], [3, 4]]), "one text or a row of token ids"),
    (dict(target="nowhere"), "not in the tokenizer's vocabulary"),
    (dict(target=("w1", "w2", "w3")), "not 3 answers"),
    (dict(target=2.5), "a text, an id, or a list of ids.*not 2.5"),
    (dict(method="gmi"), "unknown method 'gmi'.*ig"),
    (dict(method="ig", steps=0), "steps must be a whole number of at least 1"),
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


def test_without_a_tokenizer():
    model = NNsight(build("gpt2"))
    for arguments in (dict(prompt="words", target=5, baseline=3), dict(prompt=[5, 6], target="w5", baseline=3),
                      dict(prompt=[5, 6], target=5)):
        with pytest.raises(gimkit.GimkitError, match="no tokenizer"):
            gimkit.attribute(model, **arguments)


# --- prompts: one start token, no end token ---

CHAT = [{"role": "user", "content": "is it"}]


@pytest.mark.filterwarnings("ignore:removed from the given token ids")
@pytest.mark.parametrize("end", ["", " </s>"], ids=["plain", "appends an end token"])
def test_one_start_token_and_no_end_token_whatever_comes_in(end):
    words = bytes_and_merges(end=end)
    ids = words("is it", add_special_tokens=False)["input_ids"]
    rendered = words.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    chat = words(rendered, add_special_tokens=False)["input_ids"]
    padded = words(["is it", "The cat said Yes to New York"], return_tensors="pt", padding=True)
    assert words("<s>is it")["input_ids"][:2] == words(rendered)["input_ids"][:2] == [0, 0]  # what would go wrong
    for prompt in ("is it", "<s>is it", words("is it"), words("<s>is it"), words("is it", return_tensors="pt"),
                   [0, *ids], torch.tensor([[0, 0, *ids]]), numpy.array([0, *ids]),
                   {key: value[:1] for key, value in padded.items()}):
        assert encode(words, prompt).tolist() == [0, *ids], prompt
    for prompt in (CHAT, rendered, words(rendered), words.apply_chat_template(
            CHAT, add_generation_prompt=True, return_dict=True)):
        assert encode(words, prompt).tolist() == chat and chat.count(0) == 1, prompt
    assert encode(bytes_and_merges(start="", end=end), "is it").tolist() == ids


def test_tokens_taken_from_given_ids_are_named():
    words = bytes_and_merges(end=" </s>")
    with pytest.warns(UserWarning, match="removed from the given token ids: <s>, </s>"):
        encode(words, words("<s>is it"))
    assert encode(words, words("<s>", add_special_tokens=False)).tolist() == [0]  # the start token alone is a prompt


def test_messages_need_a_template():
    with pytest.raises(gimkit.GimkitError, match="no chat template for messages"):
        encode(pieces(), CHAT)
    words = bytes_and_merges()
    words.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(gimkit.GimkitError, match="does not take these messages .*no system role"):
        encode(words, CHAT)


@pytest.mark.parametrize("make", [bytes_and_merges, pieces])
@pytest.mark.parametrize(("prompt", "answer", "glue", "want"), [
    ("is it", "Yes", None, ["▁Yes"]),
    ("is it", " Yes", None, ["▁Yes"]),
    ("is it:", " Yes", "", ["▁Yes"]),
    ("is it:", "Yes", "", ["Yes"]),
    ("is it\n", "Yes", None, ["Yes"]),
    ("is it\n", " Yes", None, ["▁Yes"]),
    ("is it</s>", "Yes", None, ["Yes"]),
    ("is it<|assistant|>", "Yes", None, ["Yes"]),
    ("is it[/INST]", "Yes", None, ["Yes"]),
    ("is it[/INST]", "Yes", " ", ["▁Yes"]),
    ("is it ", "Yes", None, ["Yes"]),
    ("is it", "\n", None, ["\n"]),
    ("is it:\n", "\n", None, ["\n"]),
    ("is it", "New York", None, ["▁New", "▁York"]),
])
def test_what_stands_between_prompt_and_answer(make, prompt, answer, glue, want):
    """Also of the prompt's ids, where the text is what they spell."""
    words = make()
    for given in (prompt, encode(words, prompt)):
        got = words.convert_ids_to_tokens(answer_ids(words, given, answer, glue))
        assert [token.replace("Ġ", "▁").replace("Ċ", "\n").replace("<0x0A>", "\n") for token in got] == want, given


def test_answers_behind_messages_and_their_errors():
    words = bytes_and_merges()
    assert words.convert_ids_to_tokens(answer_ids(words, CHAT, "Yes")) == ["Yes"]
    for answer, glue, message in (("", None, "an answer is empty"), ("Yes", 3, "glue is the text")):
        with pytest.raises(gimkit.GimkitError, match=message):
            answer_ids(words, "is it", answer, glue)


def test_unknown_words_are_named():
    model = gimkit.load("mini-llama")
    prompt = "The Eiffel Tower is in"
    task = dict(clean=[prompt], corrupt=["The Eiffel Tower was in"], answers=[("Mary", "John")], model=model)
    edges = gimkit.score_edges(model, gimkit.tasks.ioi(model, n=4), "gim")
    curve = gimkit.faithfulness(model, gimkit.tasks.ioi(model, n=4), edges, absolute=True)
    for act in (lambda: gimkit.attribute(model, prompt, "Mary"), lambda: gimkit.tasks.pairs(**task),
                lambda: gimkit.tokens.shapley(model, prompt, "Mary"),
                lambda: gimkit.explore(model, prompt, edges, curve),
                lambda: gimkit.self_repair(model, prompt)):
        with pytest.warns(UserWarning, match="does not know 'Eiffel', 'Tower'.*reads <unk> instead"):
            act()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gimkit.attribute(model, "Mary drove to the farm", "Mary")


# --- answers of several tokens, and functions ---

RIGHT, WRONG = [5, 9, 12], [8]


def log_probability(hf, embeddings, answer):
    """Of an answer behind embeddings [1, seq, width] of a prompt, by the chain rule."""
    rest = hf.get_input_embeddings()(torch.tensor([answer[:-1]], dtype=torch.long))
    logits = hf(inputs_embeds=torch.cat([embeddings, rest], 1), use_cache=False).logits[0]
    return sum(torch.log_softmax(logits[len(embeddings[0]) - 1 + i].double(), -1)[token]
               for i, token in enumerate(answer))


def test_log_probability_is_teacher_forcing():
    """The oracle's value, one prompt for each token of the answer."""
    hf, want = build("gpt2", torch.float64), 0
    for i, token in enumerate(RIGHT):
        ids = torch.cat([PROMPT, torch.tensor(RIGHT[:i], dtype=torch.long)])
        want += torch.log_softmax(hf(ids[None]).logits[0, -1], -1)[token].item()
    assert log_probability(hf, hf.get_input_embeddings()(PROMPT)[None], RIGHT).item() == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("backend", ["reverse", "forward"])
def test_the_gradient_of_an_answer_of_several_tokens_is_a_slope(backend):
    hf, step = build("gpt2", torch.float64), 1e-5
    x, neutral = hf.get_input_embeddings()(PROMPT)[None], hf.get_input_embeddings()(torch.tensor(NEUTRAL))
    for target, sides in ((torch.tensor(RIGHT), [(1, RIGHT)]), ((RIGHT, WRONG), [(1, RIGHT), (-1, WRONG)])):
        got = gimkit.attribute(NNsight(hf), PROMPT, target, method="gradient", baseline=NEUTRAL, backend=backend)
        assert got.metric == "log-probability" and got.scores.shape == (7,)
        assert got.target == " - ".join(" ".join(map(str, answer)) for _, answer in sides)
        for position in range(7):
            direction = torch.zeros_like(x)
            direction[0, position] = x[0, position] - neutral
            want = sum(sign * (log_probability(hf, x + step * direction, answer)
                               - log_probability(hf, x - step * direction, answer)) for sign, answer in sides)
            assert got.scores[position].item() == pytest.approx(want.item() / (2 * step), rel=1e-5)


def test_replaced_tokens_of_an_answer_of_several_tokens():
    """Occlusion token by token; integrated gradients, Shapley values and faithfulness add up to its change."""
    hf = build("llama", torch.float64)
    model, embed = NNsight(hf), hf.get_input_embeddings()

    def value(*positions):
        ids = PROMPT.clone()
        ids[list(positions)] = NEUTRAL
        return sum(sign * log_probability(hf, embed(ids)[None], answer).item() for sign, answer in ((1, RIGHT),
                                                                                                    (-1, WRONG)))

    given = dict(target=(RIGHT, WRONG), baseline=NEUTRAL)
    occluded = gimkit.attribute(model, PROMPT, method="occlusion", **given).scores
    assert occluded.tolist() == pytest.approx([value() - value(i) for i in range(7)], abs=1e-5)
    assert gimkit.attribute(model, PROMPT, method="ig", steps=400, **given).scores.sum().item() == pytest.approx(
        value() - value(*range(7)), rel=0.02)
    worth = gimkit.tokens.shapley(model, PROMPT, free=[1, 2, 5], **given)
    assert worth.metric == "log-probability"
    assert worth.scores.sum().item() == pytest.approx(value() - value(1, 2, 5), abs=1e-5)
    kept = gimkit.tokens.token_faithfulness(model, [PROMPT], [occluded], [torch.tensor(RIGHT)], baseline=NEUTRAL)
    assert kept.full[0, 0].item() == pytest.approx(log_probability(hf, embed(PROMPT)[None], RIGHT).item(), rel=1e-5)
    assert kept.full[0, 1].item() == pytest.approx(kept.full[0, 0].exp().item(), rel=1e-5)
    assert kept.comprehensiveness().isnan().all() and kept.comprehensiveness("probability").isfinite().all()


EVERY = ("gim", "gradient", "attnlrp", "ig", "deeplift", "pattern-difference", "occlusion", "lime", "kernelshap",
         "random")


@pytest.mark.parametrize("backend", ["reverse", "forward"])
@pytest.mark.parametrize("method", EVERY)
def test_a_function_of_the_logits_is_explained_like_the_logits_that_it_takes(method, backend):
    model = NNsight(build("llama"))
    given = dict(method=method, baseline=NEUTRAL, steps=3)
    given |= {"backend": backend} if method in ("gim", "gradient", "attnlrp", "ig") else {}
    pair = gimkit.attribute(model, PROMPT, (5, 9), **given)
    mine = gimkit.attribute(model, PROMPT, lambda logits: logits[5] - logits[9], **given)
    assert relative(mine.scores, pair.scores) < 1e-5 and (mine.metric, pair.metric) == ("function", "logit")
    assert mine.target == "<lambda>" and "(function)" in str(mine) and set(mine.frame()["metric"]) == {"function"}


def test_a_probe_and_a_sum_over_a_set_are_slopes():
    hf, step = build("gpt2", torch.float64), 1e-5
    x, neutral = hf.get_input_embeddings()(PROMPT)[None], hf.get_input_embeddings()(torch.tensor(NEUTRAL))
    weight = torch.randn(61, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def probe(logits):
        return torch.sigmoid(logits.double() @ weight / 100)

    for target in (probe, lambda logits: torch.softmax(logits, -1)[[5, 9, 12]].sum()):
        got = gimkit.attribute(NNsight(hf), PROMPT, target, method="gradient", baseline=NEUTRAL, remote="local")
        for position in (0, 3, 6):
            direction = torch.zeros_like(x)
            direction[0, position] = x[0, position] - neutral
            ends = [target(logit_with(hf, x + sign * step * direction)).item() for sign in (1, -1)]
            assert got.scores[position].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("target", "message"), [
    (lambda logits: logits[:2], r"without dimensions .*not a tensor of shape \(2,\)"),
    (lambda logits: 3.0, "not 3.0"),
    (lambda logits: logits.detach().max(), "has a gradient"),
    (lambda logits: logits[100], "fails on logits of shape .61.: index 100"),
    (lambda: 0, "fails on logits of shape"),
])
def test_functions_that_explain_nothing(target, message):
    with pytest.raises(gimkit.GimkitError, match=message):
        gimkit.attribute(NNsight(build("gpt2")), PROMPT, target, baseline=NEUTRAL)


def test_who_takes_which_target():
    model = NNsight(build("gpt2"))
    scores, layers, given = torch.ones(7), torch.ones(3, 7), dict(baseline=NEUTRAL)
    several, function = torch.tensor(RIGHT), lambda logits: logits[5]
    for name, target, act in (
            ("token_faithfulness", function,
             lambda t: gimkit.tokens.token_faithfulness(model, [PROMPT], [scores], [t], **given)),
            ("layer_scores", several, lambda t: layer_scores(model, PROMPT, t)),
            ("layer_faithfulness", several, lambda t: layer_faithfulness(model, [PROMPT], [layers], [t])),
            ("layer_faithfulness", function, lambda t: layer_faithfulness(model, [PROMPT], [layers], [t]))):
        with pytest.raises(gimkit.GimkitError, match=f"{name} does not explain"):
            act(target)
    for method in ("gim", "ig", "pattern-difference"):
        assert relative(layer_scores(model, PROMPT, function, method=method, steps=2),
                        layer_scores(model, PROMPT, 5, method=method, steps=2)) < 1e-5


# --- bad input ---


def entry_points(model):
    """Everything that takes a prompt and a target."""
    return {
        "attribute": lambda prompt, target=5, **more: gimkit.attribute(model, prompt, target, baseline=NEUTRAL, **more),
        "occlusion": lambda prompt, target=5, **more: gimkit.attribute(model, prompt, target, method="occlusion",
                                                                       baseline=NEUTRAL, **more),
        "shapley": lambda prompt, target=5, **more: gimkit.tokens.shapley(model, prompt, target, baseline=NEUTRAL,
                                                                          **more),
        "token_faithfulness": lambda prompt, target=5: gimkit.tokens.token_faithfulness(
            model, [prompt], [torch.ones(7)], [target], baseline=NEUTRAL),
        "layer_scores": lambda prompt, target=5: layer_scores(model, prompt, target),
        "layer_faithfulness": lambda prompt, target=5: layer_faithfulness(model, [prompt], [torch.ones(3, 7)],
                                                                          [target]),
        "self_repair": lambda prompt: gimkit.self_repair(model, [prompt]),
    }


@pytest.mark.parametrize("name", entry_points(None))
def test_every_entry_point_refuses_the_same_prompts_and_targets(name):
    act = entry_points(NNsight(build("gpt2")))[name]
    for prompt, message in ((torch.arange(65) % 60, "has 65 tokens, but the model's context holds 64"),
                            ([5, 6, 61], "holds the token id 61, but the model knows ids from 0 to 60"),
                            ([5, 6, -1], "holds the token id -1"), ([5.5, 6.0, 7.0], "whole numbers"),
                            ([[5, 6], [7, 8]], "one text or a row of token ids"), ([], "is empty")):
        with pytest.raises(gimkit.GimkitError, match=message):
            act(prompt)
    if name == "self_repair":
        return
    for target, message in ((61, "holds the token id 61"), (-1, "at least 0, not -1"), (2.5, "not 2.5"),
                            (5.0, "not 5.0"), (True, "not True"), ("w5", "no tokenizer")):
        with pytest.raises(gimkit.GimkitError, match=message):
            act(PROMPT, target)
    if name not in ("token_faithfulness",):  # which takes no pair at all
        for target, message in (([5, 6, 7], "not 3 answers"), ((5, 5), "the same answer 5 as right and as wrong"),
                                ((None, 5), "not None"), (([5, 6], [5, 6]), "the same answer")):
            with pytest.raises(gimkit.GimkitError, match=message):
                act(PROMPT, target)


def test_numbers_of_any_kind():
    model = NNsight(build("gpt2"))

    def scores(free, steps, target):
        return gimkit.attribute(model, PROMPT.numpy(), target, method="ig", free=free, steps=steps, baseline=NEUTRAL,
                                seed=numpy.int64(1)).scores

    want = scores([1, 2, 5], 3, 5)
    for free in (numpy.array([1, 2, 5]), torch.tensor([1, 2, 5]), range(1, 6, 1), (numpy.int64(1), torch.tensor(2), 5)):
        got = scores(free, numpy.int64(3), numpy.int64(5))
        assert torch.equal(got, want) or len(list(free)) == 5
    assert torch.equal(scores([1, 2, 5], torch.tensor(3), torch.tensor(5)), want)
    for free in ([7], [-1], [1.0], [True], torch.ones(7, dtype=torch.bool), []):
        with pytest.raises(gimkit.GimkitError, match="free"):
            scores(free, 3, 5)


@pytest.mark.parametrize("rules", [dict(temperature=0), dict(temperature=float("nan")), dict(q=float("inf")),
                                   dict(v="0.5"), dict(freeze_norm="no"), dict(identity_activation=1),
                                   dict(up=True), dict(gate=None)])
def test_rules_that_are_none_are_refused_everywhere(rules):
    model, task, wrong = NNsight(build("llama")), random_task(2), gimkit.Rules(**rules)
    for act in (lambda: gimkit.apply(model, wrong), lambda: gimkit.score_nodes(model, task, wrong),
                lambda: gimkit.attribute(model, PROMPT, 5, method=wrong, baseline=NEUTRAL),
                lambda: gimkit.attribute(model, PROMPT, 5, method=wrong, baseline=NEUTRAL, backend="forward"),
                lambda: gimkit.score_edges(model, task, wrong),
                lambda: gimkit.circuits.score_neurons(model, task, wrong),
                lambda: gimkit.score_edges(model, task, wrong, nodes=["m0", "logits"], backend="forward")):
        with pytest.raises(gimkit.GimkitError, match=f"{next(iter(rules))}.* must be (above 0|a finite|True or)"):
            act()


def test_faithfulness_refuses_what_belongs_elsewhere():
    model = with_tokenizer()
    of_other = gimkit.attribute(model, "w3 w4 w5 w6", "w8")
    with pytest.raises(gimkit.GimkitError, match="prompt 0: the scores are of another prompt, 'w3 w4 w5 w6'"):
        gimkit.tokens.token_faithfulness(model, ["w3 w4 w9 w6"], [of_other], ["w8"])
    result = gimkit.tokens.token_faithfulness(model, ["w3 w4 w5 w6"], [of_other], ["w8"])
    with pytest.raises(gimkit.GimkitError, match="zero_filled must be True or False, not 'no'"):
        result.comprehensiveness(zero_filled="no")
    for level in (95, 0, 1.0, float("nan")):
        with pytest.raises(gimkit.GimkitError, match="level"):
            result.summary(level=level)
    scores = layer_scores(model, "w3 w4 w5 w6", "w8")
    scores[1, 2] = torch.nan
    with pytest.raises(gimkit.GimkitError, match="prompt 0: the scores contain NaN"):
        layer_faithfulness(model, ["w3 w4 w5 w6"], [scores], ["w8"])
