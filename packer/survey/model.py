"""What a survey of a disk hands back: plain columns and small records, nothing that parses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.ranges import Ranges

CASE_INSENSITIVE = ("vfat", "ntfs")
"""File systems that find a file by its name in any case."""


@dataclass(frozen=True, slots=True)
class Volume:
    """One partition (or the whole disk) and what lies in it. Offsets in bytes of the disk.

    kind: file system ("ext4", "vfat", "swap") or "raw" when nobody can parse it; note then says
    what it seems to be or why ("LUKS: encrypted"). state, state_reason: see formats.filesystem.
    unread: what the reader could not list; it stays as it is.
    """

    number: int
    start: int
    end: int
    partition_type: str
    partition_uuid: str
    partition_label: str
    kind: str
    block_size: int
    label: str
    uuid: str
    state: str
    state_reason: str
    note: str
    unread: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """Who owns which bytes of a disk; every offset is in bytes from the start of the disk.

    container: "raw", "qcow2", "vmdk", … table: "mbr", "gpt", "none"; table_identifier: disk
    signature or GUID. free: never seen by any reader of the guest's file systems (clean ones
    only). Each with its volume's row: held, what would be free if there were no snapshots;
    snapshots, what has to read as zeros for them to vanish; dropped, ranges whose loss is harmless
    (swap pages).

    Streams (n rows): volume: row in `volumes`; inode; file_size, bytes of the file; valid_size,
    how many of them come from the disk; form, PLAIN or STORED of formats.filesystem.model. Extents
    (m rows, sorted by stream and file_offset): stream, file_offset, disk_offset, length, kind (DATA
    or UNWRITTEN of formats.filesystem.model). Names (k rows, sorted by stream): name_stream, name
    (path within the volume, beginning with "/"). symlinks: (volume row, path, target).
    """

    size: int
    sector_size: int
    container: str
    table: str
    table_identifier: str
    volumes: tuple[Volume, ...]
    free: Ranges
    held: tuple[tuple[int, Ranges], ...]
    snapshots: tuple[tuple[int, Ranges], ...]
    dropped: tuple[tuple[int, Ranges], ...]
    volume: NDArray[np.int64]
    inode: NDArray[np.int64]
    file_size: NDArray[np.int64]
    valid_size: NDArray[np.int64]
    form: NDArray[np.uint8]
    stream: NDArray[np.int64]
    file_offset: NDArray[np.int64]
    disk_offset: NDArray[np.int64]
    length: NDArray[np.int64]
    kind: NDArray[np.uint8]
    name_stream: NDArray[np.int64]
    name: list[str]
    symlinks: tuple[tuple[int, str, str], ...]
    warnings: tuple[str, ...]

    @property
    def with_snapshots(self) -> frozenset[int]:
        """Return the rows of the volumes that have snapshots."""
        return frozenset(row for row, _ in (*self.held, *self.snapshots))

    def extents_of(self, stream: int) -> slice:
        """Return the rows of the extent columns that belong to one stream."""
        low, high = np.searchsorted(self.stream, [stream, stream + 1])
        return slice(int(low), int(high))
