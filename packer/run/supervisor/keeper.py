"""Keeps the server of a VM's disk alive, for as long as the VM runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from packer.errors import Error
from packer.run.server.control import Control, ServerGoneError
from packer.run.server.control_protocol import ServerStatus
from packer.run.server.ensure import ensure_server
from packer.run.server.spec import ServerAddress, ServerSpec

LEAST_SECONDS_BETWEEN_STARTS = 1.0
MOST_SECONDS_BETWEEN_STARTS = 15.0


class ServerKeeper:
    """Starts a server if none lives, and another one whenever that ends.

    say: is told what a person should know. While `run` is connected, the server stays although no
    QEMU may be connected.
    """

    def __init__(self, spec: ServerSpec, say: Callable[[str], None]) -> None:
        self._spec = spec
        self._say = say
        self._address: ServerAddress | None = None
        self.wanted = True

    def dismiss(self) -> None:
        """Note that the VM needs no server any more."""
        self.wanted = False

    async def start(self) -> ServerAddress:
        """Return the address of the server; the same one each time. Raises Error."""
        self._address = await asyncio.to_thread(ensure_server, self._spec)
        return self._address

    async def run(self) -> None:
        """Keep the server until cancelled."""
        pause = 0.0
        while True:
            try:
                began = time.monotonic()
                address = await self.start()
                await self._while_connected(address)
                self._say("the server of the disk has ended and is started again")
                lived = time.monotonic() - began
                pause = 0.0 if lived > LEAST_SECONDS_BETWEEN_STARTS else pause or 1.0
            except (Error, OSError) as error:  # OSError: this host can start no process just now
                self._say(f"there is no server of the disk: {error}")
                pause = min(2 * pause or 1.0, MOST_SECONDS_BETWEEN_STARTS)
            await asyncio.sleep(pause)

    async def status(self) -> ServerStatus | None:
        """Return what the server says of itself, None when none answers."""
        with suppress(Error):
            return await asyncio.to_thread(self._status)
        return None

    def _status(self) -> ServerStatus:
        if self._address is None:
            raise ServerGoneError("no server was started")
        with Control(self._address.control) as control:
            return control.status()

    async def _while_connected(self, address: ServerAddress) -> None:
        """Be connected to a server for as long as it lives."""
        try:
            reader, writer = await asyncio.open_unix_connection(address.control)
        except OSError:
            return
        try:
            while await reader.read(1 << 16):
                pass
        except OSError:
            pass
        finally:
            writer.close()
