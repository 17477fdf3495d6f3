"""Requests to a server and its answers, with limits of time and size: a server can hang, redirect or send anything.

Nothing that a server sends is executed: results are plain values and tensors; anything else in them is refused.
"""

import contextlib
import io
import json
import pickle
import queue
import re
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import torch
import websocket
import zstandard

from gimkit.errors import GimkitError

PATIENCE = 30.0  # seconds for an answer that takes no computation
SLOWEST = 2**13  # bytes a second; slower than that, a connection counts as stuck
QUIET = 3600.0  # seconds without a message about a job
LONGEST = 86400.0  # seconds of a whole job
SMALL = 2**24  # bytes of an ordinary answer
LARGEST = 2**32  # bytes of a result
TICK = 0.1  # seconds between two looks at the clock
MALFORMED = "the server's answer is not what an NDIF server sends; check the address"


def shown(address: str) -> str:
    """An address without the user and password in it.

    >>> shown("https://mary:secret@ndif.example:8001")
    'https://ndif.example:8001'
    """
    return re.sub(r"^(\w+://)?.*@", r"\1", address, flags=re.DOTALL)


def with_timeout(work: Callable[[], Any], allowed: Callable[[], float], tick: Callable[[], Any] | None = None) -> Any:
    """The result of work(), which runs in another thread so that this one cannot hang.

    >>> with_timeout(lambda: 1 + 1, lambda: 1.0)
    2

    Args:
        allowed: the seconds that work() may take; called repeatedly, since the limit grows as bytes come in.
        tick: called while waiting.

    Raises:
        TimeoutError: work() takes longer.
        Exception: any error of work().
    """
    outcome: queue.SimpleQueue = queue.SimpleQueue()
    start = time.monotonic()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    while True:
        try:
            result, error = outcome.get(timeout=TICK)
        except queue.Empty:
            if time.monotonic() - start > allowed():
                raise TimeoutError from None
            if tick:
                tick()
            continue
        if error is not None:
            raise error
        return result


def request_bytes(method: str, url: str, *, sent: int = 0, largest: int = SMALL, patience: float | None = None,
                  progress: Callable[[int], Any] | None = None, **options: Any) -> bytes:
    """The complete body of a server's answer.

    Args:
        sent: bytes of the request.
        largest: bytes that the answer may have.
        patience: seconds allowed in addition to the time that the bytes take; None: PATIENCE.
        progress: called with the number of bytes received so far.
        options: of `httpx.Client.stream`.

    Raises:
        httpx.HTTPStatusError: the server refuses the request.
        TimeoutError: the answer takes too long.
        httpx.TransportError: the connection breaks.
        GimkitError: a redirection, which is not followed because the key would go along; an answer that is too large.
    """
    got, given_up, patience = bytearray(), threading.Event(), patience or PATIENCE

    def work() -> httpx.Response:
        with httpx.Client(timeout=patience) as client, client.stream(method, url, **options) as response:
            for chunk in response.iter_bytes():
                got.extend(chunk)
                if given_up.is_set() or len(got) > largest:
                    break
            return response

    def tick() -> None:
        if progress:
            progress(len(got))

    try:
        answer = with_timeout(work, lambda: patience + (sent + len(got)) / SLOWEST, tick)
    finally:
        given_up.set()
    if answer.has_redirect_location:
        raise GimkitError(_redirected(url, answer.headers["location"]))
    if len(got) > largest:
        raise GimkitError(MALFORMED)
    return httpx.Response(answer.status_code, content=bytes(got), request=answer.request).raise_for_status().content


def _redirected(url: str, location: str) -> str:
    """The message about a server that redirects the client."""
    target = urljoin(url, location).removesuffix(urlsplit(url).path)
    return f"{shown(url)} redirects to {shown(target)}; give the address of the server itself"


def fetch_json(host: str, path: str) -> dict:
    """The JSON object that a server has at a path; empty where there is none."""
    with contextlib.suppress(GimkitError, httpx.HTTPError, OSError, RecursionError, ValueError):
        answer = json.loads(request_bytes("GET", host + path, patience=min(PATIENCE, 10.0)))
        if isinstance(answer, dict):
            return answer
    return {}


