"""An NDIF server on this machine, for tests: NDIF's own code runs the blocks, this file only carries the post.

    python server.py PORT tests/mini-llama=FOLDER ...

From the ndif package: reading and running a trusted request's block, the sandbox's processes and the driver that serves
an untrusted one, the wording of payload errors, the version gate. From here: the routes that nnsight's client calls,
keys, statuses. Redis, object store, Ray and accelerators are left out. It refuses to start where gimkit can be
imported, for then it could not tell whether a trace brings along all that it needs.
"""

# Before nnsight, which gives every object a .save() and so breaks anyio's lazy imports.
import anyio._backends._asyncio  # noqa: F401  # isort: skip

import asyncio
import contextlib
import functools
import importlib.util
import io
import json
import sys
import threading
import traceback
import uuid

import torch
import uvicorn
import zstandard
from fastapi import FastAPI, Form, Header, HTTPException, Response, UploadFile, WebSocket, WebSocketDisconnect
from ndif.common.errors import ArchitectureMismatchError, PayloadError, RequestError
from ndif.services.api.versioning import validate_client_versions
from ndif.services.ray.deployments.modeling.nns import block_scope, execute_traced_block, prepare_traced_block
from ndif.services.ray.sandbox import host
from ndif.services.ray.sandbox.driver import RunnerError, SandboxDriver
from nnsight.intervention.serialization import UnknownPersistentIdError
from nnsight.modeling.mixins.remotable import Remotable
from nnsight.ndif import get_local_env
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.util import clean_traceback

KEYS = {"trusted": True, "ordinary": False}  # as NDIF's database: may the key's code run outside the sandbox?
INLINE = 2**20  # a larger result is fetched from an address of its own, as from NDIF's object store

app = FastAPI()
folders, models, pools = {}, {}, {}  # by the hub id, and by the model key
responses, results, channels = {}, {}, {}  # last status of each request, large results, one queue for each /subscribe
one_at_a_time = threading.Lock()


def hosted(model_key: str):
    """The model of a key, loaded on first use and frozen as NDIF's actors freeze theirs; and its pool of sandboxes."""
    if model_key not in models:
        name, _, identity = model_key.partition(":")
        identity = json.loads(identity)
        local = f"{name}:{json.dumps(identity | {'repo_id': folders[identity['repo_id']]})}"
        models[model_key] = Remotable.from_model_key(local, dispatch=True, dtype="float32")
        models[model_key]._module.requires_grad_(False)
        pools[model_key] = host.Pool(size=1, model_key=local)
    return models[model_key], pools[model_key]


def read(*arguments, **options):
    """nnsight's deserialize with NDIF's sentences for what can go wrong (`BackendRequestModel.deserialize`)."""
    try:
        return RequestModel.deserialize(*arguments, **options)
    except UnknownPersistentIdError as error:
        raise ArchitectureMismatchError(str(error)) from error
    except Exception as error:
        raise PayloadError(error) from error


class Printed(io.TextIOBase):
    """Standard output of a block, line by line as log messages."""

    def __init__(self, say):
        self.say, self.rest = say, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.say(Status.LOG, line)
        return len(text)


def run_trusted(request: RequestModel, blob: bytes, say) -> bytes:
    """The saved values, computed in this process."""
    model, _ = hosted(request.model_key)
    with block_scope(), contextlib.redirect_stdout(Printed(say)), contextlib.redirect_stderr(Printed(say)):
        tracer, _ = prepare_traced_block(model, blob, request.compress, deserialize=read)
        saved = execute_traced_block(tracer, torch.float32)
    out = io.BytesIO()
    torch.save(saved, out)
    return out.getvalue()


def run_untrusted(request: RequestModel, blob: bytes, say) -> bytes:
    """The saved values, computed by a fresh sandbox process that reads and replaces this process's activations."""
    model, pool = hosted(request.model_key)
    sandbox = pool.acquire()
    connection = sandbox.connection()
    try:
        connection.send((blob, request.compress, str(torch.float32), None, request.env))
        return SandboxDriver(model, torch.float32, on_log=lambda line: say(Status.LOG, line)).pump(connection)[0]
    finally:
        connection.close()
        sandbox.stop()


def words(error: BaseException) -> str:
    """What NDIF's actors tell the client about an error: its sentence, or the traceback of the client's own code."""
    if isinstance(error, RequestError | RunnerError):
        return str(error)
    return "".join(traceback.format_exception(type(error), error, clean_traceback(error.__traceback__)))


