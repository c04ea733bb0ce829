"""What every file-system reader hands back: who owns which bytes of a volume.

All offsets are bytes from the start of the volume. Only what is *provably* a plain data range of
a regular file is listed as an extent; everything else that is allocated is left out and so stays
in the pack as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from formats.ranges import Ranges, empty_ranges

DATA = 0
UNWRITTEN = 1
"""An extent that is allocated and reads as zeros whatever lies on disk."""


PLAIN = 0
"""A stream whose bytes on the disk are those that a reader of the file sees."""
STORED = 1
"""A stream whose bytes on the disk mean something to its file system only: compressed, encrypted,
deduplicated. Nobody but a disk that stores the same file in the same way can supply them."""


@dataclass(frozen=True, slots=True)
class Streams:
    """Data streams of regular files, as columns; one file may have several (NTFS).

    inode: int64[n], inode or record number. size: int64[n], bytes of the stream as a reader sees
    it. valid: int64[n], at most size: bytes from the start that come from the disk; from there to
    size it reads as zeros whatever lies on the disk (NTFS: initialized size).
    form: uint8[n], PLAIN or STORED. For a STORED stream size and valid are the bytes on the disk,
    whole blocks, and file_offset counts these, so that there are no holes.
    Extents, m rows, sorted by (stream, file_offset):
    stream: int64[m], row in the columns above; file_offset, disk_offset, length: int64[m], bytes,
    multiples of the block size; kind: uint8[m], DATA or UNWRITTEN. Holes have no extent. The last
    extent may reach past `size`.
    """

    inode: NDArray[np.int64]
    size: NDArray[np.int64]
    valid: NDArray[np.int64]
    form: NDArray[np.uint8]
    stream: NDArray[np.int64]
    file_offset: NDArray[np.int64]
    disk_offset: NDArray[np.int64]
    length: NDArray[np.int64]
    kind: NDArray[np.uint8]


def no_streams() -> Streams:
    """Return the table of a volume whose files are not listed."""
    none, no_flags = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint8)
    return Streams(none, none, none, no_flags, none, none, none, none, no_flags)


def plain(streams: int) -> NDArray[np.uint8]:
    """Return the `form` of a file system that stores nothing but what a reader sees."""
    return np.full(streams, PLAIN, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class FileSystem:
    """One volume as its file system describes it.

    kind: "ext2", "ext3", "ext4", "vfat", "ntfs", "swap".
    state: "clean"; "dirty" (a journal or flag says there is unfinished work: nothing may be taken
    for free); "hibernated" (holds a suspended system).
    state_reason: what was found, for people ("INCOMPAT_RECOVER is set: the journal is not empty").
    free: bytes that no reader of the file system can ever see: free blocks, the body of a clean
    journal. Empty unless state is "clean".
    held: bytes that the file system calls free and that its snapshots may still read. Where there
    are any, free is empty. snapshots: what has to read as zeros to make the snapshots vanish.
    dropped: bytes whose loss is harmless but which something wrote (swap pages).
    names: (stream row, path) for every name of every stream; paths begin with "/" and are the
    volume's own; a named stream has the path "/folder/file:stream". symlinks: (path, target).
    unread: what could not be read and therefore stays as it is, one sentence each.
    """

    kind: str
    block_size: int
    label: str
    uuid: str
    state: str
    state_reason: str = ""
    free: Ranges = field(default_factory=empty_ranges)
    held: Ranges = field(default_factory=empty_ranges)
    snapshots: Ranges = field(default_factory=empty_ranges)
    dropped: Ranges = field(default_factory=empty_ranges)
    streams: Streams = field(default_factory=no_streams)
    names: tuple[tuple[int, str], ...] = ()
    symlinks: tuple[tuple[str, str], ...] = ()
    unread: tuple[str, ...] = ()
