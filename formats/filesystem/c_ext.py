"""Superblock and group descriptors of ext2, ext3 and ext4 as they lie on disk.

Source: Linux, fs/ext4/ext4.h (struct ext4_super_block, struct ext4_group_desc), and
Documentation/filesystems/ext4/{super,group_descr}.rst. All fields are little-endian.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.errors import Corrupt, Unsupported

SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_SIZE = 1024
MAGIC = 0xEF53
MAX_GROUPS = 1 << 22
"""Most groups this reader takes on: 32 TiB in groups of 8 MiB, 512 TiB in groups of 128 MiB."""

# s_feature_compat: a reader and writer may ignore what it does not know
COMPAT_HAS_JOURNAL = 0x4
COMPAT_SPARSE_SUPER2 = 0x200

# s_feature_incompat: a reader must know
INCOMPAT_FILETYPE = 0x2
INCOMPAT_RECOVER = 0x4
INCOMPAT_JOURNAL_DEV = 0x8
INCOMPAT_META_BG = 0x10
INCOMPAT_64BIT = 0x80
INCOMPAT_MMP = 0x100
INCOMPAT_CSUM_SEED = 0x2000
INCOMPAT_LARGEDIR = 0x4000
INCOMPAT_KNOWN = 0x3E7D6
"""Every bit of ext4.h but COMPRESSION (0x1), JOURNAL_DEV (0x8) and DIRDATA (0x1000)."""
INCOMPAT_EXT3 = 0x16  # FILETYPE, RECOVER, META_BG: what fs/ext3 could mount

# s_feature_ro_compat: a writer must know
RO_COMPAT_SPARSE_SUPER = 0x1
RO_COMPAT_GDT_CSUM = 0x10
RO_COMPAT_BIGALLOC = 0x200
RO_COMPAT_METADATA_CSUM = 0x400
RO_COMPAT_ORPHAN_PRESENT = 0x10000
RO_COMPAT_EXT3 = 0x7  # SPARSE_SUPER, LARGE_FILE, BTREE_DIR

# s_state
STATE_VALID = 0x1
STATE_ERROR = 0x2

# bg_flags
GROUP_BLOCK_UNINIT = 0x2

_FIELDS = {
    # name: (offset, struct code)                 meaning, unit, legal values
    "inodes_count": (0x00, "I"),  # inodes in all groups
    "blocks_count_lo": (0x04, "I"),  # blocks
    "first_data_block": (
        0x14,
        "I",
    ),  # first block of group 0: 1 with 1 KiB blocks, else 0
    "log_block_size": (0x18, "I"),  # block size is 1024 << n, n = 0 to 6
    "log_cluster_size": (0x1C, "I"),  # the same for clusters; only with bigalloc
    "blocks_per_group": (0x20, "I"),  # blocks
    "clusters_per_group": (0x24, "I"),  # bits in a block bitmap, at most 8 x block size
    "inodes_per_group": (0x28, "I"),  # inodes
    "magic": (0x38, "H"),  # 0xEF53
    "state": (0x3A, "H"),  # 1 cleanly unmounted, 2 errors, 4 orphans being recovered
    "rev_level": (0x4C, "I"),  # 0: fixed inode size, no features; 1
    "first_ino": (0x54, "I"),  # first inode for files, 11 in revision 0
    "inode_size": (0x58, "H"),  # bytes, a power of two from 128 to the block size
    "feature_compat": (0x5C, "I"),
    "feature_incompat": (0x60, "I"),
    "feature_ro_compat": (0x64, "I"),
    "uuid": (0x68, "16s"),
    "volume_name": (0x78, "16s"),  # padded with zero bytes
    "reserved_gdt_blocks": (0xCE, "H"),  # blocks after each copy of the descriptors
    "journal_inum": (0xE0, "I"),  # 8, or 0 without an internal journal
    "journal_dev": (0xE4, "I"),  # device number of an external journal, else 0
    "desc_size": (0xFE, "H"),  # bytes of a descriptor, 64 or more with 64BIT
    "first_meta_bg": (0x104, "I"),  # first meta group whose descriptors lie in its own groups
    "blocks_count_hi": (0x150, "I"),
    "checksum_type": (0x175, "B"),  # 1 = crc32c
    "backup_bgs_0": (0x24C, "I"),  # the two groups with backups under sparse_super2, 0 = none
    "backup_bgs_1": (0x250, "I"),
    "checksum_seed": (0x270, "I"),  # with CSUM_SEED
    "checksum": (0x3FC, "I"),  # crc32c of the 1020 bytes before it
}
_REVISION_1 = ("feature_compat", "feature_incompat", "feature_ro_compat", "inode_size")

GroupDescriptors = np.ndarray[tuple[int], np.dtype[np.void]]


@dataclass(frozen=True, slots=True)
class Superblock:
    """The checked values of a superblock; sizes in bytes, places in blocks."""

    raw: bytes
    block_size: int
    cluster_size: int
    blocks_count: int
    first_data_block: int
    blocks_per_group: int
    clusters_per_group: int
    inodes_count: int
    inodes_per_group: int
    inode_size: int
    state: int
    compat: int
    incompat: int
    ro_compat: int
    uuid: bytes
    label: str
    reserved_gdt_blocks: int
    journal_inum: int
    journal_dev: int
    desc_size: int
    first_meta_bg: int
    checksum_type: int
    backup_groups: tuple[int, int]
    checksum_seed: int
    checksum: int

    @property
    def groups(self) -> int:
        """Number of block groups."""
        return -(-(self.blocks_count - self.first_data_block) // self.blocks_per_group)

    @property
    def cluster_ratio(self) -> int:
        """Blocks in a cluster."""
        return self.cluster_size // self.block_size

    @property
    def inode_table_blocks(self) -> int:
        """Blocks of one group's inode table."""
        return -(-self.inodes_per_group * self.inode_size // self.block_size)

    @property
    def size(self) -> int:
        """Bytes that the file system covers."""
        return self.blocks_count * self.block_size

    @property
    def uuid_text(self) -> str:
        """The UUID as people write it."""
        return str(uuid.UUID(bytes=self.uuid))

    @property
    def kind(self) -> str:
        """The oldest of ext2, ext3, ext4 whose driver could mount it (as blkid decides)."""
        if self.incompat & ~INCOMPAT_EXT3 or self.ro_compat & ~RO_COMPAT_EXT3:
            return "ext4"
        return "ext3" if self.compat & COMPAT_HAS_JOURNAL else "ext2"


def has_magic(raw: bytes) -> bool:
    """Return whether the 1024 bytes are an ext superblock (not an external journal's)."""
    magic: int = struct.unpack_from("<H", raw, _FIELDS["magic"][0])[0]
    incompat: int = struct.unpack_from("<I", raw, _FIELDS["feature_incompat"][0])[0]
    return magic == MAGIC and not incompat & INCOMPAT_JOURNAL_DEV


def parse_superblock(raw: bytes) -> Superblock:
    """Return the superblock in the 1024 bytes; raises Corrupt, Unsupported."""
    value = {
        name: struct.unpack_from("<" + code, raw, offset)[0]
        for name, (offset, code) in _FIELDS.items()
    }
    _require("magic", value["magic"] == MAGIC, f"expected 0xef53, found {value['magic']:#x}")
    if value["rev_level"] == 0:
        value |= dict.fromkeys(_REVISION_1, 0) | {"inode_size": 128}
    incompat, ro_compat = value["feature_incompat"], value["feature_ro_compat"]
    unknown = incompat & ~INCOMPAT_KNOWN
    if unknown:
        at = SUPERBLOCK_OFFSET + _FIELDS["feature_incompat"][0]
        raise Unsupported("ext superblock", at, f"unknown incompatible features {unknown:#x}")
    log_block = value["log_block_size"]
    _require("log_block_size", log_block <= 6, f"expected 0 to 6, found {log_block}")
    log_cluster = value["log_cluster_size"] if ro_compat & RO_COMPAT_BIGALLOC else log_block
    fits = log_block <= log_cluster <= log_block + 20
    _require("log_cluster_size", fits, f"block {log_block}, found {log_cluster}")
    wide = bool(incompat & INCOMPAT_64BIT)
    superblock = Superblock(
        raw=raw,
        block_size=1024 << log_block,
        cluster_size=1024 << log_cluster,
        blocks_count=value["blocks_count_lo"] | (value["blocks_count_hi"] << 32 if wide else 0),
        first_data_block=value["first_data_block"],
        blocks_per_group=value["blocks_per_group"],
        clusters_per_group=value["clusters_per_group"]
        if ro_compat & RO_COMPAT_BIGALLOC
        else value["blocks_per_group"],
        inodes_count=value["inodes_count"],
        inodes_per_group=value["inodes_per_group"],
        inode_size=value["inode_size"],
        state=value["state"],
        compat=value["feature_compat"],
        incompat=incompat,
        ro_compat=ro_compat,
        uuid=value["uuid"],
        label=value["volume_name"].split(b"\0")[0].decode("utf-8", "replace"),
        reserved_gdt_blocks=value["reserved_gdt_blocks"],
        journal_inum=value["journal_inum"],
        journal_dev=value["journal_dev"],
        desc_size=value["desc_size"] if wide else 32,
        first_meta_bg=value["first_meta_bg"],
        checksum_type=value["checksum_type"],
        backup_groups=(value["backup_bgs_0"], value["backup_bgs_1"]),
        checksum_seed=value["checksum_seed"],
        checksum=value["checksum"],
    )
    _check(superblock)
    return superblock


def _require(field: str, holds: bool, reason: str) -> None:
    if not holds:
        at = SUPERBLOCK_OFFSET + _FIELDS[field][0]
        raise Corrupt(f"ext superblock, s_{field}", at, reason)


def _check(superblock: Superblock) -> None:
    """The bounds that fs/ext4/super.c demands before it mounts."""
    block, bits = superblock.block_size, superblock.block_size * 8
    per_group, clusters = superblock.blocks_per_group, superblock.clusters_per_group
    good = 0 < clusters <= bits and clusters % 8 == 0
    _require("clusters_per_group", good, f"expected a multiple of 8 up to {bits}, found {clusters}")
    expected = clusters * superblock.cluster_ratio
    _require("blocks_per_group", per_group == expected, f"expected {expected}, found {per_group}")
    first = superblock.first_data_block
    _require("first_data_block", first <= (block == 1024), f"found {first}")
    count = superblock.blocks_count
    _require("blocks_count_lo", first < count < 1 << 48, f"found {count}")
    groups = superblock.groups
    if groups > MAX_GROUPS:
        raise Unsupported("ext superblock", SUPERBLOCK_OFFSET, f"{groups} block groups")
    inodes = superblock.inodes_per_group
    _require("inodes_per_group", 0 < inodes <= bits, f"expected 1 to {bits}, found {inodes}")
    total = superblock.inodes_count
    _require("inodes_count", total == groups * inodes, f"expected {groups * inodes}, found {total}")
    size = superblock.inode_size
    good = 128 <= size <= block and size & (size - 1) == 0
    _require("inode_size", good, f"expected a power of two from 128 to {block}, found {size}")
    size = superblock.desc_size
    good = 32 <= size <= 1024 and size & (size - 1) == 0
    good = good and (size >= 64 or not superblock.incompat & INCOMPAT_64BIT)
    _require("desc_size", good, f"found {size}")
    reserved = superblock.reserved_gdt_blocks
    _require("reserved_gdt_blocks", reserved <= block // 4, f"found {reserved}")


def descriptor_type(desc_size: int) -> np.dtype[np.void]:
    """Return the layout of one group descriptor of `desc_size` bytes."""
    fields = [
        ("block_bitmap_lo", "<u4", 0x00),  # block
        ("inode_bitmap_lo", "<u4", 0x04),  # block
        ("inode_table_lo", "<u4", 0x08),  # first block
        ("free_clusters_lo", "<u2", 0x0C),  # clusters
        ("flags", "<u2", 0x12),  # 1 inode bitmap, 2 block bitmap not initialised; 4 table zeroed
        ("block_bitmap_csum_lo", "<u2", 0x18),  # crc32c of the block bitmap, with metadata_csum
        ("checksum", "<u2", 0x1E),  # crc16 (gdt_csum) or low half of crc32c (metadata_csum)
    ]
    if desc_size >= 64:
        fields += [
            ("block_bitmap_hi", "<u4", 0x20),
            ("inode_bitmap_hi", "<u4", 0x24),
            ("inode_table_hi", "<u4", 0x28),
            ("free_clusters_hi", "<u2", 0x2C),
            ("block_bitmap_csum_hi", "<u2", 0x38),
        ]
    names, formats, offsets = zip(*fields, strict=True)
    layout = {"names": names, "formats": formats, "offsets": offsets, "itemsize": desc_size}
    return np.dtype(layout)  # type: ignore[call-overload,no-any-return]


def whole(descriptors: GroupDescriptors, name: str, shift: int = 32) -> NDArray[np.int64]:
    """Return the field `name` of all descriptors with its high half, which is `shift` up."""
    low = descriptors[name + "_lo"].astype(np.int64)
    if name + "_hi" not in (descriptors.dtype.names or ()):
        return low
    return low | (descriptors[name + "_hi"].astype(np.int64) << shift)


def with_features(raw: bytes, compat: int, incompat: int) -> bytes:
    """Return the superblock as revision 1 with other feature words, its checksum left as it was."""
    changed = bytearray(raw)
    if struct.unpack_from("<I", raw, _FIELDS["rev_level"][0])[0] == 0:
        struct.pack_into("<I", changed, _FIELDS["rev_level"][0], 1)
        struct.pack_into("<H", changed, _FIELDS["inode_size"][0], 128)
        struct.pack_into("<I", changed, _FIELDS["first_ino"][0], 11)
    struct.pack_into("<I", changed, _FIELDS["feature_compat"][0], compat)
    struct.pack_into("<I", changed, _FIELDS["feature_incompat"][0], incompat)
    return bytes(changed)
