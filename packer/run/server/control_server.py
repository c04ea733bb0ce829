"""The server's side of the control channel: one line asked, one line answered.

Whoever may enter the runtime folder is this user. Still nothing that arrives here decides about
memory or time: lines and connections are bounded, and so is how long a client may take its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from packer.errors import Error
from packer.run.nbd.unix_socket import UnixListener
from packer.run.server.control_protocol import (
    MAX_REQUEST_BYTES,
    Failure,
    Request,
    decode_request,
    encode_failure,
    encode_result,
    failure_of,
)

MAX_CONNECTIONS = 256
"""One for each VM, and a few that only ask."""

BACKLOG = 64
TAKE_SECONDS = 30.0
"""Within which a client has taken an answer."""

Handler = Callable[[Request], Awaitable[object]]


class ControlServer:
    """Answers with the handler of each verb; what a handler returns is sent as JSON.

    An Error that it raises is sent, too. accepted: how many connections there were so far.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._listener: UnixListener | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.accepted = 0

    @property
    def connections(self) -> int:
        """Return how many clients are connected now."""
        return len(self._tasks)

    async def start(self, path: Path) -> None:
        """Listen on a Unix socket for this user only. Raises Error, InUseError."""
        self._listener = UnixListener.open(path, BACKLOG)
        self._server = await asyncio.start_unix_server(
            self._connected, sock=self._listener.listener, limit=MAX_REQUEST_BYTES
        )

    async def stop(self) -> None:
        """Listen no more, remove the socket, and close what is open."""
        if self._server is not None:
            self._server.close()
        if self._listener is not None:
            self._listener.remove()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._tasks.add(task)
        self.accepted += 1
        try:
            await self._converse(reader, writer)
            writer.close()
        except (OSError, TimeoutError):
            pass  # the client is gone, or takes nothing
        finally:
            self._tasks.discard(task)
            if not writer.is_closing():
                writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                failure = Failure(f"expected a line of at most {MAX_REQUEST_BYTES} bytes")
                writer.write(encode_failure(failure))
                return
            writer.write(await self._answer(line))
            async with asyncio.timeout(TAKE_SECONDS):
                await writer.drain()

    async def _answer(self, line: bytes) -> bytes:
        try:
            request = decode_request(line)
            return encode_result(await self._handlers[request.do](request))
        except Error as error:
            return encode_failure(failure_of(error))
        except ValueError as error:  # of msgspec: not a request
            return encode_failure(Failure(f"expected a request: {error}", exit_code=2))
