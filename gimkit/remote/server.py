"""nnsight's remote backend with results that cannot run code, with time limits and plain errors."""

import ast
import base64
import sys
import time
from importlib.metadata import version
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx
import nnsight
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.intervention.envoy import Envoy
from nnsight.schema.response import ResponseModel, Status
from tqdm.auto import tqdm

from gimkit.errors import GimkitError
from gimkit.remote import transport
from gimkit.remote.messages import explained, lost_result, printable


class Server(RemoteBackend):
    """The backend of a trace or session that runs on a server.

    All code that reads from the network is replaced here: nnsight loads results by plain pickle, waits without a limit,
    and follows a redirection with the key.
    """

    job: Any = None  # the `Job` of this request, which sends it and fetches the result later

    def __call__(self, tracer: Any = None) -> Any:
        try:
            return self.run(tracer)
        except GimkitError as error:
            raise GimkitError(str(error)) from None
        except Exception as error:  # not chained: the traceback would print what the server sent
            raise GimkitError(explained(error, self.host, self.model_key)) from None

    def run(self, tracer: Any) -> Any:
        """Send the trace and wait for the values that it saves."""
        if self.job is None:
            return super().__call__(tracer)
        result = self.job.fetch(self, tracer)
        self._push(result, tracer)
        return result

    @property
    def key(self) -> dict[str, str]:
        """The header with the key, if there is one."""
        return {"ndif-api-key": self.api_key} if self.api_key else {}

    def request(self, request: Any, tracer: Any) -> Any:
        blob = self._serialize(tracer)
        subscription, request.session_id = transport.subscribe(f"{self.ws_host}/subscribe", self.key | self._password())
        try:
            self.send(request, blob)
            for message in transport.messages(subscription, self.display.refresh):
                response = self.parse(message)
                result = self.handle(response)
                if response.status == Status.COMPLETED:
                    return result
        finally:
            subscription.hang_up()

    def _password(self) -> dict[str, str]:
        """The header for an address with a user name, which a websocket does not make by itself."""
        url = urlsplit(self.host)
        if url.username is None:
            return {}
        user = f"{unquote(url.username)}:{unquote(url.password or '')}"
        return {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()}

    def _post(self, request: Any, blob: bytes) -> ResponseModel:
        headers = {"ndif-timestamp": repr(time.time()), "nnsight-version": version("nnsight"),
                   "python-version": sys.version} | self.key
        return self.parse(transport.request_bytes(
            "POST", f"{self.host}/request", sent=len(blob), headers=headers, data={"data": request.metadata()},
            files={"blob": ("request", blob, "application/octet-stream")}).decode(errors="replace"))

    def poll(self, tracer: Any = None) -> Any:
        try:
            answer = transport.request_bytes("GET", f"{self.host}/response/{quote(self.job_id, safe='')}",
                                             headers=self.key)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 404:  # the server does not know the job yet
                return None
            raise
        response = self.parse(answer.decode(errors="replace"))
        self.status = response.status
        return self.handle(response)

    @staticmethod
    def parse(message: str | bytes) -> ResponseModel:
        """A status message, from JSON or from the binary frame that carries a result."""
        fields = transport.unpack_frame(message) if isinstance(message, bytes) else None
        try:
            response = ResponseModel.model_validate_json(message) if fields is None else ResponseModel(**fields)
        except (TypeError, ValueError):
            raise GimkitError(transport.MALFORMED) from None
        response.id, response.description = printable(response.id), printable(response.description)
        return response

    def download_result(self, data: Any) -> dict:
        """The result of a finished job: at an address, or in the message itself."""
        if isinstance(data, bytes):
            return self.finalize(data)
        if not isinstance(data, str) or not data.startswith(("http://", "https://")):
            raise GimkitError(transport.MALFORMED)
        with tqdm(desc="result", unit="B", unit_scale=True, disable=not self.display.enabled) as bar:
            try:
                content = transport.request_bytes("GET", data, largest=transport.LARGEST,
                                                  progress=lambda done: bar.update(done - bar.n))
            except httpx.HTTPStatusError as error:
                raise GimkitError(lost_result(f"status {error.response.status_code}")) from None
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                raise GimkitError(lost_result(type(error).__name__)) from None
        return self.finalize(content)

    def finalize(self, content: bytes) -> dict:
        return transport.unpack_result(content, self.compress)

    def _push(self, result: dict, tracer: Any) -> None:
        """Put the saved values into the caller's frame; a name that the block does not use is refused."""
        named = {part.id for part in ast.walk(tracer.node) if isinstance(part, ast.Name)}
        if not result.keys() <= named:
            raise GimkitError(transport.MALFORMED)
        super()._push(result, tracer)


class Sender:
    """The backend of a loaded model's own `trace(remote=...)`: a `Server`: nnsight's own would execute the result.

    It is not sent to servers: they get an empty text in its place.
    """

    def __init__(self, model: Envoy):
        self.model = model

    def __call__(self, remote: bool | str, blocking: bool = True, job_id: str | None = None,
                 verbose: bool = False) -> Any:
        if remote == "local":
            return type(self.model)._remote_backend(self.model, remote, blocking, job_id, verbose)
        return server_of(self.model, remote, blocking=blocking, job_id=job_id, verbose=verbose)

    def __reduce__(self) -> tuple:
        return str, ()


def send_safely(model: Envoy) -> None:
    """Make the traces that a user opens on a model, or on an edited copy, run on servers through `Server`."""
    model._remote_backend = Sender(model)


def server_of(model: Envoy, remote: bool | str, **options: Any) -> Server:
    """The server for a model: the configured one (True), or the one at an address.

    Args:
        options: of nnsight's remote backend.

    Raises:
        GimkitError: a model that servers have no name for, a hub that does not answer, an invalid address.
    """
    if not hasattr(model, "to_model_key"):
        raise GimkitError(f"{type(model).__name__} has no name by which a server knows it; load the model with "
                          "gimkit.load(name, remote=True)")
    host = address_of(remote if isinstance(remote, str) else nnsight.CONFIG.API.HOST)
    name = getattr(model, "repo_id", None)
    try:
        key = model.to_model_key()
    except Exception:
        raise GimkitError(f"the hub does not know {name!r}, or does not answer: servers host models by hub id, so "
                          "bundled models and folders run there only by remote='local'; else check the name and the "
                          "network") from None
    return Server(key, host=host, env=model._remoteable_get_env(), **options)


def address_of(host: str) -> str:
    """A server's address, checked.

    >>> address_of("http://localhost:8001/")
    'http://localhost:8001'
    """
    try:
        fine = httpx.URL(host).host and urlsplit(host).scheme in ("http", "https") and urlsplit(host).port != 0
    except (httpx.InvalidURL, ValueError):
        fine = False
    if not fine:
        raise GimkitError(f"{transport.shown(host)!r} is no server's address, which looks like "
                          "http://localhost:8001; check NDIF_HOST or remote=...")
    return host.rstrip("/")
