"""One VM's supervisor: starts its server and its QEMU, minds them, and tells those who attend.

What happens when one of them dies:

- the server: it is started again, and QEMU connects to it again; the guest notices a delay;
- QEMU: the VM has ended, and its overlay holds what the guest has written to its disk;
- the supervisor: QEMU goes on; the next one finds it by running.json and adopts it;
- who attends: the VM goes on.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress

from packer.errors import Error
from packer.run.qemu import programs
from packer.run.qemu.accelerator import EMULATION, find_accelerator
from packer.run.qemu.qmp import Event, IoError, MonitorError
from packer.run.server.control_protocol import failure_of
from packer.run.supervisor import link, swap
from packer.run.supervisor.emulator import Emulator
from packer.run.supervisor.keeper import ServerKeeper
from packer.run.supervisor.link import (
    Attach,
    Console,
    Detach,
    Detached,
    Ended,
    Failed,
    Input,
    Now,
    Request,
    Say,
    Start,
    State,
    Stop,
)
from packer.run.supervisor.link_server import Client, LinkServer
from packer.run.supervisor.pauses import Pauses
from packer.run.supervisor.scrollback import (
    MAX_CONSOLE_LOG_BYTES,
    MAX_WORDS_LOG_BYTES,
    SCROLLBACK_BYTES,
    Scrollback,
    last_words,
    shorten,
    tail,
)
from packer.run.vm.command_line import Wiring
from packer.run.vm.folder import remove_folder
from packer.run.vm.lease import release_lease, renew_lease
from packer.run.vm.own_base import name_base, note_base
from packer.run.vm.vm import Vm

START_WITHIN_SECONDS = 20.0
"""Within which somebody says what to start; a supervisor that nobody needs ends."""

HOST_GRACE_SECONDS = 30.0
"""What a guest gets to shut down when its supervisor is told to end, as when a host shuts down."""

POWER_BUTTON_SECONDS = 10.0
"""How often the button is pressed: a guest that boots does not hear the first time."""

SHORTEN_SECONDS = 10.0


class Supervisor:
    """Minds a VM. lock: the descriptor that holds its lock, which is closed at the end."""

    def __init__(self, vm: Vm, lock: int) -> None:
        self._vm = vm
        self._lock = lock
        self._runtime = vm.runtime()
        self._link = LinkServer(self._runtime / link.SOCKET, self._handle)
        self._keeper = ServerKeeper(vm.server_spec(), self._say)
        self._pauses = Pauses(self._keeper, vm.overlay, self._say, self._waits)
        self._scrollback = Scrollback()
        self._emulator: Emulator | None = None
        self._state: State = "starting"
        self._why = ""
        self._wanted: asyncio.Future[Start | None] | None = None
        self._guest_stopped = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._detaching = asyncio.Lock()
        self._stop_early: Stop | None = None

    async def run(self, ready: Callable[[], None]) -> None:
        """Mind the VM until it ends. ready: called once others can connect. Raises Error."""
        self._wanted = asyncio.get_running_loop().create_future()
        await self._link.start()
        ready()
        try:
            emulator = await self._adopt() or await self._launch()
            last = Ended("stopped") if self._stop_early is not None else None
            if emulator is not None:
                last = await self._mind(emulator)
        except Error as error:
            await self._leave(Failed(failure_of(error)))
            raise
        await self._leave(last)

    async def _leave(self, last: Ended | Failed | None) -> None:
        """Tell how it went, when all is done: who hears it may start or remove the VM at once."""
        self._link.stop_listening()  # before the folder goes: another VM may have its name then
        if self._vm.running() is None:
            try:
                self._vm.note_running(None)
                if self._vm.record.ephemeral:
                    remove_folder(self._vm.folder)
                elif self._vm.base is not None:
                    await self._finish_detaching()
            except Error as error:  # its medium is gone, say: that does not change how it ended
                self._say(str(error))
        os.close(self._lock)
        if last is not None:
            self._link.tell(last)
        await self._link.finish()

    # -- its beginning -----------------------------------------------------------------------------

    async def _adopt(self) -> Emulator | None:
        running = self._vm.running()
        if running is None:
            return None
        start = running.console_start
        self._scrollback.add(tail(self._vm.console, SCROLLBACK_BYTES, start))
        return await Emulator.adopt(running, self._heard, self._show)

    async def _launch(self) -> Emulator | None:
        """Start the VM when somebody says so; None when nobody does."""
        assert self._wanted is not None
        try:
            start = await asyncio.wait_for(asyncio.shield(self._wanted), START_WITHIN_SECONDS)
        except TimeoutError:
            start = None
        if start is None:
            return None
        nbd = None
        if self._vm.base is None:
            nbd = (await self._keeper.start()).nbd
            await self._renew_lease()
        else:
            await self._finish_detaching()
        accelerator: str = self._vm.record.accelerator
        if not accelerator:
            program = programs.find(programs.EMULATOR)
            accelerator = await asyncio.to_thread(find_accelerator, program)
            if accelerator == EMULATION:
                self._say("no accelerator works here: the guest is emulated, which is slow")
        if self._stop_early is not None:
            return None
        wiring = Wiring(nbd, self._runtime, accelerator, start.window)
        return await Emulator.launch(self._vm, wiring, start, self._heard, self._show)

    async def _renew_lease(self) -> None:
        try:
            await asyncio.to_thread(renew_lease, self._vm)
        except Error as error:
            self._say(f"what it needs may be collected from its store: {error}")

    # -- its life ----------------------------------------------------------------------------------

    async def _mind(self, emulator: Emulator) -> Ended:
        """Return how the VM has ended."""
        self._emulator = emulator
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, HOST_GRACE_SECONDS)
        minding = [
            asyncio.create_task(self._shorten_logs()),
            asyncio.create_task(self._wait_out_stops(emulator)),
        ]
        await self._see_to_base(emulator)
        if self._stopping is None:
            self._turn("paused" if self._why else "running")
        if self._stop_early is not None:
            self._stop(self._stop_early.grace_seconds)
        self._guest_stopped.set()  # it may have been stopped before it was adopted
        await emulator.wait()
        tasks = [one for one in (*minding, self._keeping, self._stopping) if one is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return self._how_it_ended(emulator)

    # -- what lies below its overlay ---------------------------------------------------------------

    async def _see_to_base(self, emulator: Emulator) -> None:
        """Keep the server of the disk; finish a detaching at which a supervisor was killed."""
        with suppress(MonitorError):  # it has ended
            if self._vm.base is not None and not await swap.is_served(emulator):
                self._keeper.dismiss()
                return
        self._keeping = asyncio.create_task(self._keeper.run())
        if self._vm.base is not None:
            try:
                await self._turn_to_own_base(emulator)
            except Error as error:
                self._say(f"it still reads from the server of its pack: {error}")

    async def _detach(self, request: Detach) -> Detached:
        """Let the VM read its own base, now and in each start that follows."""
        try:
            async with self._detaching:
                emulator = self._emulator
                if emulator is None:
                    raise Error(f"the VM {self._vm.name} is just starting")
                self._vm = await asyncio.to_thread(note_base, self._vm, request.config)
                await self._turn_to_own_base(emulator)
        except Error as error:
            return Detached(failure_of(error))
        return Detached()

    async def _turn_to_own_base(self, emulator: Emulator) -> None:
        assert self._vm.base is not None
        await swap.use_own_base(emulator, self._vm.base)
        self._keeper.dismiss()
        if self._keeping is not None:
            self._keeping.cancel()
        await asyncio.to_thread(release_lease, self._vm)
        self._say("it is detached: it needs neither its pack nor other sources any more")

    async def _finish_detaching(self) -> None:
        """Do what has to wait until QEMU has ended; where it fails, the next one tries again."""
        try:
            await asyncio.to_thread(release_lease, self._vm)
            await asyncio.to_thread(name_base, self._vm)
        except Error as error:
            self._say(str(error))

    async def _shorten_logs(self) -> None:
        while True:
            shorten(self._vm.console, MAX_CONSOLE_LOG_BYTES)
            shorten(self._vm.folder / "qemu.log", MAX_WORDS_LOG_BYTES)
            shorten(self._vm.folder / "supervisor.log", MAX_WORDS_LOG_BYTES)
            await asyncio.sleep(SHORTEN_SECONDS)

    def _heard(self, event: Event) -> None:
        """Take notice of what QEMU tells."""
        if isinstance(event, IoError):
            self._pauses.heard(event)
        if event == "STOP":
            self._guest_stopped.set()

    async def _wait_out_stops(self, emulator: Emulator) -> None:
        """See to each stop of the guest, also to one that comes as it has just gone on."""
        while True:
            await self._guest_stopped.wait()
            self._guest_stopped.clear()
            await self._pauses.wait_out(emulator)

    def _show(self, data: bytes) -> None:
        self._scrollback.add(data)
        self._link.tell(Console(data))

    def _say(self, text: str) -> None:
        self._link.tell(Say(text))

    def _waits(self, why: str) -> None:
        """Note why the guest waits; "" when it does no more."""
        self._why = why
        if self._state in ("running", "paused"):
            self._turn("paused" if why else "running")

    def _turn(self, state: State) -> None:
        self._state = state
        self._link.tell(self._now())

    def _now(self, spare_bytes: int = -1) -> Now:
        running = self._emulator.running if self._emulator is not None else None
        if running is None:
            return Now(self._state, self._why)
        pid, accelerator = running.process.pid, running.accelerator
        return Now(self._state, self._why, pid, accelerator, spare_bytes)

    # -- its end -----------------------------------------------------------------------------------

    def _stop(self, grace_seconds: float) -> None:
        if self._stopping is not None:
            self._stopping.cancel()
        self._stopping = asyncio.create_task(self._shut_down(grace_seconds))

    async def _shut_down(self, grace_seconds: float) -> None:
        emulator = self._emulator
        assert emulator is not None
        paused = self._state == "paused"
        self._turn("stopping")
        if paused and grace_seconds:
            self._say("the guest is paused and cannot shut down: its plug is pulled")
        elif grace_seconds:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    while True:
                        with suppress(MonitorError):  # a busy host: the next one may be heard
                            await emulator.press_power_button()
                        await asyncio.sleep(POWER_BUTTON_SECONDS)
            self._say(f"it has not shut down within {grace_seconds:g} s: its plug is pulled")
        await emulator.pull_plug()

    def _how_it_ended(self, emulator: Emulator) -> Ended:
        shutdown = emulator.shutdown
        if shutdown is not None and shutdown.guest:
            return Ended("guest", shutdown.reason)
        if self._stopping is not None or shutdown is not None:
            return Ended("stopped")
        status = emulator.exit_status
        killed = f", killed by signal {-status}" if status is not None and status < 0 else ""
        words = "" if killed else last_words(self._vm.folder / "qemu.log")
        return Ended("lost", f"QEMU has ended unexpectedly{killed}{': ' if words else ''}{words}")

    # -- those who attend --------------------------------------------------------------------------

    async def _handle(self, client: Client, request: Request) -> None:
        match request:
            case Attach():
                self._attach(client, request)
            case Input():
                if self._emulator is not None:
                    self._emulator.type(request.data)
            case Detach():
                client.tell(await self._detach(request))
            case Stop() if self._emulator is not None:
                self._stop(request.grace_seconds)
            case Stop() if self._is_starting():
                self._stop_early = request  # whoever attends hears of its end
            case Stop():
                self._not_running(client)
            case _:
                spare = await self._emulator.spare_bytes() if self._emulator is not None else -1
                client.tell(self._now(spare))

    def _attach(self, client: Client, request: Attach) -> None:
        assert self._wanted is not None
        starting = self._wanted.done() or self._emulator is not None
        if request.start is None and not starting and self._vm.running() is None:
            return self._not_running(client)
        client.attached = True
        if request.replay and (data := self._scrollback.last()):
            client.tell(Console(data))
        client.tell(self._now())
        if self._why:
            client.tell(Say(f"the guest is paused: {self._why}"))
        if request.start is None:
            return None
        if starting and request.start.arguments:
            client.tell(Say("it runs already: the arguments for QEMU are not used"))
        if not self._wanted.done():
            self._wanted.set_result(request.start)
        return None

    def _is_starting(self) -> bool:
        """Return whether it is to start, or its QEMU is about to be adopted."""
        if self._emulator is not None:
            return False
        wanted = self._wanted
        start = wanted is not None and wanted.done() and wanted.result() is not None
        return start or self._vm.running() is not None

    def _not_running(self, client: Client) -> None:
        """Say that there is nothing to attend to, and end."""
        assert self._wanted is not None
        client.tell(Ended("not running"))
        if not self._wanted.done():
            self._wanted.set_result(None)
