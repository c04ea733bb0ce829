"""A disk behind an NBD server, read-only.

Source: NetworkBlockDevice/nbd `doc/proto.md`, sections "Fixed newstyle negotiation", "Option
types", "Metadata querying", "Block size constraints", "Structured reply types" and "Request
types"; URIs: `doc/uri.md`. The server is not trusted: whatever it sends is bounded before it is
kept, and a wrong byte ends the connection.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from formats.ranges import Ranges, as_ranges, clip, empty_ranges, union
from formats.source import check_bounds
from packer.errors import InputError, UsageError
from packer.transport import nbd_wire as wire
from packer.transport.nbd_wire import MAX_READ_BYTES

CONNECT_SECONDS = 10.0
REPLY_SECONDS = 120.0
"""For a whole reply, however steadily it drips; 32 MiB at the most."""

_REP_ERRORS = {
    1: "does not know the option",
    2: "forbids it",
    3: "calls the request invalid",
    5: "demands TLS, which is not supported",
    6: "has no such export",
    7: "is shutting down",
}

_MAX_OPTION_BYTES = 1 << 16
_MAX_OPTION_REPLIES = 256
_MAX_MIN_BLOCK_BYTES = 1 << 16
_MAX_SIZE_BYTES = 1 << 60
_MAX_ERROR_BYTES = 14 + wire.MAX_STRING_BYTES
_STATUS_SPAN_BYTES = 1 << 30
_MAX_STATUS_BYTES = 4 + 8 * (1 << 20)
_MAX_STATUS_REQUESTS = 1 << 16
_MAX_CHUNKS = 1 << 17
"""Of one reply: more than one for each 512 bytes of the longest, and as many that say nothing."""


class NbdError(InputError):
    """An NBD server that cannot be reached, breaks the protocol, or cannot read its disk."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: socket_path, or host and port; and which disk is meant."""

    export: str
    socket_path: str = ""
    host: str = ""
    port: int = wire.DEFAULT_PORT


@dataclass(frozen=True, slots=True)
class _Terms:
    """What was agreed: size in bytes, block sizes in bytes, what the server can do."""

    size: int = -1
    min_block: int = 1
    max_block: int = MAX_READ_BYTES
    structured: bool = False
    context: int | None = None


def parse_uri(uri: str) -> Address:
    """Return the address of `nbd://host:port/export` or `nbd+unix:///export?socket=PATH`.

    Raises UsageError.
    """
    parts = urlsplit(uri)
    export = unquote(parts.path.removeprefix("/"))
    if len(export.encode("utf-8", "surrogateescape")) > wire.MAX_STRING_BYTES:
        most = wire.MAX_STRING_BYTES
        raise UsageError(f"the export's name in {uri!r} is longer than {most} bytes")
    if parts.scheme == "nbd+unix":
        paths = parse_qs(parts.query).get("socket", [])
        if len(paths) != 1:
            raise UsageError(f"{uri!r} names no socket", hint="nbd+unix:///EXPORT?socket=PATH")
        return Address(export, socket_path=paths[0])
    try:
        port = parts.port or wire.DEFAULT_PORT
    except ValueError as error:
        raise UsageError(f"{uri!r}: {error}") from error
    if parts.scheme != "nbd" or not parts.hostname:
        raise UsageError(f"{uri!r} is not an NBD address", hint="nbd://HOST[:PORT]/EXPORT")
    return Address(export, host=parts.hostname, port=port)


