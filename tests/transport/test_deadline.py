"""Servers that never let a socket's timeout run out and never come to an end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from packer.transport import deadline
from packer.transport.http import Client, TransportError

Speak = Callable[[Callable[[bytes], None]], None]
"""A server: it gets a function that sends bytes, and goes on until that fails."""

DRIP_SECONDS = 0.05
TLS_RECORD = b"\x16\x03\x03\x40\x00"  # a handshake record of 16 KiB (RFC 8446, 5.1)


def drip(send: Callable[[bytes], None], piece: bytes) -> None:
    while True:
        send(piece)
        time.sleep(DRIP_SECONDS)


def drips_headers(send: Callable[[bytes], None]) -> None:
    send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    drip(send, b"x")


def drips_a_status(send: Callable[[bytes], None]) -> None:
    drip(send, b"H")


def interim_answers(send: Callable[[bytes], None]) -> None:
    while True:
        send(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def drips_a_chunk_size(send: Callable[[bytes], None]) -> None:
    send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;extension=")
    drip(send, b"x")


def endless_trailers(send: Callable[[bytes], None]) -> None:
    send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n")
    while True:
        send(b"X-Trailer: more\r\n" * 1000)


def drips_a_handshake(send: Callable[[bytes], None]) -> None:
    send(TLS_RECORD)
    drip(send, b"\0")


@contextmanager
def speaking(speak: Speak) -> Iterator[str]:
    """Host and port of a server on loopback that says the same to everybody."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.recv(65536)
                speak(connection.sendall)

        def accept() -> None:
            with suppress(OSError):  # closed: the test is over
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("scheme", "speak"),
    [
        ("http", drips_a_status),
        ("http", drips_headers),
        ("http", interim_answers),
        ("http", drips_a_chunk_size),
        ("http", endless_trailers),
        ("https", drips_a_handshake),
    ],
)
def test_no_step_of_an_answer_goes_on_for_ever(
    scheme: str, speak: Speak, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "STEP_SECONDS", 0.5)
    monkeypatch.delenv(f"{scheme}_proxy", raising=False)
    with speaking(speak) as host, Client(attempts=1, timeout_seconds=(5, 5)) as client:
        started = time.monotonic()
        with pytest.raises(TransportError, match=host):
            client.get_bytes(f"{scheme}://{host}/index.json", 1000)
        assert time.monotonic() - started < 4


def test_a_server_that_is_slow_and_gets_on_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is of each step, and the taker's own time does not count."""
    monkeypatch.setattr(deadline, "STEP_SECONDS", 1.0)

    def slow(send: Callable[[bytes], None]) -> None:
        time.sleep(0.6)
        send(b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-3/4\r\n")
        send(b"Content-Length: 4\r\n\r\n")
        for byte in b"data":
            time.sleep(0.6)
            send(bytes([byte]))
        time.sleep(5)

    monkeypatch.delenv("http_proxy", raising=False)
    with speaking(slow) as host, Client(attempts=1) as client:
        assert client.get_range(f"http://{host}/file", 0, 4) == b"data"


def test_the_watch_ends_when_there_is_nothing_to_watch() -> None:
    def watching() -> bool:
        return any("(_run)" in one.name for one in threading.enumerate())

    with deadline.limited(lambda: None):
        assert watching()
    until = time.monotonic() + 5
    while watching() and time.monotonic() < until:
        time.sleep(0.1)
    assert not watching()
