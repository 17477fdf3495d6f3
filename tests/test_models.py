"""The bundled models load offline, do what their cards say, and come out of a deterministic training."""

import json
import socket
from pathlib import Path
from random import Random

import pytest
import torch

from benchmarks.training import corpus
from benchmarks.training.measure import accuracy, metric
from benchmarks.training.train import CONTEXT, RECIPE, Batches, build_model, build_tokenizer, train
from gimkit import tasks
from gimkit.errors import GimkitError
from gimkit.model.load import BUNDLED, load

FOLDER = Path(load.__code__.co_filename).parent / "bundled"


@pytest.fixture(scope="module", params=BUNDLED)
def model(request):
    return load(request.param)


def test_loads_without_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("asked for the network")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in BUNDLED:
        model = load(name)
        assert {p.dtype for p in model._module.parameters()} == {torch.float32}
        with model.trace("Mary"):
            logits = model.lm_head.output.save()
        assert logits.shape == (1, 2, len(model.tokenizer))


def test_what_is_stored(model):
    folder = FOLDER / ("mini-gpt2" if "GPT2" in type(model._module).__name__ else "mini-llama")
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".md"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 3_000_000
    card = (folder / "README.md").read_text()
    assert "python -m benchmarks.training.measure" in card and "python -m benchmarks.training.train" in card
    vocabulary = model.tokenizer.get_vocab()
    assert sorted(vocabulary, key=vocabulary.get) == corpus.vocabulary()  # data and weights belong together


def test_accuracies_of_the_cards(model):
    table = accuracy(model, n=96, seed=5).set_index("task").accuracy
    assert table["ioi, trained templates"] >= 0.98 and table["ioi, held-out templates"] >= 0.95
    assert table["odd_one_out, 3 people"] >= 0.86  # 96 prompts; above .93 with 1,000, see the cards
    others = [name for name in table.index if not name.startswith(("ioi,", "odd_one_out"))]
    assert (table[others] >= 0.95).all()


def test_metric_is_the_logit_difference(model):
    task = tasks.ioi(model, n=3, seed=1)
    for i, pair in enumerate(task.pairs):
        ids = model.tokenizer(pair.clean, return_tensors="pt")["input_ids"]
        logits = model._module(ids).logits[0, -1]
        right, wrong = (model.tokenizer.convert_tokens_to_ids(word) for word in pair[2:])
        expected = (logits[right] - logits[wrong]).item()
        assert metric(model, task)[i].item() == pytest.approx(expected, abs=1e-4)


def test_load_a_folder(tmp_path):
    words = corpus.vocabulary()
    build_tokenizer(words).save_pretrained(tmp_path)
    build_model("mini-llama", len(words), 3).save_pretrained(tmp_path)
    assert tasks.ioi(load(str(tmp_path)), n=2).clean.shape[0] == 2


@pytest.mark.parametrize("name, message", [
    ("mini-gpt3", "unknown model 'mini-gpt3'; bundled models: mini-gpt2, mini-llama"),
    ("minillama", "bundled models"),
])
def test_unknown_name(name, message):
    with pytest.raises(GimkitError, match=message):
        load(name)


def test_hub_out_of_reach(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(GimkitError, match="cannot load 'nobody/nothing' from the .* hub.*bundled model"):
        load("nobody/nothing")


def test_folder_without_a_model(tmp_path):
    with pytest.raises(GimkitError, match="no config.json"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", BUNDLED)
def test_training_is_deterministic(name, tmp_path):
    stage = dict(steps=3, warm=2, cool=2, mixture="all")
    quick = dict(stages=(stage, stage), report=lambda line: None)
    runs = ((0, "a"), (0, "b"), (1, "c"))
    first, second, other = (train(name, seed, tmp_path / out, **quick) for seed, out in runs)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, second, other)]
    assert weights[0] == weights[1] != weights[2]
    assert json.loads((first / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("name", BUNDLED)
def test_packed_documents_do_not_see_each_other(name):
    words = corpus.vocabulary()
    ids, _, positions, allowed = Batches(words, 0, RECIPE | {"mixture": "all"}).draw(0)
    model = build_model(name, len(words), 0).eval()
    packed = model(input_ids=ids, attention_mask=allowed, position_ids=positions).logits[0]
    starts = (ids[0] == 1).nonzero()[:, 0].tolist()
    assert len(starts) >= 2
    for start, end in zip(starts, [*starts[1:], None]):
        alone = ids[0, start:end]
        alone = alone[: int((alone != 0).sum())][None]
        assert torch.allclose(model(alone).logits[0], packed[start : start + alone.shape[1]], atol=1e-4)


def test_shifted_documents_stand_anywhere():
    ids, _, positions, _ = Batches(corpus.vocabulary(), 0, RECIPE | {"mixture": "all", "shift": True}).draw(0)
    starts = positions[ids == 1]
    assert len(starts.unique()) > len(starts) / 3 and positions.max() < CONTEXT
    inside = (ids[:, 1:] > 1)
    assert (positions[:, 1:] - positions[:, :-1])[inside].eq(1).all()


def test_every_document_fits_and_is_in_the_vocabulary():
    rng, words = Random(9), set(corpus.vocabulary())
    for _ in range(5000):
        document = corpus.draw(rng)
        pieces = corpus.PIECES.findall(f"{document.prompt} {document.answer}{document.rest}")
        assert len(pieces) < CONTEXT and words.issuperset(pieces)
    text = "Outside the farm, Mary was talking with John in 1732."
    assert build_tokenizer(sorted(words)).tokenize(text) == corpus.PIECES.findall(text)
