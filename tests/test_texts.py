"""Texts with a Yes or No answer: made-up rows of the data sets' schemas, small tokenizers, no hub and no `datasets`."""

import json
import sys
from types import SimpleNamespace

import pandas
import pytest
import torch
from nnsight import TransformersModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import gimkit
from benchmarks.texts import compare_texts, main
from gimkit.tasks import load_texts
from gimkit.tasks.text_sets import TEXT_SETS

torch.set_num_threads(1)

BOOLQ = [
    {"question": "is the tower open at night", "answer": True, "passage": "The tower is open day and night."},
    {"question": "is the bridge free", "answer": False, "passage": "The bridge takes a toll."},
    {"question": "do swans fly?", "answer": True, "passage": "Swans are birds that fly far."},
]
FEVER = [
    {"id": 1, "claim": "Oslo is a city.", "label": "SUPPORTS",
     "evidence": [["Oslo", "0", "Oslo is the capital of Norway."], ["Oslo", "3", "The city grew fast."]]},
    {"id": 2, "claim": "Oslo is a river.", "label": "REFUTES", "evidence": [["Oslo", "0", "Oslo is a city."]]},
    {"id": 3, "claim": "Oslo is dear.", "label": "NOT ENOUGH INFO", "evidence": [["Oslo", "0", "Oslo is a city."]]},
]
MOVIES = [{"review": "a warm and funny film .\n", "label": 1, "evidences": ["warm"]},
          {"review": "two hours that i want back .\n", "label": 0, "evidences": []}]
CLAIMS = [
    {"id": 1, "claim": "Tea lowers pressure.", "evidence_doc_id": "7", "evidence_label": "SUPPORT",
     "evidence_sentences": [1]},
    {"id": 1, "claim": "Tea lowers pressure.", "evidence_doc_id": "7", "evidence_label": "SUPPORT",
     "evidence_sentences": [0]},
    {"id": 2, "claim": "Tea raises pressure.", "evidence_doc_id": "7", "evidence_label": "CONTRADICT",
     "evidence_sentences": [1]},
    {"id": 3, "claim": "Tea heals.", "evidence_doc_id": "", "evidence_label": "", "evidence_sentences": []},
]
CORPUS = [{"doc_id": 7, "title": "Tea", "abstract": ["We gave tea.", "Pressure fell."], "structured": False}]
HATEXPLAIN = [
    {"id": "a", "annotators": {"label": [0, 0, 2]}, "post_tokens": ["they", "should", "all", "leave"]},
    {"id": "b", "annotators": [{"label": 1}, {"label": 1}, {"label": 0}], "post_tokens": ["good", "morning"]},
    {"id": "c", "annotators": {"label": [0, 1, 2]}, "post_tokens": ["well", "then"]},
    {"id": "d", "annotators": {"label": [2, 2, 0]}, "post_tokens": ["oh", "come", "on"]},
]
TWITTER = [{"id": "x", "text": "what a day!", "label": 2, "label_text": "positive"},
           {"id": "y", "text": "so tired", "label": 0, "label_text": "negative"},
           {"id": "z", "text": "at home", "label": 1, "label_text": "neutral"}]
ROWS = {"boolq": BOOLQ, "fever": FEVER, "movies": MOVIES, "scifact": (CLAIMS, CORPUS), "hatexplain": HATEXPLAIN,
        "twitter": TWITTER}
