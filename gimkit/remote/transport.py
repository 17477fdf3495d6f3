"""What goes to a server and comes back, with limits: a server may hang, drip, cut off, redirect or lie.

Nothing that a server sends is executed: results are plain values and tensors, whatever else they hold is refused.
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
from urllib.parse import urljoin, urlsplit

import httpx
import torch
import websocket
import zstandard

from gimkit.errors import GimkitError

PATIENCE = 30.0  # seconds for an answer that needs no computing
SLOWEST = 2**13  # bytes a second; slower than that, a connection counts as stuck
QUIET = 3600.0  # seconds without a word about a job
LONGEST = 86400.0  # seconds of a job in all
SMALL = 2**24  # bytes of an answer
LARGEST = 2**32  # bytes of a result
TICK = 0.1  # seconds between two looks at the clock
NONSENSE = "the server's answer is not what an NDIF server sends; check the address"


def shown(address: str) -> str:
    """An address without the user and password in it.

    >>> shown("https://mary:secret@ndif.example:8001")
    'https://ndif.example:8001'
    """
    return re.sub(r"^(\w+://)?.*@", r"\1", address, flags=re.DOTALL)


def within(work, allowed, tick=None):
    """What work() returns, done in a thread so that nothing can hold this one up.

    >>> within(lambda: 1 + 1, lambda: 1.0)
    2

    allowed: the seconds that it may take, asked again and again as bytes come in. tick: called in between.
    Raises what work() raises; TimeoutError when it takes longer.
    """
    outcome, start = queue.SimpleQueue(), time.monotonic()

    def run():
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


def exchange(method: str, url: str, *, sent: int = 0, largest: int = SMALL, patience: float | None = None,
             progress=None, **options) -> bytes:
    """The body of a server's answer, whole.

    sent: bytes that go up. largest: bytes that may come down. patience: seconds beside those that the bytes take,
    PATIENCE when None. progress: called with the number of bytes so far. options: httpx's.
    Raises httpx.HTTPStatusError for a refusal, TimeoutError, httpx.TransportError where the connection breaks;
    GimkitError for a redirection, which is not followed since it would take the key along.
    """
    got, given_up, patience = bytearray(), threading.Event(), patience or PATIENCE

    def work():
        with httpx.Client(timeout=patience) as client, client.stream(method, url, **options) as response:
            for chunk in response.iter_bytes():
                got.extend(chunk)
                if given_up.is_set() or len(got) > largest:
                    break
            return response

    try:
        answer = within(work, lambda: patience + (sent + len(got)) / SLOWEST,
                        progress and (lambda: progress(len(got))))
    finally:
        given_up.set()
    if answer.has_redirect_location:
        raise GimkitError(redirected(url, answer.headers["location"]))
    if len(got) > largest:
        raise GimkitError(NONSENSE)
    return httpx.Response(answer.status_code, content=bytes(got), request=answer.request).raise_for_status().content


def redirected(url: str, location: str) -> str:
    """What to say about a server that sends the client elsewhere."""
    target = urljoin(url, location).removesuffix(urlsplit(url).path)
    return f"{shown(url)} redirects to {shown(target)}; give the address of the server itself"


def ask(host: str, path: str) -> dict:
    """What a server says about itself at a path; nothing where it says nothing sensible."""
    with contextlib.suppress(GimkitError, httpx.HTTPError, OSError, RecursionError, ValueError):
        answer = json.loads(exchange("GET", host + path, patience=min(PATIENCE, 10.0)))
        if isinstance(answer, dict):
            return answer
    return {}


class Subscription(websocket.WebSocket):
    """A websocket that counts the bytes it gets."""

    got = 0

    def _recv(self, size: int):
        data = super()._recv(size)
        self.got += len(data)
        return data

    def hang_up(self) -> None:
        """Close at once; whoever waits for a message wakes up."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            self.shutdown()


def subscribe(url: str, headers: dict) -> tuple[Subscription, str]:
    """A websocket, and the first message from it, which is the session's id."""
    subscription = Subscription()

    def work():
        subscription.connect(url, header=headers, timeout=PATIENCE, redirect_limit=0)
        first = subscription.recv()
        subscription.settimeout(None)
        return first

    try:
        first = json.loads(within(work, lambda: PATIENCE))
    except BaseException as error:
        answer = subscription.handshake_response
        subscription.hang_up()
        if answer is not None and answer.status in (301, 302, 303, 307, 308):
            raise GimkitError(redirected(url, answer.headers.get("location", ""))) from None
        if isinstance(error, ValueError):
            raise GimkitError(NONSENSE) from None
        raise
    if not isinstance(first, dict) or not isinstance(first.get("session_id"), str):
        subscription.hang_up()
        raise GimkitError(NONSENSE)
    return subscription, first["session_id"]


def messages(subscription: Subscription, tick):
    """Each message of a websocket as it comes. tick: called in between.

    Raises TimeoutError when not even a ping is answered, or no word comes about the job for too long.
    """
    heard = queue.SimpleQueue()

    def listen():
        try:
            while True:
                heard.put(subscription.recv_data(control_frame=True))
        except Exception as error:
            heard.put(error)

    threading.Thread(target=listen, daemon=True).start()
    start = last = news = pinged = time.monotonic()
    while True:
        try:
            message = heard.get(timeout=TICK)
        except queue.Empty:
            message = None
        now = time.monotonic()
        if message is None:
            tick()
            arrived = subscription.got  # of a message that is on its way
            if arrived > LARGEST:
                raise GimkitError(NONSENSE)
            if now - last > 2 * PATIENCE + arrived / SLOWEST or now - news > QUIET + arrived / SLOWEST:
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
            news = now
            yield data if kind == websocket.ABNF.OPCODE_BINARY else data.decode(errors="replace")


class _Frame(pickle.Unpickler):
    """Reads the frame around a result: texts, bytes, numbers and the name of a status."""

    def find_class(self, module: str, name: str):
        if (module, name) == ("nnsight.schema.response", "Status"):
            return str
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def unpack_frame(frame: bytes) -> dict:
    """The fields of a binary frame, which is an archive that torch.save wrote.

    torch's own reader of plain values does not know the pickle protocol of these frames. This one knows no class at
    all, so nothing can be called. Raises GimkitError for anything else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(frame)) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if archive.getinfo(name).file_size > LARGEST:
                raise ValueError
            return dict(_Frame(io.BytesIO(archive.read(name))).load())
    except pickle.UnpicklingError as error:
        raise GimkitError(_refused(str(error))) from None
    except Exception:  # a damaged archive can fail in any way
        raise GimkitError(NONSENSE) from None


def unpack_result(content: bytes, compressed: bool) -> dict:
    """The values that a trace saved, by name: numbers, texts, lists, tuples, dicts and tensors.

    Raises GimkitError for whatever else is there, without executing it, and for a result that is not whole.
    """
    try:
        if compressed:
            if zstandard.frame_content_size(content) > LARGEST:
                raise ValueError
            content = zstandard.ZstdDecompressor().decompress(content)
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise GimkitError(_refused(str(error))) from None
    except Exception:  # a damaged file can fail in any way
        raise GimkitError("the result did not arrive whole; run it again") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise GimkitError(NONSENSE)
    return found


def _refused(why: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", why)
    return (f"the server's result is refused{f' ({named[1]})' if named else ''}: it holds more than numbers, texts, "
            "lists and tensors, and loading that could run code here; save plain values in the trace")
