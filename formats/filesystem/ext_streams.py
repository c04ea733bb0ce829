"""From what was walked to what may be listed: only plain data of regular files.

Everything here is columns: a million files are a few arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.errors import FormatError
from formats.filesystem import ext_extents
from formats.filesystem.ext_space import Layout
from formats.filesystem.ext_walk import Walk
from formats.filesystem.model import DATA, UNWRITTEN, Streams, plain
from formats.ranges import Ranges, intersect, union
from formats.source import Source

_MAX_FILE_BYTES = 1 << 48  # 2^32 blocks of 64 KiB
_REGULAR = 0o10  # i_mode >> 12

# i_flags, fs/ext4/ext4.h
_FLAG_COMPRESSED = 0x4 | 0x200  # EXT4_COMPR_FL, EXT4_COMPRBLK_FL: e2compr's own form on disk
_FLAG_ENCRYPTED = 0x800  # EXT4_ENCRYPT_FL: bytes that mean nothing without this inode's key
_FLAG_EA_INODE = 0x200000  # holds an attribute's value
_FLAG_SNAPSHOT = 0xD000000  # EXT4_SNAPFILE{,_DELETED,_SHRUNK}_FL of next3
_FLAG_UNKNOWN = 0x80800000  # never given a meaning
_FLAG_INLINE = 0x10000000  # EXT4_INLINE_DATA_FL: the data lies in the inode
_NOT_PLAIN = (
    _FLAG_COMPRESSED
    | _FLAG_ENCRYPTED
    | _FLAG_EA_INODE
    | _FLAG_SNAPSHOT
    | _FLAG_INLINE
    | _FLAG_UNKNOWN
)

_INODE = np.dtype(
    {
        "names": ["mode", "size_lo", "flags", "block", "size_hi"],
        "formats": ["<u2", "<u4", "<u4", "V60", "<u4"],
        "offsets": [0x00, 0x04, 0x20, 0x28, 0x6C],  # Documentation/filesystems/ext4/inodes.rst
        "itemsize": 128,  # the part that every revision has
    }
)
_TABLE_READ_BYTES = 4 << 20
_UNKNOWN = 255


@dataclass(frozen=True, slots=True)
class Listing:
    """The streams that may be listed.

    used: all bytes that any walked file claims, listed or not.
    """

    streams: Streams
    names: tuple[tuple[int, str], ...]
    unread: tuple[str, ...]
    used: Ranges


@dataclass(frozen=True, slots=True)
class _Extents:
    stream: NDArray[np.int64]
    file_offset: NDArray[np.int64]
    disk_offset: NDArray[np.int64]
    length: NDArray[np.int64]
    kind: NDArray[np.uint8]

    def where(self, keep: NDArray[np.bool_]) -> _Extents:
        return _Extents(
            self.stream[keep],
            self.file_offset[keep],
            self.disk_offset[keep],
            self.length[keep],
            self.kind[keep],
        )

    @property
    def on_disk(self) -> Ranges:
        return np.stack([self.disk_offset, self.disk_offset + self.length], axis=1)


def list_streams(source: Source, layout: Layout, found: Walk) -> Listing:
    """Return the walked files that are plain, whole and not in conflict with anything."""
    superblock = layout.superblock
    inode = _column(found.inodes)
    size = _column(found.sizes)
    extents = _extents(found)
    drop = np.zeros(len(inode), dtype=bool)
    unread: list[str] = []

    def reject(rows: NDArray[np.bool_], reason: str) -> None:
        fresh = rows & ~drop
        if fresh.any():
            unread.append(f"{int(fresh.sum())} files {reason}: {_first_name(found, fresh)}")
        drop[rows] = True

    record = _inode_records(source, layout, inode, ["mode", "size_lo", "flags", "size_hi"])
    odd = np.zeros(len(inode), dtype=bool)
    odd[extents.stream[_misplaced(extents, superblock.block_size)]] = True
    record_size = record["size_lo"] | record["size_hi"].astype(np.int64) << 32
    odd |= (record["mode"] >> 12 != _REGULAR) | (record_size != size)
    reject(odd, "have extents or sizes that cannot be")
    drop |= (record["flags"] & _NOT_PLAIN) != 0
    doubted = _doubted(source, layout, extents.where(~drop[extents.stream]), inode)
    reject(doubted, "have unwritten extents that two readers see differently")
    outside = extents.disk_offset + extents.length > superblock.size
    reject(_rows(len(inode), extents, outside), "have extents outside the volume")
    reject(_rows(len(inode), extents, _clashes(extents)), "share blocks with another file")
    in_metadata = _touches(extents, layout.metadata)
    reject(_rows(len(inode), extents, in_metadata), "have extents inside metadata")
    used = union(extents.on_disk)
    extents = extents.where(~drop[extents.stream])
    extents = _clip_to_size(extents, size, superblock.block_size)
    row = np.cumsum(~drop) - 1
    streams = Streams(
        inode[~drop],
        size[~drop],
        size[~drop],
        plain(int((~drop).sum())),
        row[extents.stream],
        extents.file_offset,
        extents.disk_offset,
        extents.length,
        extents.kind,
    )
    names = tuple(found.names)
    if drop.any():
        names = tuple((int(row[old]), path) for old, path in found.names if not drop[old])
    return Listing(streams, names, tuple(unread), used)


def _column(values: object) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def _rows(count: int, extents: _Extents, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the streams that own any of the chosen extents."""
    rows = np.zeros(count, dtype=bool)
    rows[extents.stream[chosen]] = True
    return rows


def _first_name(found: Walk, rows: NDArray[np.bool_]) -> str:
    return next((path for row, path in found.names if rows[row]), "(no name)")


