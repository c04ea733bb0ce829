"""SYSLINUX and EXTLINUX: the boot sector, ldlinux.sys, and the files a configuration names.

Sources: SYSLINUX 6, libinstaller/syslxint.h (struct patch_area, ext_patch_area,
syslinux_extent, fat_boot_sector), core/diskstart.inc; doc/syslinux.txt and doc/extlinux.txt.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from formats.boot.entry import Entry
from formats.errors import Corrupt, Truncated, Unsupported

SECTOR_BYTES = 512
MAX_CONFIG_BYTES = 16 << 20
_MAGIC = struct.pack("<I", 0x3EB202FE)  # LDLINUX_MAGIC
_OEM_NAME = slice(3, 11)  # bsOemName
_BOOT_MAGIC = slice(0x1F8, 0x1FC)  # bsMagic
_SIGNATURE = slice(0x1FE, 0x200)

_PATCH = struct.Struct("<4sIHHIIHH")
# patch_area, at a multiple of 4 in the first sector of ldlinux.sys: 0 magic; 4 instance;
# 8 data_sectors, sectors of ldlinux.sys without the next; 10 adv_sectors, sectors of the two
# auxiliary data vectors; 12 dwords; 16 checksum; 20 maxtransfer; 22 epaoffset, bytes from the
# file's start to the extended area
_EXTENDED = struct.Struct("<10H")
# ext_patch_area: 0 advptroffset; 2 diroffset; 4 dirlen; 6 subvoloffset; 8 subvollen;
# 10 secptroffset, bytes from the file's start to the extents; 12 secptrcnt, room for extents;
# 14 sect1ptr0 and 16 sect1ptr1, bytes in the boot sector where the low and the high half of
# ldlinux.sys' first sector are; 18 raidpatch
_EXTENT = struct.Struct("<QH")  # 0 lba, from the partition's start; 8 len, sectors, 0 = unused


@dataclass(frozen=True, slots=True)
class LdLinux:
    """What the boot sector reads of ldlinux.sys.

    runs: (first sector, sectors) behind its first sector, in units of 512 bytes from the start of
    the partition. first_sector_at: the two offsets in the boot sector that hold the two halves of
    the first sector's number.
    """

    data_sectors: int
    adv_sectors: int
    runs: tuple[tuple[int, int], ...]
    first_sector_at: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Reference:
    """A file that a configuration names: the keyword in upper case, the path as written."""

    keyword: str
    path: str
    line: int


def is_boot_sector(sector: bytes) -> bool:
    """Return whether the 512 bytes are a boot sector of SYSLINUX or EXTLINUX 4 or later."""
    return (
        len(sector) >= SECTOR_BYTES
        and sector[_OEM_NAME] == b"SYSLINUX"
        and sector[_BOOT_MAGIC] == _MAGIC
        and sector[_SIGNATURE] == b"\x55\xaa"
    )


def parse_ldlinux(data: bytes) -> LdLinux:
    """Return the sector map inside an installed ldlinux.sys; raises Truncated, Corrupt."""
    head = data[:SECTOR_BYTES]
    at = next((at for at in range(0, len(head), 4) if head[at : at + 4] == _MAGIC), -1)
    if at < 0:
        raise Corrupt("ldlinux.sys", 0, "no patch area in its first sector")
    _, _, data_sectors, adv_sectors, _, _, _, extended_at = _unpack(_PATCH, data, at)
    fields = _unpack(_EXTENDED, data, extended_at)
    extents_at, room, low_at, high_at = fields[5:9]
    if max(low_at, high_at) > SECTOR_BYTES - 4:
        reason = f"first sector's number at {low_at} and {high_at} of the boot sector"
        raise Corrupt("ldlinux.sys", extended_at, reason)
    runs = tuple(_extents(data, extents_at, room))
    if sum(length for _, length in runs) + 1 < data_sectors:
        reason = f"its map has fewer than its {data_sectors} sectors"
        raise Corrupt("ldlinux.sys", extents_at, reason)
    return LdLinux(data_sectors, adv_sectors, runs, (low_at, high_at))


def first_sector(sector: bytes, ldlinux: LdLinux) -> int:
    """Return the partition's sector in which the boot sector looks for ldlinux.sys."""
    low, high = (_unpack(struct.Struct("<I"), sector, at)[0] for at in ldlinux.first_sector_at)
    return int(high << 32 | low)


