"""ext2, ext3 and ext4: whose bytes are whose, and which are nobody's.

Files and their extents come from libfsext; the superblock, the free blocks, the inode flags and
the journal are read here, because libfsext shows none of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyfsext

from formats.errors import Corrupt, FormatError
from formats.filesystem import c_ext, ext_journal, ext_presented, ext_space, ext_streams, ext_walk
from formats.filesystem.c_ext import Superblock
from formats.filesystem.libyal import FileObject
from formats.filesystem.model import FileSystem, no_streams
from formats.ranges import Ranges, empty_ranges, union
from formats.source import Source


def probe(source: Source) -> bool:
    """Return whether the source begins with an ext2, ext3 or ext4 file system."""
    if source.size < c_ext.SUPERBLOCK_OFFSET + c_ext.SUPERBLOCK_SIZE:
        return False
    return c_ext.has_magic(source.pread(c_ext.SUPERBLOCK_OFFSET, c_ext.SUPERBLOCK_SIZE))


def read(source: Source) -> FileSystem:
    """Return the files and the free ranges of an ext volume.

    Raises Truncated, Corrupt, Unsupported when the superblock cannot be believed. Damage behind
    it gives the state "dirty", and what is damaged is not listed.
    """
    try:
        return _read(source)
    except MemoryError as error:
        raise FormatError("ext file system", 0, "more than memory can hold") from error


def _read(source: Source) -> FileSystem:
    superblock = ext_space.read_superblock(source)
    reason = unfinished(superblock)
    try:
        layout = ext_space.read_layout(source, superblock)
    except Corrupt as error:
        return _result(superblock, reason or str(error), _Found())
    found = _read_files(source, layout)
    if reason:
        return _result(superblock, reason, found)
    return _with_free(source, layout, found)


def unfinished(superblock: Superblock) -> str:
    """Return why the superblock says that work is unfinished, or an empty string."""
    if superblock.incompat & c_ext.INCOMPAT_RECOVER:
        return "INCOMPAT_RECOVER is set: the journal is not empty"
    if superblock.state & c_ext.STATE_ERROR:
        return "s_state has ERROR_FS: the kernel found errors"
    if not superblock.state & c_ext.STATE_VALID:
        return "s_state lacks VALID_FS: not cleanly unmounted"
    if superblock.ro_compat & c_ext.RO_COMPAT_ORPHAN_PRESENT:
        return "RO_COMPAT_ORPHAN_PRESENT is set: deleted files are not cleared up"
    return ""


@dataclass(frozen=True, slots=True)
class _Found:
    """What libfsext gave, and the journal's own extents."""

    listing: ext_streams.Listing = field(
        default_factory=lambda: ext_streams.Listing(no_streams(), (), (), empty_ranges())
    )
    symlinks: tuple[tuple[str, str], ...] = ()
    unread: tuple[str, ...] = ()
    journal: ext_journal.Journal | None = None


def _read_files(source: Source, layout: ext_space.Layout) -> _Found:
    superblock = layout.superblock
    volume = pyfsext.volume()
    try:
        volume.open_file_object(FileObject(ext_presented.Presented(source, layout)))
        walked = ext_walk.walk(source, superblock, volume)
        journal = _journal_extents(superblock, volume)
    except OSError as error:
        return _Found(unread=(f"no file is listed, libfsext refuses the volume: {error}",))
    listing = ext_streams.list_streams(source, layout, walked)
    failures = tuple(
        f"{reason} {place}" + (f" and {count - 1} more" if count > 1 else "")
        for reason, (count, place) in walked.failures.items()
    )
    return _Found(
        listing,
        tuple(walked.symlinks),
        (*listing.unread, *failures),
        ext_journal.read_journal(source, superblock, journal) if journal else None,
    )


def _journal_extents(superblock: Superblock, volume: Any) -> list[tuple[int, int, int]]:
    internal = superblock.journal_inum and not superblock.journal_dev
    if not superblock.compat & c_ext.COMPAT_HAS_JOURNAL or not internal:
        return []
    try:
        return ext_walk.extents_of(volume.get_file_entry_by_inode(superblock.journal_inum))
    except OSError:
        return []


def _with_free(source: Source, layout: ext_space.Layout, found: _Found) -> FileSystem:
    """Return the result of a volume whose superblock is clean, unless something contradicts it."""
    superblock = layout.superblock
    space = ext_space.read_space(source, layout)
    reason = space.reason
    used = found.listing.used
    body = empty_ranges()
    if found.journal and not reason:
        reason = found.journal.reason
        body = found.journal.body
        reason = reason or ext_journal.contradiction(found.journal, used, layout.metadata)
        used = union(used, found.journal.extents)
    if not reason and (count := ext_streams.free_contradiction(used, space.free)):
        reason = f"the block bitmaps call {count} bytes of files free"
    return _result(superblock, reason, found, union(space.free, body))


def _result(
    superblock: Superblock, reason: str, found: _Found, free: Ranges | None = None
) -> FileSystem:
    streams = found.listing.streams
    return FileSystem(
        kind=superblock.kind,
        block_size=superblock.block_size,
        label=superblock.label,
        uuid=superblock.uuid_text,
        state="dirty" if reason else "clean",
        state_reason=reason,
        free=empty_ranges() if reason or free is None else free,
        streams=ext_streams.written_only(streams) if reason else streams,
        names=found.listing.names,
        symlinks=found.symlinks,
        unread=found.unread,
    )
