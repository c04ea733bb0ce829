"""boot.ini: which Windows NT 4 to Server 2003 the loader (ntldr) offers, and with what options.

Sources: Microsoft, "Overview of the Boot.ini File", "Boot.ini Boot Parameter Reference"; Microsoft
Knowledge Base Q102873, "BOOT.INI and ARC Path Naming Conventions and Usage", and Q227704, "The
Meaning of SIGNATURE() in an ARC Path".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_BOOT_INI_BYTES = 1 << 16
MAX_ENTRIES = 100

_ARC = re.compile(
    r"(?P<adapter>multi|scsi|signature)\((?P<number>[0-9a-f]{1,8})\)"
    r"disk\((?P<disk>\d{1,4})\)rdisk\((?P<rdisk>\d{1,4})\)partition\((?P<partition>\d{1,4})\)"
    r"(?P<path>\\.*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ArcPath:
    """Where a Windows lies.

    adapter: "multi" (through the BIOS), "scsi" (through ntbootdd.sys), or "signature" (ntbootdd.sys
    looks for the disk). number: of the adapter, or the disk's signature. disk: SCSI id, means
    nothing for "multi". rdisk: number of the BIOS disk, or logical unit. partition: from 1: the
    primary ones first, then the logical ones. path: beginning with a backslash, "" if there is
    none.
    """

    adapter: str
    number: int
    disk: int
    rdisk: int
    partition: int
    path: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of what is offered.

    target: as written: an ARC path, or a boot sector's file (`C:\\CMDCONS\\BOOTSECT.DAT`).
    arc: the parsed path, None for a boot sector's file. options: names in upper case without the
    slash -> what follows "=", "" if nothing does.
    """

    target: str
    title: str
    arc: ArcPath | None
    options: dict[str, str]


@dataclass(frozen=True, slots=True)
class BootIni:
    """timeout: seconds, -1 to wait for ever, None if not given. default: as written, or "".

    entries: as many as MAX_ENTRIES, in the order of the file.
    """

    timeout: int | None
    default: str
    entries: tuple[Entry, ...]

    @property
    def default_entry(self) -> Entry | None:
        """What is started by itself.

        A default that is not offered becomes an entry of its own without options, which the menu
        calls "Windows (default)"; without any default it is the first entry.
        """
        for entry in self.entries:
            if _same(entry.target, self.default) or not self.default:
                return entry
        return _entry(self.default, "") if self.default else None


def parse_boot_ini(data: bytes) -> BootIni:
    """Return what a boot.ini says; lines that mean nothing are passed over, as ntldr does.

    Of more than MAX_BOOT_INI_BYTES only the beginning counts.
    """
    timeout: int | None = None
    default = section = ""
    entries: list[Entry] = []
    text = data[:MAX_BOOT_INI_BYTES].split(b"\x1a", 1)[0].decode("cp1252", "replace")
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.strip("[] ").lower()
        elif line and not line.startswith(";"):
            name, found, rest = line.partition("=")
            name, rest = name.strip(), rest.strip()
            if section == "operating systems":
                if name and found and len(entries) < MAX_ENTRIES:
                    entries.append(_entry(name, rest))
            elif section == "boot loader" and name.lower() == "timeout":
                timeout = _seconds(rest)
            elif section == "boot loader" and name.lower() == "default":
                default = rest
    return BootIni(timeout, default, tuple(entries))


def parse_arc_path(text: str) -> ArcPath | None:
    """Return an ARC path's parts, or None for anything else."""
    match = _ARC.fullmatch(text)
    if match is None:
        return None
    adapter = match["adapter"].lower()
    base = 16 if adapter == "signature" else 10
    if base == 10 and not match["number"].isdecimal():
        return None
    return ArcPath(
        adapter,
        int(match["number"], base),
        int(match["disk"]),
        int(match["rdisk"]),
        int(match["partition"]),
        match["path"] or "",
    )


def _entry(target: str, rest: str) -> Entry:
    title, options = rest, ""
    if rest.startswith('"'):
        title, _, options = rest[1:].partition('"')
    elif "/" in rest:
        title, _, options = rest.partition("/")
        options = f"/{options}"
    return Entry(target, title.strip(), parse_arc_path(target), _options(options))


def _options(text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for word in text.split():
        if word.startswith("/"):
            name, _, value = word[1:].partition("=")
            options.setdefault(name.upper(), value)
    return options


def _seconds(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-1|[0-9]{1,9}", text) else None


def _same(left: str, right: str) -> bool:
    return left.rstrip("\\").lower() == right.rstrip("\\").lower()
