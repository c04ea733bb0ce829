"""FAT12, FAT16 and FAT32: files with their extents through libfsfat, free clusters from the FAT.

libfsfat walks directories, long names and cluster chains (compared with mtools in the tests). It
has no notion of free or dirty, so `fat_table` reads that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyfsfat

from formats.errors import Corrupt, FormatError
from formats.filesystem.fat_table import (
    DIRECTORY_ENTRY_BYTES,
    FIRST_CLUSTER,
    BootSector,
    read_allocation,
    read_boot_sector,
)
from formats.filesystem.libyal import FileObject
from formats.filesystem.model import DATA, FileSystem, Streams, plain
from formats.ranges import Ranges, empty_ranges, intersect, total, union
from formats.source import Source, Window

ATTRIBUTE_DIRECTORY = 0x10
MAX_DEPTH = 256  # Windows refuses paths of more than 260 characters, Linux of more than 4096
MAX_UNREAD = 1000  # sentences; what else fails is only counted
CLUSTER_LOW = slice(26, 28)  # of a directory entry: u16, low half of the first cluster
CLUSTER_HIGH = slice(20, 22)  # u16, high half; FAT32 only, FAT16 keeps other things here


def probe(source: Source) -> bool:
    """Say whether the first sector is a sound FAT boot sector."""
    try:
        read_boot_sector(source)
    except FormatError:
        return False
    return True


def read(source: Source) -> FileSystem:
    """Return files, names, extents and, when the volume is clean and sound, free clusters.

    `inode` is the offset of a file's directory entry in the volume, as FAT has no inodes. Files
    whose chain is damaged or shared are only named in `unread`.

    Raises Truncated, Corrupt or Unsupported when the volume cannot be read at all.
    """
    boot = read_boot_sector(source)
    allocation = read_allocation(source, boot)
    volume = pyfsfat.volume()
    try:
        volume.open_file_object(FileObject(Window(source, 0, boot.size)))
        walk = _Walk(source, boot, first_clusters=[boot.root_cluster])
        walk.run(volume.root_directory)
        label = volume.label or ""
    except (OSError, ValueError, OverflowError) as error:  # ValueError: a name that is no UTF-16
        raise Corrupt("FAT volume", 0, str(error)) from error
    streams, names = walk.columns()
    doubt = allocation.doubt or walk.doubt(allocation.free)
    return FileSystem(
        kind="vfat",
        block_size=boot.cluster_size,
        label=label,
        uuid=_volume_id(boot),
        state="dirty" if doubt else "clean",
        state_reason=doubt,
        free=empty_ranges() if doubt else allocation.free,
        streams=streams,
        names=names,
        unread=walk.sentences(),
    )


def _volume_id(boot: BootSector) -> str:
    """Return the volume id as blkid and Windows write it: 1234-ABCD."""
    if boot.volume_id is None:
        return ""
    return f"{boot.volume_id >> 16:04X}-{boot.volume_id & 0xFFFF:04X}"


@dataclass(slots=True)
class _File:
    path: str
    identifier: int
    size: int
    extents: list[tuple[int, int]]


@dataclass(slots=True)
class _Walk:
    """One pass over the directory tree; every directory entry is taken once."""

    source: Source
    boot: BootSector
    files: list[_File] = field(default_factory=list)
    first_clusters: list[int] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    unread: list[str] = field(default_factory=list)
    failures: int = 0

    def run(self, root: Any) -> None:
        """Walk the tree without recursion: a hostile tree is as deep as it likes."""
        pending: list[tuple[Any, str, int]] = [(root, "", 0)]
        while pending:
            directory, path, depth = pending.pop()
            for entry, entry_path in self._entries(directory, path, is_root=depth == 0):
                if entry.file_attribute_flags & ATTRIBUTE_DIRECTORY:
                    self._remember_first_cluster(entry.identifier)
                    if depth < MAX_DEPTH:
                        pending.append((entry, entry_path, depth + 1))
                    else:
                        self._fail(entry_path, f"more than {MAX_DEPTH} directories deep")
                else:
                    self._take(entry, entry_path)

    def _entries(self, directory: Any, path: str, is_root: bool) -> Iterator[tuple[Any, str]]:
        """Yield the entries that can be read, each with its path."""
        try:
            count = directory.number_of_sub_file_entries
        except OSError as error:
            if is_root:
                raise
            self._fail(path, str(error))
            return
        for index in range(count):
            try:
                entry = directory.get_sub_file_entry(index)
                name, identifier = entry.name, entry.identifier
            except (OSError, ValueError) as error:
                self._fail(path, f"entry {index}: {error}")
                continue
            if not name or "/" in name or "\0" in name or name in {".", ".."}:
                self._fail(path, f"entry {index} has the impossible name {name!r}")
            elif identifier in self.seen:
                self._fail(f"{path}/{name}", "its directory is reached twice")
            else:
                self.seen.add(identifier)
                yield entry, f"{path}/{name}"

    def _take(self, entry: Any, path: str) -> None:
        try:
            size = entry.size
            found = [entry.get_extent(index)[:2] for index in range(entry.number_of_extents)]
        except OSError as error:
            self._fail(path, str(error))
            return
        needed = -(-size // self.boot.cluster_size) * self.boot.cluster_size
        extents = _joined(found, needed)
        if sum(length for _, length in extents) != needed:
            self._fail(path, f"its cluster chain does not hold {size} bytes")
        elif not all(self._is_data(start, length) for start, length in extents):
            self._fail(path, "its cluster chain leaves the volume")
        else:
            self.files.append(_File(path, entry.identifier, size, extents))

    def _is_data(self, start: int, length: int) -> bool:
        inside = start - self.boot.data_start
        end = self.boot.clusters * self.boot.cluster_size
        return inside >= 0 and inside % self.boot.cluster_size == 0 and inside + length <= end

    def _remember_first_cluster(self, identifier: int) -> None:
        entry = self.source.pread(identifier, DIRECTORY_ENTRY_BYTES)
        cluster = int.from_bytes(entry[CLUSTER_LOW], "little")
        if self.boot.is_fat32:
            cluster |= int.from_bytes(entry[CLUSTER_HIGH], "little") << 16
        self.first_clusters.append(cluster)

    def _fail(self, path: str, reason: str) -> None:
        self.failures += 1
        if len(self.unread) < MAX_UNREAD:
            self.unread.append(f"{path or '/'}: {reason}")

    def sentences(self) -> tuple[str, ...]:
        """Return what could not be read."""
        more = self.failures - len(self.unread)
        return (*self.unread, f"{more} more could not be read") if more else tuple(self.unread)

    def doubt(self, free: Ranges) -> str:
        """Return why the tree contradicts itself or the allocation table, or ""."""
        if self.failures:
            return f"the volume is damaged: {self.unread[0]}"
        cluster = self.boot.cluster_size
        starts = np.array(self.first_clusters, dtype=np.int64) - FIRST_CLUSTER
        starts = starts * cluster + self.boot.data_start
        directories = np.stack([starts, starts + cluster], axis=1)
        files = np.array(
            [(start, start + length) for one in self.files for start, length in one.extents],
            dtype=np.int64,
        ).reshape(-1, 2)
        if total(intersect(union(directories, files), free)):
            return "a directory or a file lies in a free cluster"
        return ""

    def columns(self) -> tuple[Streams, tuple[tuple[int, str], ...]]:
        """Return streams and names, without files that share clusters: whose are they?"""
        shared = self._shared()
        for index in sorted(shared):
            self._fail(self.files[index].path, "it shares clusters with another file")
        kept = [one for index, one in enumerate(self.files) if index not in shared]
        rows = [
            (row, start, length) for row, one in enumerate(kept) for start, length in one.extents
        ]
        table = np.array(rows, dtype=np.int64).reshape(-1, 3)
        stream, disk_offset, length = (np.ascontiguousarray(table[:, i]) for i in range(3))
        before = np.cumsum(length) - length
        first_of_stream = np.searchsorted(stream, stream, side="left")
        size = np.array([one.size for one in kept], dtype=np.int64)
        streams = Streams(
            inode=np.array([one.identifier for one in kept], dtype=np.int64),
            size=size,
            valid=size,
            form=plain(len(kept)),
            stream=stream,
            file_offset=before - before[first_of_stream],
            disk_offset=disk_offset,
            length=length,
            kind=np.full(len(stream), DATA, dtype=np.uint8),
        )
        return streams, tuple((row, one.path) for row, one in enumerate(kept))

    def _shared(self) -> set[int]:
        rows = np.array(
            [
                (start, start + length, index)
                for index, one in enumerate(self.files)
                for start, length in one.extents
            ],
            dtype=np.int64,
        ).reshape(-1, 3)
        if len(rows) == 0:
            return set()
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        reach = np.maximum.accumulate(rows[:, 1])
        farthest = np.where(rows[:, 1] == reach, np.arange(len(rows)), 0)
        farthest = np.maximum.accumulate(farthest)
        clash = np.flatnonzero(rows[1:, 0] < reach[:-1]) + 1
        return set(rows[clash, 2].tolist()) | set(rows[farthest[clash - 1], 2].tolist())


def _joined(extents: list[tuple[int, int]], needed: int) -> list[tuple[int, int]]:
    """Join extents that follow each other on the disk and stop at `needed` bytes.

    libfsfat keeps the first cluster apart and lists clusters past the end of the file, which
    fallocate leaves behind.
    """
    joined: list[tuple[int, int]] = []
    for start, length in extents:
        length = min(length, needed)
        needed -= length
        if joined and joined[-1][0] + joined[-1][1] == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        elif length > 0:
            joined.append((start, length))
    return joined
