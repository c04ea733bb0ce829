"""The command line of a VM's QEMU, and the overlay that it writes to.

    overlay (qcow2) ── file: overlay.qcow2
        └─ base (nbd): the pack's disk as its server hands it out, read-only
           or own-base (raw): the same disk in the folder of a VM that was detached

A read that the server cannot answer stops the guest instead of failing (`rerror=stop`), and so does
a write for which the host has no room (`werror=stop`). A connection that breaks is taken up again
for RECONNECT_SECONDS with requests waiting, and afterwards with each request that is tried again.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from formats.container.qcow2 import read_header
from formats.errors import FormatError
from formats.source import FileSource
from packer.environment import inherited
from packer.errors import InputError
from packer.run.qemu import programs
from packer.run.qemu.firmware import find_uefi
from packer.run.qemu.programs import QemuError
from packer.run.vm.vm import Vm

RECONNECT_SECONDS = 10
OPEN_SECONDS = 30

OVERLAY_OPTIONS = "extended_l2=on,cluster_size=128k"
"""Clusters have 32 parts of 4 KiB: a write of one block of the guest's file system neither reads
the rest of the cluster from the pack nor takes room for it."""

DISK_NODE, FILE_NODE, BASE_NODE, OWN_BASE_NODE = "overlay", "overlay-file", "base", "own-base"
"""Names of the block nodes, for whoever changes them while the guest runs."""

_WHEN_NOTED = 'read -r word && exec "$@" </dev/null'

_SANDBOX_OPTIONS = frozenset(("-sandbox", "--sandbox"))

SERIAL_SOCKET, MONITOR_SOCKET = "serial", "qmp"


@dataclass(frozen=True, slots=True)
class Wiring:
    """Where a start of a VM is connected. runtime: folder of its sockets.

    nbd: socket of the server; None for a VM that needs none.
    """

    nbd: Path | None
    runtime: Path
    accelerator: str
    window: bool = False

    @property
    def monitor(self) -> Path:
        """Return the socket of QEMU's monitor (QMP)."""
        return self.runtime / MONITOR_SOCKET

    @property
    def serial(self) -> Path:
        """Return the socket of the serial console."""
        return self.runtime / SERIAL_SOCKET


def make_overlay(path: Path, disk_bytes: int, base: str) -> None:
    """Make the empty private area of a VM. base: address of its disk, for other programs."""
    create = ["create", "-q", "-f", "qcow2", "-o", OVERLAY_OPTIONS, "-u", "-b", base, "-F", "raw"]
    programs.ask(programs.find(programs.IMAGE_TOOL), *create, str(path), str(disk_bytes))


def command(vm: Vm, wiring: Wiring, more: Sequence[str] = ()) -> list[str]:
    """Return the command line of a VM's QEMU. more: arguments of the user, which come last."""
    record, program = vm.record, programs.find(programs.EMULATOR)
    clock, network = record.hardware.clock, record.hardware.network
    nic = "none" if record.network == "none" else f"user,model={network},mac={record.mac}"
    flash, flash_arguments = _firmware(vm)
    return [
        *(str(program), "-nodefaults", "-no-user-config"),
        *_sandbox(program, wiring, more),
        *("-name", f"{vm.name},debug-threads=on", "-uuid", record.uuid),
        *("-machine", f"{record.hardware.machine},mem-merge=on{flash}"),
        *("-accel", wiring.accelerator, "-cpu", "max"),
        *("-m", str(record.memory_mib), "-smp", str(record.cpus)),
        *("-rtc", f"base={clock}", "-vga", "std"),
        *(() if wiring.window else ("-display", "none")),
        *flash_arguments,
        *_disk(vm, wiring.nbd),
        *("-nic", nic),
        *_socket("monitor", wiring.monitor),
        *("-mon", "chardev=monitor,mode=control"),
        *_socket("serial", wiring.serial, f",logfile={_escape(vm.console)},logappend=on"),
        *("-serial", "chardev:serial"),
        *_comforts(vm, wiring),
        *more,
    ]


def check_overlay(vm: Vm) -> None:
    """Raise InputError for an overlay that QEMU must not open: it may be of somebody else's stick.

    Its header could name any file of this host for what the guest writes.
    """
    try:
        source = FileSource(vm.overlay)
        try:
            read_header(source)
        finally:
            source.close()
    except (FormatError, OSError) as error:
        raise InputError(f"{vm.overlay}: {error}") from error


