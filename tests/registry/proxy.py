"""A proxy before a real registry that does one thing wrong, and keeps what it saw."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 1 << 16
_HOP = {"connection", "transfer-encoding", "keep-alive"}


@dataclass(slots=True)
class Seen:
    """One request as it arrived. received: bytes of its body that came."""

    method: str
    path: str
    headers: dict[str, str]
    received: int = 0


class Request(BaseHTTPRequestHandler):
    """A request that the test may answer, spoil or pass on."""

    protocol_version = "HTTP/1.1"
    server: Proxy
    timeout = 20

    def handle_any(self) -> None:
        self.body: bytes | None = None
        self.seen = Seen(self.command, self.path, dict(self.headers.items()))
        with self.server.lock:
            self.server.seen.append(self.seen)
        if not self.server.fault(self):
            self.forward()

    do_GET = do_HEAD = do_POST = handle_any  # noqa: N815 the names that http.server calls
    do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

    @property
    def length(self) -> int:
        return int(self.headers.get("Content-Length") or 0)

    def read_body(self, length: int | None = None) -> bytes:
        """The body, or so much of it."""
        data = self.rfile.read(self.length if length is None else length)
        self.seen.received += len(data)
        return data

    def ask(self) -> tuple[int, dict[str, str], bytes]:
        """What the registry answers to this request."""
        body = self.read_body() if self.body is None else self.body
        connection = http.client.HTTPConnection(self.server.target, timeout=20)
        try:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            headers = {k: v for k, v in response.getheaders() if k.lower() not in _HOP}
            return response.status, headers, response.read()
        finally:
            connection.close()

    def forward(self) -> None:
        """Answer as the registry does."""
        self.give(*self.ask())

    def give(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        if "Content-Length" not in headers:
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            for start in range(0, len(body), PIECE):
                self.wfile.write(body[start : start + PIECE])

    def refuse(self, status: int, **headers: str) -> None:
        """Answer with an error that carries nothing, after the body was taken."""
        self.read_body()
        self.give(status, {name.replace("_", "-"): value for name, value in headers.items()}, b"")

    def cut(self) -> None:
        """Break the connection off."""
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def cut_after(self, count: int) -> None:
        """Answer as the registry does, and break off after so many bytes of the body."""
        status, headers, body = self.ask()
        self.give(status, {**headers, "Content-Length": str(len(body))}, body[:count])
        self.cut()

    def log_message(self, *_: object) -> None:
        pass


Fault = Callable[[Request], bool]
"""Whether it has answered the request."""


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, target: str, fault: Fault) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        # Small, so that what was sent has about arrived.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        self.target = target
        self.fault = fault
        self.lock = threading.Lock()
        self.seen: list[Seen] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def received(self) -> int:
        """Bytes of bodies that came from the client."""
        return sum(one.received for one in self.seen)

    def methods(self, *methods: str) -> list[Seen]:
        """The requests with these methods, but for the first look at the registry."""
        return [one for one in self.seen if one.method in methods and one.path != "/v2/"]

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are what these tests are about


@contextmanager
def proxy(target: str, fault: Fault = lambda _: False) -> Iterator[Proxy]:
    """A proxy before the registry at this host and port."""
    with Proxy(target, fault) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def once(fault: Callable[[Request], None], *, method: str = "", path: str = "") -> Fault:
    """`fault` for the first request of this method whose path holds these words."""
    done = threading.Event()

    def only_once(request: Request) -> bool:
        fits = method in ("", request.command) and path in request.path and request.path != "/v2/"
        if done.is_set() or not fits:
            return False
        done.set()
        fault(request)
        return True

    return only_once


def always(fault: Callable[[Request], None], *, method: str = "", path: str = "") -> Fault:
    """`fault` for every such request."""

    def each_time(request: Request) -> bool:
        fits = method in ("", request.command) and path in request.path and request.path != "/v2/"
        if fits:
            fault(request)
        return fits

    return each_time
