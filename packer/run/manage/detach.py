"""detach: a VM becomes independent of its pack, its server and its sources, while it runs or not.

What lies below its overlay is rebuilt in its folder, as unpack would, and the VM turns to that; the
steps, and why each of them may be the last, are in packer.run.vm.own_base.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from packer.errors import Error, InUseError, UsageError
from packer.progress import Progress
from packer.run.manage.session import Session
from packer.run.server.control_protocol import RemoteError
from packer.run.server.process import opened
from packer.run.supervisor.link import Detach, Detached, Ended, Now
from packer.run.vm.lease import release_lease
from packer.run.vm.own_base import name_base, note_base
from packer.run.vm.record import BASE_FILE, VmMissingError
from packer.run.vm.vm import Vm
from packer.unpack.gather import Supplied
from packer.unpack.unpack import unpack

SWAP_SECONDS = 180.0
"""QEMU waits for reads that its server still holds, and may try to reach one that is dead."""

_TRIES = 5
_LOCK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class DetachReport:
    """A VM that is detached. was: whether it had been before. running: it went on meanwhile.

    supplied: where the bytes of its base came from. resumed_bytes: proven in what an interrupted
    run had left.
    """

    vm: Vm
    was: bool
    running: bool
    resumed_bytes: int = 0
    supplied: tuple[Supplied, ...] = ()


def detach(vm: Vm, *, jobs: int | None = None, progress: Progress | None = None) -> DetachReport:
    """Make a VM independent of its pack. What a run that was interrupted has done is taken up.

    Raises UsageError for an ephemeral VM, InUseError if another process detaches it or a QEMU of
    somebody else's runs it, ContentsMissingError when nobody has a content; it stays as it was
    then.
    """
    with _alone(vm):
        vm = vm.read_again()
        if vm.record.ephemeral:
            raise UsageError(
                f"the VM {vm.name} is ephemeral: it is removed when it ends",
                hint="run the pack without --ephemeral",
            )
        was = vm.base is not None
        resumed_bytes, supplied = (0, ()) if was else _materialise(vm, jobs, progress)
        running = _turn_to_own_base(vm)
        return DetachReport(vm.read_again(), was, running, resumed_bytes, supplied)


def _materialise(
    vm: Vm, jobs: int | None, progress: Progress | None
) -> tuple[int, tuple[Supplied, ...]]:
    """Rebuild the base in the VM's folder; return (bytes found there, who gave the others)."""
    base = vm.folder / BASE_FILE
    partial = base.with_name(f"{base.name}.partial")
    try:
        # Finished, but not yet written down: it may be of another base than the VM has by now.
        base.replace(partial)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Error(f"{base}: {error.strerror}") from error
    with opened(vm.server_spec()) as served:
        sources = list(served.sources)
        if served.store not in sources:
            sources.insert(0, served.store)
        report = unpack(
            served.pack, base, sources, store=served.store, jobs=jobs, progress=progress
        )
    return report.resumed_bytes, report.supplied


def _turn_to_own_base(vm: Vm) -> bool:
    """Let a VM read its base, whether it runs or not; return whether it runs.

    It may be started and stopped meanwhile, and its supervisor may die.
    """
    for _ in range(_TRIES):
        if _turned_stopped(vm):
            return False
        if _turned_running(vm):
            return True
    raise Error(
        f"the supervisor of {vm.name} does not answer", hint=f"see {vm.folder / 'supervisor.log'}"
    )


def _turned_stopped(vm: Vm) -> bool:
    """Return whether a VM was found stopped; it reads its own base then."""
    lock = vm.lock() if vm.running() is not None else vm.lock(seconds=_LOCK_SECONDS)
    if lock is None:
        return False
    try:
        if vm.running() is not None:  # without a supervisor
            return False
        vm.refuse_if_in_use()
        noted = note_base(vm, vm.record.config)
        release_lease(noted)
        name_base(noted)
    finally:
        os.close(lock)
    return True


def _turned_running(vm: Vm) -> bool:
    """Return whether the supervisor says that a running VM reads its own base now.

    Returns False when the VM has ended, or its supervisor.
    """
    with Session(vm, replay=False) as session:
        for one in session.messages(SWAP_SECONDS):
            if isinstance(one, Detached):
                if one.failure is not None:
                    raise RemoteError(one.failure)
                return True
            if isinstance(one, Ended):
                return False
            # Told again by the next supervisor, too, which has not heard the question.
            if isinstance(one, Now) and one.state != "starting":
                session.send(Detach(vm.record.config))
    return False


@contextmanager
def _alone(vm: Vm) -> Iterator[None]:
    """Let nobody else detach a VM meanwhile. Raises InUseError."""
    try:
        fd = os.open(vm.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise VmMissingError(f"the VM {vm.name} is no more") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno != errno.EWOULDBLOCK:
            raise Error(f"{vm.folder}: {error.strerror}") from error
        busy = f"another vmpack detaches the VM {vm.name}"
        raise InUseError(busy, hint="wait for it") from error
    try:
        yield
    finally:
        os.close(fd)
