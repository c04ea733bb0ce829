"""What is installed: distribution, architecture, and the firmware that starts it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from packer.guest.model import Guest
from packer.guest.mounts import is_esp
from packer.guest.tree import Tree

MAX_OS_RELEASE_BYTES = 64 << 10
MAX_FIELD_CHARACTERS = 200

# GPT types of partitions that only BIOS boot code reads (GRUB manual, "BIOS installation").
BIOS_BOOT_TYPE = "21686148-6449-6e6f-744e-656564454649"
_BOOT_CODE_BYTES = 440  # of an MBR; the disk signature follows
_BOOT_SIGNATURE = b"\x55\xaa"  # at byte 510

_OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")  # os-release(5): the first one counts
# Programs that every Linux has under one of these names, as a link or as a file.
_PROGRAMS = ("/bin/sh", "/sbin/init", "/usr/bin/env", "/bin/busybox", "/init")
# e_machine (System V gABI, "ELF header") -> uname -m.
_MACHINES = {3: "i686", 22: "s390x", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_PPC64 = 21
_ELF_BYTES = 20
_KERNEL_HEADER_BYTES = 0x238
_ESP_LOADER_SUFFIX = ".efi"


def identify(tree: Tree) -> Guest:
    """Return what the guest is; fields that nothing tells stay empty, the family "unknown"."""
    firmware = find_firmware(tree)
    if not tree.mounts or (tree.root is None and not has_kernel(tree)):
        return Guest(firmware=firmware)
    data = next(filter(None, (tree.read(path, MAX_OS_RELEASE_BYTES) for path in _OS_RELEASE)), b"")
    fields = parse_os_release(data)
    return Guest(
        family="linux",
        id=fields.get("ID", ""),
        release=fields.get("VERSION_ID", ""),
        name=fields.get("PRETTY_NAME", "") or fields.get("NAME", ""),
        architecture=find_architecture(tree),
        firmware=firmware,
    )


def parse_os_release(data: bytes) -> dict[str, str]:
    """Return the variables of an os-release file; what is not plain text of one line is left out.

    Source: os-release(5): shell assignments without substitution, the values perhaps in quotes.
    """
    fields: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        name, equals, value = line.strip().partition("=")
        if not equals or name.startswith("#") or not name.isidentifier():
            continue
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        for escaped in '\\"$`':
            value = value.replace("\\" + escaped, escaped)
        fields[name] = "".join(c for c in value if c.isprintable())[:MAX_FIELD_CHARACTERS]
    return fields


def has_kernel(tree: Tree) -> bool:
    """Return whether a file in /boot has the name of a Linux kernel."""
    return any(True for _ in _kernels(tree))


def _kernels(tree: Tree) -> Iterator[tuple[str, int]]:
    for path, stream in tree.below("/boot"):
        if path.startswith(("/boot/vmlinuz", "/boot/vmlinux")):
            yield path, stream


def find_architecture(tree: Tree) -> str:
    """Return the machine of the guest's own programs as `uname -m` names it, or ""."""
    for path in _PROGRAMS:
        stream = tree.stream_of(path)
        if stream is not None:
            machine = elf_machine(tree.read_stream(stream, _ELF_BYTES, path))
            if machine:
                return machine
    for path, stream in _kernels(tree):
        machine = kernel_machine(tree.read_stream(stream, _KERNEL_HEADER_BYTES, path))
        if machine:
            return machine
    return ""


def kernel_machine(header: bytes) -> str:
    """Return the machine of a kernel image from its first 568 bytes, or "".

    Source: Linux, Documentation/arch/x86/boot.rst (HdrS at 0x202, xloadflags at 0x236, bit 0:
    64-bit entry point) and Documentation/arch/arm64/booting.rst (ARM\\x64 at 56).
    """
    if header[0x202:0x206] == b"HdrS" and len(header) >= _KERNEL_HEADER_BYTES:
        return "x86_64" if header[0x236] & 1 else "i686"
    if header[56:60] == b"ARM\x64":
        return "aarch64"
    return elf_machine(header)


def elf_machine(header: bytes) -> str:
    """Return the machine of a program from the first 20 bytes of its ELF header, or ""."""
    if len(header) < _ELF_BYTES or header[:4] != b"\x7fELF" or header[5] not in (1, 2):
        return ""
    order = "<" if header[5] == 1 else ">"  # EI_DATA
    (machine,) = struct.unpack_from(order + "H", header, 18)  # e_machine
    if machine == _PPC64:
        return "ppc64le" if order == "<" else "ppc64"
    return _MACHINES.get(machine, "")


def find_firmware(tree: Tree) -> str:
    """Return "bios", "uefi", "bios+uefi", or "" if neither finds anything to start."""
    found = []
    if _has_boot_code(tree):
        found.append("bios")
    if _has_efi_loader(tree):
        found.append("uefi")
    return "+".join(found)


def _has_boot_code(tree: Tree) -> bool:
    survey = tree.survey
    if any(volume.partition_type == BIOS_BOOT_TYPE for volume in survey.volumes):
        return True
    if tree.source.size < 512:
        return False
    sector = tree.source.pread(0, 512)
    if sector[510:] != _BOOT_SIGNATURE:
        return False
    # A FAT volume without partition table has the signature too: code that only complains.
    if survey.table == "none" and any(volume.kind == "vfat" for volume in survey.volumes):
        return False
    return any(sector[:_BOOT_CODE_BYTES])


def _has_efi_loader(tree: Tree) -> bool:
    survey = tree.survey
    on_esp = [is_esp(survey, row) for row in range(len(survey.volumes))]
    if not any(on_esp):
        return False
    for row, name in enumerate(survey.name):
        folded = name.casefold()
        is_loader = folded.startswith("/efi/") and folded.endswith(_ESP_LOADER_SUFFIX)
        if is_loader and on_esp[int(survey.volume[survey.name_stream[row]])]:
            return True
    return False
