"""QEMU's monitor: questions, and the few events that decide about a VM.

The protocol is QEMU's own library, `qemu.qmp`: LGPL-2.0-or-later but for its module `legacy`,
which is GPL-2 and must not be used here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from qemu.qmp import Message, QMPClient, QMPError, Runstate

from packer.run.qemu.programs import QemuError

ANSWER_SECONDS = 20.0
"""A monitor answers at once, unless its host is very busy."""

_TRY_SECONDS = 0.05


class MonitorError(QemuError):
    """The monitor does not answer, or says no."""


class IoError(msgspec.Struct, frozen=True):
    """Data of BLOCK_IO_ERROR. nospace: the host has no room for what the guest writes."""

    nospace: bool = False


class Shutdown(msgspec.Struct, frozen=True):
    """Data of SHUTDOWN. guest: whether the guest wanted it; reason: ShutdownCause of QEMU."""

    guest: bool = False
    reason: str = ""


class Status(msgspec.Struct, frozen=True):
    """Answer of query-status: "running", "paused", "io-error", …"""

    status: str


Event = IoError | Shutdown | str
"""One with data that matter here, or the name of another: "STOP", "RESUME"."""

_WITH_DATA: dict[str, type[IoError] | type[Shutdown]] = {
    "BLOCK_IO_ERROR": IoError,
    "SHUTDOWN": Shutdown,
}
_HEARD = {*_WITH_DATA, "STOP", "RESUME"}


class Monitor:
    """A connection to the monitor of one QEMU. hear: called with each event that is heard."""

    def __init__(self, hear: Callable[[Event], None]) -> None:
        self._hear = hear
        self._client = QMPClient("vm")
        # A listener keeps all that passes its filter, for ever: what is handed on does not.
        self._client.events.names = _HEARD
        self._client.events.event_filter = self._pass_on

    async def connect(self, path: Path, seconds: float = ANSWER_SECONDS) -> None:
        """Connect to a socket that may not be there yet. Raises MonitorError after a while."""
        try:
            async with asyncio.timeout(seconds):
                await self._connect(path)
        except (QMPError, TimeoutError) as error:
            raise MonitorError(f"QEMU's monitor does not answer at {path}: {error}") from error

    async def _connect(self, path: Path) -> None:
        while True:
            try:
                return await self._client.connect(str(path))
            except QMPError as error:
                cause = error.__cause__
                if not isinstance(cause, FileNotFoundError | ConnectionRefusedError):
                    raise
            await asyncio.sleep(_TRY_SECONDS)

    async def ask(self, verb: str, **arguments: object) -> object:
        """Return the answer to a command. Raises MonitorError."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._client.execute(verb, arguments or None)
        except (QMPError, TimeoutError, OSError, EOFError) as error:
            raise MonitorError(f"QEMU: {verb}: {error}") from error

    async def status(self) -> str:
        """Return whether the guest runs: query-status."""
        answer = await self.ask("query-status")
        try:
            return msgspec.convert(answer, Status).status
        except msgspec.ValidationError as error:
            raise MonitorError(f"QEMU: query-status: {error}") from error

    async def ended(self) -> None:
        """Return when the connection is over."""
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """Disconnect, if it is connected."""
        with suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()

    def _pass_on(self, message: Message) -> bool:
        name = str(message["event"])
        kind = _WITH_DATA.get(name)
        if kind is None:
            self._hear(name)
            return False
        with suppress(msgspec.ValidationError):
            self._hear(msgspec.convert(message.get("data", {}), kind))
        return False