class Subscription(websocket.WebSocket):
    """A websocket that counts the bytes it receives."""

    got = 0

    def _recv(self, size: int) -> bytes:
        data = super()._recv(size)
        self.got += len(data)
        return data

    def hang_up(self) -> None:
        """Close at once; a thread that waits for a message wakes up."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            self.shutdown()


def subscribe(url: str, headers: dict) -> tuple[Subscription, str]:
    """An open websocket, and the session's id, which is its first message."""
    subscription = Subscription()

    def work() -> str | bytes:
        subscription.connect(url, header=headers, timeout=PATIENCE, redirect_limit=0)
        first = subscription.recv()
        subscription.settimeout(None)
        return first

    try:
        first = json.loads(with_timeout(work, lambda: PATIENCE))
    except BaseException as error:
        answer = subscription.handshake_response
        subscription.hang_up()
        if answer is not None and answer.status in (301, 302, 303, 307, 308):
            raise GimkitError(_redirected(url, answer.headers.get("location", ""))) from None
        if isinstance(error, ValueError):
            raise GimkitError(MALFORMED) from None
        raise
    if not isinstance(first, dict) or not isinstance(first.get("session_id"), str):
        subscription.hang_up()
        raise GimkitError(MALFORMED)
    return subscription, first["session_id"]


def messages(subscription: Subscription, tick: Callable[[], Any]) -> Iterator[str | bytes]:
    """The messages of a websocket, each as it arrives.

    Args:
        tick: called while waiting.

    Raises:
        TimeoutError: the server does not answer a ping, or sends no message about the job for too long.
    """
    received: queue.SimpleQueue = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                received.put(subscription.recv_data(control_frame=True))
        except Exception as error:
            received.put(error)

    threading.Thread(target=listen, daemon=True).start()
    start = last = last_message = pinged = time.monotonic()
    while True:
        try:
            message = received.get(timeout=TICK)
        except queue.Empty:
            message = None
        now = time.monotonic()
        if message is None:
            tick()
            arrived = subscription.got  # bytes of a message that is not complete yet
            if arrived > LARGEST:
                raise GimkitError(MALFORMED)
            if now - last > 2 * PATIENCE + arrived / SLOWEST or now - last_message > QUIET + arrived / SLOWEST:
                raise TimeoutError
            if now - max(last, pinged) > PATIENCE / 2:
                subscription.ping()
                pinged = now
            continue
        if isinstance(message, Exception):
            raise message
        if now - start > LONGEST:
            raise TimeoutError
        subscription.got, last = 0, now
        kind, data = message
        if kind == websocket.ABNF.OPCODE_CLOSE:
            raise websocket.WebSocketConnectionClosedException
        if kind in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY):
            last_message = now
            yield data if kind == websocket.ABNF.OPCODE_BINARY else data.decode(errors="replace")


class _Frame(pickle.Unpickler):
    """Reads the frame around a result, which holds texts, bytes, numbers and the name of a status."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("nnsight.schema.response", "Status"):
            return str
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def unpack_frame(frame: bytes) -> dict:
    """The fields of a binary frame, which is an archive that torch.save wrote.

    torch's own reader of plain values does not support the pickle protocol of these frames. This one knows no class,
    so loading calls nothing.

    Raises:
        GimkitError: anything else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(frame)) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if archive.getinfo(name).file_size > LARGEST:
                raise ValueError
            return dict(_Frame(io.BytesIO(archive.read(name))).load())
    except pickle.UnpicklingError as error:
        raise GimkitError(_refused(str(error))) from None
    except Exception:  # a damaged archive can raise anything
        raise GimkitError(MALFORMED) from None


def unpack_result(content: bytes, compressed: bool) -> dict:
    """The values that a trace saved, by name: numbers, texts, lists, tuples, dicts and tensors.

    Raises:
        GimkitError: any other value, which is not executed; an incomplete result.
    """
    try:
        if compressed:
            if zstandard.frame_content_size(content) > LARGEST:
                raise ValueError
            content = zstandard.ZstdDecompressor().decompress(content)
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise GimkitError(_refused(str(error))) from None
    except Exception:  # a damaged file can raise anything
        raise GimkitError("the result did not arrive completely; run it again") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise GimkitError(MALFORMED)
    return found


def _refused(why: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", why)
    return (f"the server's result is refused{f' ({named[1]})' if named else ''}: it holds more than numbers, texts, "
            "lists and tensors, and loading that could run code here; save plain values in the trace")
