"""A server on this machine that answers as badly as a test wants, and speaks NDIF's protocol otherwise."""

import base64
import contextlib
import hashlib
import json
import socket
import struct
import threading

RECEIVED = {"id": "7", "status": "RECEIVED", "description": "Your job has been received."}


class Loopback:
    """Answers each request by a function of its path: pages[path](connection), which is a socket.

    frames: what goes down the websocket once a request is there, each bytes or text, or a function of the connection.
    """

    def __init__(self, pages: dict, frames=()):
        self.pages, self.frames, self.asked = pages, frames, []
        self.stopped, self.requested = threading.Event(), threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with connection, contextlib.suppress(OSError):
            head, _, body = until_blank_line(connection).partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            while len(body) < int(headers.get("content-length", 0)):
                body += connection.recv(2**16)
            path = first.split()[1]
            self.asked.append((path, headers))
            page = self.pages.get(path)
            if page is not None:
                page(connection)
            elif path == "/subscribe":
                self.subscribe(connection, headers)
            elif path == "/request":
                answer(connection, RECEIVED)
                self.requested.set()
            else:
                answer(connection, {"detail": "Not Found"}, 404)

    def subscribe(self, connection, headers):
        upgrade(connection, headers)
        send_frame(connection, json.dumps({"session_id": "s"}))
        self.requested.wait(10)
        for frame in self.frames:
            frame(connection) if callable(frame) else send_frame(connection, frame)
        self.stopped.wait(20)

    # What a page or a frame can be.

    def hang(self, connection):
        self.stopped.wait(20)

    def drip(self, connection):
        while not self.stopped.wait(0.02):
            connection.sendall(b"x")

    def drip_body(self, connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        self.drip(connection)

    def drip_header(self, connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        self.drip(connection)

    def pong_only(self, connection):
        """Answer pings, and say nothing else."""
        while not self.stopped.is_set():
            ping = connection.recv(6)  # with the mask of an empty frame
            if not ping:
                return
            if ping[0] & 15 == 9:
                send_frame(connection, b"", 10)


@contextlib.contextmanager
def loopback(pages=None, frames=()):
    server = Loopback(pages or {}, frames)
    yield server
    server.stopped.set()
    server.listener.close()


def until_blank_line(connection) -> bytes:
    got = b""
    while b"\r\n\r\n" not in got:
        piece = connection.recv(2**16)
        if not piece:
            raise OSError
        got += piece
    return got


def answer(connection, body, code=200, **headers):
    """An HTTP answer; a body that is neither text nor bytes goes as JSON."""
    body = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    lines = [f"HTTP/1.1 {code} said", f"Content-Length: {len(body)}", "Connection: close",
             *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    connection.sendall("\r\n".join(lines).encode() + body)


def cut_off(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nten bytes.")


def redirect(to: str):
    return lambda connection: answer(connection, b"", 302, Location=to)


def upgrade(connection, headers):
    key = base64.b64encode(hashlib.sha1(
        (headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
    connection.sendall(("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        f"Sec-WebSocket-Accept: {key}\r\n\r\n").encode())


def send_frame(connection, data, kind=None):
    kind = kind or (1 if isinstance(data, str) else 2)
    data = data.encode() if isinstance(data, str) else data
    connection.sendall(bytes([0x80 | kind, 127]) + struct.pack(">Q", len(data)) + data)
