"""A systemd unit that serves the disk of VMs of one pack, and brings it back after a reboot.

VMs whose disks come from the same pack, sources and store share a server, and so a unit. What it
serves is named by its identity, which was decided about when the VM was made: other versions that
this host has used since do not keep it from starting. Sources: systemd.service(5),
systemd.exec(5), systemd.syntax(7), systemd.unit(5), sd_notify(3).
"""

from __future__ import annotations

import os
import pwd
import re
import socket as sockets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from packer.errors import UsageError
from packer.run.sockets import socket_path
from packer.run.vm.vm import Vm

FOLDER = "vmpack-serve"
"""In the runtime folder of the system or of a user: one folder a unit, which systemd makes."""

HOME_VARIABLE = "VMPACK_HOME"
READY_VARIABLE = "NOTIFY_SOCKET"
NAME_CHARACTERS = 40
KEY_DIGITS = 8
RESTART_SECONDS = 2
START_SECONDS = 120
"""The pack may lie far away."""

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
_ESCAPED = {"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


@dataclass(frozen=True, slots=True)
class Manager:
    """Whose systemd and whose libvirt is meant: those of the whole system, or of one user.

    user: who owns the VM. group: of that user. runtime: what is made anew with each boot.
    """

    system: bool
    user: int
    group: int
    runtime: Path

    @property
    def login(self) -> str:
        """Return the user's name, or number."""
        try:
            return pwd.getpwuid(self.user).pw_name
        except KeyError:
            return str(self.user)


def manager_of(vm: Vm, *, system: bool) -> Manager:
    """Return where a VM is to live: as its owner, managed by the system or by that user."""
    status = vm.folder.stat()
    if system:
        return Manager(True, status.st_uid, status.st_gid, Path("/run"))
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    runtime = Path(given) if Path(given).is_absolute() else Path(f"/run/user/{status.st_uid}")
    return Manager(False, status.st_uid, status.st_gid, runtime)


def served_name(vm: Vm) -> str:
    """Return what the unit of a VM's disk is called, without ".service": "vmpack-demo-1-0a1b2c3d".

    It is the same for VMs that share their server.
    """
    record = vm.record
    plain = _NOT_IN_NAMES.sub("-", record.ref_name)[:NAME_CHARACTERS]
    return f"vmpack-{plain}-{vm.server_spec().key[:KEY_DIGITS]}"


def lasting_socket(vm: Vm, manager: Manager) -> Path:
    """Return the path of the socket at which the unit serves a VM's disk, in every boot."""
    return socket_path(manager.runtime / FOLDER / served_name(vm), "nbd")


def systemd_unit(vm: Vm, manager: Manager, socket: Path, program: Sequence[str]) -> str:
    """Return the unit that serves a VM's disk at `socket`.

    program: the words that start vmpack. Raises UsageError for a path that no unit can hold.
    """
    record = vm.record
    lines = [
        "[Unit]",
        f"Description=Disk of {_text(record.ref_name)} for virtual machines",
        *_before_and_after(vm, manager),
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=all",
        f"ExecStart={' '.join(unit_word(one) for one in _command(vm, socket, program))}",
        *([f"User={_text(manager.login)}"] if manager.system and manager.user else []),
        *_environment(),
        *_runtime_folder(vm, manager, socket),
        "UMask=0077",
        "NoNewPrivileges=yes",
        f"TimeoutStartSec={START_SECONDS}",
        "Restart=on-failure",
        f"RestartSec={RESTART_SECONDS}",
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if manager.system else 'default.target'}",
    ]
    return "\n".join(lines) + "\n"


def tell_systemd() -> None:
    """Say that clients are taken from now on, if systemd has started this process."""
    address = os.environ.get(READY_VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # a name that is in no folder (unix(7), "abstract")
        address = "\0" + address[1:]
    with (
        suppress(OSError),  # it gives up waiting then, and says so
        sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM | sockets.SOCK_CLOEXEC) as end,
    ):
        end.sendto(b"READY=1", address)


def unit_word(word: str) -> str:
    """Return a word as it stands in a unit, where "%" and "$" would mean something."""
    if _PLAIN_WORD.fullmatch(word):
        return word
    return f'"{_text(word)}"'


def _setting(word: str) -> str:
    """Return a word as it stands where nothing is a command, and so "$" means itself."""
    return unit_word(word).replace("$$", "$")


def _text(text: str) -> str:
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise UsageError(
            f"{text!r}: a systemd unit holds text only, and this is not UTF-8",
            hint="move it to a path with another name",
        )
    return "".join(_ESCAPED.get(one, one) for one in text)


def _command(vm: Vm, socket: Path, program: Sequence[str]) -> list[str]:
    spec = vm.server_spec()
    words = [*program, "serve", spec.pack, "--identity", spec.config]
    words += ["--socket", str(socket), "--store", spec.store]
    for source in spec.sources:
        words += ["--from", source]
    words += ["--offline"] if spec.offline else []
    return words + (["--complete"] if spec.complete else [])


def _before_and_after(vm: Vm, manager: Manager) -> list[str]:
    """Return what must be there first, and what needs this first. Users' units see none of it."""
    if not manager.system:
        return []
    spec = vm.server_spec()
    places = [spec.store, *([spec.pack.partition("#")[0]] if spec.pack.startswith("/") else [])]
    return [
        f"RequiresMountsFor={' '.join(_setting(place) for place in places)}",
        *([] if spec.offline else ["Wants=network-online.target", "After=network-online.target"]),
        "Before=libvirtd.service virtqemud.service libvirt-guests.service",
        "StartLimitIntervalSec=0",
    ]


def _environment() -> list[str]:
    home = os.environ.get(HOME_VARIABLE, "")
    return [f"Environment={_setting(f'{HOME_VARIABLE}={Path(home).absolute()}')}"] if home else []


def _runtime_folder(vm: Vm, manager: Manager, socket: Path) -> list[str]:
    if socket != lasting_socket(vm, manager):
        return []  # the user has chosen a folder, and looks after it
    return [f"RuntimeDirectory={FOLDER}/{served_name(vm)}", "RuntimeDirectoryMode=0700"]
