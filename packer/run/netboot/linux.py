"""What starts a Linux guest when no loader of its own does: kernel, initramfs, command line.

They are those of its boot menu, as packer.guest.boot_config finds it on the guest's disk: here the
pack is asked for the same files. Nothing is executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from posixpath import normpath
from typing import Protocol

from formats.boot import bls, grub, syslinux
from formats.boot.entry import Entry
from formats.errors import FormatError
from packer.errors import InputError, UsageError
from packer.guest.boot_config import (
    BLS,
    GRUB,
    MAX_CONFIG_BYTES,
    MAX_CONFIGS,
    SYSLINUX,
    SYSLINUX_FOLDERS,
    language_of,
)
from packer.text import printable

MAX_ENTRIES = 1000
MAX_ARGUMENTS_CHARACTERS = 2000
"""Linux reads 2,048 bytes of its command line on x86 (COMMAND_LINE_SIZE), with what is appended."""

_ROOTS = ("", "/boot", "/boot/efi", "/efi")
"""Where the file systems that a loader sees are mounted, whose roots paths begin at."""

_OF_THE_LOADER = ("initrd=", "BOOT_IMAGE=")
_SPECIAL = re.compile(r"""[$"\\]""")
_SEPARATORS = ("&&", "||", ";")
_ESPS = ("/boot/efi/", "/efi/")
ENTRIES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Start:
    """A line of a guest's boot menu whose files are there; guest paths.

    arguments: of the kernel. left_out: words that only the guest's loader understands, or that
    iPXE would not hand on.
    """

    title: str
    kernel: str
    initrds: tuple[str, ...]
    arguments: tuple[str, ...]
    left_out: tuple[str, ...]


class GuestFiles(Protocol):
    """Files of a guest by path; see guest_files.BootFiles."""

    @property
    def paths(self) -> Sequence[str]:
        """Return all of them, sorted."""

    def read(self, path: str, max_bytes: int) -> bytes:
        """Return the bytes of one."""


def find_starts(files: GuestFiles) -> list[Start]:
    """Return what the guest's boot menus offer, in their order, the same one once."""
    paths = files.paths
    there = frozenset(paths)
    found: dict[tuple[str, tuple[str, ...], tuple[str, ...]], Start] = {}
    for path, language in _configs(paths):
        try:
            data = files.read(path, MAX_CONFIG_BYTES)
        except InputError:  # larger than any menu: another file of that name
            continue
        for entry in _entries(language, data):
            start = _start(entry, path, there)
            if start is not None and len(found) < MAX_ENTRIES:
                found.setdefault((start.kernel, start.initrds, start.arguments), start)
    return list(found.values())


def choose(starts: Sequence[Start], wanted: str | None) -> Start:
    """Return the one that a person means by its number, from 1, or its title; None: the first.

    Raises InputError when there is none at all, UsageError when there is no such one.
    """
    if not starts:
        raise InputError(
            "the pack has no boot menu of Linux whose kernel it carries",
            hint="only Linux guests start over the network this way; see docs/netboot.md",
        )
    if wanted is None:
        return starts[0]
    by_title = {one.title: one for one in reversed(starts)}
    by_number = {str(number): one for number, one in enumerate(starts, 1)}
    found = by_number.get(wanted) or by_title.get(wanted)
    if found is None:
        lines = [f"  {row}  {one.title}" for row, one in enumerate(starts[:ENTRIES_SHOWN], 1)]
        raise UsageError("\n".join([f"there is no entry {wanted!r}; there are:", *lines]))
    return found


def _configs(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (path, language) of boot configurations, what the package managers write first."""
    named = [(path, _language(path)) for path in paths]
    known = [(path, language) for path, language in named if language]
    # Where entries of their own make the menu (Fedora's blscfg), the newest is the last by name.
    entries = [one for one in known if one[1] == BLS][::-1]
    others = [one for one in known if one[1] != BLS]
    yield from [*others, *entries][:MAX_CONFIGS]


def _language(path: str) -> str:
    folder = path.rpartition("/")[0]
    language = language_of(path, on_esp=path.startswith(_ESPS))
    if language == SYSLINUX and not path.startswith("/boot/"):
        return language if (folder or "/") in SYSLINUX_FOLDERS else ""
    return language


def _entries(language: str, data: bytes) -> list[Entry]:
    try:
        if language == GRUB:
            return grub.menu_entries(data)
        if language == SYSLINUX:
            return syslinux.menu_entries(data)
        entry = bls.parse_entry(data).menu_entry
    except FormatError:
        return []
    return [] if entry is None else [entry]


def _start(entry: Entry, config: str, there: frozenset[str]) -> Start | None:
    """Return an entry with its files found, or None when any of them is not there."""
    named = [entry.kernel, *(path for path in entry.initrds if "$" not in path)]
    found = [_place(path, config, there) for path in named]
    usable = [word for word in entry.arguments if _can_be_said(word)]
    left_out = tuple(word for word in entry.arguments if not _can_be_said(word))
    arguments = tuple(
        f'"{word}"' if " " in word else word  # the kernel's own quoting
        for word in usable
        if not word.startswith(_OF_THE_LOADER)
    )
    if None in found or len(" ".join(arguments)) > MAX_ARGUMENTS_CHARACTERS:
        return None
    kernel, *initrds = (path for path in found if path is not None)
    return Start(printable(entry.title), kernel, tuple(initrds), arguments, left_out)


def _can_be_said(word: str) -> bool:
    """Return whether iPXE hands a word on as it is: no variables, separators or odd characters.

    Quotes mean nothing to it, so what is special is so within a word with spaces, too (iPXE,
    `src/core/exec.c`).
    """
    return (
        word.isprintable()
        and not _SPECIAL.search(word)
        and not any(part in _SEPARATORS or part.startswith("#") for part in word.split())
    )


def _place(path: str, config: str, there: frozenset[str]) -> str | None:
    roots = _ROOTS if path.startswith("/") else (config.rpartition("/")[0] + "/",)
    places = [normpath(root + path) for root in roots]
    return next((place for place in places if place in there), None)
