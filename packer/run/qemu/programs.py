"""The programs of QEMU on this host."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from packer.environment import inherited
from packer.errors import Error

EMULATOR = "qemu-system-x86_64"
IMAGE_TOOL = "qemu-img"

_PACKAGES = {
    EMULATOR: "qemu-system-x86 on Debian, Ubuntu and Fedora, qemu on openSUSE and Arch",
    IMAGE_TOOL: "qemu-utils on Debian and Ubuntu, qemu-img on Fedora, qemu-tools on openSUSE",
}

MACHINE = "pc-[a-z0-9]+-[A-Za-z0-9][A-Za-z0-9.+-]*"
"""A name with a version; Ubuntu's and Red Hat's QEMU have versions of their own ("-noble",
"-rhel9.4.0")."""

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""Of QEMU's -sandbox, as libvirt has it: no system calls that only old programs need, no other
user, no other program, no priorities."""

_PINNED = re.compile(rf"\(alias of ({MACHINE})\)")
_ASK_SECONDS = 60.0


class QemuError(Error):
    """QEMU is not there, does not start, or does not do what it was asked."""


def find(name: str) -> Path:
    """Return where a program of QEMU lies. Raises QemuError."""
    found = shutil.which(name)
    if found is None:
        raise QemuError(f"there is no {name} here", hint=f"install it: package {_PACKAGES[name]}")
    return Path(found).absolute()


def ask(program: Path, *arguments: str) -> str:
    """Return what a program prints. Raises QemuError when it fails or takes too long."""
    try:
        done = subprocess.run(
            [str(program), *arguments],
            env=inherited(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QemuError(f"{program}: {error}") from error
    if done.returncode:
        raise QemuError(f"{program.name} {arguments[0]}: {done.stderr.strip() or 'failed'}")
    return done.stdout


def has_sandbox(program: Path) -> bool:
    """Return whether this QEMU can give up what SANDBOX denies (seccomp)."""
    try:
        ask(program, "-sandbox", SANDBOX, "-version")
    except QemuError:
        return False
    return True


def pinned_machine(program: Path, kind: str) -> str:
    """Return the name with its version of what this QEMU means by "pc" or "q35"."""
    for line in ask(program, "-machine", "help").splitlines():
        if line.split()[:1] == [kind] and (found := _PINNED.search(line)):
            return found[1]
    raise QemuError(f"{program}: expected a machine {kind}, found none")
