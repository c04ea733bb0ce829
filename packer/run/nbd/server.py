"""Disks served to NBD clients: who may connect, and where."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from packer.errors import Error, UsageError
from packer.run.disk.export import Export
from packer.run.nbd.budget import Budget
from packer.run.nbd.connection import SEND_BUFFER_BYTES, Connection
from packer.run.nbd.limits import Limits
from packer.run.nbd.unix_socket import UnixListener
from packer.transport.http_server import tls_context

_log = logging.getLogger(__name__)

BACKLOG = 128
GOODBYE_SECONDS = 2.0
"""At the end: how long replies that are due may take."""

_ACCEPT_AGAIN_SECONDS = 0.5
"""After the host had no descriptor or memory for one more connection."""

_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 60),
    (socket.TCP_KEEPINTVL, 15),
    (socket.TCP_KEEPCNT, 4),
    (socket.TCP_USER_TIMEOUT, 120_000),  # milliseconds
)
"""How long a client's host may be silent until its connections are closed."""


class NbdServer:
    """Serves `exports` (name -> disk; the name "" is the default) to read, until `close`.

    Belongs to the event loop that starts it.
    """

    def __init__(self, exports: Mapping[str, Export], limits: Limits | None = None) -> None:
        self._exports = exports
        self._limits = limits or Limits()
        self._budget = Budget(self._limits.total_bytes)
        self._connections: dict[Connection, None] = {}
        self._unix: list[UnixListener] = []
        self._listeners: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def start_unix(self, path: Path) -> None:
        """Listen on a Unix socket for this user only. Raises Error, InUseError."""
        unix = UnixListener.open(path, BACKLOG)
        self._unix.append(unix)
        self._listen(unix.listener, None)

    async def start_tcp(
        self, host: str, port: int, tls: ssl.SSLContext | None = None, *, allow_plain: bool = False
    ) -> int:
        """Listen on all addresses of a host and return the port (another than 0).

        tls: then no client gets anything without it; see `server_tls`. Without it only loopback
        addresses are served, unless `allow_plain`. Raises UsageError, Error.
        """
        listeners: list[socket.socket] = []
        try:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            if tls is None and not allow_plain:
                _check_loopback(str(address[0]) for *_, address in found)
            for family, *_, address in found:
                listeners.append(_listener(family, (address[0], port, *address[2:])))
                port = listeners[0].getsockname()[1]
        except OSError as error:
            for listener in listeners:
                listener.close()
            reason = error.strerror or str(error)
            raise Error(f"cannot listen at {host}, port {port}: {reason}") from error
        for listener in listeners:
            self._listen(listener, tls)
        return port

    async def close(self) -> None:
        """Listen no more, remove the sockets, send the replies that are due, and hang up.

        Who still waits for bytes gets no error but a lost connection: QEMU asks again then.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for unix in self._unix:
            unix.remove()
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                while self._connections:
                    await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.abort()

    def _listen(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        self._listeners.append(listener)
        task = asyncio.get_running_loop().create_task(self._accept(listener, tls))
        self._tasks.append(task)

    async def _accept(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(_ACCEPT_AGAIN_SECONDS)
                continue
            if not self._make_room():
                connection.close()
                continue
            try:
                await self._welcome(connection, tls)
            except OSError:
                pass  # gone already
            except Exception:  # noqa: BLE001 - the next ones are taken all the same
                _log.exception("unexpected")

    async def _welcome(self, connection: socket.socket, tls: ssl.SSLContext | None) -> None:
        def protocol() -> Connection:
            peers, budget = self._connections, self._budget
            return Connection(self._exports, self._limits, connection, tls, peers, budget)

        try:
            _prepare(connection)
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)
        except BaseException:
            connection.close()
            raise

    def _make_room(self) -> bool:
        """Return whether one more may come; who has not chosen an export makes way."""
        if len(self._connections) < self._limits.connections:
            return True
        for connection in self._connections:
            if connection.is_in_handshake:
                connection.abort()
                return True
        return False


def server_tls(
    certificate: Path, key: Path | None, client_ca: Path | None = None
) -> ssl.SSLContext:
    """Return what `start_tcp` needs, from PEM files.

    key: None if the certificate's file holds it, too. client_ca: only clients with a certificate
    of this authority are served. Raises UsageError.
    """
    context = tls_context(certificate, key)
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"{client_ca}: no certificate of an authority: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_loopback(addresses: Iterable[str]) -> None:
    for address in addresses:
        if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            raise UsageError(
                f"{address}: without TLS anybody on the way can read and change what is served",
                hint="give a certificate and its key",
            )


def _listener(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _prepare(connection: socket.socket) -> None:
    if connection.family == socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
