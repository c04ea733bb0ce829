"""Which blocks of an ext file system are metadata and which are free.

Sources: Linux fs/ext4/{super,balloc,bitmap}.c and e2fsprogs lib/ext2fs/closefs.c
(ext2fs_super_and_bgd_loc2, ext2fs_bg_has_super) for where the copies lie.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.errors import Corrupt
from formats.filesystem import c_ext
from formats.filesystem.c_ext import GroupDescriptors, Superblock, whole
from formats.filesystem.ext_checksum import crc16, crc32c, crc32c_of
from formats.ranges import Ranges, empty_ranges, intersect, subtract, total, union
from formats.source import Source

_READ_BYTES = 16 << 20
"""Most bytes of bitmaps held in memory at once."""
_CSUM_FIELD = slice(0x1E, 0x20)  # bg_checksum inside a descriptor
_CSUM_LOW_ONLY = 0x3A  # a shorter descriptor has no bg_block_bitmap_csum_hi


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the metadata of every group lies.

    bitmap, inode_bitmap, inode_table: int64[groups], block numbers; inode_table is the first one.
    uninitialised: bool[groups], the block bitmap on disk has no meaning.
    metadata: byte ranges of everything fixed: superblocks, descriptors, bitmaps, inode tables.
    """

    superblock: Superblock
    descriptors: GroupDescriptors
    bitmap: NDArray[np.int64]
    inode_bitmap: NDArray[np.int64]
    inode_table: NDArray[np.int64]
    uninitialised: NDArray[np.bool_]
    metadata: Ranges


@dataclass(frozen=True, slots=True)
class Space:
    """The free bytes by the block bitmaps, or why they are not to be believed."""

    free: Ranges
    reason: str = ""


def read_superblock(source: Source) -> Superblock:
    """Return the primary superblock; raises Truncated, Corrupt, Unsupported."""
    raw = source.pread(c_ext.SUPERBLOCK_OFFSET, c_ext.SUPERBLOCK_SIZE)
    superblock = c_ext.parse_superblock(raw)
    if superblock.size > source.size:
        reason = f"the file system has {superblock.size} bytes, its volume {source.size}"
        raise Corrupt("ext superblock", c_ext.SUPERBLOCK_OFFSET, reason)
    if superblock.ro_compat & c_ext.RO_COMPAT_METADATA_CSUM:
        found = crc32c_of(0xFFFFFFFF, raw[:-4])
        if found != superblock.checksum:
            reason = f"checksum {superblock.checksum:#010x}, its bytes give {found:#010x}"
            raise Corrupt("ext superblock", c_ext.SUPERBLOCK_OFFSET, reason)
    return superblock


def read_layout(source: Source, superblock: Superblock) -> Layout:
    """Return where the metadata lies; raises Truncated, Corrupt."""
    descriptors = _read_descriptors(source, superblock)
    _check_descriptors(superblock, descriptors)
    places = {name: whole(descriptors, name) for name in ("block_bitmap", "inode_bitmap")}
    table = whole(descriptors, "inode_table")
    length = superblock.inode_table_blocks
    for name, blocks, count in (
        *((name, blocks, 1) for name, blocks in places.items()),
        ("inode_table", table, length),
    ):
        outside = (blocks < superblock.first_data_block) | (
            blocks > superblock.blocks_count - count
        )
        if outside.any():
            group = int(np.flatnonzero(outside)[0])
            reason = f"{name} of group {group} at block {int(blocks[group])}, outside"
            raise Corrupt("ext group descriptors", 0, reason)
    pieces = [
        _blocks(places["block_bitmap"], 1),
        _blocks(places["inode_bitmap"], 1),
        _blocks(table, length),
        _superblock_copies(superblock),
        _blocks(np.zeros(1, dtype=np.int64), 1),  # of 1 KiB, it is the boot sector's
    ]
    checked = superblock.ro_compat & (c_ext.RO_COMPAT_GDT_CSUM | c_ext.RO_COMPAT_METADATA_CSUM)
    uninitialised = (descriptors["flags"] & c_ext.GROUP_BLOCK_UNINIT) != 0
    return Layout(
        superblock,
        descriptors,
        places["block_bitmap"],
        places["inode_bitmap"],
        table,
        uninitialised if checked else np.zeros(len(table), dtype=bool),
        union(*pieces) * superblock.block_size,
    )


