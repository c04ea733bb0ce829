"""A boot that is watched until a guest says something, or reads nothing new: a VM for that alone.

Nothing of it stays: the VM is ephemeral and lies in a folder of its own, its disk has a server of
its own, so that what others read of the same pack is not counted.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from formats.ranges import Ranges, total
from packer.artifact.opened import OpenedPack
from packer.errors import Error, MismatchError
from packer.run.manage.remove import remove_vm
from packer.run.manage.session import RunningVm, start_vm
from packer.run.server.control import Control
from packer.run.server.control_protocol import MissingStatus, ServerStatus
from packer.run.server.ensure import ensure_server
from packer.run.server.spec import server_spec
from packer.run.vm.create import DiskOrigin, Wishes, create_vm
from packer.run.vm.record import VmMissingError
from packer.run.vm.vm import Vm
from packer.sources.store import Store
from packer.sources.store_files import make_folders, store_errors

POLL_SECONDS = 0.5
START_SECONDS = 120.0
"""Until QEMU runs: the accelerator is found by trying, firmware may be copied."""

LAST_WORDS = 400


def ignore_line(line: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a boot is to reach within `timeout_seconds`.

    marker: text on the serial console; "": nothing new is read of the disk for `idle_seconds`.
    """

    marker: str = ""
    idle_seconds: float = 0.0
    timeout_seconds: float = 600.0

    def __str__(self) -> str:
        if self.marker:
            return repr(self.marker)
        return f"the end of reading for {self.idle_seconds:g} s"


@dataclass(frozen=True, slots=True)
class Trial:
    """How a boot went.

    seconds: from the start of QEMU to the goal, or until it was given up. touched: ranges of the
    disk that were read, in blocks of 64 KiB. missing: contents that were read and nobody had.
    said: lines for a person. console: what the guest said, the last MiB of it. why: it is given up.
    """

    reached: bool
    seconds: float
    touched: Ranges
    status: ServerStatus
    console: bytes
    said: tuple[str, ...] = ()
    why: str = ""

    @property
    def missing(self) -> tuple[MissingStatus, ...]:
        """Return the first contents that were read and could not be had."""
        return self.status.missing


class GoalMissedError(MismatchError):
    """A guest did not come as far as it should."""

    def __init__(self, goal: Goal, trial: Trial) -> None:
        words = trial.console.decode("utf-8", "replace").rstrip()[-LAST_WORDS:]
        last = words.rpartition("\n")[2].strip()
        super().__init__(
            f"expected {goal}, found {trial.why} after {trial.seconds:.0f} s",
            hint=f"its console said last: {last}" if last else "its serial console said nothing",
        )
        self.trial = trial


