"""Which Windows it is, from its hives, or from its programs and names where these cannot be read.

Sources: Microsoft, "Windows release information" (builds), "PE Format" (machines); values of
HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion as in the hives of the tests.
"""

from __future__ import annotations

from packer.artifact.config import Guest
from packer.errors import InputError
from packer.guest.identify import find_firmware
from packer.guest.windows.file_lists import NT5, NT6, NT10
from packer.guest.windows.guest import Windows
from packer.guest.windows.loaders import BOOTMGR, NTLDR, UEFI
from packer.guest.windows.registry import ENVIRONMENT, VERSION

MAX_FIELD_CHARACTERS = 200
FIRST_BUILD_OF_11 = 22000
"""Its hive still says "Windows 10" where programs look for the name."""

# IMAGE_FILE_MACHINE_* -> uname -m
MACHINES = {0x14C: "i686", 0x8664: "x86_64", 0xAA64: "aarch64", 0x1C4: "armv7l", 0x200: "ia64"}
PROCESSORS = {"x86": "i686", "amd64": "x86_64", "arm64": "aarch64", "arm": "armv7l", "ia64": "ia64"}

# Version of the kernel -> (id of clients, id of servers)
IDS = {
    "5.0": ("windows-2000", "windows-server-2000"),
    "5.1": ("windows-xp", "windows-xp"),
    "5.2": ("windows-xp", "windows-server-2003"),
    "6.0": ("windows-vista", "windows-server-2008"),
    "6.1": ("windows-7", "windows-server-2008r2"),
    "6.2": ("windows-8", "windows-server-2012"),
    "6.3": ("windows-8.1", "windows-server-2012r2"),
}
SERVERS = ((26100, "2025"), (20348, "2022"), (17763, "2019"), (14393, "2016"))
"""First build of each server since Windows 10."""

UNKNOWN = {
    NT5: "Windows 2000, XP or Server 2003",
    NT6: "Windows Vista or 7",
    NT10: "Windows 8 or later",
}
_KERNELS = ("/System32/ntoskrnl.exe", "/System32/ntkrnlpa.exe", "/System32/hal.dll")


def identify(windows: Windows) -> Guest:
    """Return what the guest is; release is version, build and revision ("10.0.19045.2965")."""
    version, build = _version(windows), _first(windows, "CurrentBuildNumber", "CurrentBuild")
    product = _first(windows, "ProductName")
    architecture = find_architecture(windows)
    firmware = _firmware(windows)
    if not version or not product:
        name = product or UNKNOWN[windows.generation]
        return Guest("windows", "windows", version, name, architecture, firmware)
    number = int(build) if build.isdecimal() and len(build) < 9 else 0
    revision = _number(windows, "UBR")
    parts = (version, build, "" if revision is None else str(revision))
    is_server = "server" in f"{product} {_first(windows, 'InstallationType')}".casefold()
    identity = _id(version, number, is_server=is_server)
    if identity == "windows-11":
        product = product.replace("Windows 10", "Windows 11", 1)
    service_pack = _first(windows, "CSDVersion", "DisplayVersion", "ReleaseId")
    return Guest(
        "windows",
        identity,
        ".".join(part for part in parts if part),
        " ".join(part for part in (product, service_pack) if part),
        architecture,
        firmware,
    )


def find_architecture(windows: Windows) -> str:
    """Return the machine of the kernel as `uname -m` names it, or ""."""
    streams = [one for path in _KERNELS if (one := windows.stream(path)) is not None]
    try:
        programs = windows.examiner.programs(streams) if streams else []
    except InputError:
        programs = []
    for program in programs:
        if program.machine in MACHINES:
            return MACHINES[program.machine]
    if windows.system is None:
        return ""
    named = windows.system.texts(ENVIRONMENT, "PROCESSOR_ARCHITECTURE")
    return next((PROCESSORS[one.casefold()] for one in named if one.casefold() in PROCESSORS), "")


def _version(windows: Windows) -> str:
    major = _number(windows, "CurrentMajorVersionNumber")
    if major is not None:
        return f"{major}.{_number(windows, 'CurrentMinorVersionNumber') or 0}"
    return _first(windows, "CurrentVersion")


def _id(version: str, build: int, *, is_server: bool) -> str:
    if version in IDS:
        return IDS[version][is_server]
    if not version.startswith("10."):
        return "windows"
    if is_server:
        years = (year for first, year in SERVERS if build >= first)
        return f"windows-server-{next(years, '')}".rstrip("-")
    return "windows-11" if build >= FIRST_BUILD_OF_11 else "windows-10"


def _firmware(windows: Windows) -> str:
    """Return what its boot managers are for; without any, what the disk's sectors are for."""
    kinds = {kind for _, kind in windows.loaders.managers}
    found = []
    if kinds & {NTLDR, BOOTMGR} and windows.tree.survey.table != "gpt":
        found.append("bios")
    if UEFI in kinds:
        found.append("uefi")
    return "+".join(found) or find_firmware(windows.tree)


def _first(windows: Windows, *names: str) -> str:
    """Return the first of these values that there is, safe to print."""
    for name in names:
        value = windows.software.value(VERSION, name) if windows.software else None
        text = value.text if value is not None else None
        if text:
            return "".join(one for one in text if one.isprintable())[:MAX_FIELD_CHARACTERS]
    return ""


def _number(windows: Windows, name: str) -> int | None:
    value = windows.software.value(VERSION, name) if windows.software else None
    return value.number if value is not None else None
