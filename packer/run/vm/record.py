"""What is written down about a VM, vm.json and running.json: its form, and how it is read.

A folder of VMs may be a stick of somebody else's. So every field has a form that is nothing but
what QEMU, systemd and libvirt should be told, and no name in the folder leads out of it.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from packer.errors import Error, InputError, UsageError
from packer.run.qemu.accelerator import Accelerator
from packer.run.qemu.hardware import Hardware
from packer.run.qemu.processes import Process

SCHEMA = 1
MAX_RECORD_BYTES = 1 << 20
OVERLAY_FILE = "overlay.qcow2"
BASE_FILE: Literal["base.raw"] = "base.raw"
MAX_VM_NAME = 64
VM_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_VM_NAME - 1}}}")
"""As leases of the store can be called, too."""

_Path = Annotated[str, msgspec.Meta(pattern=r"\A/[^\x00]*\Z")]
_Line = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00]+\Z")]
_Name = Annotated[str, msgspec.Meta(pattern=rf"\A{VM_NAME.pattern}\Z")]
_Digest = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
_RefName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9._-]{1,128}:[1-9][0-9]{0,15}\Z")]
_Uuid = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
_Mac = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")]


class VmMissingError(UsageError):
    """There is no VM of that name."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down about a VM (vm.json).

    pack: absolute path or URL. config: the pack's identity. store: absolute folder. accelerator: ""
    to find one by trying. network: "user" (a NAT of QEMU's) or "none". ephemeral: it is removed
    when it ends; maker: the process that made such a one, and is to start it. base: "" or, for a VM
    that was detached, the file in its folder that lies below its overlay; neither pack nor server
    is needed then.
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
    maker: Process | None = None
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


def read_record(folder: Path) -> Record:
    """Return what is written down about the VM in a folder.

    Raises VmMissingError when there is none, InputError for what cannot be a VM, Error for what
    cannot be read.
    """
    path = folder / "vm.json"
    _refuse_links_out_of(folder)
    try:
        data = first_bytes(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VmMissingError(f"there is no VM in {folder}") from error
    except OSError as error:
        raise Error(f"{path}: {error.strerror}") from error
    try:
        record = msgspec.json.decode(data, type=Record)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}", hint="a newer vmpack may have written it") from error
    if record.schema != SCHEMA:
        raise InputError(f"{path}: schema: expected {SCHEMA}, found {record.schema}")
    return record


def first_bytes(path: Path) -> bytes:
    """Return a small file, or as much of it as one may have. Raises OSError."""
    with path.open("rb") as file:
        return file.read(MAX_RECORD_BYTES)


def _refuse_links_out_of(folder: Path) -> None:
    """Raise InputError if a VM's folder, or a name in it, leads to something elsewhere.

    Names that libvirt's domains have for the overlay may stay: see packer.run.manage.libvirt.
    Whoever made the folder could let its guest write to any file of this host's user: what it says
    on its console is appended to a file of this folder, for one.
    """
    try:
        with os.scandir(folder) as entries:
            wrong = [entry.path for entry in entries if _leads_elsewhere(entry)]
        if folder.is_symlink():
            wrong.append(str(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise Error(f"{folder}: {error.strerror}") from error
    if wrong:
        raise InputError(
            f"{wrong[-1]}: expected a file or folder, found something that leads elsewhere",
            hint="a VM's folder holds all that is its own; --state names other places",
        )


def _leads_elsewhere(entry: os.DirEntry[str]) -> bool:
    try:
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            return os.readlink(entry.path) != OVERLAY_FILE  # noqa: PTH115 - as it is written
    except FileNotFoundError:  # it was a temporary one
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def write_record(folder: Path, record: Record) -> None:
    """Write down what a VM is. Raises Error."""
    write_whole(
        folder / "vm.json", msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    )


def write_whole(path: Path, data: bytes) -> None:
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
