"""A server for strangers: it answers what it understands and ends everything else, soon."""

from __future__ import annotations

import errno
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packer.errors import Error
from packer.transport import http_server
from packer.transport.http_server import Answer, Refusal, Request, parse_head
from tests.transport.servers import answering

LARGE = bytes(range(256)) * (1 << 14)


class Echo:
    """Says back what it was told; /large, /short, /broken do more than that."""

    def most_body_bytes(self, request: Request) -> int:
        if "x-key" not in request.headers:
            raise Refusal(HTTPStatus.UNAUTHORIZED)
        return 1000

    def answer(self, request: Request, body: bytes) -> Answer:
        if request.path == "/broken":
            raise Error("the disk is gone")
        if request.path == "/short":
            return Answer(100, iter([b"ten bytes."]))
        if request.path == "/breaks":
            return Answer(100, self.breaks())
        data = LARGE if request.path == "/large" else body
        return Answer(len(data), iter([data] if data else []))

    def breaks(self) -> Iterator[bytes]:
        yield b"ten bytes."
        raise Error("the disk is gone")


@pytest.fixture
def port() -> Iterator[int]:
    with answering(Echo()) as (_, port):
        yield port


def head(path: str = "/", *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join(
        [f"{method} {path} HTTP/1.1", "Host: here", "X-Key: yes", *lines, "", ""]
    ).encode()


REFUSED = (errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET)


def talk(port: int, data: bytes, seconds: float = 10) -> bytes:
    """Send everything at once, then read until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as client:
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno not in REFUSED:  # it may refuse before everything was sent
                raise
        return read_all(client)


def read_all(client: socket.socket) -> bytes:
    found = b""
    try:
        while data := client.recv(1 << 16):
            found += data
    except ConnectionResetError:
        pass
    return found


def statuses(answer: bytes) -> list[int]:
    return [int(one) for one in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def test_requests_are_answered_one_after_the_other_on_one_connection(port: int) -> None:
    one = head("/", "Content-Length: 3") + b"abc"
    answer = talk(port, one + head("/") + one)
    assert statuses(answer) == [200, 200, 200]
    assert answer.count(b"\r\n\r\nabc") == 2


def test_a_body_that_arrives_in_pieces_is_whole(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        for piece in (head("/", "Content-Length: 6")[:20], head("/", "Content-Length: 6")[20:]):
            client.sendall(piece)
            time.sleep(0.02)
        client.sendall(b"abc")
        time.sleep(0.02)
        client.sendall(b"def")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).endswith(b"\r\n\r\nabcdef")


def test_a_large_answer_is_whole(port: int) -> None:
    assert talk(port, head("/large")).endswith(LARGE)


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nX-Kez: yes\r\n",
    ],
)
def test_who_is_not_let_in_is_told_so_before_its_body_is_read(
    port: int, request_head: bytes
) -> None:
    answer = talk(port, request_head + b"Content-Length: 99999999\r\n\r\nxxxx")
    assert statuses(answer) == [401]
    assert b"Connection: close" in answer


def test_a_client_that_sends_a_megabyte_first_still_reads_why_it_is_refused(port: int) -> None:
    """A connection closed with data unread is reset, and the answer with it."""
    body = b"x" * 1_000_000
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert statuses(talk(port, request + body)) == [401]


SMUGGLED = {
    "two lengths": head("/", "Content-Length: 3", "Content-Length: 5"),
    "two equal lengths": head("/", "Content-Length: 3", "content-length: 3"),
    "a list of lengths": head("/", "Content-Length: 3, 3"),
    "length and chunks": head("/", "Content-Length: 3", "Transfer-Encoding: chunked"),
    "chunks": head("/", "Transfer-Encoding: chunked"),
    "odd chunks": head("/", "Transfer-Encoding: xchunked"),
    "a length with a sign": head("/", "Content-Length: +3"),
    "a negative length": head("/", "Content-Length: -3"),
    "a hexadecimal length": head("/", "Content-Length: 0x3"),
    "no length": head("/", "Content-Length: "),
    "a blank before the colon": head("/", "Content-Length : 3"),
    "a folded line": head("/", "X-A: b", " Content-Length: 3"),
    "a tab first": head("/", "X-A: b", "\tContent-Length: 3"),
    "line feeds only": b"POST / HTTP/1.1\nHost: a\nX-Key: y\nContent-Length: 3\n\nabc\r\n\r\n",
    "a line feed inside": head("/", "X-A: b\nContent-Length: 3"),
    "a bare carriage return": head("/", "X-A: b\rContent-Length: 3"),
    "a zero byte": head("/", "X-A: \0b"),
    "no host": b"POST / HTTP/1.1\r\nX-Key: yes\r\n\r\n",
    "two hosts": head("/", "Host: there"),
    "an older version": b"POST / HTTP/1.0\r\nHost: a\r\nX-Key: y\r\n\r\n",
    "no version": b"POST /\r\nHost: a\r\nX-Key: y\r\n\r\n",
    "a newer version": b"POST / HTTP/2.0\r\nHost: a\r\nX-Key: y\r\n\r\n",
    "two blanks": b"POST  / HTTP/1.1\r\nHost: a\r\nX-Key: y\r\n\r\n",
    "a whole address": b"POST http://a/ HTTP/1.1\r\nHost: a\r\nX-Key: y\r\n\r\n",
    "a star": b"OPTIONS * HTTP/1.1\r\nHost: a\r\nX-Key: y\r\n\r\n",
    "a line first": b"\r\n" + head("/"),
    "no header": head("/", "nonsense"),
    "an empty name": head("/", ": x"),
    "letters beyond ASCII": head("/", "X-A: ü"),
    "something else": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_a_request_that_two_programs_could_read_in_two_ways_ends_the_connection(
    port: int, name: str
) -> None:
    """What follows it is never taken for a request."""
    hidden = head("/hidden", "Content-Length: 0")
    answer = talk(port, SMUGGLED[name] + hidden + hidden)
    assert statuses(answer) == [400], answer


@pytest.mark.parametrize("blank", [b" ", b"\t"])
def test_a_line_of_blanks_costs_no_more_than_another(blank: bytes) -> None:
    """Strangers send heads: what one costs is processor time of everybody's."""
    head = b"POST / HTTP/1.1\r\nHost:" + blank * 8000 + b"\x01\r\n\r\n"
    started = time.process_time()
    with pytest.raises(Refusal):
        parse_head(head)
    assert time.process_time() - started < 0.1


def test_bodies_and_heads_beyond_the_bound_are_refused(port: int) -> None:
    assert statuses(talk(port, head("/", "Content-Length: 1001") + b"x" * 1001)) == [413]
    assert statuses(talk(port, head("/", f"Content-Length: {10**11}"))) == [413]
    assert statuses(talk(port, head("/", "X-A: " + "y" * 10_000))) == [431]
    assert statuses(talk(port, head("/", *(f"X-{n}: y" for n in range(2000))))) == [431]
    assert statuses(talk(port, b"x" * 100_000)) == [431]


def test_a_server_that_cannot_answer_says_so(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert statuses(talk(port, head("/broken"))) == [503]
    assert "the disk is gone" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/short", "/breaks"])
def test_an_answer_that_cannot_be_ended_ends_the_connection(port: int, path: str) -> None:
    answer = talk(port, head(path) + head("/"))
    assert statuses(answer) == [200]
    assert b"Content-Length: 100" in answer
    assert len(answer.partition(b"\r\n\r\n")[2]) <= 10


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "CHUNK_SECONDS"):
        monkeypatch.setattr(http_server, name, 0.5)


def test_heads_and_bodies_that_drip_are_cut(port: int, hurried: None) -> None:
    def drips(first: bytes, rest: bytes) -> float:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            started = time.monotonic()
            try:
                client.sendall(first)
                for byte in rest:
                    client.sendall(bytes([byte]))
                    time.sleep(0.1)
            except OSError:
                pass
            return time.monotonic() - started

    assert drips(b"", head("/") * 10) < 3
    assert drips(head("/", "Content-Length: 500"), b"x" * 500) < 3


def test_who_does_not_read_the_answer_is_cut(hurried: None) -> None:
    with answering(Echo()) as (server, port), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(head("/large") * 5)
        deadline = time.monotonic() + 5
        while server.served.requests == 0 or server._connections:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert server.served.sent_bytes < 5 * len(LARGE)


def test_one_address_gets_so_many_connections_and_others_follow_when_they_end() -> None:
    with answering(Echo()) as (_, port):
        held = []
        for _ in range(http_server.MAX_CONNECTIONS_OF_ONE):
            client = socket.create_connection(("127.0.0.1", port), timeout=10)
            client.sendall(head("/"))
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            held.append(client)
        assert talk(port, head("/")) == b""
        for client in held:
            client.close()
        deadline = time.monotonic() + 10
        while statuses(talk(port, head("/"))) != [200]:
            assert time.monotonic() < deadline


def test_connections_are_counted_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    with answering(Echo()) as (_, port):
        held = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(2)]
        for client in held:
            client.sendall(head("/"))
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert talk(port, head("/")) == b""
        for client in held:
            client.close()


def test_it_ends_while_clients_are_connected() -> None:
    with answering(Echo()) as (_, port):
        client = socket.create_connection(("127.0.0.1", port), timeout=10)
        client.sendall(head("/")[:10])
        time.sleep(0.05)
    assert read_all(client) == b""
    client.close()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    with suppress(Refusal):
        assert parse_head(data + b"\r\n\r\n").path.startswith("/")