class NbdSource:
    """An export as a source. One connection, one request at a time, from any thread.

    Raises NbdError when the server cannot be reached or breaks the protocol, on opening and on
    every read; after such an error the connection is closed for good.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._address = parse_uri(uri)
        self._lock = threading.Lock()
        self._cookie = 0
        self._pipe = _Pipe(uri, _connect(uri, self._address))
        try:
            self._terms = _negotiate(self._pipe, self._address.export.encode())
        except BaseException:
            self._pipe.close()
            raise
        self.size: Final = self._terms.size

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""
        check_bounds(self.uri, self.size, offset, length)
        block = self._terms.min_block
        first = offset // block * block
        end = min(-(-(offset + length) // block) * block, self.size)
        buffer = bytearray(end - first)
        with self._lock, memoryview(buffer) as view:
            for position in range(0, len(buffer), self._terms.max_block):
                self._read(first + position, view[position : position + self._terms.max_block])
        return bytes(memoryview(buffer)[offset - first : offset - first + length])

    def data_ranges(self, start: int, end: int) -> Ranges:
        """Return what the server does not call zero; everything, if it cannot tell."""
        check_bounds(self.uri, self.size, start, end - start)
        if end == start:
            return empty_ranges()
        if self._terms.context is None:
            return as_ranges([(start, end)])
        found: list[Ranges] = []
        position = start // self._terms.min_block * self._terms.min_block
        with self._lock:
            for _ in range(_MAX_STATUS_REQUESTS):
                if position >= end:
                    break
                ranges, position = self._status(position, min(_STATUS_SPAN_BYTES, end - position))
                found.append(ranges)
            else:  # a server that answers in crumbs is asked no further
                found.append(as_ranges([(position, end)]))
        return clip(union(empty_ranges(), *found), start, end)

    def close(self) -> None:
        """Say goodbye and close the connection; later reads fail."""
        with self._lock:
            if self._pipe.is_open:
                self._request(wire.CMD_DISC, 0, 0)
            self._pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, command: int, offset: int, length: int) -> None:
        self._cookie += 1
        self._pipe.send(
            wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, self._cookie, offset, length)
        )

    def _read(self, offset: int, into: memoryview) -> None:
        self._request(wire.CMD_READ, offset, len(into))
        if not self._terms.structured:
            self._simple_reply()
            self._pipe.receive_into(into)
            return
        done: list[tuple[int, int]] = []
        for kind, length in self._chunks():
            if kind == wire.REPLY_TYPE_OFFSET_DATA and length > 8:
                at = self._position(offset, length - 8, len(into))
                self._pipe.receive_into(into[at : at + length - 8])
                done.append((at, at + length - 8))
            elif kind == wire.REPLY_TYPE_OFFSET_HOLE and length == 12:
                at = self._position(offset, 0, len(into))
                size = self._pipe.unpack(wire.U32)[0]
                if not 0 < size <= len(into) - at:
                    raise self._pipe.broken(f"a hole of {size} bytes leaves the request")
                done.append((at, at + size))
            elif kind != wire.REPLY_TYPE_NONE or length:
                raise self._pipe.broken(f"chunk type {kind} of {length} bytes answers a read")
        done.sort()
        if [end for _, end in done[:-1]] != [start for start, _ in done[1:]] or (
            not done or done[0][0] != 0 or done[-1][1] != len(into)
        ):
            raise self._pipe.broken("the pieces of a reply do not make up what was asked for")

    def _position(self, offset: int, length: int, asked: int) -> int:
        """Return where in the buffer a piece goes; a wrong place ends the connection."""
        at: int = self._pipe.unpack(wire.U64)[0] - offset
        if not 0 <= at <= asked - length:
            raise self._pipe.broken("a piece of a reply lies outside of what was asked for")
        return at

    def _status(self, offset: int, length: int) -> tuple[Ranges, int]:
        """Return (data ranges, where the next question begins)."""
        block = self._terms.min_block
        length = min(-(-length // block) * block, self.size - offset)
        self._request(wire.CMD_BLOCK_STATUS, offset, length)
        table: np.ndarray | None = None
        for kind, size in self._chunks():
            if (
                kind == wire.REPLY_TYPE_BLOCK_STATUS
                and 12 <= size <= _MAX_STATUS_BYTES
                and size % 8 == 4
            ):
                payload = self._pipe.receive(size)
                if table is not None or int.from_bytes(payload[:4], "big") != self._terms.context:
                    raise self._pipe.broken("a second or unknown context in a block status")
                table = np.frombuffer(payload, dtype=">u4", offset=4).reshape(-1, 2)
            elif kind != wire.REPLY_TYPE_NONE or size:
                raise self._pipe.broken(f"chunk type {kind} of {size} bytes answers a block status")
        if table is None or (table[:, 0] == 0).any():
            raise self._pipe.broken("a block status without a length")
        ends = offset + np.cumsum(table[:, 0].astype(np.int64))
        ranges = np.stack([np.concatenate([[offset], ends[:-1]]), ends], axis=1)
        return ranges[(table[:, 1] & wire.STATE_ZERO) == 0], int(ends[-1])

    def _simple_reply(self) -> None:
        magic, error, cookie = self._pipe.unpack(wire.SIMPLE_REPLY)
        if magic != wire.SIMPLE_REPLY_MAGIC or cookie != self._cookie:
            raise self._pipe.broken("expected a simple reply to the last request")
        if error:
            raise NbdError(f"{self.uri}: the server cannot read its disk (error {error})")

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Yield (type, payload's length) of each chunk; the payload is the taker's to read."""
        for _ in range(_MAX_CHUNKS):
            more, kind, length = self._chunk()
            yield kind, length
            if not more:
                return
        raise self._pipe.broken(f"a reply of more than {_MAX_CHUNKS} chunks")

    def _chunk(self) -> tuple[bool, int, int]:
        """Return (whether more chunks follow, type, payload's length); raises for an error."""
        magic, flags, kind, cookie, length = self._pipe.unpack(wire.CHUNK)
        if magic != wire.STRUCTURED_REPLY_MAGIC or cookie != self._cookie:
            raise self._pipe.broken("expected a structured reply to the last request")
        if kind & wire.REPLY_TYPE_ERROR_BIT:
            if not 6 <= length <= _MAX_ERROR_BYTES:
                raise self._pipe.broken(f"an error of {length} bytes")
            code = int.from_bytes(self._pipe.receive(length)[:4], "big")
            # Further chunks may follow the error; the connection is not worth sorting them out.
            raise self._pipe.broken(f"the server cannot read its disk (error {code})")
        return not flags & wire.REPLY_FLAG_DONE, kind, length


