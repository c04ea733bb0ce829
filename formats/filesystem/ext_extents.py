"""The unwritten extents of one inode, read a second time.

Of all that libfsext says, only "unwritten" lets bytes be forgotten, so it is believed only where
this independent reader says the same.

Source: Documentation/filesystems/ext4/ifork.rst (struct ext4_extent_header, _idx, ext4_extent).
"""

from __future__ import annotations

import struct

from formats.errors import Corrupt
from formats.filesystem.c_ext import Superblock
from formats.ranges import Ranges, as_ranges, union
from formats.source import Source

_HEADER = struct.Struct("<HHHHI")
# 0 eh_magic, 0xF30A; 2 eh_entries; 4 eh_max, room for entries; 6 eh_depth, 0 = leaf, at most 5;
# 8 eh_generation, unused here
_INDEX = struct.Struct("<IIHH")
# 0 ei_block, first file block below; 4 ei_leaf_lo, block of the node; 8 ei_leaf_hi; 10 unused
_LEAF = struct.Struct("<IHHI")
# 0 ee_block, first file block; 4 ee_len, blocks, plus 32768 if unwritten; 6 ee_start_hi;
# 8 ee_start_lo, first block on disk
_MAGIC = 0xF30A
_MAX_DEPTH = 5
_WRITTEN_MAX = 32768  # EXT_INIT_MAX_LEN: a longer ee_len means unwritten
_MAX_NODES = 1 << 20  # of 4 KiB: enough for 340 million extents


def unwritten(source: Source, superblock: Superblock, root: bytes) -> Ranges:
    """Return the bytes on disk that the tree below `root` (i_block, 60 bytes) calls unwritten.

    Raises Corrupt, Truncated.
    """
    found: list[tuple[int, int]] = []
    _, _, _, depth, _ = _HEADER.unpack_from(root)
    pending = [(depth, -1)]
    nodes = 0
    while pending:
        depth, place = pending.pop()
        node = root if place < 0 else source.pread(place, superblock.block_size)
        nodes += 1
        magic, entries, room, level, _ = _HEADER.unpack_from(node)
        fits = _HEADER.size * (1 + entries) <= len(node) and entries <= room
        sound = magic == _MAGIC and level == depth <= _MAX_DEPTH and fits
        if not sound or nodes > _MAX_NODES:
            raise Corrupt("ext4 extent tree", max(place, 0), f"no node of depth {depth}")
        for position in range(_HEADER.size, _HEADER.size * (1 + entries), _HEADER.size):
            if depth:
                _, low, high, _ = _INDEX.unpack_from(node, position)
                child = (high << 32 | low) * superblock.block_size
                pending.append((depth - 1, child))
                continue
            _, length, high, low = _LEAF.unpack_from(node, position)
            if length > _WRITTEN_MAX:
                first = high << 32 | low
                found.append((first, first + length - _WRITTEN_MAX))
    return union(as_ranges(found) * superblock.block_size)
