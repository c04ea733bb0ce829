"""A guest that QEMU has stopped because its disk did not answer goes on when it can."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from packer.run.qemu.qmp import IoError, MonitorError
from packer.run.server.control_protocol import ServerStatus
from packer.run.supervisor.emulator import Emulator
from packer.run.supervisor.keeper import ServerKeeper
from packer.text import format_bytes, printable

STOPPED = "io-error"
"""QEMU's word for a guest that waits for its disk (RunState of qapi/run-state.json)."""

LOOK_SECONDS = 1.0
ROOM_BYTES = 1 << 20
"""How much more room a host must have before a guest goes on that had too little to write."""

TRIES = 3
"""After so many in vain, although nothing is known to be missing, a person is told."""

SHOWN = 3


class Pauses:
    """Waits until what a guest could not read can be had, or there is room for what it writes.

    say: is told why it waits, each reason once. waits: is told with the reason, "" when it is over.
    """

    def __init__(
        self,
        keeper: ServerKeeper,
        overlay: Path,
        say: Callable[[str], None],
        waits: Callable[[str], None],
    ) -> None:
        self._keeper = keeper
        self._overlay = overlay
        self._say = say
        self._waits = waits
        self._last: IoError | None = None
        self._free_bytes = 0
        self._why = ""

    def heard(self, event: IoError) -> None:
        """Note what failed."""
        if event.nospace and not self._why:
            self._free_bytes = self._room()
        self._last = event

    async def wait_out(self, emulator: Emulator) -> None:
        """Return when the guest goes on; until cancelled, if QEMU has ended meanwhile."""
        tries = 0
        while await _is_stopped(emulator):
            reason = await self._reason()
            if reason is None:
                tries += 1
                with suppress(MonitorError):
                    await emulator.go_on()
                reason = "its disk answers with errors" if tries > TRIES else self._why
            if reason != self._why:
                self._why = reason
                self._waits(reason)
                self._say(f"the guest is paused: {reason}; it goes on by itself when it can")
            await asyncio.sleep(LOOK_SECONDS)
        if self._why:
            self._why = ""
            self._say("the guest goes on")
            self._waits("")

    async def _reason(self) -> str | None:
        """Return why the guest cannot go on; None when it is worth trying."""
        if self._last is not None and self._last.nospace:
            if self._room() < self._free_bytes + ROOM_BYTES:
                return f"there is no room for what it writes to {self._overlay}"
            self._last = None
        if not self._keeper.wanted:
            return None
        status = await self._keeper.status()
        if status is None:
            return "its disk has no server"
        return in_words(status) if status.missing else None

    def _room(self) -> int:
        """Return how many bytes are free where the guest writes to."""
        with suppress(OSError):
            found = os.statvfs(self._overlay)
            return found.f_bavail * found.f_frsize
        return 0


async def _is_stopped(emulator: Emulator) -> bool:
    """Return whether a guest waits for its disk, also if the host is too busy to say so at once."""
    while True:
        with suppress(MonitorError):
            return await emulator.status() == STOPPED
        await asyncio.sleep(LOOK_SECONDS)


def in_words(status: ServerStatus) -> str:
    """Return what is missing and where it was looked for."""
    lines = [
        f"{one.content} ({format_bytes(one.size_bytes)}"
        + (f", {printable(one.path)})" if one.path else ")")
        for one in status.missing[:SHOWN]
    ]
    more = status.missing_contents - len(lines)
    words = ", ".join(lines) + (f" and {more:,} more" if more > 0 else "")
    looked = ", ".join(one.source for one in status.sources)
    why = list(dict.fromkeys(text for one in status.sources for text in one.complaints))[:SHOWN]
    return f"nobody has {words}; looked for in {looked}{''.join(f'; {text}' for text in why)}"
