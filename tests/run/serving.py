"""An NBD server of ours for a test, and a client that says exactly what it is told to say."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from packer.run.disk.export import Export
from packer.run.nbd import Limits, NbdServer
from packer.transport import nbd_wire as wire

T = TypeVar("T")


class Serving:
    """A server in a thread with an event loop of its own."""

    def __init__(self, exports: Mapping[str, Export], limits: Limits | None) -> None:
        self.faults: list[str] = []
        """What the event loop was told of: bugs."""
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self.faults.append(str(context)))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.server = NbdServer(exports, limits)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def stop(self) -> None:
        try:
            self.run(self.server.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


@contextmanager
def serving(exports: Mapping[str, Export], limits: Limits | None = None) -> Iterator[Serving]:
    """A server that listens nowhere yet; at its end it must have had no bug."""
    one = Serving(exports, limits)
    try:
        yield one
    finally:
        one.stop()
    assert not one.faults, one.faults


@contextmanager
def serving_unix(
    export: Export, path: Path, limits: Limits | None = None
) -> Iterator[tuple[Serving, str]]:
    """A server of one disk at a Unix socket, and its URI."""
    with serving({"": export}, limits) as one:
        one.run(one.server.start_unix(path))
        yield one, f"nbd+unix:///?socket={path}"


def start_tcp(
    one: Serving, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", **options: bool
) -> int:
    return one.run(one.server.start_tcp(host, 0, tls, **options))


class Client:
    """A socket to a server, and the words of the protocol; every wait is bounded."""

    def __init__(self, path: Path, seconds: float = 20.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self.socket.connect(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            if not more:
                raise ConnectionResetError(f"the end after {len(data)} of {length} bytes")
            data += more
        return bytes(data)

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.receive(layout.size))

    def is_cut(self) -> bool:
        """Whether the server hangs up; what it still says is thrown away."""
        try:
            while self.socket.recv(1 << 20):
                pass
        except ConnectionResetError:
            pass
        return True

    def greet(self, flags: int = 3) -> None:
        assert self.unpack(wire.GREETING) == (wire.INIT_PASSWD, wire.OPTION_MAGIC, 3)
        self.send(wire.U32.pack(flags))

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """The replies to an option, up to the acknowledgement or error that ends them."""
        self.send(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data)
        replies = []
        while True:
            magic, answered, kind, length = self.unpack(wire.OPTION_REPLY)
            assert (magic, answered) == (wire.OPTION_REPLY_MAGIC, option)
            replies.append((kind, self.receive(length)))
            if kind == wire.REP_ACK or kind & wire.REP_ERROR:
                return replies

    def go(self, *, structured: bool = True, contexts: bool = True) -> Self:
        """From the greeting to the transmission phase of the default export."""
        self.greet()
        if structured:
            assert self.option(wire.OPT_STRUCTURED_REPLY) == [(wire.REP_ACK, b"")]
        if structured and contexts:
            query = wire.string(b"") + wire.U32.pack(1) + wire.string(wire.CONTEXT_ALLOCATION)
            assert self.option(wire.OPT_SET_META_CONTEXT, query)[-1][0] == wire.REP_ACK
        assert self.option(wire.OPT_GO, wire.string(b"") + bytes(2))[-1][0] == wire.REP_ACK
        return self

    def request(
        self, command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0
    ) -> None:
        magic = wire.REQUEST_MAGIC
        self.send(wire.REQUEST.pack(magic, flags, command, cookie, offset, length))

    def chunk(self) -> tuple[int, int, int, bytes]:
        """(flags, type, cookie, payload)"""
        magic, flags, kind, cookie, length = self.unpack(wire.CHUNK)
        assert magic == wire.STRUCTURED_REPLY_MAGIC
        return flags, kind, cookie, self.receive(length)

    def reply(self) -> tuple[int, list[tuple[int, bytes]]]:
        """(cookie, (type, payload) of each chunk) of a reply whose chunks come together."""
        chunks, flags, cookies = [], 0, set()
        while not flags & wire.REPLY_FLAG_DONE:
            flags, kind, cookie, payload = self.chunk()
            cookies.add(cookie)
            chunks.append((kind, payload))
        assert len(cookies) == 1
        return cookies.pop(), chunks

    def error(self) -> tuple[int, int, str]:
        """(cookie, number, message) of a structured reply that is an error."""
        cookie, [(kind, payload)] = self.reply()
        assert kind == wire.REPLY_TYPE_ERROR
        number, length = struct.unpack_from(">IH", payload)
        assert len(payload) == 6 + length
        return cookie, number, payload[6:].decode()

    def simple(self) -> tuple[int, int]:
        """(cookie, error) of a simple reply; data that follow are the taker's to receive."""
        magic, number, cookie = self.unpack(wire.SIMPLE_REPLY)
        assert magic == wire.SIMPLE_REPLY_MAGIC
        return cookie, number

    def data(self, offset: int, length: int) -> bytes:
        """The bytes of the next reply, which is one to a read of that range."""
        _, chunks = self.reply()
        return content(chunks, offset, length)


def content(chunks: list[tuple[int, bytes]], offset: int, length: int) -> bytes:
    """What chunks make up, each byte told exactly once."""
    found = bytearray(length)
    told = 0
    for kind, payload in chunks:
        at = wire.U64.unpack_from(payload)[0] - offset
        if kind == wire.REPLY_TYPE_OFFSET_DATA:
            assert 0 <= at <= length - (len(payload) - 8)
            found[at : at + len(payload) - 8] = payload[8:]
            told += len(payload) - 8
        else:
            assert (kind, len(payload)) == (wire.REPLY_TYPE_OFFSET_HOLE, 12)
            size = wire.U32.unpack_from(payload, 8)[0]
            assert 0 <= at <= length - size
            told += size
    assert told == length
    return bytes(found)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    waited = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        waited.wait(0.02)
    raise AssertionError(f"not within {seconds:g} seconds")
