"""The bytes of a qcow2 file: header, header extensions, table entries. Everything is big-endian.

Source: qemu `docs/interop/qcow2.txt`, sections "Header", "Header extensions", "Cluster mapping"
and "Extended L2 Entries"; limits that the text calls qemu's own are those of `block/qcow2.h`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = b"QFI\xfb"  # 0: magic
HEADER_V2 = struct.Struct(">4sIQIIQIIQQIIQ")  # bytes 0..71
HEADER_V3 = struct.Struct(">QQQII")  # bytes 72..103
VERSION_2 = 2
VERSION_3 = 3
COMPRESSION_TYPE_OFFSET = 104  # u8, present when header_length exceeds it

MIN_CLUSTER_BITS = 9  # 512 bytes
MAX_CLUSTER_BITS = 21  # 2 MiB, MAX_CLUSTER_BITS in block/qcow2.h
MIN_CLUSTER_BITS_EXTENDED = 14  # a subcluster is at least one 512-byte sector
MAX_L1_BYTES = 32 << 20  # QCOW_MAX_L1_SIZE in block/qcow2.h
MAX_BACKING_NAME_BYTES = 1023
MAX_REFCOUNT_ORDER = 6
REFCOUNT_ORDER = 4  # 16 bits a cluster: the only order of version 2, what most writers choose
SUBCLUSTERS_PER_CLUSTER = 32
SECTOR_BYTES = 512  # unit of a compressed cluster's stored length, whatever the guest's sectors

INCOMPATIBLE_DIRTY = 1 << 0  # reference counts may be stale; mapping and data are not
INCOMPATIBLE_CORRUPT = 1 << 1
INCOMPATIBLE_EXTERNAL_DATA = 1 << 2
INCOMPATIBLE_COMPRESSION_TYPE = 1 << 3
INCOMPATIBLE_EXTENDED_L2 = 1 << 4
INCOMPATIBLE_KNOWN = (1 << 5) - 1

COMPRESSION_NAMES = {0: "deflate", 1: "zstd"}

EXTENSION = struct.Struct(">II")  # type, length of the data in bytes; data padded to 8
EXTENSION_END = 0x00000000
EXTENSION_BACKING_FORMAT = 0xE2792ACA

L1_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00  # bits 9..55: host offset of the L2 table, 0: unallocated
L2_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00  # bits 9..55: host offset of the cluster, 0: unallocated
L2_ZERO = 1 << 0  # reads as zeros; version 3 without extended entries only
L2_COMPRESSED = 1 << 62
COPIED = 1 << 63  # L1 and L2 entries: what they name is used once, and may be written in place


@dataclass(frozen=True, slots=True)
class Header:
    """The header of version 2 (72 bytes) or 3 (104 bytes or more)."""

    version: int  # 4: u32, 2 or 3
    backing_name_offset: int  # 8: u64, bytes, in the first cluster; 0: no backing file
    backing_name_length: int  # 16: u32, bytes, <= 1023
    cluster_bits: int  # 20: u32, 9..21
    size: int  # 24: u64, bytes, virtual disk
    crypt_method: int  # 32: u32, 0 none, 1 AES, 2 LUKS
    l1_size: int  # 36: u32, entries
    l1_table_offset: int  # 40: u64, bytes, cluster-aligned
    refcount_table_offset: int  # 48: u64, bytes, cluster-aligned; not needed for reading
    refcount_table_clusters: int  # 56: u32
    nb_snapshots: int  # 60: u32
    snapshots_offset: int  # 64: u64, bytes, cluster-aligned; not needed for reading
    incompatible_features: int = 0  # 72: u64, bits 0..4 known
    compatible_features: int = 0  # 80: u64, safely ignored
    autoclear_features: int = 0  # 88: u64, concern writers only
    refcount_order: int = REFCOUNT_ORDER  # 96: u32, 0..6; always 4 in version 2
    header_length: int = HEADER_V2.size  # 100: u32, bytes, >= 104, multiple of 8
    compression_type: int = 0  # 104: u8, 0 deflate, 1 zstd

    @property
    def cluster_size(self) -> int:
        """Bytes of a host or guest cluster."""
        return 1 << self.cluster_bits

    @property
    def extended_l2(self) -> bool:
        """Whether L2 entries are 16 bytes and map 32 subclusters each."""
        return bool(self.incompatible_features & INCOMPATIBLE_EXTENDED_L2)

    @property
    def l2_entry_bytes(self) -> int:
        """Bytes of an L2 entry."""
        return 16 if self.extended_l2 else 8

    @property
    def l2_entries(self) -> int:
        """Entries of an L2 table, which fills one cluster."""
        return self.cluster_size // self.l2_entry_bytes

    @property
    def l1_entries_needed(self) -> int:
        """L1 entries that cover the disk; entries after them belong to snapshots' VM state."""
        return -(-self.size // (self.l2_entries * self.cluster_size))
