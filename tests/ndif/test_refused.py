"""What a server's refusals look like from here, on NDIF's own execution code."""

import pytest
from nnsight import CONFIG
from nnsight.modeling import huggingface

import gimkit

pytestmark = pytest.mark.xdist_group("ndif")


@pytest.mark.parametrize("key, words", [(None, "wants an API key and got none"), ("who", "does not know this API key")])
def test_keys(server, llama, monkeypatch, key, words):
    monkeypatch.setattr(CONFIG.API, "APIKEY", key)
    with pytest.raises(gimkit.GimkitError, match=words):
        gimkit.attribute(llama.there, "Mary", remote=server)


def test_a_model_that_is_not_hosted(server, monkeypatch):
    model = gimkit.load("mini-llama", remote=True)
    monkeypatch.setitem(huggingface._ID_CACHE, model.repo_id, "someone/model")
    with pytest.raises(gimkit.GimkitError, match="does not host someone/model .*it hosts tests/mini-gpt2, tests/mini"):
        gimkit.attribute(model, "Mary", remote=server)


def test_an_error_on_the_server_arrives_as_its_one_line(server, llama, monkeypatch):
    def damaged(parts):
        return parts._replace(norms=tuple(norm._replace(eps=9.0) for norm in parts.norms))

    architecture_of = gimkit.model.apply.architecture_of
    monkeypatch.setattr(gimkit.model.apply, "architecture_of", lambda model: damaged(architecture_of(model)))
    with pytest.raises(gimkit.GimkitError, match="^model.layers.0.input_layernorm: recomputing this norm") as caught:
        gimkit.attribute(llama.there, "Mary", remote=server)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None, "what the server wrote is not chained"
