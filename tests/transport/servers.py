"""Real servers on loopback: nginx, and small ones that each do one thing wrong."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fixtures import web
from packer.transport.http_server import Handler, HttpServer


class Answer(BaseHTTPRequestHandler):
    """A handler whose answers are a function of the test; it keeps what was asked."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    timeout = 20

    body = b""
    """What a POST carried."""

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.asked.append((self.path, dict(self.headers.items())))
            number = len(self.server.asked)
        self.server.answer(self, number)

    def wanted(self, size: int) -> tuple[int, int] | None:
        """The asked range as [start, end), or None."""
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found is None:
            return None
        return int(found[1]), min(size, int(found[2]) + 1) if found[2] else size

    def several(self, size: int) -> list[tuple[int, int]]:
        """The asked ranges as [start, end), none unless there are two or more."""
        value = self.headers.get("Range", "").removeprefix("bytes=")
        found = re.findall(r"(\d+)-(\d+)(?:,|$)", value) if "," in value else []
        return [(int(start), min(size, int(last) + 1)) for start, last in found]

    def give(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def give_range(self, data: bytes) -> None:
        """Answer as a good server does."""
        if several := self.several(len(data)):
            parts = [(start, data[start:end]) for start, end in several]
            return self.give_parts(parts, len(data))
        wanted = self.wanted(len(data))
        if wanted is None:
            return self.give(200, {"Content-Length": str(len(data))}, data)
        start, end = wanted
        if start >= len(data):
            headers = {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"}
            return self.give(416, headers, b"")
        part = data[start:end]
        return self.give(206, {**content_range(start, end, len(data))}, part)

    def give_parts(self, parts: Sequence[tuple[int, bytes]], size: int) -> None:
        """Answer with (start, bytes) of several ranges of a file of that size."""
        body = parts_body(parts, size)
        self.give(206, {**PARTS_TYPE, "Content-Length": str(len(body))}, body)

    def cut(self) -> None:
        """Reset the connection, as a falling server does."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        pass


def content_range(start: int, end: int, size: int) -> dict[str, str]:
    return {
        "Content-Range": f"bytes {start}-{end - 1}/{size}",
        "Content-Length": str(end - start),
    }


BOUNDARY = "3d6b6a416f9b5"
PARTS_TYPE = {"Content-Type": f"multipart/byteranges; boundary={BOUNDARY}"}


def parts_body(parts: Sequence[tuple[int, bytes]], size: int) -> bytes:
    """multipart/byteranges, RFC 9110, 14.6."""
    pieces = [
        f"--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Range: bytes {start}-{start + len(data) - 1}/{size}\r\n\r\n".encode()
        + data
        + b"\r\n"
        for start, data in parts
    ]
    return b"".join(pieces) + f"--{BOUNDARY}--\r\n".encode()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Callable[[Answer, int], None]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.answer = answer
        self.lock = threading.Lock()
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are what these tests are about


@contextmanager
def serving(answer: Callable[[Answer, int], None]) -> Iterator[Server]:
    """A server whose answers are `answer(handler, number of the request from 1)`."""
    with Server(answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def nginx(root: Path, work: Path, **options: str) -> Iterator[str]:
    """`fixtures.web.nginx`; the test is skipped where there is none."""
    if web.NGINX is None:
        pytest.skip("nginx is not installed")
    with web.nginx(root, work, **options) as url:
        yield url


@contextmanager
def answering(handler: Handler) -> Iterator[tuple[HttpServer, int]]:
    """Our own server on loopback, in a thread of its own; and its port."""
    server, ready, ended = HttpServer(handler), threading.Event(), asyncio.Event()
    port, loop = 0, asyncio.new_event_loop()

    async def run() -> None:
        nonlocal port
        port = await server.start("127.0.0.1", 0)
        ready.set()
        await ended.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert ready.wait(10)
    try:
        yield server, port
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        assert not thread.is_alive(), "it did not stop"
        loop.close()
