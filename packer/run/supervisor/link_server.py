"""The supervisor's side of the link: who is connected, and what is told to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from packer.errors import Error
from packer.run.supervisor.link import (
    MAX_LINE_BYTES,
    Console,
    Request,
    Told,
    decode_request,
    encode,
)

MAX_CLIENTS = 64
MAX_WAITING_BYTES = 4 << 20
"""What may wait for a client that does not read: it loses some of the console then, not the guest
its time."""

LAST_WORDS_SECONDS = 5.0

Handler = Callable[["Client", Request], Awaitable[None]]


class Client:
    """Somebody who is connected. attached: whether it hears the console."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.attached = False

    def tell(self, message: Told) -> None:
        """Send a message, or leave out console output that piles up."""
        waiting = self._writer.transport.get_write_buffer_size()
        if isinstance(message, Console) and waiting > MAX_WAITING_BYTES:
            return
        if waiting > 2 * MAX_WAITING_BYTES:
            self._writer.transport.abort()
            return
        self._writer.write(encode(message))

    def abort(self) -> None:
        """Be rid of it."""
        self._writer.transport.abort()

    async def finish(self) -> None:
        """Send what waits, for a while at most, and close."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await self._writer.drain()
                self._writer.close()
                await self._writer.wait_closed()
        self._writer.transport.abort()


class LinkServer:
    """Listens for those who attend to a VM. handle: is called with each request."""

    def __init__(self, path: Path, handle: Handler) -> None:
        self._path = path
        self._handle = handle
        self._server: asyncio.Server | None = None
        self._clients: dict[Client, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Listen. The caller holds the VM's lock: what lies there is left behind. Raises Error."""
        try:
            self._path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(
                self._connected, self._path, limit=MAX_LINE_BYTES
            )
            self._path.chmod(0o600)
        except OSError as error:
            raise Error(f"cannot listen at {self._path}: {error.strerror or error}") from error

    def stop_listening(self) -> None:
        """Take nobody any more. The caller still holds the VM's lock: the path is ours."""
        self._path.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()

    async def finish(self) -> None:
        """Send what waits, and close."""
        clients = dict(self._clients)
        await asyncio.gather(*(client.finish() for client in clients))
        for task in clients.values():
            task.cancel()
        await asyncio.gather(*clients.values(), return_exceptions=True)

    def tell(self, message: Told) -> None:
        """Tell everybody, of the console those who attached."""
        for client in list(self._clients):
            if client.attached or not isinstance(message, Console):
                client.tell(message)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        client = Client(writer)
        if len(self._clients) >= MAX_CLIENTS:
            client.abort()
            return
        self._clients[client] = task
        try:
            while True:
                await self._handle(client, decode_request(await reader.readuntil(b"\n")))
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it is gone, or it talks nonsense
        finally:
            self._clients.pop(client, None)
            client.abort()