def work(request_id: str, request: RequestModel, blob: bytes, trusted: bool, loop) -> None:
    """Run one request and report to its client's websocket, or where it can ask for it."""

    def say(status: Status, description: str = "", data=None):
        response = ResponseModel(id=request_id, status=status, description=description, data=data)
        channel = channels.get(request.session_id)
        if channel is not None:
            message = response.pickle() if isinstance(data, bytes) else response.model_dump_json()
            loop.call_soon_threadsafe(channel.put_nowait, message)
        elif status != Status.LOG:
            responses[request_id] = response.model_dump_json()

    say(Status.QUEUED, "Your job is queued.")
    with one_at_a_time:
        say(Status.RUNNING, "Your job has started running.")
        model, _ = hosted(request.model_key)
        try:
            model._remoteable_set_env(request.env)
            result = (run_trusted if trusted else run_untrusted)(request, blob, say)
        except BaseException as error:
            return say(Status.ERROR, words(error))
        finally:
            model.interleaver.cancel()
        if request.compress:
            result = zstandard.ZstdCompressor().compress(result)
        if request.session_id not in channels or len(result) > INLINE:
            results[request_id] = result
            result = f"http://127.0.0.1:{port}/result/{request_id}"
        say(Status.COMPLETED, "Your job has been completed.", result)


@app.post("/request")
async def request(blob: UploadFile, data: str = Form(), ndif_api_key: str = Header(""),
                  nnsight_version: str = Header(""), python_version: str = Header("")):
    validate_client_versions(nnsight_version, python_version)
    if not ndif_api_key:
        raise HTTPException(401, "Missing or invalid API key. Please visit https://login.ndif.us/ to create a new one.")
    if ndif_api_key not in KEYS:
        raise HTTPException(403, "Invalid API key.")
    wanted = RequestModel.model_validate_json(data)
    name = json.loads(wanted.model_key.partition(":")[2])["repo_id"]
    if name not in folders:
        raise HTTPException(400, f"Model {name} is not deployed.")
    first = ResponseModel(id=uuid.uuid4().hex, status=Status.RECEIVED, description="Your job has been received.")
    responses[first.id] = first.model_dump_json()
    threading.Thread(target=work, daemon=True, args=(first.id, wanted, await blob.read(), KEYS[ndif_api_key],
                                                     asyncio.get_running_loop())).start()
    return Response(responses[first.id], media_type="application/json")


@app.websocket("/subscribe")
async def subscribe(socket: WebSocket):
    await socket.accept()
    session, channel = uuid.uuid4().hex, asyncio.Queue()
    channels[session] = channel

    async def forward():
        while True:
            message = await channel.get()
            await (socket.send_bytes if isinstance(message, bytes) else socket.send_text)(message)

    await socket.send_json({"session_id": session})
    forwarding = asyncio.create_task(forward())
    with contextlib.suppress(WebSocketDisconnect):
        await socket.receive_text()  # the client never writes: this ends when it hangs up
    forwarding.cancel()
    del channels[session]


@app.get("/response/{request_id}")
def response(request_id: str):
    if request_id not in responses:
        raise HTTPException(404, f"No response for request {request_id}.")
    return Response(responses[request_id], media_type="application/json")


@app.get("/result/{request_id}")
def result(request_id: str):
    return Response(results[request_id], media_type="application/octet-stream")


@app.get("/ping")
def ping():
    return "pong"


@app.get("/env")
def env():
    return get_local_env()


@app.get("/whoami")
def whoami(ndif_api_key: str = Header("")):
    return {"email": None, "tags": ["trusted"] if KEYS.get(ndif_api_key) else []}


@app.get("/status")
def status():
    return {"deployments": {name: {"deployment_level": "HOT", "application_state": "RUNNING", "repo_id": name,
                                   "revision": "main", "task": "text-generation",
                                   "model_key": f"nnsight.TransformersModel:{name}"} for name in folders}}


if __name__ == "__main__":
    if importlib.util.find_spec("gimkit"):
        sys.exit("gimkit can be imported here, so this server would not notice what a trace fails to bring along")
    port = int(sys.argv[1])
    folders.update(entry.split("=", 1) for entry in sys.argv[2:])
    host.spawn = functools.partial(host.spawn, timeout=120)  # on a busy machine half a minute may not do
    host.RUNNER_ENV = (*host.RUNNER_ENV, "HF_HUB_OFFLINE")  # so that sandboxes do not wait for the hub either
    torch.set_num_threads(1)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
