"""A mirror that serves a folder and counts what it sends; it can be slow, or misbehave."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.transport.servers import (
    PARTS_TYPE,
    Answer,
    Server,
    content_range,
    parts_body,
    serving,
)

PIECE = 1 << 16
Spoil = Callable[[Answer, bytes], bytes | None]
"""(request, the file's bytes) -> what to serve instead; None when the request was answered."""


@dataclass(slots=True)
class Mirror:
    """What a mirror does and has done. Bytes are counted as they are handed to the network."""

    folder: Path
    bytes_per_second: float = 0
    spoil: Spoil | None = None
    hold_at: float = math.inf
    url: str = ""
    sent_bytes: int = 0
    requests: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _next: float = 0
    _read: dict[Path, bytes] = field(default_factory=dict)

    def send_until(self, count: int) -> None:
        """Return when so many bytes have left; no more follow before `go_on`, but for one piece
        of each connection.
        """
        self.hold_at = count
        self.wait_until_sent(count)

    def go_on(self) -> None:
        """Send without an end again."""
        self.hold_at = math.inf

    def wait_until_sent(self, count: int, limit_s: float = 60) -> None:
        """Return when so many bytes have left."""
        deadline = time.monotonic() + limit_s
        while self.sent_bytes < count:
            assert time.monotonic() < deadline, f"{self.sent_bytes} of {count} bytes were asked for"
            time.sleep(0.002)

    def answer(self, request: Answer, number: int) -> None:
        path = self.folder / request.path.lstrip("/")
        if ".." in path.parts or not path.is_file():
            return request.give(404, {"Content-Length": "0"}, b"")
        if path not in self._read:  # a bundle is asked for in many ranges
            self._read[path] = path.read_bytes()
        data: bytes | None = self._read[path]
        if self.spoil is not None and data is not None:
            data = self.spoil(request, data)
        if data is None:
            return None
        if several := request.several(len(data)):
            parts = [(start, data[start:end]) for start, end in several]
            return self._send(request, 206, PARTS_TYPE, parts_body(parts, len(data)))
        wanted = request.wanted(len(data))
        if wanted is None:
            return self._send(request, 200, {}, data)
        start, end = wanted
        if start >= len(data) > 0:
            return request.give(416, {"Content-Length": "0"}, b"")
        return self._send(request, 206, content_range(start, end, len(data)), data[start:end])

    def _send(self, request: Answer, status: int, headers: Mapping[str, str], body: bytes) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        with self._lock:
            self.requests += 1
        for position in range(0, len(body), PIECE):
            piece = body[position : position + PIECE]
            self._wait_for_turn(len(piece))
            while self.sent_bytes >= self.hold_at:
                time.sleep(0.002)
            request.wfile.write(piece)
            with self._lock:
                self.sent_bytes += len(piece)

    def _wait_for_turn(self, count: int) -> None:
        if not self.bytes_per_second:
            return
        with self._lock:
            self._next = max(self._next, time.monotonic()) + count / self.bytes_per_second
            turn = self._next
        time.sleep(max(0.0, turn - time.monotonic()))


@contextmanager
def mirror(
    folder: Path, *, bytes_per_second: float = 0, spoil: Spoil | None = None
) -> Iterator[Mirror]:
    """A mirror of a folder on loopback."""
    one = Mirror(folder, bytes_per_second, spoil)
    with serving(one.answer) as server:
        _keep_little_under_way(server)
        one.url = f"{server.url}/"
        yield one


def _keep_little_under_way(server: Server) -> None:
    """Small socket buffers, so that what was counted as sent has about arrived."""
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
