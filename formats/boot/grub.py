"""GRUB for the BIOS: what it reads at absolute addresses, and which files its menu names.

Sources: GRUB 2, include/grub/i386/pc/boot.h (offsets), grub-core/boot/i386/pc/boot.S and
diskboot.S; the GRUB manual, "Shell-like scripting" and "The list of commands".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from formats.boot.entry import Entry
from formats.errors import Corrupt, Unsupported
from formats.source import Source

SECTOR_BYTES = 512  # the unit of every address below, whatever the disk's own sector size
_KERNEL_SECTOR_AT = 0x5C  # GRUB_BOOT_MACHINE_KERNEL_SECTOR: 8 bytes, LBA of core.img
_CODE_END = 0x1B8  # GRUB_BOOT_MACHINE_WINDOWS_NT_MAGIC: behind it, disk signature and partitions
_SIGNATURE_AT = 0x1FE
_SIGNATURE = b"\x55\xaa"
_BOOT_STRINGS = b"GRUB \0Geom\0Hard Disk\0Read\0 Error"  # boot.S, from notification_string on
_DISKBOOT_STRINGS = b"loading"  # diskboot.S, notification_string
_ENTRY = struct.Struct("<QHH")
# one entry of diskboot.S's blocklist, GRUB_BOOT_MACHINE_LIST_SIZE = 12 bytes:
# 0 first sector (LBA on the boot drive); 8 sectors, 0 ends the list; 10 segment to load to
MAX_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Core:
    """Where boot.img finds core.img.

    runs: (first sector, sectors), in units of 512 bytes from the disk's start; the first run is
    diskboot.img itself.
    """

    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """A file that a configuration names.

    command: as written ("linux", "initrd", "configfile", …). path: without the device in front.
    complete: whether the path holds no variable, so that it can be looked up.
    """

    command: str
    path: str
    complete: bool
    line: int


@dataclass(frozen=True, slots=True)
class Config:
    """What a grub.cfg refers to; uuids: file systems that `search` looks for, in order."""

    references: tuple[Reference, ...]
    uuids: tuple[str, ...]


def is_boot_sector(sector: bytes) -> bool:
    """Return whether the 512 bytes are GRUB's boot.img."""
    whole = len(sector) >= SECTOR_BYTES and sector[_SIGNATURE_AT:SECTOR_BYTES] == _SIGNATURE
    return whole and _BOOT_STRINGS in sector[:_CODE_END]


def find_core(disk: Source, boot_sector_lba: int = 0) -> Core | None:
    """Return where core.img lies, or None when the sector is not GRUB's.

    Raises Truncated, Corrupt when boot.img points at anything but a core.img inside the disk.
    """
    sector = disk.pread(boot_sector_lba * SECTOR_BYTES, SECTOR_BYTES)
    if not is_boot_sector(sector):
        return None
    (first,) = struct.unpack_from("<Q", sector, _KERNEL_SECTOR_AT)
    at = boot_sector_lba * SECTOR_BYTES + _KERNEL_SECTOR_AT
    _check_run(disk, "GRUB boot.img", at, first, 1)
    diskboot = disk.pread(first * SECTOR_BYTES, SECTOR_BYTES)
    if _DISKBOOT_STRINGS not in diskboot:
        raise Corrupt("GRUB core.img", first * SECTOR_BYTES, "does not begin with diskboot.img")
    return Core(((first, 1), *_blocklist(disk, first, diskboot)))


def _blocklist(disk: Source, first: int, diskboot: bytes) -> Iterator[tuple[int, int]]:
    """Yield the list, which begins at the sector's end (0x1F4) and grows downwards."""
    code_end = diskboot.index(_DISKBOOT_STRINGS)
    for position in range(SECTOR_BYTES - _ENTRY.size, code_end, -_ENTRY.size):
        start, sectors, _ = _ENTRY.unpack_from(diskboot, position)
        if sectors == 0:
            return
        _check_run(disk, "GRUB blocklist", first * SECTOR_BYTES + position, start, sectors)
        yield start, sectors
    raise Corrupt("GRUB blocklist", first * SECTOR_BYTES, "has no end")


def _check_run(disk: Source, structure: str, at: int, first: int, sectors: int) -> None:
    if first == 0 or (first + sectors) * SECTOR_BYTES > disk.size:
        reason = f"sectors {first} to {first + sectors} are not inside the disk"
        raise Corrupt(structure, at, reason)