def launch(
    line: Sequence[str], log: Path, folder: Path, note: Callable[[int], None]
) -> subprocess.Popen[bytes]:
    """Start QEMU in a session of its own; what it says is added to a log.

    folder: to which relative paths in the user's arguments refer. note: is called with the id of
    its process, in which QEMU begins only when that has returned: whoever is killed before has
    started nothing, and after it has written down what it started. Raises QemuError.
    """
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = subprocess.Popen(
            ["/bin/sh", "-c", _WHEN_NOTED, "sh", *line],
            stdin=subprocess.PIPE,
            stdout=fd,
            stderr=fd,
            cwd=folder,
            env=inherited(),
            start_new_session=True,
        )
    except OSError as error:
        raise QemuError(f"{line[0]} cannot be started: {error}") from error
    finally:
        os.close(fd)
    assert child.stdin is not None
    try:
        note(child.pid)
        os.write(child.stdin.fileno(), b"\n")
    except OSError as error:
        raise QemuError(f"{line[0]} cannot be started: {error}") from error
    finally:
        child.stdin.close()  # without a word it ends
    return child


def _sandbox(program: Path, wiring: Wiring, more: Sequence[str]) -> list[str]:
    """Return what keeps a QEMU that its guest has taken over from starting programs.

    QEMU obeys each -sandbox that it is given: the user's own one stands alone. The libraries behind
    a window may start programs.
    """
    if wiring.window or not _SANDBOX_OPTIONS.isdisjoint(more) or not programs.has_sandbox(program):
        return []
    return ["-sandbox", programs.SANDBOX]


def own_base_node(base: Path) -> dict[str, object]:
    """Return the options of the disk below the overlay of a VM that was detached."""
    return {
        "driver": "raw",
        "node-name": OWN_BASE_NODE,
        "read-only": True,
        "file": {"driver": "file", "filename": str(base)},
    }


def overlay_node(below: str) -> dict[str, object]:
    """Return the options of the overlay. below: name of the node that it lies on."""
    return {
        "driver": "qcow2",
        "node-name": DISK_NODE,
        "file": FILE_NODE,
        "backing": below,
        "discard": "unmap",
        "detect-zeroes": "unmap",  # what a guest zeroes takes no room
    }


def _served_base_node(nbd: Path | None) -> dict[str, object]:
    return {
        "driver": "nbd",
        "node-name": BASE_NODE,
        "read-only": True,
        "server": {"type": "unix", "path": str(nbd)},
        "reconnect-delay": RECONNECT_SECONDS,
        "open-timeout": OPEN_SECONDS,
    }


def _disk(vm: Vm, nbd: Path | None) -> list[str]:
    base = _served_base_node(nbd) if vm.base is None else own_base_node(vm.base)
    file = {
        "driver": "file",
        "node-name": FILE_NODE,
        "filename": str(vm.overlay),
        "discard": "unmap",
    }
    overlay = overlay_node(BASE_NODE if vm.base is None else OWN_BASE_NODE)
    kind = {"virtio": "virtio-blk-pci", "ide": "ide-hd"}[vm.record.hardware.disk]
    nodes = [part for node in (base, file, overlay) for part in ("-blockdev", json.dumps(node))]
    device = f"{kind},id=disk,drive={DISK_NODE},bootindex=0,rerror=stop,werror=stop"
    return [*nodes, "-device", device]


def firmware_code(vm: Vm) -> Path:
    """Return the UEFI firmware of this host that understands a VM's variables.

    Raises InputError when these are missing, FirmwareMissingError.
    """
    try:
        return find_uefi(variables_bytes=vm.variables.stat().st_size).code
    except OSError as error:
        raise InputError(f"{vm.variables}: {error.strerror}") from error


def _firmware(vm: Vm) -> tuple[str, list[str]]:
    """Return (what is added to the machine's options, arguments)."""
    if vm.record.hardware.firmware == "bios":
        return "", []
    nodes = (
        ("firmware-code", firmware_code(vm), True),
        ("firmware-variables", vm.variables, False),
    )
    arguments = []
    for name, path, read_only in nodes:
        node = {
            "driver": "raw",
            "node-name": name,
            "read-only": read_only,
            "file": {"driver": "file", "filename": str(path)},
        }
        arguments += ["-blockdev", json.dumps(node)]
    return ",pflash0=firmware-code,pflash1=firmware-variables", arguments


def _comforts(vm: Vm, wiring: Wiring) -> list[str]:
    """Return devices that a guest can do without."""
    devices = []
    if vm.record.hardware.disk == "virtio":  # memory that the guest frees goes back to the host
        devices.append("virtio-balloon-pci,id=balloon,free-page-reporting=on")
    if wiring.window:  # a pointer that does not have to be caught
        devices += ["qemu-xhci", "usb-tablet"]
    return [part for one in devices for part in ("-device", one)]


def _socket(name: str, path: Path, more: str = "") -> list[str]:
    return ["-chardev", f"socket,id={name},path={_escape(path)},server=on,wait=off{more}"]


def _escape(path: Path) -> str:
    """Commas separate QEMU's options; a doubled comma stands for itself."""
    return str(path).replace(",", ",,")
