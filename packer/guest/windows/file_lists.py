"""What every Windows of a generation reads before its file system runs, by name.

The lists are generous: a font too many costs kilobytes, a library too few costs the start.

Sources. Vista and later: Microsoft, "BCD Boot Options Reference", and the files that Windows'
own WIMBoot and CompactOS keep uncompressed, because its loaders read them (WimBootCompress.ini;
the list in compact.exe); the rest by what winload imports and loads on machines that were traced
[K: general knowledge, not checked on a real guest]. NT 5: Knowledge Base 102873 and 314057.
"""

from __future__ import annotations

from dataclasses import dataclass

BOOT_SECTOR = "boot sector"
LOADER = "loader"
KERNEL = "kernel"
HAL = "HAL"
REGISTRY = "registry"
DRIVERS = "drivers"
CODE_PAGES = "code pages"
GROUPS = (BOOT_SECTOR, LOADER, KERNEL, HAL, REGISTRY, DRIVERS, CODE_PAGES)
"""In the order in which they are needed."""

NT5, NT6, NT10 = 5, 6, 10
"""Generations: 2000 to Server 2003; Vista to 8.1; 10 and 11, with their servers."""


@dataclass(frozen=True, slots=True)
class Row:
    """Files of a group: shell patterns, in any case, below a folder; `*` stops at a slash.

    rule: why they are there.
    """

    group: str
    rule: str
    folder: str
    patterns: tuple[str, ...]


_SYSTEM32 = "/System32"

IN_WINDOWS: dict[int, tuple[Row, ...]] = {
    NT5: (
        Row(KERNEL, "kernel", _SYSTEM32, ("ntoskrnl.exe", "ntkrnl*.exe", "ntkrpamp.exe")),
        Row(KERNEL, "boot screen", _SYSTEM32, ("bootvid.dll",)),
        Row(KERNEL, "debugger transport", _SYSTEM32, ("kd*.dll",)),
        Row(KERNEL, "flaws of firmware", "/inf", ("biosinfo.inf",)),
        Row(HAL, "hardware abstraction layer", _SYSTEM32, ("hal*.dll",)),
        Row(
            *(REGISTRY, "hive of the control sets", f"{_SYSTEM32}/config"),
            ("system", "system.log", "system.alt", "system.sav"),
        ),
        Row(DRIVERS, "flaws of drivers", "/AppPatch", ("drvmain.sdb",)),
    ),
    NT6: (
        Row(
            *(LOADER, "loader of Windows", _SYSTEM32),
            ("winload.*", "winresume.*", "boot/*", "??*-*/winload.*.mui", "??*-*/winresume.*.mui"),
        ),
        Row(LOADER, "state of the last start", "", ("bootstat.dat",)),
        Row(LOADER, "copy of the boot manager", "/Boot/EFI", ("*",)),
        Row(
            *(KERNEL, "kernel", _SYSTEM32),
            ("ntoskrnl.exe", "ntkrnlpa.exe", "KernelBase.dll", "apisetschema.dll"),
        ),
        Row(KERNEL, "API sets", _SYSTEM32, ("api-ms-win*", "ext-ms-win*")),
        Row(KERNEL, "boot screen", _SYSTEM32, ("bootvid.dll",)),
        Row(KERNEL, "debugger transport", _SYSTEM32, ("kd*.dll",)),
        Row(KERNEL, "errors of hardware", _SYSTEM32, ("pshed.dll",)),
        Row(KERNEL, "microcode", _SYSTEM32, ("mcupdate_*.dll",)),
        Row(KERNEL, "code integrity", _SYSTEM32, ("ci.dll", "CodeIntegrity/*")),
        Row(KERNEL, "flaws of firmware", "/INF", ("errata.inf",)),
        Row(HAL, "hardware abstraction layer", _SYSTEM32, ("hal*.dll",)),
        Row(
            *(REGISTRY, "hive of the control sets", f"{_SYSTEM32}/config"),
            ("system", "system.log*", "system.alt", "system.sav"),
        ),
        Row(
            *(REGISTRY, "hive of the driver database", f"{_SYSTEM32}/config"),
            ("drivers", "drivers.log*"),
        ),
        Row(REGISTRY, "hive of early anti-malware", f"{_SYSTEM32}/config", ("elam", "elam.log*")),
        Row(DRIVERS, "flaws of drivers", "/AppPatch", ("drvmain.sdb",)),
        Row(CODE_PAGES, "code page", _SYSTEM32, ("*.nls",)),
        Row(CODE_PAGES, "keyboard layout", _SYSTEM32, ("kbd*.dll",)),
        Row(CODE_PAGES, "font of the boot screen", "/Fonts", ("vgaoem.fon", "vgasys.fon")),
    ),
}
IN_WINDOWS[NT10] = (
    *IN_WINDOWS[NT6],
    Row(
        *(KERNEL, "hypervisor and secure kernel", _SYSTEM32),
        ("hvloader.*", "hvix64.exe", "hvax64.exe", "hvaa64.exe", "securekernel.exe", "skci.dll"),
    ),
)

_DRIVERS = ("*.sys", "*/*.sys")
ALL_DRIVERS: dict[int, tuple[Row, ...]] = {
    NT5: (),
    NT6: (Row(DRIVERS, "any driver, for other hardware", f"{_SYSTEM32}/drivers", _DRIVERS),),
}
"""Added last, so that a driver that is needed for more says for what. The loader of NT 5 reads no
driver but those that the registry names."""
ALL_DRIVERS[NT10] = ALL_DRIVERS[NT6]

WITHOUT_REGISTRY = (
    Row(DRIVERS, "any driver: the registry cannot be read", f"{_SYSTEM32}/drivers", _DRIVERS),
    Row(DRIVERS, "any driver: the registry cannot be read", _SYSTEM32, ("*.sys",)),
)

ANY_CODE_PAGE = Row(CODE_PAGES, "any code page: the registry cannot be read", _SYSTEM32, ("*.nls",))

NTLDR_FILES = ("ntldr", "boot.ini", "ntdetect.com", "bootfont.bin", "ntbootdd.sys")
"""Of the system volume's root; ntldr reads all of these that are there."""

BOOTMGR_FILES = ("bootmgr", "bootnxt")
BOOTMGR_FOLDER = "/Boot"