class _Pipe:
    """A socket on which every surprise is final; each `send` begins the time for its answer."""

    def __init__(self, uri: str, connection: socket.socket) -> None:
        self._uri = uri
        self._socket = connection
        self._deadline = time.monotonic() + REPLY_SECONDS
        self.is_open = True

    def send(self, data: bytes) -> None:
        self._deadline = time.monotonic() + REPLY_SECONDS
        try:
            self._socket.settimeout(REPLY_SECONDS)
            self._socket.sendall(data)
        except OSError as error:
            raise self.broken(f"the server is gone: {error}") from error

    def receive(self, length: int) -> bytes:
        """Return exactly `length` bytes, which the caller has bounded."""
        buffer = bytearray(length)
        self.receive_into(memoryview(buffer))
        return bytes(buffer)

    def receive_into(self, view: memoryview) -> None:
        while len(view):
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise self.broken(f"no whole answer within {REPLY_SECONDS:g} seconds")
            try:
                self._socket.settimeout(left)
                count = self._socket.recv_into(view)
            except OSError as error:
                raise self.broken(f"the server is gone: {error}") from error
            if count == 0:
                raise self.broken("the server closed the connection")
            view = view[count:]

    def unpack(self, layout: Struct) -> tuple[int, ...]:
        return layout.unpack(self.receive(layout.size))

    def broken(self, reason: str) -> NbdError:
        """Close the connection and return the error that says why."""
        self.close()
        return NbdError(f"{self._uri}: {reason}")

    def close(self) -> None:
        self.is_open = False
        self._socket.close()


