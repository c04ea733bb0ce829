"""Every regular file of an ext volume, as libfsext reads it: raw columns, nothing judged yet."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from formats.filesystem.c_ext import INCOMPAT_FILETYPE, Superblock
from formats.source import Source

_REGULAR, _DIRECTORY, _SYMLINK = 0o10, 0o4, 0o12  # i_mode >> 12
_MAX_PATH_BYTES = 4096  # PATH_MAX: no program reaches a longer path by its name
_MAX_NAME_BYTES = 255  # EXT4_NAME_LEN
_MAX_RAW_DIRECTORY_BYTES = 64 << 20
_HOLE_OR_UNWRITTEN = 1
"""The extent flag of libfsext (LIBFSEXT_EXTENT_FLAG_IS_SPARSE); with a place: unwritten."""


@dataclass(slots=True)
class Walk:
    """What was found; one row per inode in `inodes`, `sizes`, `counts`.

    extents: flat triples (disk offset, length, flags) in file order, counts[i] of them for row i.
    names: (row, path). failures: reason -> (how often, the first place).
    """

    inodes: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    counts: array[int] = field(default_factory=lambda: array("q"))
    extents: array[int] = field(default_factory=lambda: array("q"))
    names: list[tuple[int, str]] = field(default_factory=list)
    symlinks: list[tuple[str, str]] = field(default_factory=list)
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)

    def fail(self, reason: str, place: str) -> None:
        """Count one thing that could not be read."""
        count, first = self.failures.get(reason, (0, place))
        self.failures[reason] = (count + 1, first)


def walk(source: Source, superblock: Superblock, volume: Any) -> Walk:
    """Return all regular files and symbolic links below the root of an open pyfsext volume.

    Each directory is entered once, whatever its names; OSError is raised only for the root.
    """
    found = Walk()
    root = volume.get_root_directory()
    linked: dict[int, int] = {}  # inode -> row, for inodes of several names
    entered = {root.get_inode_number()}
    pending = [(root, "")]
    while pending:
        directory, path = pending.pop()
        for child, name in _children(source, superblock, directory, path, found):
            place = f"{path}/{name}"
            try:
                kind = child.file_mode >> 12
                if kind == _REGULAR:
                    _regular(found, linked, child, place)
                elif kind == _DIRECTORY:
                    _directory(found, entered, pending, child, place)
                elif kind == _SYMLINK:
                    found.symlinks.append((place, child.symbolic_link_target))
            except (OSError, OverflowError, UnicodeError):
                found.fail("libfsext could not read what lies at", place)
    return found


def extents_of(entry: Any) -> list[tuple[int, int, int]]:
    """Return (disk offset, length, flags) of all extents of an entry."""
    return [entry.get_extent(index) for index in range(entry.number_of_extents)]


def _regular(found: Walk, linked: dict[int, int], child: Any, place: str) -> None:
    inode = child.get_inode_number()
    several = child.number_of_links != 1
    row = linked.get(inode) if several else None
    if row is None:
        extents, size = extents_of(child), child.size
        row = len(found.inodes)
        mark = len(found.extents)
        try:
            for extent in extents:
                found.extents.extend(extent)
            found.sizes.append(size)
        except OverflowError:
            del found.extents[mark:]
            raise
        found.inodes.append(inode)
        found.counts.append(len(extents))
        if several:
            linked[inode] = row
    found.names.append((row, place))


def _directory(
    found: Walk, entered: set[int], pending: list[tuple[Any, str]], child: Any, place: str
) -> None:
    inode = child.get_inode_number()
    if inode in entered:
        found.fail("a directory has a second name at", place)
    elif len(place) > _MAX_PATH_BYTES:
        found.fail("directories are nested too deeply at", place[:80] + "…")
    else:
        entered.add(inode)
        pending.append((child, place))


def _children(
    source: Source, superblock: Superblock, directory: Any, path: str, found: Walk
) -> Iterator[tuple[Any, str]]:
    """Yield the entries of a directory with their names; bytes that are no UTF-8 as surrogates.

    libfsext refuses names that are no UTF-8 and gives None for one of 255 bytes, so these are
    taken from the directory's blocks.
    """
    try:
        count = directory.number_of_sub_file_entries
    except OSError:
        found.fail("libfsext could not read the directory", path or "/")
        return
    raw: dict[int, list[str]] | None = None
    for index in range(count):
        try:
            child = directory.get_sub_file_entry(index)
        except OSError:
            found.fail("libfsext could not read an entry of", path or "/")
            continue
        try:
            name = child.name
        except (OSError, UnicodeError):
            name = ""
        if not name or "/" in name:
            if raw is None:
                raw = _raw_names(source, superblock, directory)
            known = raw.get(child.get_inode_number())
            if not known:
                found.fail("an entry has no legal name in", path or "/")
                continue
            name = known.pop()
        yield child, name


def _raw_names(source: Source, superblock: Superblock, directory: Any) -> dict[int, list[str]]:
    """Return inode -> the names in a directory's blocks that libfsext cannot give.

    Source: Documentation/filesystems/ext4/directory.rst. A hash tree's inner blocks look like
    empty entries, so reading straight through finds every name.
    """
    names: dict[int, list[str]] = {}
    budget = _MAX_RAW_DIRECTORY_BYTES
    try:
        extents = extents_of(directory)
    except OSError:
        return names
    for offset, length, flags in extents:
        budget -= length
        if flags & _HOLE_OR_UNWRITTEN or budget < 0 or offset + length > source.size:
            continue
        data = source.pread(offset, length)
        for start in range(0, length, superblock.block_size):
            _raw_block(superblock, data[start : start + superblock.block_size], names)
    return names


def _raw_block(superblock: Superblock, block: bytes, names: dict[int, list[str]]) -> None:
    """Add the names of one directory block that libfsext cannot give."""
    typed = superblock.incompat & INCOMPAT_FILETYPE
    position = 0
    while position + 8 <= len(block):
        # 0: inode; 4: bytes to the next entry; 6: length of the name; 7: file type (FILETYPE)
        inode, step, length = struct.unpack_from("<IHH", block, position)
        if len(block) > 0xFFFF:  # fs/ext4/ext4.h, ext4_rec_len_from_disk
            step = len(block) if step in (0, 0xFFFF) else (step & 0xFFFC) | (step & 3) << 16
        name = block[position + 8 : position + 8 + (length & 0xFF if typed else length)]
        legal = inode and b"/" not in name and b"\0" not in name
        if legal and (len(name) == _MAX_NAME_BYTES or not _is_utf8(name)):
            names.setdefault(inode, []).append(name.decode("utf-8", "surrogateescape"))
        if step < 8:
            return
        position += step


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
