"""A disk behind an NBD server, read-only.

Source: NetworkBlockDevice/nbd `doc/proto.md`, sections "Fixed newstyle negotiation", "Option
types", "Metadata querying", "Block size constraints", "Structured reply types" and "Request
types"; URIs: `doc/uri.md`. The server is not trusted: whatever it sends is bounded before it is
kept, and a wrong byte ends the connection.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from formats.ranges import Ranges, as_ranges, clip, empty_ranges, union
from formats.source import check_bounds
from packer.errors import InputError, UsageError

DEFAULT_PORT = 10809
MAX_READ_BYTES = 32 << 20
"""A client may not ask for more at once unless the server says so ("Block size constraints")."""

CONNECT_SECONDS = 10.0
REPLY_SECONDS = 120.0
"""For a whole reply, however steadily it drips; 32 MiB at the most."""

_NBDMAGIC = 0x4E42444D41474943
_IHAVEOPT = 0x49484156454F5054
_OPTION_REPLY = 0x0003E889045565A9
_REQUEST = 0x25609513
_SIMPLE_REPLY = 0x67446698
_STRUCTURED_REPLY = 0x668E33EF

_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_GO, _OPT_STRUCTURED_REPLY, _OPT_SET_META_CONTEXT = 7, 8, 10
_REP_ACK, _REP_INFO, _REP_META_CONTEXT = 1, 3, 4
_REP_ERROR = 1 << 31
_REP_ERRORS = {
    1: "does not know the option",
    2: "forbids it",
    3: "calls the request invalid",
    5: "demands TLS, which is not supported",
    6: "has no such export",
    7: "is shutting down",
}
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_CMD_READ, _CMD_DISC, _CMD_BLOCK_STATUS = 0, 2, 7
_FLAG_DONE = 1
_TYPE_NONE, _TYPE_DATA, _TYPE_HOLE, _TYPE_STATUS, _TYPE_ERROR = 0, 1, 2, 5, 1 << 15
_STATE_ZERO = 2

_ALLOCATION = b"base:allocation"
_MAX_NAME_BYTES = 4096  # "the maximum length of a string"
_MAX_OPTION_BYTES = 1 << 16
_MAX_OPTION_REPLIES = 256
_MAX_MIN_BLOCK_BYTES = 1 << 16
_MAX_SIZE_BYTES = 1 << 60
_MAX_ERROR_BYTES = 14 + _MAX_NAME_BYTES
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
    port: int = DEFAULT_PORT


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
    if len(export.encode("utf-8", "surrogateescape")) > _MAX_NAME_BYTES:
        raise UsageError(f"the export's name in {uri!r} is longer than {_MAX_NAME_BYTES} bytes")
    if parts.scheme == "nbd+unix":
        paths = parse_qs(parts.query).get("socket", [])
        if len(paths) != 1:
            raise UsageError(f"{uri!r} names no socket", hint="nbd+unix:///EXPORT?socket=PATH")
        return Address(export, socket_path=paths[0])
    try:
        port = parts.port or DEFAULT_PORT
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
                self._request(_CMD_DISC, 0, 0)
            self._pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, command: int, offset: int, length: int) -> None:
        self._cookie += 1
        self._pipe.send(struct.pack(">IHHQQI", _REQUEST, 0, command, self._cookie, offset, length))

    def _read(self, offset: int, into: memoryview) -> None:
        self._request(_CMD_READ, offset, len(into))
        if not self._terms.structured:
            self._simple_reply()
            self._pipe.receive_into(into)
            return
        done: list[tuple[int, int]] = []
        for kind, length in self._chunks():
            if kind == _TYPE_DATA and length > 8:
                at = self._position(offset, length - 8, len(into))
                self._pipe.receive_into(into[at : at + length - 8])
                done.append((at, at + length - 8))
            elif kind == _TYPE_HOLE and length == 12:
                at = self._position(offset, 0, len(into))
                size = self._pipe.unpack(">I")[0]
                if not 0 < size <= len(into) - at:
                    raise self._pipe.broken(f"a hole of {size} bytes leaves the request")
                done.append((at, at + size))
            elif kind != _TYPE_NONE or length:
                raise self._pipe.broken(f"chunk type {kind} of {length} bytes answers a read")
        done.sort()
        if [end for _, end in done[:-1]] != [start for start, _ in done[1:]] or (
            not done or done[0][0] != 0 or done[-1][1] != len(into)
        ):
            raise self._pipe.broken("the pieces of a reply do not make up what was asked for")

    def _position(self, offset: int, length: int, asked: int) -> int:
        """Return where in the buffer a piece goes; a wrong place ends the connection."""
        at: int = self._pipe.unpack(">Q")[0] - offset
        if not 0 <= at <= asked - length:
            raise self._pipe.broken("a piece of a reply lies outside of what was asked for")
        return at

    def _status(self, offset: int, length: int) -> tuple[Ranges, int]:
        """Return (data ranges, where the next question begins)."""
        block = self._terms.min_block
        length = min(-(-length // block) * block, self.size - offset)
        self._request(_CMD_BLOCK_STATUS, offset, length)
        table: np.ndarray | None = None
        for kind, size in self._chunks():
            if kind == _TYPE_STATUS and 12 <= size <= _MAX_STATUS_BYTES and size % 8 == 4:
                payload = self._pipe.receive(size)
                if table is not None or int.from_bytes(payload[:4], "big") != self._terms.context:
                    raise self._pipe.broken("a second or unknown context in a block status")
                table = np.frombuffer(payload, dtype=">u4", offset=4).reshape(-1, 2)
            elif kind != _TYPE_NONE or size:
                raise self._pipe.broken(f"chunk type {kind} of {size} bytes answers a block status")
        if table is None or (table[:, 0] == 0).any():
            raise self._pipe.broken("a block status without a length")
        ends = offset + np.cumsum(table[:, 0].astype(np.int64))
        ranges = np.stack([np.concatenate([[offset], ends[:-1]]), ends], axis=1)
        return ranges[(table[:, 1] & _STATE_ZERO) == 0], int(ends[-1])

    def _simple_reply(self) -> None:
        magic, error, cookie = self._pipe.unpack(">IIQ")
        if magic != _SIMPLE_REPLY or cookie != self._cookie:
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
        magic, flags, kind, cookie, length = self._pipe.unpack(">IHHQI")
        if magic != _STRUCTURED_REPLY or cookie != self._cookie:
            raise self._pipe.broken("expected a structured reply to the last request")
        if kind & _TYPE_ERROR:
            if not 6 <= length <= _MAX_ERROR_BYTES:
                raise self._pipe.broken(f"an error of {length} bytes")
            code = int.from_bytes(self._pipe.receive(length)[:4], "big")
            # Further chunks may follow the error; the connection is not worth sorting them out.
            raise self._pipe.broken(f"the server cannot read its disk (error {code})")
        return not flags & _FLAG_DONE, kind, length


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

    def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.receive(struct.calcsize(layout)))

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
    magic, style, flags = pipe.unpack(">QQH")
    if magic != _NBDMAGIC or style != _IHAVEOPT or not flags & _FIXED_NEWSTYLE:
        raise pipe.broken("not an NBD server of the fixed newstyle")
    pipe.send(struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES)))
    terms = _Terms()
    if _option(pipe, _OPT_STRUCTURED_REPLY, b"") is not None:
        query = _string(export) + struct.pack(">I", 1) + _string(_ALLOCATION)
        replies = _option(pipe, _OPT_SET_META_CONTEXT, query) or []
        contexts = [data for kind, data in replies if kind == _REP_META_CONTEXT]
        context = next((data[:4] for data in contexts if data[4:] == _ALLOCATION), None)
        number = int.from_bytes(context, "big") if context else None
        terms = replace(terms, structured=True, context=number)
    asked = struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
    for kind, data in _option(pipe, _OPT_GO, _string(export) + asked, needed=True) or []:
        if kind == _REP_INFO:
            terms = _with_info(pipe, terms, data)
    if not 0 <= terms.size <= _MAX_SIZE_BYTES:
        raise pipe.broken(f"an export of {terms.size} bytes")
    return terms


def _with_info(pipe: _Pipe, terms: _Terms, data: bytes) -> _Terms:
    kind = int.from_bytes(data[:2], "big")
    if kind == _INFO_EXPORT and len(data) == 12:
        return replace(terms, size=int.from_bytes(data[2:10], "big"))
    if kind == _INFO_BLOCK_SIZE and len(data) == 14:
        least, _, most = struct.unpack_from(">III", data, 2)
        if not 1 <= least <= _MAX_MIN_BLOCK_BYTES or least & (least - 1) or most < least:
            raise pipe.broken(f"block sizes of {least} to {most} bytes")
        most = min(most, MAX_READ_BYTES) // least * least
        return replace(terms, min_block=least, max_block=most)
    return terms


def _option(
    pipe: _Pipe, option: int, data: bytes, *, needed: bool = False
) -> list[tuple[int, bytes]] | None:
    """Return the replies before the acknowledgement, or None when the server declines."""
    pipe.send(struct.pack(">QII", _IHAVEOPT, option, len(data)) + data)
    replies: list[tuple[int, bytes]] = []
    for _ in range(_MAX_OPTION_REPLIES):
        magic, answered, kind, length = pipe.unpack(">QIII")
        if magic != _OPTION_REPLY or answered != option or length > _MAX_OPTION_BYTES:
            raise pipe.broken(f"not a reply to option {option}")
        payload = pipe.receive(length)
        if kind == _REP_ACK:
            return replies
        if kind & _REP_ERROR:
            if needed:
                number = kind & ~_REP_ERROR
                raise pipe.broken(f"the server {_REP_ERRORS.get(number, f'declines ({number})')}")
            return None
        replies.append((kind, payload))
    raise pipe.broken(f"more than {_MAX_OPTION_REPLIES} replies to option {option}")


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