def _connect(uri: str, address: Address) -> socket.socket:
    try:
        if not address.socket_path:
            return socket.create_connection((address.host, address.port), CONNECT_SECONDS)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(CONNECT_SECONDS)
            connection.connect(address.socket_path)
        except BaseException:
            connection.close()
            raise
        return connection
    except OSError as error:
        raise NbdError(f"{uri}: nobody answers: {error}") from error


def _negotiate(pipe: _Pipe, export: bytes) -> _Terms:
    """Go through the handshake phase; "Fixed newstyle negotiation"."""
    magic, style, flags = pipe.unpack(wire.GREETING)
    if (
        magic != wire.INIT_PASSWD
        or style != wire.OPTION_MAGIC
        or not flags & wire.FLAG_FIXED_NEWSTYLE
    ):
        raise pipe.broken("not an NBD server of the fixed newstyle")
    pipe.send(wire.U32.pack(flags & (wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES)))
    terms = _Terms()
    if _option(pipe, wire.OPT_STRUCTURED_REPLY, b"") is not None:
        query = wire.string(export) + wire.U32.pack(1) + wire.string(wire.CONTEXT_ALLOCATION)
        replies = _option(pipe, wire.OPT_SET_META_CONTEXT, query) or []
        contexts = [data for kind, data in replies if kind == wire.REP_META_CONTEXT]
        context = next((data[:4] for data in contexts if data[4:] == wire.CONTEXT_ALLOCATION), None)
        number = int.from_bytes(context, "big") if context else None
        terms = replace(terms, structured=True, context=number)
    asked = wire.U16.pack(1) + wire.U16.pack(wire.INFO_BLOCK_SIZE)
    for kind, data in _option(pipe, wire.OPT_GO, wire.string(export) + asked, needed=True) or []:
        if kind == wire.REP_INFO:
            terms = _with_info(pipe, terms, data)
    if not 0 <= terms.size <= _MAX_SIZE_BYTES:
        raise pipe.broken(f"an export of {terms.size} bytes")
    return terms


def _with_info(pipe: _Pipe, terms: _Terms, data: bytes) -> _Terms:
    kind = int.from_bytes(data[:2], "big")
    if kind == wire.INFO_EXPORT and len(data) == wire.EXPORT_INFO.size:
        return replace(terms, size=wire.EXPORT_INFO.unpack(data)[1])
    if kind == wire.INFO_BLOCK_SIZE and len(data) == wire.BLOCK_SIZE_INFO.size:
        _, least, _, most = wire.BLOCK_SIZE_INFO.unpack(data)
        if not 1 <= least <= _MAX_MIN_BLOCK_BYTES or least & (least - 1) or most < least:
            raise pipe.broken(f"block sizes of {least} to {most} bytes")
        most = min(most, MAX_READ_BYTES) // least * least
        return replace(terms, min_block=least, max_block=most)
    return terms


def _option(
    pipe: _Pipe, option: int, data: bytes, *, needed: bool = False
) -> list[tuple[int, bytes]] | None:
    """Return the replies before the acknowledgement, or None when the server declines."""
    pipe.send(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data)
    replies: list[tuple[int, bytes]] = []
    for _ in range(_MAX_OPTION_REPLIES):
        magic, answered, kind, length = pipe.unpack(wire.OPTION_REPLY)
        if magic != wire.OPTION_REPLY_MAGIC or answered != option or length > _MAX_OPTION_BYTES:
            raise pipe.broken(f"not a reply to option {option}")
        payload = pipe.receive(length)
        if kind == wire.REP_ACK:
            return replies
        if kind & wire.REP_ERROR:
            if needed:
                number = kind & ~wire.REP_ERROR
                raise pipe.broken(f"the server {_REP_ERRORS.get(number, f'declines ({number})')}")
            return None
        replies.append((kind, payload))
    raise pipe.broken(f"more than {_MAX_OPTION_REPLIES} replies to option {option}")
