"""Which machine a guest gets: decided once when a VM is made, from what its pack says.

A guest finds the same hardware in every start, also under a newer QEMU: Windows asks to be
activated again on another machine, and names of network cards follow from where they are plugged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from packer.artifact.config import Guest
from packer.errors import InputError
from packer.run.qemu.programs import MACHINE, pinned_machine

MIB = 1 << 20
USUAL_MEMORY_MIB = 2048
LEAST_MEMORY_MIB = 128
HOST_SHARE = 4
"""A guest gets at most one part in so many of the host's memory, unless more is asked for."""
USUAL_CPUS = 2

_ARCHITECTURES = ("", "x86_64", "amd64", "i386", "i486", "i586", "i686", "x86")


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest is plugged into. machine: with its version, "pc-q35-7.2".

    disk: "virtio", or "ide" where the guest may lack the driver (AHCI on q35). network: model of
    its card. clock: what the real-time clock shows.
    """

    machine: Annotated[str, msgspec.Meta(pattern=rf"\A{MACHINE}\Z")]
    firmware: Literal["bios", "uefi"]
    disk: Literal["virtio", "ide"]
    network: Literal["virtio-net-pci", "e1000"]
    clock: Literal["utc", "localtime"]


def choose_hardware(guest: Guest, program: Path, where: str) -> Hardware:
    """Return the machine for a guest under this QEMU.

    Windows gets devices for which it brings drivers. Raises InputError for an architecture that
    is not emulated here; where: names the pack.
    """
    if guest.architecture not in _ARCHITECTURES:
        raise InputError(
            f"{where}: expected a guest for x86_64, found {guest.architecture}",
            hint="vmpack unpack gives its disk to an emulator of that architecture",
        )
    uefi = guest.firmware == "uefi"
    windows = guest.family == "windows"
    return Hardware(
        machine=pinned_machine(program, "q35" if uefi else "pc"),
        firmware="uefi" if uefi else "bios",
        disk="ide" if windows else "virtio",
        network="e1000" if windows else "virtio-net-pci",
        clock="localtime" if windows else "utc",
    )


def usual_memory_mib(host_bytes: int) -> int:
    """Return how much memory a guest gets when nobody says."""
    return max(LEAST_MEMORY_MIB, min(USUAL_MEMORY_MIB, host_bytes // HOST_SHARE // MIB))
