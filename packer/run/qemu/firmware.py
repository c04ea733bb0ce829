"""Where this host keeps UEFI firmware: its code, and the variables that a new VM begins with.

Distributions describe their firmware in JSON files (QEMU docs/interop/firmware.json); where there
are none, it is looked for at the places where they are known to put it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from packer.errors import Error

DESCRIPTIONS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
"""In the order of docs/interop/firmware.json; a name in the first hides that in the second."""

KNOWN = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),  # Debian, Ubuntu
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),  # older ones
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),  # Fedora, RHEL
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),  # Arch
    ("/usr/share/edk2-ovmf/OVMF_CODE.fd", "/usr/share/edk2-ovmf/OVMF_VARS.fd"),  # Gentoo
    (
        "/usr/share/qemu/ovmf-x86_64-4m-code.bin",
        "/usr/share/qemu/ovmf-x86_64-4m-vars.bin",
    ),  # openSUSE
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
    (
        "/usr/share/qemu/edk2-x86_64-code.fd",
        "/usr/share/qemu/edk2-i386-vars.fd",
    ),  # QEMU's own
)
"""Pairs of code and variables: both must be of the same build."""

MAX_DESCRIPTION_BYTES = 1 << 16
MAX_VARIABLES_BYTES = 64 << 20
_NOT_NEEDED = {"secure-boot", "requires-smm", "enrolled-keys", "amd-sev-snp", "intel-tdx"}


class FirmwareMissingError(Error):
    """A guest needs UEFI firmware and this host has none that fits."""


@dataclass(frozen=True, slots=True)
class Uefi:
    """Two files: code, which is only read, and what the variables of a new VM are copied from."""

    code: Path
    variables: Path


class _File(msgspec.Struct):
    filename: str
    format: str = "raw"


class _Mapping(msgspec.Struct):
    device: str
    executable: _File | None = None
    nvram: _File | None = msgspec.field(name="nvram-template", default=None)


class _Target(msgspec.Struct):
    architecture: str
    machines: list[str] = []


class _Description(msgspec.Struct):
    interfaces: list[str] = msgspec.field(name="interface-types")
    mapping: _Mapping
    targets: list[_Target]
    features: list[str] = []


def find_uefi(*, variables_bytes: int | None = None) -> Uefi:
    """Return the UEFI firmware of this host for x86_64 guests.

    variables_bytes: size of the variables that a VM has already; code of another build would not
    understand them. Raises FirmwareMissingError.
    """
    for pair in (*_described(), *(Uefi(Path(code), Path(more)) for code, more in KNOWN)):
        size = _size(pair.variables)
        if not _size(pair.code) or not 0 < size <= MAX_VARIABLES_BYTES:
            continue
        if variables_bytes in (None, size):
            return pair
    fitting = "" if variables_bytes is None else f" for variables of {variables_bytes} bytes"
    raise FirmwareMissingError(
        f"this guest starts with UEFI, and there is no UEFI firmware here{fitting}",
        hint="install it: package ovmf on Debian and Ubuntu, edk2-ovmf on Fedora and Arch, "
        "qemu-ovmf-x86_64 on openSUSE",
    )


def _described() -> Iterator[Uefi]:
    """Yield the firmware that the host's descriptions name, in their order."""
    names: dict[str, Path] = {}
    for folder in DESCRIPTIONS:
        if folder.is_dir():
            for path in folder.glob("*.json"):
                names.setdefault(path.name, path)
    for _, path in sorted(names.items()):
        try:
            with path.open("rb") as file:
                one = msgspec.json.decode(file.read(MAX_DESCRIPTION_BYTES), type=_Description)
        except (OSError, ValueError):
            continue  # one that is empty hides another; one that is damaged names nothing
        if _fits(one) and one.mapping.executable and one.mapping.nvram:
            yield Uefi(Path(one.mapping.executable.filename), Path(one.mapping.nvram.filename))


def _fits(one: _Description) -> bool:
    files = (one.mapping.executable, one.mapping.nvram)
    return (
        "uefi" in one.interfaces
        and one.mapping.device == "flash"
        and all(file is not None and file.format == "raw" for file in files)
        and not _NOT_NEEDED & set(one.features)
        and any(target.architecture == "x86_64" for target in one.targets)
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