def read_space(source: Source, layout: Layout) -> Space:
    """Return the free ranges by all block bitmaps, without what is known to be metadata."""
    superblock = layout.superblock
    ranges: list[Ranges] = []
    step = max(_READ_BYTES * 8 // superblock.clusters_per_group // 8, 1)
    for first in range(0, superblock.groups, step):
        last = min(first + step, superblock.groups)
        bitmaps = _read_bitmaps(source, layout, first, last)
        reason = _check_bitmaps(layout, bitmaps, first)
        if reason:
            return Space(empty_ranges(), reason)
        bitmaps[layout.uninitialised[first:last]] = 0
        runs = clear_runs(bitmaps.reshape(-1)) * superblock.cluster_ratio
        ranges.append(runs + superblock.first_data_block + first * superblock.blocks_per_group)
    blocks = np.minimum(union(*ranges), superblock.blocks_count)
    free = union(blocks * superblock.block_size)
    contradiction = total(intersect(free, _initialised_metadata(layout)))
    if contradiction:
        reason = f"the block bitmaps call {contradiction} bytes of metadata free"
        return Space(empty_ranges(), reason)
    return Space(subtract(free, layout.metadata))


def clear_runs(packed: NDArray[np.uint8]) -> Ranges:
    """Return the runs of clear bits, lowest bit first, as half-open ranges of bit numbers.

    Only bytes in which a run begins or ends are unpacked.
    """
    if len(packed) == 0:
        return empty_ranges()
    before = np.ones(len(packed), dtype=np.uint8)  # an imaginary used bit before the first
    before[1:] = packed[:-1] >> 7
    changes = np.bitwise_xor(packed, np.left_shift(packed, 1) | before, dtype=np.uint8)
    places = np.flatnonzero(changes)
    bits = np.unpackbits(changes[places].reshape(-1, 1), axis=1, bitorder="little")
    rows, columns = np.nonzero(bits)
    edges = places[rows] * 8 + columns
    if len(edges) % 2:
        edges = np.append(edges, len(packed) * 8)
    return edges.astype(np.int64).reshape(-1, 2)


def has_superblock(superblock: Superblock) -> NDArray[np.bool_]:
    """Return for every group whether it begins with a copy of the superblock."""
    groups = superblock.groups
    if superblock.compat & c_ext.COMPAT_SPARSE_SUPER2:
        copies = {0, *superblock.backup_groups}
    elif not superblock.ro_compat & c_ext.RO_COMPAT_SPARSE_SUPER:
        return np.ones(groups, dtype=bool)
    else:
        copies = {0, 1, *(base**n for base in (3, 5, 7) for n in range(1, 15))}
    result = np.zeros(groups, dtype=bool)
    result[[group for group in copies if group < groups]] = True
    return result


def _blocks(firsts: NDArray[np.int64], count: int | NDArray[np.int64]) -> Ranges:
    return np.stack([firsts, firsts + count], axis=1)


def group_starts(superblock: Superblock) -> NDArray[np.int64]:
    """Return the first block of every group, as seen by the superblock copies.

    A bigalloc file system of 1 KiB blocks counts block 0 into group 0, yet its superblock lies in
    block 1 (fs/ext4/super.c, descriptor_loc).
    """
    numbers = np.arange(superblock.groups, dtype=np.int64)
    starts = numbers * superblock.blocks_per_group + superblock.first_data_block
    starts[0] = c_ext.SUPERBLOCK_OFFSET // superblock.block_size
    return starts


def _descriptor_blocks(superblock: Superblock) -> tuple[int, int]:
    """(descriptors in a block, blocks of all descriptors)."""
    in_block = superblock.block_size // superblock.desc_size
    return in_block, -(-superblock.groups // in_block)


def _old_style_blocks(superblock: Superblock) -> int:
    """Descriptor blocks that follow every superblock copy, without the reserved ones."""
    _, blocks = _descriptor_blocks(superblock)
    if superblock.incompat & c_ext.INCOMPAT_META_BG:
        return min(superblock.first_meta_bg, blocks)
    return blocks


def _superblock_copies(superblock: Superblock) -> Ranges:
    """Return the blocks of all superblocks and descriptors, the reserved ones included."""
    copies = has_superblock(superblock)
    starts = group_starts(superblock)
    old_style = _old_style_blocks(superblock)
    in_block, _ = _descriptor_blocks(superblock)
    meta = np.arange(superblock.groups) // in_block >= old_style
    has_meta = bool(superblock.incompat & c_ext.INCOMPAT_META_BG)
    follows = 1 + old_style + superblock.reserved_gdt_blocks
    length = np.where(meta & has_meta, 1, follows)
    pieces = [_blocks(starts[copies], length[copies])]
    if has_meta:
        place = np.arange(superblock.groups) % in_block
        holds = meta & ((place <= 1) | (place == in_block - 1))
        pieces.append(_blocks((starts + copies)[holds], 1))
    return np.minimum(union(*pieces), superblock.blocks_count)


def _read_descriptors(source: Source, superblock: Superblock) -> GroupDescriptors:
    """Return all group descriptors from their primary places."""
    in_block, blocks = _descriptor_blocks(superblock)
    starts = group_starts(superblock)
    old_style = _old_style_blocks(superblock)
    size = superblock.block_size
    pieces = [source.pread(int(starts[0] + 1) * size, old_style * size)]
    copies = has_superblock(superblock)
    for number in range(old_style, blocks):
        group = number * in_block
        pieces.append(source.pread(int(starts[group] + copies[group]) * size, size))
    layout = c_ext.descriptor_type(superblock.desc_size)
    return np.frombuffer(b"".join(pieces), dtype=layout, count=superblock.groups)


def _seed(superblock: Superblock) -> int:
    if superblock.incompat & c_ext.INCOMPAT_CSUM_SEED:
        return superblock.checksum_seed
    return crc32c_of(0xFFFFFFFF, superblock.uuid)


def _check_descriptors(superblock: Superblock, descriptors: GroupDescriptors) -> None:
    """Raise Corrupt on a wrong checksum (fs/ext4/super.c, ext4_group_desc_csum)."""
    rows = np.frombuffer(descriptors.tobytes(), dtype=np.uint8)
    rows = rows.reshape(len(descriptors), superblock.desc_size)
    numbers = np.arange(len(rows), dtype="<u4").view(np.uint8).reshape(-1, 4)
    if superblock.ro_compat & c_ext.RO_COMPAT_METADATA_CSUM:
        start = np.full(len(rows), _seed(superblock), dtype=np.uint32)
        blank = rows.copy()
        blank[:, _CSUM_FIELD] = 0
        found = crc32c(crc32c(start, numbers), blank)
    elif superblock.ro_compat & c_ext.RO_COMPAT_GDT_CSUM:
        start = np.full(len(rows), 0xFFFF, dtype=np.uint32)
        uuid = np.broadcast_to(np.frombuffer(superblock.uuid, dtype=np.uint8), (len(rows), 16))
        head = rows[:, : _CSUM_FIELD.start]
        tail = rows[:, _CSUM_FIELD.stop :]
        found = crc16(start, np.concatenate([uuid, numbers, head, tail], axis=1))
    else:
        return
    wrong = np.flatnonzero(found & 0xFFFF != descriptors["checksum"])
    if len(wrong):
        group = int(wrong[0])
        says, gives = int(descriptors["checksum"][group]), int(found[group]) & 0xFFFF
        reason = f"group {group}: checksum {says:#06x}, its bytes give {gives:#06x}"
        raise Corrupt("ext group descriptors", 0, reason)


def _read_bitmaps(source: Source, layout: Layout, first: int, last: int) -> NDArray[np.uint8]:
    """Return the block bitmaps of the groups as rows; uninitialised ones are zero.

    flex_bg puts bitmaps side by side: neighbours are read in one go.
    """
    superblock = layout.superblock
    size, used = superblock.block_size, superblock.clusters_per_group // 8
    rows = np.zeros((last - first, used), dtype=np.uint8)
    wanted = np.flatnonzero(~layout.uninitialised[first:last])
    places = layout.bitmap[first:last][wanted]
    order = np.argsort(places, kind="stable")
    wanted, places = wanted[order], places[order]
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    for run in np.split(np.arange(len(places)), breaks):
        if len(run):
            data = source.pread(int(places[run[0]]) * size, len(run) * size)
            blocks = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
            rows[wanted[run]] = blocks[:, :used]
    return rows


def _check_bitmaps(layout: Layout, bitmaps: NDArray[np.uint8], first: int) -> str:
    """Return why the bitmaps contradict their descriptors, or an empty string."""
    groups = slice(first, first + len(bitmaps))
    used = np.flatnonzero(~layout.uninitialised[groups])
    descriptors = layout.descriptors[groups][used]
    superblock = layout.superblock
    if superblock.ro_compat & c_ext.RO_COMPAT_METADATA_CSUM:
        start = np.full(len(used), _seed(superblock), dtype=np.uint32)
        mask = 0xFFFFFFFF if superblock.desc_size >= _CSUM_LOW_ONLY else 0xFFFF
        wrong = (crc32c(start, bitmaps[used]) & mask) != whole(descriptors, "block_bitmap_csum", 16)
        if wrong.any():
            group = first + int(used[np.flatnonzero(wrong)[0]])
            return f"the block bitmap of group {group} has a wrong checksum"
    clear = bitmaps.shape[1] * 8 - np.bitwise_count(bitmaps[used]).sum(axis=1, dtype=np.int64)
    if len(used) and first + int(used[-1]) == superblock.groups - 1:
        clear[-1] = _clear_in_last_group(superblock, bitmaps[used[-1]])
    wrong = clear != whole(descriptors, "free_clusters", 16)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        count = int(whole(descriptors, "free_clusters", 16)[row])
        group = first + int(used[row])
        return f"group {group} counts {count} free clusters, its bitmap {int(clear[row])}"
    return ""


def _clear_in_last_group(superblock: Superblock, bitmap: NDArray[np.uint8]) -> int:
    blocks = superblock.blocks_count - superblock.first_data_block
    blocks -= (superblock.groups - 1) * superblock.blocks_per_group
    bits = np.unpackbits(bitmap, bitorder="little")[: -(-blocks // superblock.cluster_ratio)]
    return int(len(bits) - bits.sum())


def _initialised_metadata(layout: Layout) -> Ranges:
    """Return the metadata that lies in groups whose bitmap must show it."""
    superblock = layout.superblock
    uninitialised = np.flatnonzero(layout.uninitialised)
    starts = uninitialised * superblock.blocks_per_group + superblock.first_data_block
    ranges = union(_blocks(starts, superblock.blocks_per_group)) * superblock.block_size
    return subtract(layout.metadata, ranges)
