"""A request for an 80-layer Llama is 32 KB at most: names and numbers go up, nothing that grows with the width."""

import shutil
from pathlib import Path

import pytest
import transformers
from nnsight.modeling import huggingface

import gimkit
from gimkit.remote.server import Server

SHAPE = dict(num_hidden_layers=80, hidden_size=8192, intermediate_size=28672, num_attention_heads=64,
             num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192)  # Llama-3.1-70B's


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Its config with mini-llama's tokenizer, no weights."""
    folder = tmp_path_factory.mktemp("large")
    for file in (Path(gimkit.__file__).parent / "model/bundled/mini-llama").glob("*.json"):
        shutil.copy(file, folder)
    transformers.LlamaConfig(**SHAPE, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    model = gimkit.load(str(folder), remote=True)
    huggingface._ID_CACHE[model.repo_id] = "someone/large"
    return model


class Measured(gimkit.GimkitError):
    """Stops a request once its size is known."""


@pytest.mark.parametrize("score", [
    lambda model, task: gimkit.attribute(model, task[0].clean, task[0].answer, backend="reverse", remote=True),
    lambda model, task: gimkit.score_nodes(model, task, backend="reverse", remote=True),
    lambda model, task: gimkit.score_edges(model, task, backend="reverse", remote=True),
    lambda model, task: gimkit.attribute(model, task[0].clean, task[0].answer, method="occlusion", remote=True),
], ids=["attribute", "score_nodes", "score_edges", "occlusion"])
def test_the_request_is_small(large, monkeypatch, score):
    sizes = []

    def measure(self, tracer):
        sizes.append(len(self._serialize(tracer)))
        raise Measured("measured")

    monkeypatch.setattr(Server, "run", measure)
    with pytest.raises(gimkit.GimkitError, match="measured"):
        score(large, gimkit.tasks.ioi(large, n=8))
    print(f"{sizes[0]:,} bytes")
    assert sizes[0] <= 32 * 1024
