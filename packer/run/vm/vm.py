"""A VM: its identity, and the folder that holds what is its own.

    STATE/vms/NAME/vm.json         who it is; written once, and when it is told otherwise
                   lock            held by its supervisor
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
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from packer import host
from packer.errors import Error, InputError, InUseError, UsageError
from packer.run.qemu.accelerator import Accelerator
from packer.run.qemu.hardware import Hardware
from packer.run.qemu.processes import Process, is_alive
from packer.run.server.spec import ServerSpec
from packer.run.sockets import runtime_folder
from packer.sources.store import Store

SCHEMA = 1
MAX_RECORD_BYTES = 1 << 20
VMS = "vms"
BASE_FILE: Literal["base.raw"] = "base.raw"
OWN_PACK = "guest.vmpack"
GONE_PREFIX = ".gone-"
"""Of the name of a VM's folder while it is removed."""

RUNTIME_KEY_DIGITS = 16
MAC_PREFIX = "52:54:00"
"""Of QEMU and KVM; locally administered, so that no card in the world has it."""

MAX_VM_NAME = 64
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_VM_NAME - 1}}}")
_TRY_SECONDS = 0.05

# A folder of VMs may be a stick of somebody else's: what QEMU, systemd and libvirt are told of it
# is nothing but what it should be.
_Path = Annotated[str, msgspec.Meta(pattern=r"\A/[^\x00]*\Z")]
_Line = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00]+\Z")]
_Name = Annotated[str, msgspec.Meta(pattern=rf"\A{_NAME.pattern}\Z")]
_Digest = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
_RefName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9._-]{1,128}:[1-9][0-9]{0,15}\Z")]
_Uuid = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
_Mac = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")]

_STATE_HINT = "name another folder for the private areas of VMs with --state"


class VmMissingError(UsageError):
    """There is no VM of that name."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down about a VM (vm.json).

    pack: absolute path or URL. config: the pack's identity. store: absolute folder. accelerator: ""
    to find one by trying. network: "user" (a NAT of QEMU's) or "none". ephemeral: it is removed
    when it ends. base: "" or, for a VM that was detached, the file in its folder that lies below
    its overlay; neither pack nor server is needed then.
    """

    schema: int = SCHEMA
    name: _Name
    pack: _Line
    config: _Digest
    ref_name: _RefName
    disk_bytes: Annotated[int, msgspec.Meta(gt=0)]
    sources: tuple[_Line, ...] = ()
    offline: bool = False
    store: _Path
    complete: bool = False
    uuid: _Uuid
    mac: _Mac
    hardware: Hardware
    memory_mib: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]
    cpus: Annotated[int, msgspec.Meta(ge=1, le=1 << 10)]
    accelerator: Accelerator | Literal[""] = ""
    network: Literal["user", "none"] = "user"
    ephemeral: bool = False
    base: Literal["", "base.raw"] = ""
    created: str = ""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A QEMU that runs (running.json).

    runtime: the folder of its sockets. console_start: where in console.log this start begins.
    """

    process: Process
    runtime: str
    accelerator: str
    console_start: int
    started: float


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
        return self.folder / "overlay.qcow2"

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
        """Return the name of its lease in the store, which stays if its folder is renamed."""
        return f"{self.record.name}.{self.record.uuid}"

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
        with suppress(OSError, ValueError):
            data = (self.folder / "running.json").read_bytes()
            found = msgspec.json.decode(data[:MAX_RECORD_BYTES], type=Running)
            if is_alive(found.process):
                return found
        return None

    def has_run(self) -> bool:
        """Return whether a QEMU was started that nobody has seen the end of, or it runs."""
        return (self.folder / "running.json").exists()

    def note_running(self, running: Running | None) -> None:
        """Write down which QEMU runs, or that none does."""
        path = self.folder / "running.json"
        if running is None:
            path.unlink(missing_ok=True)
        else:
            _write(path, msgspec.json.encode(running))

    def changed(self, **facts: object) -> Vm:
        """Return the VM with other facts in its record, written down."""
        record = msgspec.structs.replace(self.record, **facts)
        if record != self.record:
            _write(self.folder / "vm.json", _encoded(record))
        return Vm(self.folder, record)

    def read_again(self) -> Vm:
        """Return it as it is written down now. Raises VmMissingError when it is no more."""
        return the_vm(self.folder.name, self.folder.parent.parent)

    def lock(self, *, seconds: float = 0.0) -> int | None:
        """Return a descriptor that locks it for its supervisor; None when another has it."""
        deadline = time.monotonic() + seconds
        try:
            fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as error:
            raise VmMissingError(f"the VM {self.name} is no more") from error
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    return None
            time.sleep(_TRY_SECONDS)
        if self._is_still(fd):
            return fd
        os.close(fd)
        raise VmMissingError(f"the VM {self.name} was removed meanwhile")

    @contextmanager
    def held(self, *, seconds: float = 0.0) -> Iterator[Vm | None]:
        """Hold its lock, and give it as it is written down then; None while another holds it.

        Raises VmMissingError when it is no more, even if another has its name by now.
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

    def _is_still(self, lock: int) -> bool:
        """Return whether a lock is that of the folder which has its name now."""
        try:
            return os.path.samestat((self.folder / "lock").stat(), os.fstat(lock))
        except FileNotFoundError:
            return False


