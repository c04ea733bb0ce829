"""A VM: its identity, and the folder that holds what is its own.

    STATE/vms/NAME/vm.json         who it is; written once, and when it is told otherwise
                   lock            held by its supervisor, and by who makes or changes it
                   overlay.qcow2   what it wrote
                   variables.fd    of UEFI firmware
                   base.raw        the disk below the overlay, once the VM was detached
                   guest.vmpack    its own pack, and
                   adopted.json    which disk it was, if it was made of a disk of this host
                   running.json    its QEMU, while there is one
                   console.log     what it said on its serial console
                   qemu.log        what QEMU said
                   supervisor.log  what went wrong with the supervisor

STATE is vmpack's state folder, or wherever the user wants it. A VM appears by rename, complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from packer import host
from packer.errors import Error, InUseError, UsageError
from packer.run.qemu.processes import is_alive
from packer.run.server.spec import ServerSpec
from packer.run.sockets import runtime_folder
from packer.run.vm.record import (
    MAX_VM_NAME,
    OVERLAY_FILE,
    VM_NAME,
    Record,
    Running,
    VmMissingError,
    first_bytes,
    read_record,
    write_record,
    write_whole,
)
from packer.survey.in_use import refuse_if_in_use

VMS = "vms"
OWN_PACK = "guest.vmpack"

RUNTIME_KEY_DIGITS = 16
MAC_PREFIX = "52:54:00"
"""Of QEMU and KVM; locally administered, so that no card in the world has it."""

_TRY_SECONDS = 0.05

STATE_HINT = "name another folder for the private areas of VMs with --state"


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM in its folder."""

    folder: Path
    record: Record

    @property
    def name(self) -> str:
        """Return its name, that of its folder."""
        return self.folder.name

    @property
    def overlay(self) -> Path:
        """Return the image of what it wrote."""
        return self.folder / OVERLAY_FILE

    @property
    def base(self) -> Path | None:
        """Return the disk below its overlay where that is its own; None where it is served."""
        return self.folder / self.record.base if self.record.base else None

    @property
    def variables(self) -> Path:
        """Return the variables of its UEFI firmware."""
        return self.folder / "variables.fd"

    @property
    def console(self) -> Path:
        """Return the log of its serial console."""
        return self.folder / "console.log"

    @property
    def lease(self) -> str:
        """Return the name of its lease in the store: its UUID, whatever it is called."""
        return self.record.uuid

    def server_spec(self) -> ServerSpec:
        """Return what its disk is served from."""
        record = self.record
        return ServerSpec(
            record.pack,
            record.config,
            record.store,
            record.sources,
            record.offline,
            record.complete,
        )

    def runtime(self) -> Path:
        """Return the folder of its sockets, made if need be."""
        place = os.fsencode(self.folder.resolve())
        return runtime_folder(VMS, hashlib.sha256(place).hexdigest()[:RUNTIME_KEY_DIGITS])

    def running(self) -> Running | None:
        """Return its QEMU, if that lives."""
        with suppress(OSError, ValueError, RecursionError):
            data = first_bytes(self.folder / "running.json")
            found = msgspec.json.decode(data, type=Running)
            if is_alive(found.process):
                return found
        return None

    def has_run(self) -> bool:
        """Return whether a QEMU was started that nobody has seen the end of, or it runs."""
        return (self.folder / "running.json").exists()

    def note_running(self, running: Running | None) -> None:
        """Write down which QEMU runs, or that none does. Raises Error."""
        path = self.folder / "running.json"
        if running is not None:
            return write_whole(path, msgspec.json.encode(running))
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise Error(f"{path}: cannot be removed: {error.strerror}") from error

    def changed(self, **facts: object) -> Vm:
        """Return the VM with other facts in its record, written down."""
        record = msgspec.structs.replace(self.record, **facts)
        if record != self.record:
            write_record(self.folder, record)
        return Vm(self.folder, record)

    def read_again(self) -> Vm:
        """Return it as it is written down now. Raises VmMissingError when it is no more."""
        return the_vm(self.folder.name, self.folder.parent.parent)

    def refuse_if_in_use(self) -> None:
        """Raise InUseError if a QEMU that no supervisor of ours minds has its overlay open.

        Of libvirt's, say. Raises Error when that cannot be seen.
        """
        try:
            refuse_if_in_use([self.overlay])
        except FileNotFoundError:
            return
        except OSError as error:
            raise Error(f"{self.overlay}: {error.strerror}") from error

    def lock(self, *, seconds: float = 0.0) -> int | None:
        """Return a descriptor that locks it for its supervisor; None when another has it.

        Raises VmMissingError when it is no more, Error when it cannot be locked.
        """
        return lock_vm(self.folder, seconds=seconds)

    @contextmanager
    def held(self, *, seconds: float = 0.0) -> Iterator[Vm | None]:
        """Hold its lock, and give it as it is written down then; None while another holds it.

        Raises VmMissingError when it is no more, even if another has its name by now, Error when it
        cannot be locked or is damaged.
        """
        fd = self.lock(seconds=seconds)
        if fd is None:
            yield None
            return
        try:
            now = self.read_again()
            if now.record.uuid != self.record.uuid:
                raise VmMissingError(f"the VM {self.name} is no more, another is called so now")
            yield now
        finally:
            os.close(fd)

    @contextmanager
    def idle(self, *, seconds: float = 0.0) -> Iterator[Vm]:
        """Keep it from being started meanwhile, and give it as it is written down now.

        seconds: how long to wait for others. Raises InUseError when it runs, under libvirt too, or
        another vmpack works on it; and what `held` raises.
        """
        with self.held(seconds=seconds) as now:
            if self.running() is not None:
                raise InUseError(
                    f"the VM {self.name} runs", hint=f"shut it down first: vmpack stop {self.name}"
                )
            if now is None:
                raise InUseError(
                    f"another vmpack starts or changes the VM {self.name}", hint="wait for it"
                )
            now.refuse_if_in_use()
            yield now


