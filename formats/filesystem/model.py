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


@dataclass(frozen=True, slots=True)
class Streams:
    """Plain data streams of regular files, as columns.

    inode: int64[n], inode or record number. size: int64[n], bytes of the file as a reader sees it.
    Extents, m rows, sorted by (stream, file_offset):
    stream: int64[m], row in the columns above; file_offset, disk_offset, length: int64[m], bytes,
    multiples of the block size; kind: uint8[m], DATA or UNWRITTEN. Holes have no extent. The last
    extent may reach past `size`.
    """

    inode: NDArray[np.int64]
    size: NDArray[np.int64]
    stream: NDArray[np.int64]
    file_offset: NDArray[np.int64]
    disk_offset: NDArray[np.int64]
    length: NDArray[np.int64]
    kind: NDArray[np.uint8]


def no_streams() -> Streams:
    """Return the table of a volume whose files are not listed."""
    none = np.empty(0, dtype=np.int64)
    return Streams(none, none, none, none, none, none, np.empty(0, dtype=np.uint8))


@dataclass(frozen=True, slots=True)
class FileSystem:
    """One volume as its file system describes it.

    kind: "ext2", "ext3", "ext4", "vfat", "swap".
    state: "clean"; "dirty" (a journal or flag says there is unfinished work: nothing may be taken
    for free); "hibernated" (holds a suspended system).
    state_reason: what was found, for people ("INCOMPAT_RECOVER is set: the journal is not empty").
    free: bytes that no reader of the file system can ever see: free blocks, the body of a clean
    journal. Empty unless state is "clean".
    dropped: bytes whose loss is harmless but which something wrote (swap pages).
    names: (stream row, path) for every name of every stream; paths begin with "/" and are the
    volume's own. symlinks: (path, target).
    unread: what could not be read and therefore stays as it is, one sentence each.
    """

    kind: str
    block_size: int
    label: str
    uuid: str
    state: str
    state_reason: str = ""
    free: Ranges = field(default_factory=empty_ranges)
    dropped: Ranges = field(default_factory=empty_ranges)
    streams: Streams = field(default_factory=no_streams)
    names: tuple[tuple[int, str], ...] = ()
    symlinks: tuple[tuple[str, str], ...] = ()
    unread: tuple[str, ...] = ()