_FILE_COMMANDS = frozenset(
    (
        *("linux", "linux16", "linuxefi", "initrd", "initrd16", "initrdefi", "devicetree"),
        *("multiboot", "module", "multiboot2", "module2", "xen_hypervisor", "xen_module"),
        *("configfile", "legacy_configfile", "syslinux_configfile", "source", ".", "normal"),
        *("chainloader", "ntldr", "freedos", "kfreebsd", "loadfont", "background_image"),
    )
)
_MANY_FILES = frozenset(("initrd", "initrd16", "initrdefi"))
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+)|(?P<comment>\#[^\n]*)|(?P<end>[\n;{}]|&&|\|\|)|(?P<other>[&|<>])"""
    r"""|(?P<word>(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s;'"\\&|<>])+)|(?P<odd>.)""",
    re.DOTALL,
)
_PIECE = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)|([^'"\\]+)""", re.DOTALL)


def parse_config(data: bytes) -> Config:
    """Return the files and file systems that a grub.cfg names, in any branch of its script.

    Nothing is executed: what lies in an `if` that is never true is listed as well.
    Raises Unsupported above 16 MiB.
    """
    references: list[Reference] = []
    uuids: list[str] = []
    for line, words in _commands(data):
        command, arguments = words[0], words[1:]
        if command in _FILE_COMMANDS:
            references.extend(_references(command, arguments, line))
        elif command in ("search", "search.fs_uuid"):
            uuids.extend(_searched(command, arguments))
    return Config(tuple(references), tuple(dict.fromkeys(uuids)))


_KERNEL_COMMANDS = frozenset(("linux", "linux16", "linuxefi"))


def menu_entries(data: bytes) -> list[Entry]:
    """Return the entries of a grub.cfg that start a Linux kernel, in the order of the menu.

    Those of submenus stand among the others; what is started without a menu has no title. Nothing
    is executed: of several kernels in the branches of one entry it is the first. Raises
    Unsupported above 16 MiB.
    """
    groups: list[tuple[str, list[list[str]]]] = [("", [])]
    for _, words in _commands(data):
        if words[0] in ("menuentry", "submenu"):
            groups.append((" ".join(words[1:2]), []))
        else:
            groups[-1][1].append(words)
    entries = (_entry(title, commands) for title, commands in groups)
    return [one for one in entries if one is not None]


def _entry(title: str, commands: list[list[str]]) -> Entry | None:
    kernel = next((one[1:] for one in commands if one[0] in _KERNEL_COMMANDS and one[1:]), None)
    if kernel is None:
        return None
    named = next((one[1:] for one in commands if one[0] in _MANY_FILES), [])
    initrds = tuple(_without_device(word) for word in named if not word.startswith("-"))
    return Entry(title, _without_device(kernel[0]), initrds, tuple(kernel[1:]))


def _without_device(word: str) -> str:
    return re.sub(r"^\([^)]*\)", "", word)


def _commands(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, words) of every simple command; keywords of the script are skipped."""
    if len(data) > MAX_CONFIG_BYTES:
        raise Unsupported("grub.cfg", 0, f"{len(data)} bytes, more than {MAX_CONFIG_BYTES}")
    text = data.decode("utf-8", "surrogateescape")
    words: list[str] = []
    line = start = 1
    for match in _TOKEN.finditer(text):
        token = match[0]
        if match.lastgroup == "word" and token not in ("{", "}"):
            if not words:
                start = line
            if words or token not in ("if", "then", "else", "elif", "while", "do", "!"):
                words.append(_unquoted(token))
        elif match.lastgroup == "end" and words:
            yield start, words
            words = []
        line += token.count("\n")
    if words:
        yield start, words


def _unquoted(token: str) -> str:
    pieces = []
    for single, double, escaped, plain in _PIECE.findall(token):
        pieces.append(single or re.sub(r'\\([$"\\])', r"\1", double) or plain)
        pieces.append(escaped if escaped != "\n" else "")
    return "".join(pieces)


def _references(command: str, arguments: list[str], line: int) -> Iterator[Reference]:
    files = [word for word in arguments if not word.startswith("-")]
    for word in files if command in _MANY_FILES else files[:1]:
        path = _without_device(word)
        if path and not path.startswith("+"):  # chainloader +1 is a sector, not a file
            yield Reference(command, path, "$" not in path, line)


def _searched(command: str, arguments: list[str]) -> Iterator[str]:
    """Yield the UUID of `search --fs-uuid [options] UUID` or `search.fs_uuid UUID variable`."""
    if command == "search.fs_uuid":
        yield from arguments[:1]
    elif "--fs-uuid" in arguments or "-u" in arguments:
        plain = [word for word in arguments if not word.startswith("-")]
        yield from plain[-1:]
