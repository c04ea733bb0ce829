"""A small HTTP/1.1 server for strangers: POST in, bytes out, everything bounded.

It understands one shape of request (RFC 9112) and closes the connection on any other: a body has
one Content-Length and no Transfer-Encoding, header lines are not folded, lines end in CRLF. So no
two programs can disagree about where a request ends. Each step has a deadline, so that a slow
client holds a connection and nothing else; connections are counted, in all and for each address.
"""

from __future__ import annotations

import asyncio
import re
import signal
import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from packer.errors import Error, UsageError
from packer.progress import note

MAX_HEAD_BYTES = 8192
MAX_CONNECTIONS = 64
MAX_CONNECTIONS_OF_ONE = 16
"""Of one address; a client of ours uses two."""

HEAD_SECONDS = 20.0
"""For a whole head, from the end of the answer before it."""

BODY_SECONDS = 30.0
"""For the whole body of a request."""

CHUNK_SECONDS = 30.0
"""Until a client has taken one chunk of an answer."""

LINGER_SECONDS, LINGER_BYTES = 2.0, 4 << 20
"""How long, and how much, is read of a request that was refused."""

CHUNK_BYTES = 1 << 16

_REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) (/[!-~]{0,1000}) HTTP/1\.1")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}):([\x20-\x7e\t]*)")
_LENGTH = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request: header names are in lower case, each occurs once."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of an answer: exactly `length` bytes, in chunks that are read as they are sent."""

    length: int
    chunks: Iterator[bytes]


class Refusal(Exception):
    """A request that is answered with a status and no body, after which the connection ends."""

    def __init__(self, status: HTTPStatus, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.headers = dict(headers or {})


class Handler(Protocol):
    """What a server does."""

    def most_body_bytes(self, request: Request) -> int:
        """Return at once how large the body may be; none of it is read yet. Raises Refusal."""

    def answer(self, request: Request, body: bytes) -> Answer:
        """Return the answer. Raises Refusal; an Error means that the server cannot, for now.

        Called from threads, as are the answer's chunks; several at a time.
        """


@dataclass(slots=True)
class Served:
    """What a server has done so far."""

    requests: int = 0
    sent_bytes: int = 0


@dataclass(slots=True)
class HttpServer:
    """Answers with `handler` on one address; see `start`."""

    handler: Handler
    served: Served = field(default_factory=Served)
    _server: asyncio.Server | None = None
    _connections: set[asyncio.Task[None]] = field(default_factory=set)
    _addresses: Counter[str] = field(default_factory=Counter)

    async def start(self, address: str, port: int, context: ssl.SSLContext | None = None) -> int:
        """Listen and return the port (another than asked for if that was 0). Raises OSError."""
        self._server = await asyncio.start_server(
            self._connected,
            address,
            port,
            limit=MAX_HEAD_BYTES,
            ssl=context,
            ssl_handshake_timeout=HEAD_SECONDS if context else None,
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Listen no more and cut what is open."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        address = str(writer.get_extra_info("peername")[0])
        crowded = (
            len(self._connections) >= MAX_CONNECTIONS
            or self._addresses[address] >= MAX_CONNECTIONS_OF_ONE
        )
        if crowded:
            writer.transport.abort()
            return
        self._connections.add(task)
        self._addresses[address] += 1
        try:
            await self._converse(reader, writer)
            writer.close()
        except Error as error:
            note(str(error))
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # the client is slow or gone
        finally:
            self._connections.discard(task)
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]
            if not writer.is_closing():
                writer.transport.abort()  # what is not sent yet is not waited for

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request after the other until the client goes or is refused something."""
        while True:
            try:
                request = await _read_head(reader)
                if request is None:
                    return
                body = await self._read_body(reader, request)
                answer = await asyncio.to_thread(self.handler.answer, request, body)
            except Refusal as refusal:
                await _refuse(reader, writer, refusal)
                return
            except Error as error:
                note(str(error))
                await _refuse(reader, writer, Refusal(HTTPStatus.SERVICE_UNAVAILABLE))
                return
            self.served.requests += 1
            await self._send(writer, answer)

    async def _read_body(self, reader: asyncio.StreamReader, request: Request) -> bytes:
        most_bytes = self.handler.most_body_bytes(request)
        value = request.headers.get("content-length", "0")
        if not _LENGTH.fullmatch(value):
            raise Refusal(HTTPStatus.BAD_REQUEST)
        if int(value) > most_bytes:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        async with asyncio.timeout(BODY_SECONDS):
            return await reader.readexactly(int(value))

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        _write_head(
            writer, HTTPStatus.OK, {"Content-Type": "application/octet-stream"}, answer.length
        )
        left = answer.length
        while chunk := await asyncio.to_thread(next, answer.chunks, b""):
            left -= len(chunk)
            writer.write(chunk)
            async with asyncio.timeout(CHUNK_SECONDS):
                await writer.drain()
            self.served.sent_bytes += len(chunk)
        if left:  # a file is gone meanwhile; the client notices that bytes are missing
            raise ConnectionAbortedError


def serve(
    handler: Handler,
    address: str,
    port: int,
    context: ssl.SSLContext | None,
    started: Callable[[int], None],
) -> Served:
    """Answer until SIGINT or SIGTERM comes; return what was done.

    context: for TLS. started: called with the port once connections are taken. Raises Error when
    nobody can listen there.
    """

    async def run() -> Served:
        server = HttpServer(handler)
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        try:
            started(await server.start(address, port, context))
        except OSError as error:
            reason = error.strerror or str(error)
            raise Error(f"cannot listen at {address}, port {port}: {reason}") from error
        try:
            await ended.wait()
        finally:
            await server.stop()
        return server.served

    return asyncio.run(run())


async def _read_head(reader: asyncio.StreamReader) -> Request | None:
    """Return the next request, None at the end of the connection. Raises Refusal."""
    try:
        async with asyncio.timeout(HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from error
    except asyncio.IncompleteReadError:
        return None
    return parse_head(head)


def parse_head(head: bytes) -> Request:
    """Return the request whose head, with the empty line at its end, this is. Raises Refusal."""
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(first)
    if found is None:
        raise Refusal(HTTPStatus.BAD_REQUEST)
    headers: dict[str, str] = {}
    for line in lines:
        one = _FIELD.fullmatch(line)
        if one is None or (name := one[1].decode("ascii").lower()) in headers:
            raise Refusal(HTTPStatus.BAD_REQUEST)
        headers[name] = one[2].decode("ascii").strip(" \t")
    if "host" not in headers or "transfer-encoding" in headers:
        raise Refusal(HTTPStatus.BAD_REQUEST)
    return Request(found[1].decode("ascii"), found[2].decode("ascii"), headers)


async def _refuse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refusal: Refusal
) -> None:
    """Say why, and read on for a moment: a client that still sends would not get to see it."""
    _write_head(writer, refusal.status, {**refusal.headers, "Connection": "close"}, 0)
    async with asyncio.timeout(CHUNK_SECONDS):
        await writer.drain()
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            for _ in range(LINGER_BYTES // CHUNK_BYTES):
                if not await reader.read(CHUNK_BYTES):
                    return


def _write_head(
    writer: asyncio.StreamWriter, status: HTTPStatus, headers: Mapping[str, str], length: int
) -> None:
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {length}", "", ""]
    writer.write("\r\n".join(lines).encode("ascii"))


def tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return what a server needs for TLS, from PEM files.

    key: None if the certificate's file holds it, too. Raises UsageError.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"{certificate}: no certificate with its key: {error}") from error
    return context
