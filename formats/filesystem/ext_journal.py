"""The journal (jbd2) of an ext file system: whether it is empty, and where its body lies.

Source: Documentation/filesystems/ext4/journal.rst and include/linux/jbd2.h
(struct journal_superblock_s). All fields are big-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from formats.errors import Truncated
from formats.filesystem.c_ext import Superblock
from formats.ranges import Ranges, empty_ranges, intersect, overlap_of_sorted, total, union
from formats.source import Source

_MAGIC = 0xC03B3998
_SUPERBLOCK_V1, _SUPERBLOCK_V2 = 3, 4
# 0x00 h_magic; 0x04 h_blocktype, 3 or 4 = superblock; 0x08 h_sequence, unused here;
# 0x0C s_blocksize, bytes; 0x10 s_maxlen, blocks; 0x14 s_first, first block of the log;
# 0x18 s_sequence; 0x1C s_start, block of the log's oldest transaction, 0 = the log is empty
_HEADER = struct.Struct(">8I")


@dataclass(frozen=True, slots=True)
class Journal:
    """An internal journal.

    extents: byte ranges of all of it. body: those that an empty journal does not need.
    reason: why the file system is not clean, or an empty string.
    """

    extents: Ranges
    body: Ranges
    reason: str = ""


def read_journal(
    source: Source, superblock: Superblock, extents: list[tuple[int, int, int]]
) -> Journal:
    """Return the journal whose inode has these extents (disk offset, length, flags)."""
    rows = [(offset, offset + length) for offset, length, _ in extents]
    plain = all(
        flags == 0 and offset > 0 and length > 0 and offset + length <= superblock.size
        for offset, length, flags in extents
    )
    if not plain:
        return _unusable("the journal has holes or lies outside the volume")
    places = np.array(rows, dtype=np.int64).reshape(-1, 2)
    everything = union(places)
    if overlap_of_sorted(places[np.argsort(places[:, 0], kind="stable")]) >= 0:
        return _unusable("the journal's extents overlap")
    start = rows[0][0]
    try:
        header = source.pread(start, _HEADER.size)
    except Truncated:
        return _unusable("the journal lies outside the volume")
    magic, kind, _, block_size, blocks, first, _, oldest = _HEADER.unpack(header)
    if magic != _MAGIC or kind not in (_SUPERBLOCK_V1, _SUPERBLOCK_V2):
        return _unusable(f"the journal begins with {magic:#010x}, expected {_MAGIC:#010x}")
    if block_size != superblock.block_size or blocks * block_size > total(everything):
        return _unusable(f"the journal says {blocks} blocks of {block_size} bytes")
    if oldest:
        return _unusable(f"the journal is not empty: its log begins at block {oldest}")
    return Journal(everything, union(_behind(rows, max(first, 1) * block_size)))


def contradiction(journal: Journal, files: Ranges, metadata: Ranges) -> str:
    """Return why the journal cannot lie where its inode says, or an empty string."""
    shared = total(intersect(journal.extents, union(files, metadata)))
    return f"the journal shares {shared} bytes with files or metadata" if shared else ""


def _unusable(reason: str) -> Journal:
    return Journal(empty_ranges(), empty_ranges(), reason)


def _behind(rows: list[tuple[int, int]], skip: int) -> Ranges:
    """Return the rows, in file order, without their first `skip` bytes."""
    left: list[tuple[int, int]] = []
    for start, end in rows:
        taken = min(skip, end - start)
        skip -= taken
        left.append((start + taken, end))
    return np.array(left, dtype=np.int64).reshape(-1, 2)