TEMPLATE = ("<s>{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            "[{{ m.role }}]\n{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]\n\n{% endif %}")


def byte_pairs(chat=True, single=("Yes", "No")) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a start token, in which Yes and " Yes" are two different tokens."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "<pad>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    pieces.train_from_iterator([f"{word} {word} {word}\n{word}" for word in single] * 9, trainer)
    pieces.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<s>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE if chat else None
    return tokenizer


def small(tokenizer=None, context=1024, favour=None, seed=0):
    """A random GPT-2; `favour` lifts one token's logit far above all others."""
    tokenizer = tokenizer or byte_pairs()
    torch.manual_seed(seed)
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=context,
                                    initializer_range=0.5, bos_token_id=0, eos_token_id=0, pad_token_id=1))
    hf = hf.eval().requires_grad_(False)
    if favour:
        row = hf.lm_head.weight[tokenizer(favour, add_special_tokens=False)["input_ids"][0]]
        hf.transformer.ln_f.bias.copy_(50 * row / row.square().sum())
    return TransformersModel(hf, task="text-generation", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def yes_sayer():
    return small(favour="Yes")


@pytest.mark.parametrize(("name", "passage", "question", "no"), [
    ("boolq", "The tower is open day and night.", "Question: is the tower open at night?", 1),
    ("fever", "Oslo is the capital of Norway. The city grew fast.", "Claim: Oslo is a city.", 1),
    ("movies", "a warm and funny film .", None, 1),
    ("scifact", "We gave tea. Pressure fell.", "Claim: Tea lowers pressure.", 1),
    ("hatexplain", "they should all leave", None, 1),
    ("twitter", "what a day!", None, 1),
])
def test_rows_become_prompts(yes_sayer, name, passage, question, no):
    """Yes and No labels of every schema; what is neither is told; the same evidence comes once."""
    both = load_texts(name, yes_sayer, 9, data=ROWS[name], true_positives=False)
    words = [yes_sayer.tokenizer.decode([target]) for target in both.targets]
    assert words.count("No") == no and set(words) == {"Yes", "No"}
    only = load_texts(name, yes_sayer, 9, data=ROWS[name])
    assert len(only) == words.count("Yes") and f"{no} examples labelled No" in only.dropped
    assert f"only {len(only)} of 9 examples were found" in only.dropped
    shown = next(text for text in only.texts if passage in text)
    assert TEXT_SETS[name].instruction in shown and "Yes" in shown
    assert question is None or shown.index(passage) < shown.index(f"{question}\n")
    neither = {"fever": 1, "scifact": 1, "hatexplain": 2, "twitter": 1}.get(name)
    assert not neither or f"{neither} examples labelled neither Yes nor No" in both.dropped
    assert set(TEXT_SETS) == set(ROWS)


@pytest.mark.parametrize(("chat", "end", "spoken"), [(True, "[assistant]\n\n", "Yes"), (False, "Answer:", " Yes")])
def test_the_answer_follows_the_prompt(chat, end, spoken):
    """One start token; the target is the token that the tokenizer itself puts behind the prompt's text."""
    tokenizer = byte_pairs(chat)
    texts = load_texts("boolq", small(tokenizer, favour=spoken), 2, data=BOOLQ)
    for ids, target, text in zip(texts.prompts, texts.targets, texts.texts):
        assert text.endswith(end) and ids.tolist().count(0) == 1 and ids[0] == 0
        assert tokenizer.decode([target]) == spoken
        assert tokenizer(text + spoken, add_special_tokens=not chat)["input_ids"] == [*ids.tolist(), target]


def test_true_positives_are_where_the_model_says_yes():
    """Against the logits of the transformers model itself, on a model that says Yes to two thirds."""
    rows = [{"text": f"a day with {i} suns and {i * i} clouds", "label": 2} for i in range(30)]
    model = small(seed=3)
    everything = load_texts("twitter", model, 30, data=rows, true_positives=False)
    yes, no = (model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
    assert set(everything.targets) == {yes}
    logits = torch.stack([model._module(ids[None]).logits[0, -1] for ids in everything.prompts])
    ahead = logits[:, yes] - logits[:, no]
    model._module.lm_head.bias = torch.nn.Parameter(torch.zeros(400), requires_grad=False)
    model._module.lm_head.bias[no] = middle = ahead.sort().values[9:11].mean()
    wanted = {text for text, difference in zip(everything.texts, ahead) if difference > middle}
    assert len(wanted) == 20
    kept = load_texts("twitter", model, 30, data=rows)
    assert set(kept.texts) == wanted and set(kept.targets) == {yes}
    assert f"{30 - len(wanted)} examples that the model does not answer with Yes" in kept.dropped


def test_the_seed_decides():
    rows, model = [{"text": f"day {i}", "label": 2} for i in range(20)], small(favour="Yes")
    first, again, other = (load_texts("twitter", model, 5, seed, rows).texts for seed in (0, 0, 1))
    assert first == again != other and len(first) == 5


def test_long_texts_are_left_out_and_told():
    model = small(context=200, favour="Yes")
    rows = [{"text": "short", "label": 2}, {"text": "long " * 200, "label": 2}]
    texts = load_texts("twitter", model, 2, data=rows)
    assert texts.dropped == ("1 examples of more than 200 tokens", "only 1 of 2 examples were found")
    rows[1]["text"] = "long " * 2000  # the protocol's 1024 tokens where the model could take more
    assert "1 examples of more than 1024 tokens" in load_texts("twitter", small(context=4096, favour="Yes"), 2,
                                                               data=rows).dropped


def test_attribution_and_faithfulness_take_them(yes_sayer):
    texts = load_texts("fever", yes_sayer, 1, data=FEVER)
    scores = [gimkit.attribute(yes_sayer, *both) for both in zip(texts.prompts, texts.targets)]
    assert scores[0].target == "Yes" and scores[0].scores.shape == texts.prompts[0].shape
    result = gimkit.tokens.token_faithfulness(yes_sayer, texts.prompts, scores, texts.targets)
    assert result.full[0, 0] > 0 and result.comprehensiveness().isfinite().all()


def test_the_table_holds_each_methods_faithfulness(yes_sayer):
    texts = load_texts("boolq", yes_sayer, 2, data=BOOLQ)
    table = compare_texts(yes_sayer, texts, ["gim", "occlusion", "random"])
    assert table.data_set.eq("boolq").all() and table.n.eq(2).all() and len(table) == 3 * 6
    for method in ("gim", "random"):
        scores = [gimkit.attribute(yes_sayer, *both, method=method, seed=i)
                  for i, both in enumerate(zip(texts.prompts, texts.targets))]
        result = gimkit.tokens.token_faithfulness(yes_sayer, texts.prompts, scores, texts.targets)
        row = table[(table.method == method) & (table.scale == "logit") & (table.measure == "sufficiency")]
        assert row.value.item() == pytest.approx(result.sufficiency().mean().item())


def test_the_command_on_a_model_in_a_folder(yes_sayer, tmp_path, monkeypatch, capsys):
    """From the hub's rows and from files; finished parts are read again; a data set without texts is left out."""
    yes_sayer._module.save_pretrained(tmp_path / "model")
    yes_sayer.tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: BOOLQ))
    monkeypatch.chdir(tmp_path)
    assert main(["model", "--data", "boolq", "--methods", "gim", "-n", "2", "--csv", "table.csv"]) == 0
    out = capsys.readouterr().out
    assert "2 texts of boolq, " in out and "comprehensiveness, high is good" in out
    wanted = pandas.read_csv("table.csv")
    assert wanted.method.eq("gim").all()
    rows = {"boolq": BOOLQ, "movies": MOVIES[1:], "scifact-claims": CLAIMS, "scifact-corpus": CORPUS}
    for name, table in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, table)))
    command = ["model", "--data", "boolq", "movies", "scifact", "--methods", "gim", "random", "-n", "2", "--rows", ".",
               "--csv", "files.csv"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "movies: left out: data set 'movies': no usable example" in out and "1 texts of scifact" in out
    found = pandas.read_csv("files.csv")
    assert set(found.data_set) == {"boolq", "scifact"} and set(found.method) == {"gim", "random"}
    same = found[(found.data_set == "boolq") & (found.method == "gim")].reset_index(drop=True)
    pandas.testing.assert_frame_equal(same, wanted)
    monkeypatch.setattr("benchmarks.texts.compare_texts", lambda *given: pytest.fail("measured again"))
    assert main(command) == 0


@pytest.mark.parametrize(("arguments", "message"), [
    (["mini-llama", "--data", "boolq"], "'Yes' is not in the tokenizer's vocabulary"),
    (["mini-llama", "--data", "boolk"], "unknown data set 'boolk'; use boolq"),
    (["mini-llama", "--methods", "gmi"], "unknown method 'gmi'"),
    (["mini-llama", "--rows", "nowhere", "--data", "boolq"], "cannot read rows from nowhere"),
])
def test_the_commands_bad_input_gives_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("gimkit: ") and message in error and error.count("\n") == 1


@pytest.mark.smollm2
def test_the_command_on_a_real_model(tmp_path, monkeypatch, capsys):
    """SmolLM2 with its own chat template, on a row that it answers with Yes."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": "is the tower open at night", "answer": True, "passage": "The tower is open day and night."},
            {"question": "do birds fly", "answer": True, "passage": "Most birds can fly."}]
    (tmp_path / "boolq.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["smollm2-135m", "--data", "boolq", "--methods", "gradient", "-n", "1", "--rows", "."]) == 0
    assert "1 texts of boolq" in capsys.readouterr().out


def test_the_hub_is_asked_for_the_right_tables(yes_sayer, monkeypatch):
    """A stand-in for `datasets`: what it is asked, and that its rows are used."""
    asked = []

    def load_dataset(path, split, data_files=None):
        asked.append((path, split, data_files))
        return iter(CORPUS if "corpus" in data_files else CLAIMS) if data_files else iter(BOOLQ)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert len(load_texts("boolq", yes_sayer, 2)) == 2 and len(load_texts("scifact", yes_sayer, 1)) == 1
    export = "hf://datasets/allenai/scifact@refs/convert/parquet"
    assert asked == [("google/boolq", "validation", None),
                     ("parquet", "train", f"{export}/claims/validation/*.parquet"),
                     ("parquet", "train", f"{export}/corpus/train/*.parquet")]


def test_without_datasets_or_without_the_hub(yes_sayer, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(gimkit.GimkitError, match=r"google/boolq .* extra \[data\].* data="):
        load_texts("boolq", yes_sayer)

    def load_dataset(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(gimkit.GimkitError, match=r"cannot read google/boolq .*\(no route\): check the network"):
        load_texts("boolq", yes_sayer)


def without(rows, column):
    return [{key: value for key, value in row.items() if key != column} for row in rows]


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(name="bool"), "unknown data set 'bool'; use boolq, fever, movies, scifact, hatexplain, twitter"),
    (dict(n=0), "n must be a whole number of at least 1"),
    (dict(data=without(BOOLQ, "passage")),
     r"'boolq' \(google/boolq\): no column 'passage' in a row with the columns question, answer; it needs question"),
    (dict(name="scifact", data=(CLAIMS, without(CORPUS, "abstract"))), "no column 'abstract' .* doc_id, title, struct"),
    (dict(name="scifact", data=CLAIMS), "made of 2 tables, so data= takes as many, not 4"),
    (dict(name="scifact", data=CLAIMS[:2]), "a row is a dict of columns, not str"),
    (dict(name="scifact", data=(CLAIMS, [])), "lacks document 7, .* 'Tea lowers pressure.'"),
    (dict(name="twitter", data=[{"text": "x", "label": 7}]), "column 'label' holds 7, but its labels are 0, 1, 2"),
    (dict(data=[]), "no usable example .*it is empty"),
    (dict(data=BOOLQ[1:2]), "no usable example for this model: 1 examples labelled No"),
    (dict(data=[{"question": "is it", "answer": True, "passage": " "}]), "1 examples without a text"),
])
def test_bad_input(yes_sayer, arguments, message):
    with pytest.raises(gimkit.GimkitError, match=message) as error:
        load_texts(**{"name": "boolq", "model": yes_sayer, "data": BOOLQ, **arguments})
    assert "\n" not in str(error.value)


def test_answers_of_several_tokens_are_told_before_anything_is_fetched():
    with pytest.raises(gimkit.GimkitError, match="'Yes' is not one token but"):
        load_texts("boolq", small(byte_pairs(single=("No",))))
    with pytest.raises(gimkit.GimkitError, match="'Yes' is not in the tokenizer's vocabulary"):
        load_texts("boolq", gimkit.load("mini-llama"))