def _extents(found: Walk) -> _Extents:
    """Return the walked extents without holes; libfsext gives a hole the offset 0."""
    counts = _column(found.counts)
    offset, length, flags = _column(found.extents).reshape(-1, 3).T
    stream = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(length) - length
    firsts = np.cumsum(counts) - counts
    has_any = counts > 0
    base = np.zeros(len(counts), dtype=np.int64)
    base[has_any] = before[firsts[has_any]]
    kind = np.select([flags == 0, flags == 1], [DATA, UNWRITTEN], _UNKNOWN).astype(np.uint8)
    everything = _Extents(stream, before - base[stream], offset, length, kind)
    return everything.where((flags == 0) | (offset != 0))


def _misplaced(extents: _Extents, block_size: int) -> NDArray[np.bool_]:
    """Return the extents with a length, a place or an end that no file can have."""
    reach = extents.file_offset + extents.length
    unaligned = (extents.disk_offset | extents.length | extents.file_offset) & (block_size - 1)
    return np.asarray(
        (unaligned != 0)
        | (extents.kind > UNWRITTEN)
        | (extents.length <= 0)
        | (extents.disk_offset <= 0)
        | (extents.disk_offset >= 1 << 62)
        | (extents.length > _MAX_FILE_BYTES)
        | (extents.file_offset < 0)
        | (reach > _MAX_FILE_BYTES),
        dtype=np.bool_,
    )


def _clashes(extents: _Extents) -> NDArray[np.bool_]:
    """Return the extents that overlap any other extent."""
    order = np.argsort(extents.disk_offset, kind="stable")
    start = extents.disk_offset[order]
    reach = np.maximum.accumulate(start + extents.length[order]) if len(start) else start
    clash = np.zeros(len(start), dtype=bool)
    clash[1:] = start[1:] < reach[:-1]
    clash[:-1] |= (start + extents.length[order])[:-1] > start[1:]
    result = np.zeros(len(start), dtype=bool)
    result[order] = clash
    return result


def _doubted(
    source: Source, layout: Layout, extents: _Extents, inode: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return the streams whose unwritten extents are not those of the second reader."""
    doubted = np.zeros(len(inode), dtype=bool)
    chosen = extents.where(extents.kind == UNWRITTEN)
    streams, firsts = np.unique(chosen.stream, return_index=True)
    if len(streams) == 0:
        return doubted
    roots = _inode_records(source, layout, inode[streams], ["block"])["block"]
    per_stream = zip(streams.tolist(), roots, np.split(chosen.on_disk, firsts[1:]), strict=True)
    for stream, root, ranges in per_stream:
        try:
            second = ext_extents.unwritten(source, layout.superblock, root.tobytes())
        except FormatError:
            doubted[stream] = True
            continue
        doubted[stream] = not np.array_equal(second, union(ranges))
    return doubted


def _touches(extents: _Extents, ranges: Ranges) -> NDArray[np.bool_]:
    """Return the extents that share a byte with the sorted, disjoint ranges."""
    first = np.searchsorted(ranges[:, 1], extents.disk_offset, side="right")
    starts = np.append(ranges[:, 0], np.iinfo(np.int64).max)
    ends = extents.disk_offset + extents.length
    return np.asarray(starts[first] < ends, dtype=np.bool_)


def _clip_to_size(extents: _Extents, size: NDArray[np.int64], block_size: int) -> _Extents:
    """Cut data behind the last block that holds file bytes: fs-verity keeps its hashes there."""
    end = -(-size[extents.stream] // block_size) * block_size
    data = extents.kind == DATA
    room = np.maximum(end - extents.file_offset, 0)
    length = np.where(data, np.minimum(extents.length, room), extents.length)
    clipped = _Extents(
        extents.stream, extents.file_offset, extents.disk_offset, length, extents.kind
    )
    return clipped.where(length > 0)


def _inode_records(
    source: Source, layout: Layout, inodes: NDArray[np.int64], names: list[str]
) -> NDArray[np.void]:
    """Return the named fields of the inodes, a piece of a table at a time; impossible ones zero."""
    superblock = layout.superblock
    record = np.zeros(len(inodes), dtype=[(name, _INODE[name]) for name in names])
    legal = np.flatnonzero((inodes > 0) & (inodes <= superblock.inodes_count))
    number = inodes[legal] - 1
    size = superblock.inode_size
    table = layout.inode_table[number // superblock.inodes_per_group] * superblock.block_size
    place = table + number % superblock.inodes_per_group * size
    order = np.argsort(place, kind="stable")
    legal, place = legal[order], place[order]
    chunk = place // _TABLE_READ_BYTES
    for rows in np.split(np.arange(len(place)), np.flatnonzero(np.diff(chunk)) + 1):
        if len(rows) == 0:
            continue
        start = int(place[rows[0]])
        data = source.pread(start, int(place[rows[-1]]) + size - start)
        slots = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)[:, : _INODE.itemsize]
        chosen = np.ascontiguousarray(slots[(place[rows] - start) // size]).view(_INODE)[:, 0]
        for name in names:
            record[name][legal[rows]] = chosen[name]
    return record


def free_contradiction(used: Ranges, free: Ranges) -> int:
    """Return how many bytes that a file claims are called free."""
    shared = intersect(used, free)
    return int((shared[:, 1] - shared[:, 0]).sum())


def written_only(streams: Streams) -> Streams:
    """Return the streams without unwritten extents: a journal's replay may make them data."""
    keep = streams.kind == DATA
    return Streams(
        streams.inode,
        streams.size,
        streams.valid,
        streams.form,
        streams.stream[keep],
        streams.file_offset[keep],
        streams.disk_offset[keep],
        streams.length[keep],
        streams.kind[keep],
    )