def _extents(data: bytes, start: int, room: int) -> Iterator[tuple[int, int]]:
    for number in range(room):
        lba, sectors = _unpack(_EXTENT, data, start + number * _EXTENT.size)
        if sectors == 0:
            return
        yield lba, sectors


def _unpack(layout: struct.Struct, data: bytes, offset: int) -> tuple[int, ...]:
    if offset + layout.size > len(data):
        raise Truncated("ldlinux.sys", offset, f"expected {layout.size} bytes")
    return layout.unpack_from(data, offset)


_FIRST_WORD = frozenset(
    (
        *("KERNEL", "LINUX", "BOOT", "BSS", "PXE", "FDIMAGE", "COMBOOT", "COM32"),
        *("CONFIG", "INCLUDE", "FDT", "DEVICETREE", "UI", "FONT", "KBDMAP", "DISPLAY", "DEFAULT"),
    )
)


def parse_config(data: bytes) -> tuple[Reference, ...]:
    """Return the files that an extlinux.conf or syslinux.cfg names; raises Unsupported.

    DEFAULT may name a label instead of a file, and is listed only when it looks like a path.
    """
    found: list[Reference] = []
    for number, words in _lines(data):
        pairs = _named(words)
        found.extend(Reference(word, path, number) for word, path in pairs if path)
    return tuple(found)


def menu_entries(data: bytes) -> list[Entry]:
    """Return the labels that start a kernel, in order; raises Unsupported.

    What an APPEND before the first label says is meant for all labels without one.
    """
    labels: list[tuple[str, dict[str, list[str]]]] = [("", {})]
    for _, (keyword, *words) in _lines(data):
        if keyword.upper() == "LABEL":
            labels.append((" ".join(words), {}))
        elif words:
            labels[-1][1][keyword.upper()] = words
    usual = labels[0][1].get("APPEND", [])
    return [_entry(label, {"APPEND": usual, **said}) for label, said in labels if _kernel(said)]


def _kernel(said: dict[str, list[str]]) -> str:
    return " ".join((said.get("LINUX") or said.get("KERNEL") or [])[:1])


def _entry(label: str, said: dict[str, list[str]]) -> Entry:
    arguments = [] if said["APPEND"] == ["-"] else said["APPEND"]
    named = [word for word in arguments if word.lower().startswith("initrd=")]
    initrds = [" ".join(said.get("INITRD", [])), *(word[len("initrd=") :] for word in named)]
    return Entry(
        label,
        _kernel(said),
        tuple(path for one in initrds for path in one.split(",") if path),
        tuple(word for word in arguments if word not in named),
    )


def _lines(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield (number, words) of each line that says something."""
    if len(data) > MAX_CONFIG_BYTES:
        raise Unsupported("syslinux configuration", 0, f"{len(data)} bytes")
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").splitlines(), 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield number, words


def _named(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (keyword, path) of one line."""
    keyword = words[0].upper()
    if keyword == "MENU":
        words = words[1:]
        keyword = words[0].upper() if words else ""
        if keyword == "BACKGROUND" and len(words) > 1:
            yield "MENU BACKGROUND", words[1]
    if keyword == "INITRD" and len(words) > 1:
        yield from (("INITRD", path) for path in " ".join(words[1:]).split(","))
    elif keyword == "APPEND":
        for word in words[1:]:
            if word.lower().startswith("initrd="):
                yield from (("INITRD", path) for path in word[len("initrd=") :].split(","))
    elif keyword in _FIRST_WORD and len(words) > 1:
        if keyword != "DEFAULT" or "/" in words[1] or "." in words[1]:
            yield keyword, words[1]
        if keyword == "UI":  # its arguments are configuration files
            yield from (("CONFIG", word) for word in words[2:] if "." in word)
