"""A running QEMU: its process, its monitor, its serial console; started here or adopted."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from packer.run.qemu import processes
from packer.run.qemu.processes import Process
from packer.run.qemu.programs import QemuError
from packer.run.qemu.qmp import Event, Monitor, MonitorError, Shutdown
from packer.run.supervisor.link import Start
from packer.run.supervisor.scrollback import last_words
from packer.run.vm import command_line
from packer.run.vm.record import Running
from packer.run.vm.vm import Vm

START_SECONDS = 60.0
"""Within which QEMU opens its monitor: its disk may lie at the other end of a busy host."""

END_SECONDS = 2.0
QUIT_SECONDS = 10.0
MAX_TYPED_BYTES = 1 << 16
STATISTICS_SECONDS = 5
MOST_MEMORY_BYTES = 1 << 60
"""More is QEMU's way to say that the guest does not tell (2^64 - 1)."""

_CHUNK_BYTES = 1 << 16
_BALLOON = "/machine/peripheral/balloon"


class _Balloon(msgspec.Struct, frozen=True):
    available: int = msgspec.field(name="stat-available-memory", default=-1)


class _Statistics(msgspec.Struct, frozen=True):
    stats: _Balloon


class Emulator:
    """A QEMU that runs. hear: is called with its events, show: with what its console says."""

    def __init__(
        self,
        running: Running,
        pidfd: int,
        hear: Callable[[Event], None],
        show: Callable[[bytes], None],
    ) -> None:
        self.running = running
        self.shutdown: Shutdown | None = None
        self._pidfd = pidfd
        self._hear = hear
        self._show = show
        self._child: subprocess.Popen[bytes] | None = None
        self._monitor = Monitor(self._heard)
        self._typed: asyncio.StreamWriter | None = None
        self._relay: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._has_ended)

    @classmethod
    async def launch(
        cls,
        vm: Vm,
        wiring: command_line.Wiring,
        start: Start,
        hear: Callable[[Event], None],
        show: Callable[[bytes], None],
    ) -> Emulator:
        """Start QEMU. Raises QemuError with what it says when it ends again, InputError for an
        overlay that it must not open.
        """
        log = vm.folder / "qemu.log"
        log_start = log.stat().st_size if log.exists() else 0
        for socket in (wiring.monitor, wiring.serial):
            socket.unlink(missing_ok=True)
        command_line.check_overlay(vm)
        line = command_line.command(vm, wiring, start.arguments)
        console_start = vm.console.stat().st_size if vm.console.exists() else 0
        running = Running(
            process=Process(0, 0, ""),
            runtime=str(wiring.runtime),
            accelerator=wiring.accelerator,
            console_start=console_start,
            started=time.time(),
        )

        def note(pid: int) -> None:
            nonlocal running
            # Nobody has waited for it yet, so the id is its own, even if it has ended.
            process = processes.identify(pid) or Process(pid, 0, "")
            running = msgspec.structs.replace(running, process=process)
            vm.note_running(running)

        child = command_line.launch(line, log, Path(start.folder), note)
        emulator = cls(running, os.pidfd_open(child.pid), hear, show)
        emulator._child = child
        try:
            await emulator._connect(wiring, START_SECONDS)
        except QemuError as error:
            words = last_words(log, log_start)
            await emulator.end()
            raise QemuError(f"QEMU does not start: {words or error}") from error
        return emulator

    @classmethod
    async def adopt(
        cls, running: Running, hear: Callable[[Event], None], show: Callable[[bytes], None]
    ) -> Emulator | None:
        """Take over a QEMU whose supervisor is dead; None when it has ended, too.

        Raises QemuError when its monitor does not answer.
        """
        pidfd = processes.open_process(running.process)
        if pidfd is None:
            return None
        emulator = cls(running, pidfd, hear, show)
        wiring = command_line.Wiring(Path(), Path(running.runtime), running.accelerator)
        try:
            await emulator._connect(wiring, START_SECONDS)
        except QemuError:
            if emulator._ended.is_set():
                return None
            raise
        return emulator

    async def _connect(self, wiring: command_line.Wiring, seconds: float) -> None:
        connected = asyncio.create_task(self._monitor.connect(wiring.monitor, seconds))
        ended = asyncio.create_task(self._ended.wait())
        await asyncio.wait({connected, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not connected.done():
            connected.cancel()
            with suppress(asyncio.CancelledError, MonitorError):
                await connected
            raise QemuError("it has ended")
        await connected
        try:
            reader, self._typed = await asyncio.open_unix_connection(wiring.serial)
        except OSError as error:
            raise QemuError(f"its serial console does not answer: {error}") from error
        self._relay = asyncio.create_task(self._relay_console(reader))
        with suppress(MonitorError):  # not every guest has a balloon
            await self._monitor.ask(
                "qom-set",
                path=_BALLOON,
                property="guest-stats-polling-interval",
                value=STATISTICS_SECONDS,
            )

    # -- what it is told ---------------------------------------------------------------------------

    def type(self, data: bytes) -> None:
        """Type on the serial console; what the guest does not take is lost."""
        writer = self._typed
        if writer is not None and writer.transport.get_write_buffer_size() < MAX_TYPED_BYTES:
            writer.write(data)

    async def status(self) -> str:
        """Return whether the guest runs, in QEMU's words. Raises MonitorError."""
        return await self._monitor.status()

    async def ask(self, verb: str, **arguments: object) -> object:
        """Return the answer to a command of its monitor. Raises MonitorError."""
        return await self._monitor.ask(verb, **arguments)

    async def go_on(self) -> None:
        """Let a guest that was stopped go on; what has failed is tried again."""
        await self._monitor.ask("cont")

    async def press_power_button(self) -> None:
        """Tell the guest by ACPI that it should shut down. Raises MonitorError."""
        await self._monitor.ask("system_powerdown")

    async def pull_plug(self) -> None:
        """End it: QEMU writes what it has for the disk, the guest knows nothing of it."""
        with suppress(MonitorError):
            await self._monitor.ask("quit")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), QUIT_SECONDS)
        processes.kill(self._pidfd)
        await self._ended.wait()

    async def spare_bytes(self) -> int:
        """Return how much of its memory the guest does not need; -1 when nobody knows."""
        with suppress(MonitorError, msgspec.ValidationError):
            answer = await self._monitor.ask("qom-get", path=_BALLOON, property="guest-stats")
            found = msgspec.convert(answer, _Statistics).stats.available
            return found if found <= MOST_MEMORY_BYTES else -1
        return -1

    # -- its end -----------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Return when it has ended, and all that it said was heard."""
        await self._ended.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._monitor.ended()
                if self._relay is not None:
                    await self._relay
        await self.close()

    async def end(self) -> None:
        """Kill it and wait for its end."""
        processes.kill(self._pidfd)
        await self.wait()

    async def close(self) -> None:
        """Let go of it; it goes on if it lives."""
        if self._relay is not None:
            self._relay.cancel()
            await asyncio.gather(self._relay, return_exceptions=True)
        if self._typed is not None:
            self._typed.close()
        await self._monitor.close()
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    @property
    def exit_status(self) -> int | None:
        """Return its exit status (negative: the signal that killed it), None if nobody knows."""
        return None if self._child is None else self._child.returncode

    def _has_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if self._child is not None:
            self._child.wait()
        self._ended.set()

    def _heard(self, event: Event) -> None:
        if isinstance(event, Shutdown):
            self.shutdown = event
        self._hear(event)

    async def _relay_console(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                self._show(data)