def vms_folder(state: Path | None) -> Path:
    """Return where VMs lie: below a folder that the user named, or below vmpack's own."""
    return (state or host.state_dir()).absolute() / VMS


def is_vm_name(text: str) -> bool:
    """Return whether a VM can be called so: as leases of the store can."""
    return _NAME.fullmatch(text) is not None


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
    path = folder / "vm.json"
    _refuse_links_out_of(folder)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECORD_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Error(f"{path}: {error.strerror}") from error
    try:
        record = msgspec.json.decode(data, type=Record)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}", hint="a newer vmpack may have written it") from error
    if record.schema != SCHEMA:
        raise InputError(f"{path}: schema: expected {SCHEMA}, found {record.schema}")
    return Vm(folder, record)


def _refuse_links_out_of(folder: Path) -> None:
    """Raise InputError if a name in the folder of a VM leads to something elsewhere.

    Whoever made the folder could let its guest write to any file of this host's user: what it says
    on its console is appended to a file of this folder, for one.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                inside = stat.S_ISLNK(mode) and os.sep not in os.readlink(entry.path)  # noqa: PTH115
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or inside):
                    raise InputError(
                        f"{entry.path}: expected a file, found something that leads elsewhere",
                        hint="a VM's folder holds all that is its own; --state names other places",
                    )
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise Error(f"{folder}: {error.strerror}") from error


def the_vm(name: str, state: Path | None = None) -> Vm:
    """Return the VM of a name. Raises VmMissingError when there is none."""
    found = find_vm(check_name(name), state)
    if found is None:
        raise VmMissingError(
            f"there is no VM {name} in {vms_folder(state)}", hint="vmpack ps lists what there is"
        )
    return found


def all_vms(state: Path | None = None, *, skip_damaged: bool = False) -> Iterator[Vm]:
    """Yield the VMs of a state folder, by name. Raises InputError for one that is damaged."""
    folder = vms_folder(state)
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - the names are what is wanted
    except FileNotFoundError:
        return
    except OSError as error:
        raise Error(f"{folder}: {error.strerror}", hint=_STATE_HINT) from error
    for name in names:
        try:
            found = find_vm(name, state)
        except InputError:
            if not skip_damaged:
                raise
            continue
        if found is not None:
            yield found


def prepare_folder(state: Path | None) -> Path:
    """Return a new folder in which a VM is made; it has no name yet. Raises Error."""
    place = vms_folder(state)
    folder = place / f".new-{secrets.token_hex(8)}"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise Error(
            f"{place}: cannot be written: {error.strerror}",
            hint=_STATE_HINT,
        ) from error
    return folder


def publish(folder: Path, record: Record, *, number: bool) -> Vm:
    """Give a VM that was prepared in a folder its name, and return it.

    number: whether NAME-2, NAME-3, … will do where the name is taken. Raises InUseError.
    """
    name, tried = record.name, 1
    while True:
        _write(folder / "vm.json", _encoded(msgspec.structs.replace(record, name=name)))
        final = folder.with_name(name)
        with suppress(OSError):  # it is taken: no folder replaces one that holds something
            folder.rename(final)
            return Vm(final, msgspec.structs.replace(record, name=name))
        if not os.path.lexists(final):
            raise Error(f"{final}: cannot be made")
        if not number:
            raise InUseError(
                f"there is a VM {name} already", hint="--new makes another, --name calls it"
            )
        tried += 1
        name = f"{record.name[: MAX_VM_NAME - 8]}-{tried}"


def remove_folder(folder: Path) -> None:
    """Remove the folder of a VM: first its name, so that nobody meets half of one."""
    gone = folder.with_name(f"{GONE_PREFIX}{secrets.token_hex(8)}")
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Error(f"{folder}: cannot be removed: {error.strerror}") from error
    shutil.rmtree(gone, ignore_errors=True)


def forget(vm: Vm) -> None:
    """Remove a VM that does not run; what only it kept in the store may be collected then.

    The caller holds its lock.
    """
    remove_folder(vm.folder)
    Store(Path(vm.record.store)).leases.release(vm.lease)


def new_mac() -> str:
    """Return a hardware address that no other VM has, as chance would have it."""
    return ":".join([MAC_PREFIX, *(f"{one:02x}" for one in secrets.token_bytes(3))])


def _encoded(record: Record) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def _write(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Error(f"{path}: cannot be written: {error.strerror}") from error
