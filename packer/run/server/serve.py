"""Serve the disk of a pack: NBD for whoever reads it, a control channel for whoever minds it.

What is served was decided before: nobody is asked about trust here, and no content is handed out
that was not verified against the map (packer.run.disk.resolve).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from packer.artifact.opened import OpenedPack
from packer.errors import Error
from packer.run.disk.device import LazyDisk
from packer.run.disk.resolve import HOLD_SECONDS, Resolver
from packer.run.nbd.server import NbdServer
from packer.run.server.control_protocol import (
    PROTOCOL,
    Hello,
    MissingStatus,
    Request,
    ServerStatus,
    SourceStatus,
)
from packer.run.server.control_server import ControlServer
from packer.sources.base import Source
from packer.sources.store import Store

FOREIGN_HOLD_SECONDS = 25.0
"""How long a read waits where nobody stops the guest meanwhile, as is done for VMs of ours: drivers
of guests give a disk up after 30.
"""

_TICK_SECONDS = 0.5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A pack, who is asked for its contents, and where they are kept. key: of the spec, or ""."""

    pack: OpenedPack
    sources: Sequence[Source]
    store: Store
    key: str = ""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server listens. control, nbd: paths of Unix sockets. tcp: (address, port).

    tls: what TCP clients need; they have none without. plain: others than this host may come
    without. export: the name that NBD clients ask for.
    """

    control: Path
    nbd: Path | None = None
    tcp: tuple[str, int] | None = None
    tls: ssl.SSLContext | None = None
    plain: bool = False
    export: str = ""


class Beside(Protocol):
    """Something else that is served as long as the disk is."""

    async def start(self, nbd_port: int) -> None:
        """Listen. nbd_port: where the disk is served over TCP. Raises Error when it cannot."""

    async def stop(self) -> None:
        """Listen no more, if it does, and cut what is open."""


def serve(
    served: Served,
    listening: Listening,
    *,
    complete: bool = False,
    idle_exit_seconds: float | None = None,
    hold_seconds: float = HOLD_SECONDS,
    beside: Beside | None = None,
    started: Callable[[int], None],
    asked: Callable[[ServerStatus], None] | None = None,
) -> ServerStatus:
    """Serve until SIGINT or SIGTERM comes, somebody stops it, or nobody is there any more.

    complete: fetch in the background what nobody reads. idle_exit_seconds: None to wait forever.
    hold_seconds: how long a read waits for what nobody has before it fails.
    beside: served from after the disk until before its end. started: called with the TCP port (0
    without) once clients are taken. asked: called at SIGUSR1.
    Returns what was done. Raises Error when nobody can listen there.
    """
    _ = served.pack.map  # what is wrong with it is said before anybody connects

    async def run() -> ServerStatus:
        server = _DiskServer(served, listening, hold_seconds)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, server.end)
        if asked is not None:
            loop.add_signal_handler(signal.SIGUSR1, lambda: asked(server.status()))
        try:
            port = await server.start()
            if beside is not None:
                await beside.start(port)
            started(port)
            if complete:
                server.complete(on=True)
            await server.wait(idle_exit_seconds)
            return server.status()
        finally:
            if beside is not None:
                await beside.stop()
            await server.stop()

    with served.store.leases.using(served.pack.map.contents.digest):
        return asyncio.run(run())


class _DiskServer:
    """One disk that is served, between `start` and `stop`."""

    def __init__(self, served: Served, listening: Listening, hold_seconds: float) -> None:
        self._served = served
        self._listening = listening
        self._resolver = Resolver(
            served.pack, served.sources, served.store, hold_seconds=hold_seconds
        )
        self._disk = LazyDisk(served.pack.map, self._resolver)
        self._nbd = NbdServer({listening.export: self._disk})
        self._control = ControlServer(
            {
                "hello": self._hello,
                "status": self._status,
                "touched": self._touched,
                "forget_touched": self._forget_touched,
                "complete": self._complete,
                "retry": self._retry,
                "stop": self._stop,
            }
        )
        self._began = time.monotonic()
        self._ended = asyncio.Event()
        self._completing: asyncio.Task[None] | None = None
        self._complaint = ""

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> int:
        """Listen; return the TCP port, 0 without."""
        where, port = self._listening, 0
        await self._resolver.start()
        if where.nbd is not None:
            await self._nbd.start_unix(where.nbd)
        if where.tcp is not None:
            port = await self._nbd.start_tcp(*where.tcp, where.tls, allow_plain=where.plain)
        await self._control.start(where.control)
        return port

    async def wait(self, idle_seconds: float | None) -> None:
        """Return when the server is to end."""
        idle = None if idle_seconds is None else asyncio.create_task(self._idle(idle_seconds))
        try:
            await self._ended.wait()
        finally:
            if idle is not None:
                idle.cancel()

    def end(self) -> None:
        """Let `wait` return."""
        self._ended.set()

    async def stop(self) -> None:
        """Take nobody any more, cut what is open, end what works in the background."""
        self.complete(on=False)
        await self._nbd.close()
        await self._control.stop()
        await self._resolver.close()

    async def _idle(self, seconds: float) -> None:
        """End when nobody was connected for some time."""
        since, seen = time.monotonic(), -1
        while time.monotonic() - since < seconds:
            await asyncio.sleep(min(_TICK_SECONDS, seconds / 4))
            here = self._nbd.connections + self._control.connections
            if here or self._control.accepted != seen:
                since, seen = time.monotonic(), self._control.accepted
        _log.info("nobody was there for %.0f s", seconds)
        self.end()

    # -- what it tells ---------------------------------------------------------------------------

    def status(self) -> ServerStatus:
        """Return what was done so far."""
        pack, held = self._served.pack, self._resolver.status()
        touched = self._disk.touched()
        return ServerStatus(
            pid=os.getpid(),
            pack=pack.config.ref_name,
            config=pack.config_digest,
            location=pack.layout.location,
            disk_bytes=self._disk.size,
            uptime_seconds=round(time.monotonic() - self._began, 3),
            connections=self._nbd.connections,
            touched_bytes=int((touched[:, 1] - touched[:, 0]).sum()),
            content_bytes=held.content_bytes,
            at_hand_bytes=held.at_hand_bytes,
            completing=held.completing,
            complaint=self._complaint,
            sources=tuple(
                SourceStatus(one.uri, one.proven_bytes, one.fetched_bytes, one.complaints)
                for one in held.sources
            ),
            missing=tuple(
                MissingStatus(one.name, one.size, one.path, one.looked_in) for one in held.missing
            ),
            missing_contents=held.missing_contents,
        )

    def complete(self, *, on: bool) -> None:
        """Bring what nobody has asked for, or no longer."""
        running = self._completing is not None and not self._completing.done()
        if on and not running:
            self._complaint = ""
            self._completing = asyncio.create_task(self._bring_the_rest())
        elif not on and self._completing is not None:
            self._completing.cancel()

    async def _bring_the_rest(self) -> None:
        try:
            await self._resolver.complete()
        except Error as error:
            self._complaint = str(error)
            _log.warning("%s", error)
        except Exception as error:  # noqa: BLE001 - said instead of nothing
            self._complaint = f"a bug: {error!r}"
            _log.exception("unexpected")

    async def _hello(self, _: Request) -> Hello:
        served = self._served
        return Hello(PROTOCOL, os.getpid(), served.pack.config_digest, served.key)

    async def _status(self, _: Request) -> ServerStatus:
        return self.status()

    async def _touched(self, _: Request) -> list[list[int]]:
        ranges: list[list[int]] = self._disk.touched().tolist()
        return ranges

    async def _forget_touched(self, _: Request) -> None:
        self._disk.forget_touched()

    async def _complete(self, request: Request) -> None:
        self.complete(on=request.on)

    async def _retry(self, _: Request) -> None:
        self._resolver.retry()

    async def _stop(self, _: Request) -> None:
        self.end()
