"""Every failure of a remote run is one line with the way out. The texts are NDIF's own (ndif 0.1.2) and nnsight's."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
import websocket
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteError
from nnsight.modeling import huggingface

import gimkit
from gimkit.remote.messages import explained

KEY = 'nnsight.modeling.transformers.TransformersModel:{"repo_id": "someone/model", "revision": "main"}'
STATUS = {"deployments": {"a": {"repo_id": "openai-community/gpt2", "deployment_level": "HOT"},
                          "b": {"repo_id": "big/model", "deployment_level": "COLD"}}}
ENV = {"packages": {"nnsight": "0.7.9", "transformers": "5.1.0", "torch": "2.9.0"}}


@pytest.fixture
def stub():
    """The address of a server that tells its status and versions, and answers everything else with 503."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            told = {"/status": STATUS, "/env": ENV}.get(self.path)
            self.send_response(200 if told else 503)
            self.end_headers()
            self.wfile.write(json.dumps(told or {"detail": "compute backend is reconnecting"}).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def refusal(code, detail, path="/request"):
    """What nnsight raises where the server answers with a code."""
    request = httpx.Request("POST", f"http://server{path}")
    cause = httpx.HTTPStatusError("refused", request=request, response=httpx.Response(code, json={"detail": detail}))
    error = RemoteError(f"Failed to send request: {detail}")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("error, words", [
    (refusal(401, "Missing or invalid API key."), "wants an API key and got none; get one"),
    (refusal(403, "Invalid API key."), "does not know this API key; get one"),
    (refusal(400, "Invalid API key format: 'x'."), "does not know this API key; get one"),
    (refusal(503, "Service temporarily unavailable"), "is restarting or busy .*try again in a few minutes"),
    (refusal(413, ""), "too large for the server; use a smaller batch_size"),
    (refusal(404, "Not Found"), "is no NDIF server .status 404.; check the address"),
    (refusal(400, "Client nnsight version 0.8.1 is below the minimum supported 0.9."),
     r"below the minimum supported 0\.9\. Here: nnsight 0\.8\.1, Python 3.*on the server: nnsight 0\.7\.9"),
    (RemoteError("Your job exceeded the execution timeout of 60s."), "timeout of 60s. Use a smaller batch_size"),
    (RemoteError("Your request payload could not be read (KeyError: 1)."),
     r"could not be read.*Here: nnsight 0\.8\.1, transformers .*on the server: nnsight 0\.7\.9, transformers 5\.1\.0"),
    (RemoteError("Could not deploy this model. It is gated."),
     "does not host someone/model .Could not deploy this model. It is gated.*; it hosts openai-community/gpt2$"),
    (RemoteError("Traceback\n  ...\ntorch.OutOfMemoryError: CUDA out of memory."), "ran out of memory; use a smaller"),
    (RemoteError("Traceback\n  ...\nRuntimeError: The differentiated Tensor at index 0 appears to not have been used "
                 "in the graph."), "refuses gradients to this key.*trusted key"),
    (RemoteError("Traceback\n  ...\ngimkit.errors.GimkitError: model.norm: an unknown norm"),
     "^model.norm: an unknown norm$"),
    (RemoteError("Traceback\n  ...\nKeyError: 'x'"), "the job failed on http.*: KeyError: 'x'$"),
    (RemoteError("Your job was cancelled or preempted by the server."), "gave up the job .*try again"),
    (websocket.WebSocketConnectionClosedException("closed"), "the result did not arrive.*smaller batch_size"),
    (httpx.ReadTimeout("slow"), "did not answer in time"),
    (ConnectionRefusedError(), "the server is down or the address is wrong"),
], ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_each_failure_has_its_words(stub, error, words):
    told = explained(error, stub, KEY)
    assert "\n" not in told
    import re
    assert re.search(words, told), told


def remote_model():
    model = gimkit.load("mini-llama", remote=True)
    huggingface._ID_CACHE[model.repo_id] = "someone/model"
    return model


def test_a_server_that_is_down_and_one_that_restarts(stub, monkeypatch):
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    with pytest.raises(gimkit.GimkitError, match="is down or the address is wrong") as caught:
        gimkit.attribute(remote_model(), "Mary", remote="http://127.0.0.1:1")
    assert caught.value.__cause__ is None and caught.value.__suppress_context__, "a traceback shows the one line"
    with pytest.raises(gimkit.GimkitError, match="is restarting or busy"):
        gimkit.attribute(remote_model(), "Mary", remote=stub)


def test_a_model_without_a_hub_name_says_so():
    model = gimkit.load("mini-gpt2")
    huggingface._ID_CACHE.pop(model.repo_id, None)
    with pytest.raises(gimkit.GimkitError, match="bundled models and folders run there only by remote='local'"):
        gimkit.attribute(model, "Mary", remote=True)
    from nnsight import NNsight

    with pytest.raises(gimkit.GimkitError, match="has no name by which a server knows it"):
        gimkit.attribute(NNsight(model._module), [1, 2, 3], 5, baseline=0, remote=True)