def lock_vm(folder: Path, *, seconds: float = 0.0) -> int | None:
    """Return a descriptor that locks the folder of a VM; None when another process has it.

    seconds: how long to wait for it. The lock ends with the process, however that ends. Raises
    VmMissingError when the folder is no more, Error when it cannot be locked.
    """
    path, deadline = folder / "lock", time.monotonic() + seconds
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError as error:
        raise VmMissingError(f"the VM {folder.name} is no more") from error
    except OSError as error:
        raise Error(f"{path}: {error.strerror}", hint=STATE_HINT) from error
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                return None
        except OSError as error:
            os.close(fd)
            raise Error(f"{path}: cannot be locked: {error.strerror}", hint=STATE_HINT) from error
        time.sleep(_TRY_SECONDS)
    if _is_still(path, fd):
        return fd
    os.close(fd)
    raise VmMissingError(f"the VM {folder.name} was removed meanwhile")


def _is_still(path: Path, lock: int) -> bool:
    """Return whether a lock is that of the folder which has its name now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class DamagedVm:
    """A folder of VMs holds something that has the name of a VM, and cannot be read as one."""

    folder: Path
    error: Error


def vms_folder(state: Path | None) -> Path:
    """Return where VMs lie: below a folder that the user named, or below vmpack's own."""
    return (state or host.state_dir()).absolute() / VMS


def is_vm_name(text: str) -> bool:
    """Return whether a VM can be called so: as leases of the store can."""
    return VM_NAME.fullmatch(text) is not None


def check_name(text: str) -> str:
    """Return a name for a VM. Raises UsageError for what cannot be one."""
    if not is_vm_name(text):
        raise UsageError(
            f"{text!r:.100}: not a name of a VM",
            hint=f"letters, digits, '.', '_' and '-', at most {MAX_VM_NAME}, no sign first",
        )
    return text


def find_vm(name: str, state: Path | None = None) -> Vm | None:
    """Return the VM of a name, or None. Raises InputError when what is written of it is bad."""
    if not is_vm_name(name):
        return None
    folder = vms_folder(state) / name
    try:
        return Vm(folder, read_record(folder))
    except VmMissingError:
        return None


def the_vm(name: str, state: Path | None = None) -> Vm:
    """Return the VM of a name. Raises VmMissingError when there is none."""
    found = find_vm(check_name(name), state)
    if found is None:
        raise VmMissingError(
            f"there is no VM {name} in {vms_folder(state)}", hint="vmpack ps lists what there is"
        )
    return found


def all_vms(state: Path | None = None, *, damaged: list[DamagedVm] | None = None) -> Iterator[Vm]:
    """Yield the VMs of a state folder, by name.

    damaged: takes those that cannot be read; without it, the first of them raises its Error.
    """
    folder = vms_folder(state)
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - the names are what is wanted
    except FileNotFoundError:
        return
    except OSError as error:
        raise Error(f"{folder}: {error.strerror}", hint=STATE_HINT) from error
    for name in names:
        place = folder / name
        if not is_vm_name(name):
            continue
        try:
            record = read_record(place)
        except Error as error:
            if isinstance(error, VmMissingError) and not place.is_dir():
                continue  # it is something else, or was removed meanwhile
            if damaged is None:
                raise
            damaged.append(DamagedVm(place, error))
        else:
            yield Vm(place, record)


def new_mac() -> str:
    """Return a hardware address that no other VM has, as chance would have it."""
    return ":".join([MAC_PREFIX, *(f"{one:02x}" for one in secrets.token_bytes(3))])