@dataclass(slots=True)
class Bench:
    """A pack whose boots are watched, one after the other, on one server.

    uri: the NBD address of its disk. control: of its server. folder: for what belongs to it. told:
    called with what a person should know while a guest boots: what it waits for, for example.
    """

    pack: OpenedPack
    served: DiskOrigin
    folder: Path
    uri: str
    control: Control
    wishes: Wishes = field(default_factory=Wishes)
    arguments: tuple[str, ...] = ()
    directory: str = "/"
    told: Callable[[str], None] = ignore_line

    def boot(self, goal: Goal, *, strict: bool = False) -> Trial:
        """Boot the guest until the goal, pull its plug and return how it went.

        strict: give up as soon as something is missing. Raises Error when it cannot be started.
        """
        self.control.forget_touched()
        vm = create_vm(
            self.pack, self.served, self.wishes, state=self.folder, another=True, ephemeral=True
        )
        try:
            with start_vm(vm, self.arguments, folder=self.directory) as running:
                return self._watch(running, goal, strict=strict)
        finally:
            _remove(vm)

    def _watch(self, running: RunningVm, goal: Goal, *, strict: bool) -> Trial:
        running.wait_until_started(START_SECONDS)
        began = time.monotonic()
        quiet = _Quiet(goal.idle_seconds)
        sought = re.escape(goal.marker) if goal.marker else "(?!)"  # which nothing matches
        why, heard = "", 0
        while not why:
            left = goal.timeout_seconds - (time.monotonic() - began)
            reached = running.wait_for(sought, min(POLL_SECONDS, max(left, 0.0))) is not None
            seconds = time.monotonic() - began
            for line in running.said[heard:]:
                self.told(self._as_known(line))
            heard = len(running.said)
            touched, status = self.control.touched(), self._status()
            if not goal.marker:
                reached = running.ended is None and not _waits(running) and quiet.since(touched)
            if reached and not (strict and status.missing_contents):
                return self._ended(running, Trial(True, seconds, touched, status, b""))
            if strict and status.missing_contents:
                why = f"{status.missing_contents} contents that nobody has"
            elif running.ended is not None:
                why = "the end of the guest"
            elif seconds >= goal.timeout_seconds:
                why = "a guest that waits" if _waits(running) else "no more patience"
        return self._ended(running, Trial(False, seconds, touched, status, b"", why=why))

    def _status(self) -> ServerStatus:
        status = self.control.status()
        sources = tuple(
            msgspec.structs.replace(one, source=self._as_known(one.source))
            for one in status.sources
        )
        return msgspec.structs.replace(status, sources=sources)

    def _as_known(self, text: str) -> str:
        """Return a text with the store's own name in it."""
        folder = self.served.store.folder
        return text.replace(str(folder), str(folder.resolve()))

    def _ended(self, running: RunningVm, trial: Trial) -> Trial:
        if running.ended is None:
            running.stop(0.0)
        return replace(trial, console=running.console, said=tuple(running.said))


def _waits(running: RunningVm) -> bool:
    return running.now is not None and running.now.state == "paused"


class _Quiet:
    """Tells when nothing new was read for some time, once something was."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._bytes = 0
        self._last = time.monotonic()

    def since(self, touched: Ranges) -> bool:
        now, read = time.monotonic(), total(touched)
        if read != self._bytes:
            self._bytes, self._last = read, now
        return read > 0 and now - self._last >= self._seconds


@contextmanager
def bench(
    pack: OpenedPack,
    served: DiskOrigin,
    wishes: Wishes | None = None,
    arguments: tuple[str, ...] = (),
    *,
    directory: str = "/",
    told: Callable[[str], None] = ignore_line,
) -> Iterator[Bench]:
    """Prepare for boots of a pack whose use was decided; nothing is left afterwards.

    wishes: see packer.run.vm.create. arguments: for QEMU, from the folder `directory`. told: see
    Bench.
    """
    with temporary_folder("vmpack-trial-") as folder:
        # The store by a name that nobody else uses: so the server is nobody else's either.
        store = served.store.folder.absolute()
        with store_errors(store):
            make_folders(store)
        (folder / "of-store").symlink_to(store.parent)
        own = replace(served, store=Store(folder / "of-store" / store.name))
        spec = server_spec(
            own.location,
            pack.config_digest,
            own.store.folder,
            tuple(own.sources),
            offline=own.offline,
            complete=own.complete,
        )
        address = ensure_server(spec)
        with Control(address.control) as control:
            try:
                yield Bench(
                    pack,
                    own,
                    folder,
                    address.uri,
                    control,
                    wishes or Wishes(),
                    arguments,
                    directory,
                    told,
                )
            finally:
                with suppress(Error):
                    control.stop()


@contextmanager
def temporary_folder(prefix: str, place: Path | None = None) -> Iterator[Path]:
    """Give a folder that is removed afterwards. place: None for that of temporary files."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    except OSError as error:
        where = place or tempfile.gettempdir()
        raise Error(f"{where}: cannot be written: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove(vm: Vm) -> None:
    with suppress(VmMissingError):  # it has ended, and so is gone
        remove_vm(vm, force=True)
