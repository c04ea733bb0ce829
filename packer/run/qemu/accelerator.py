"""What makes guests fast here, found by trying: a device file proves nothing.

There are hosts with /dev/kvm where a guest never executes its first instruction, and such where
QEMU aborts. So a small guest runs for a moment under each accelerator. It switches to protected
mode, calculates, and says the result's name through QEMU's debug port; the first one under which it
does so is used. Under `tcg`, which is QEMU's own emulation, everything runs, slowly.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

import msgspec

from packer import host
from packer.environment import inherited
from packer.run.qemu.processes import boot_id

Accelerator = Literal["kvm", "hvf", "whpx", "tcg"]
ACCELERATORS: tuple[Accelerator, ...] = get_args(Accelerator)
EMULATION: Accelerator = "tcg"

TRY_SECONDS = 5.0
"""Within which the small guest has run; it takes a tenth of a second where it runs at all."""

_OF_SYSTEM: dict[str, tuple[Accelerator, ...]] = {
    "linux": ("kvm",),
    "darwin": ("hvf",),
    "win32": ("whpx",),
}

_ROM_BYTES = 1 << 16
_RESET_VECTOR = 0xFFF0  # Intel SDM volume 3, 10.1.4: 16 bytes below 4 GiB, where the ROM ends
_CODE = bytes.fromhex(
    # .code16; CS has the base 0xffff0000, where the ROM begins
    "fa"  # cli
    "2e660f01165e00"  # lgdtl %cs:gdtr
    "0f20c0"  # mov %cr0, %eax
    "0c01"  # or $1, %al              protection enable
    "0f22c0"  # mov %eax, %cr0
    "66ea1800ffff0800"  # ljmpl $8, $protected
    # .code32
    "b810000000"  # protected: mov $0x10, %eax
    "8ed8"  # mov %eax, %ds
    "31c0"  # xor %eax, %eax
    "b940420f00"  # mov $1000000, %ecx
    "a300050000"  # again: mov %eax, 0x500
    "c1c005"  # rol $5, %eax
    "030500050000"  # add 0x500, %eax
    "01c8"  # add %ecx, %eax
    "e2ee"  # loop again
    "3d8b5cd62d"  # cmp $0x2dd65c8b, %eax
    "7504"  # jne halt
    "b02a"  # mov $0x2a, %al
    "e6f4"  # out %al, $0xf4          QEMU ends with the code 2 × 0x2a + 1
    "f4"  # halt: hlt
    "ebfd"  # jmp halt
    "0000000000000000"  # gdt: nothing
    "ffff0000009acf00"  # code, 4 GiB, 32 bits
    "ffff00000092cf00"  # data, 4 GiB, 32 bits
    "17004600ffff"  # gdtr: 24 bytes at 0xffff0046
)
_JUMP_TO_START = bytes.fromhex("e90d00")  # from 0xfff0 around to 0
_WORKS = 2 * 0x2A + 1  # hw/misc/debugexit.c: exit((value << 1) | 1)


class _Found(msgspec.Struct, frozen=True):
    """What was found, and by which QEMU in which boot of the host."""

    boot: str
    program: str
    accelerator: Accelerator


def find_accelerator(program: Path) -> Accelerator:
    """Return the fastest accelerator under which a guest really runs with this QEMU.

    What was found is remembered until the host boots again or that QEMU is replaced.
    """
    known = _remembered(program)
    if known is not None:
        return known
    candidates = _OF_SYSTEM.get(sys.platform, ())
    found = next((one for one in candidates if runs(program, one)), EMULATION)
    _remember(program, found)
    return found


def runs(program: Path, accelerator: Accelerator) -> bool:
    """Return whether the small guest runs under an accelerator. Takes TRY_SECONDS at most."""
    with tempfile.TemporaryDirectory(prefix="vmpack-") as folder:
        rom = Path(folder, "rom")
        start = _CODE.ljust(_RESET_VECTOR, b"\0") + _JUMP_TO_START
        rom.write_bytes(start.ljust(_ROM_BYTES, b"\0"))
        command = [
            *(str(program), "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "pc", "-accel", accelerator, "-cpu", "max", "-m", "16"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios", rom.name),
        ]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=inherited(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=TRY_SECONDS,
                check=False,
            )
        except (subprocess.TimeoutExpired, OSError):
            return False
    return done.returncode == _WORKS


def _memory_of(program: Path) -> Path:
    name = hashlib.sha256(os.fsencode(program)).hexdigest()[:16]
    return host.cache_dir() / "accelerators" / f"{name}.json"


def _remembered(program: Path) -> Accelerator | None:
    with suppress(OSError, ValueError):
        found = msgspec.json.decode(_memory_of(program).read_bytes(), type=_Found)
        if boot_id() and (found.boot, found.program) == (boot_id(), _version(program)):
            return found.accelerator
    return None


def _remember(program: Path, accelerator: Accelerator) -> None:
    """Write down what was found, where that can be done: it is only tried again otherwise."""
    path = _memory_of(program)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        found = _Found(boot_id(), _version(program), accelerator)
        temporary.write_bytes(msgspec.json.encode(found))
        temporary.replace(path)


def _version(program: Path) -> str:
    """Return what changes when a program is replaced."""
    status = program.stat()
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
