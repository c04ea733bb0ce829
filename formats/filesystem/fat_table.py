"""Boot sector and allocation table of FAT12, FAT16 and FAT32.

Source: Microsoft "FAT: General Overview of On-Disk Format", 1.03 (fatgen103); where it is silent,
Linux `fs/fat/inode.c` (`fat_read_bpb`, `fat_fill_super`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.errors import Corrupt, Truncated, Unsupported
from formats.ranges import Ranges, empty_ranges, from_bits, union
from formats.source import Source

BOOT_SECTOR_BYTES = 512
BOOT_SIGNATURE = b"\x55\xaa"  # at 510
JUMPS = (b"\xeb", b"\xe9")  # at 0: jmp short, jmp near
COMMON = struct.Struct("<HBHBHHBHHHII")  # bytes 11..35
EXTENSION_FAT16 = struct.Struct("<BBBI")  # bytes 36..42
EXTENSION_FAT32 = struct.Struct("<IHHIHH12sBBBI")  # bytes 36..70

LEGAL_SECTOR_SIZES = (512, 1024, 2048, 4096)
LEGAL_FAT_COUNTS = (1, 2)
LEGAL_MEDIA = (0xF0, *range(0xF8, 0x100))
MAX_CLUSTER_BYTES = 256 << 10  # Windows with 4 KiB sectors; the specification says 32 KiB
DIRECTORY_ENTRY_BYTES = 32
FIRST_CLUSTER = 2  # entries 0 and 1 are flags
MAX_FAT12_CLUSTERS = 4084  # more are FAT16; page 14 of the specification
MAX_FAT16_CLUSTERS = 65524
MAX_CLUSTERS = 1 << 26  # 2 TiB of 32 KiB clusters; bounds the memory of a forged volume
NO_MIRRORING = 0x80  # bit 7 of extended_flags: only the FAT in bits 0..3 is kept up to date
EXTENDED_BOOT_SIGNATURES = (0x28, 0x29)  # volume_id is valid

ENTRY_MASK = {12: 0xFFF, 16: 0xFFFF, 32: 0x0FFF_FFFF}
BAD_CLUSTER = {12: 0xFF7, 16: 0xFFF7, 32: 0x0FFF_FFF7}  # from here on: bad or end of chain
CLEAN_BITS = {16: 0xC000, 32: 0x0C00_0000}  # of entry 1: clean shutdown, no read errors
DIRTY_FLAGS = 0x03  # of boot_flags: dirty, needs a surface scan; Linux FAT_STATE_DIRTY
CHUNK_ENTRIES = 1 << 20


@dataclass(frozen=True, slots=True)
class BootSector:
    """What the first sector says; little-endian. Offsets of FAT32 in brackets where they differ."""

    bytes_per_sector: int  # 11: u16, 512, 1024, 2048 or 4096
    sectors_per_cluster: int  # 13: u8, power of two
    reserved_sectors: int  # 14: u16, before the first FAT, not 0
    fat_count: int  # 16: u8, 1 or 2
    root_entries: int  # 17: u16, entries of the fixed root directory, 0 on FAT32
    total_sectors: int  # 19: u16, or 32: u32 when that is 0
    media: int  # 21: u8, 0xF0 or 0xF8..0xFF
    fat_sectors: int  # 22: u16, or [36: u32] when that is 0
    extended_flags: int  # [40: u16], see NO_MIRRORING; 0 on FAT12 and FAT16
    root_cluster: int  # [44: u32], where the root directory begins; 0 on FAT12 and FAT16
    boot_flags: int  # 37 [65]: u8, see DIRTY_FLAGS
    volume_id: int | None  # 39 [67]: u32, None when the signature before it is missing
    is_fat32: bool  # the 16-bit FAT size is 0

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return self.bytes_per_sector * self.sectors_per_cluster

    @property
    def fat_start(self) -> int:
        """Where the first FAT begins, in bytes."""
        return self.reserved_sectors * self.bytes_per_sector

    @property
    def fat_bytes(self) -> int:
        """Bytes of one FAT."""
        return self.fat_sectors * self.bytes_per_sector

    @property
    def data_start(self) -> int:
        """Where cluster 2 begins, in bytes."""
        root_bytes = self.root_entries * DIRECTORY_ENTRY_BYTES
        root_sectors = -(-root_bytes // self.bytes_per_sector)
        fats_end = self.fat_start + self.fat_count * self.fat_bytes
        return fats_end + root_sectors * self.bytes_per_sector

    @property
    def size(self) -> int:
        """Bytes of the volume."""
        return self.total_sectors * self.bytes_per_sector

    @property
    def bits(self) -> int:
        """Bits of a FAT entry: 12, 16 or 32; decided by the number of clusters alone."""
        if self.is_fat32:
            return 32
        clusters = (self.size - self.data_start) // self.cluster_size
        return 12 if clusters <= MAX_FAT12_CLUSTERS else 16

    @property
    def clusters(self) -> int:
        """Clusters that both the volume and its FAT have room for."""
        by_size = (self.size - self.data_start) // self.cluster_size
        return min(by_size, self.fat_bytes * 8 // self.bits - FIRST_CLUSTER)


def read_boot_sector(source: Source) -> BootSector:
    """Return the checked boot sector.

    Raises Truncated, Corrupt or Unsupported.
    """
    sector = source.pread(0, BOOT_SECTOR_BYTES)
    if sector[:1] not in JUMPS or sector[510:512] != BOOT_SIGNATURE:
        raise Corrupt("FAT boot sector", 0, "jump instruction or signature 0x55 0xAA is missing")
    boot = _parse(sector)
    _check_fields(boot)
    _check_layout(boot, source.size)
    return boot


def _parse(sector: bytes) -> BootSector:
    (
        bytes_per_sector,
        sectors_per_cluster,
        reserved_sectors,
        fat_count,
        root_entries,
        total_16,
        media,
        fat_sectors_16,
        _sectors_per_track,
        _heads,
        _hidden_sectors,
        total_32,
    ) = COMMON.unpack_from(sector, 11)
    extended_flags = root_cluster = 0
    fat_sectors = fat_sectors_16
    if fat_sectors_16:
        _, boot_flags, signature, volume_id = EXTENSION_FAT16.unpack_from(sector, 36)
    else:
        extension = EXTENSION_FAT32.unpack_from(sector, 36)
        fat_sectors, extended_flags, _version, root_cluster = extension[:4]
        boot_flags, signature, volume_id = extension[-3:]
    has_id = signature in EXTENDED_BOOT_SIGNATURES
    return BootSector(
        bytes_per_sector=bytes_per_sector,
        sectors_per_cluster=sectors_per_cluster,
        reserved_sectors=reserved_sectors,
        fat_count=fat_count,
        root_entries=root_entries,
        total_sectors=total_16 or total_32,
        media=media,
        fat_sectors=fat_sectors,
        extended_flags=extended_flags,
        root_cluster=root_cluster,
        boot_flags=boot_flags if has_id else 0,
        volume_id=volume_id if has_id else None,
        is_fat32=fat_sectors_16 == 0,
    )


def _check_fields(boot: BootSector) -> None:
    def refuse(offset: int, what: str) -> Corrupt:
        return Corrupt("FAT boot sector", offset, f"impossible {what}")

    if boot.bytes_per_sector not in LEGAL_SECTOR_SIZES:
        raise refuse(11, f"bytes per sector {boot.bytes_per_sector}")
    per_cluster = boot.sectors_per_cluster
    too_large = boot.cluster_size > MAX_CLUSTER_BYTES
    if per_cluster == 0 or per_cluster & (per_cluster - 1) or too_large:
        raise refuse(13, f"sectors per cluster {per_cluster}")
    if boot.reserved_sectors == 0:
        raise refuse(14, "reserved sectors 0")
    if boot.fat_count not in LEGAL_FAT_COUNTS:
        raise refuse(16, f"number of FATs {boot.fat_count}")
    if (boot.root_entries == 0) != boot.is_fat32:
        raise refuse(17, f"root entries {boot.root_entries}")
    if boot.media not in LEGAL_MEDIA:
        raise refuse(21, f"media {boot.media:#x}")
    if boot.fat_sectors == 0:
        raise refuse(22, "FAT size 0")


def _check_layout(boot: BootSector, source_size: int) -> None:
    if boot.size > source_size:
        raise Truncated(
            "FAT volume", 0, f"expected {boot.size} bytes, the source has {source_size}"
        )
    if boot.data_start + boot.cluster_size > boot.size or boot.clusters < 1:
        raise Corrupt("FAT boot sector", 19, "there is no room for a cluster")
    if not boot.is_fat32 and boot.clusters > MAX_FAT16_CLUSTERS:
        raise Corrupt("FAT boot sector", 22, f"{boot.clusters} clusters with 16-bit entries")
    if boot.clusters > MAX_CLUSTERS:
        raise Unsupported("FAT boot sector", 19, f"{boot.clusters} clusters")
    if boot.extended_flags & NO_MIRRORING:
        raise Unsupported("FAT boot sector", 40, "only one of the FATs is kept up to date")


@dataclass(frozen=True, slots=True)
class Allocation:
    """What the allocation table says.

    free: ranges of free clusters, bytes of the volume. doubt: why the table is not to be trusted
    for what is free, "" when it is.
    """

    free: Ranges
    doubt: str


def read_allocation(source: Source, boot: BootSector) -> Allocation:
    """Return free clusters and every sign that the table is not up to date or not sound."""
    is_free = np.zeros(boot.clusters + FIRST_CLUSTER, dtype=np.bool_)
    free: list[Ranges] = [empty_ranges()]
    doubts = [_boot_doubt(boot)]
    for first, entries in _chunks(source, boot, 0):
        zero = entries == 0
        if first == 0:
            doubts.append(_entry_doubt(boot, int(entries[1])))
            zero[:FIRST_CLUSTER] = False
        is_free[first : first + len(entries)] = zero
        start = boot.data_start + (first - FIRST_CLUSTER) * boot.cluster_size
        free.append(from_bits(zero, boot.cluster_size, start))
    doubts.append(_copies_doubt(source, boot))
    doubts.append(_chain_doubt(source, boot, is_free))
    return Allocation(union(*free), next((doubt for doubt in doubts if doubt), ""))


def _chunks(
    source: Source, boot: BootSector, copy: int
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Yield (number of the first entry, entries) of one copy of the table."""
    start = boot.fat_start + copy * boot.fat_bytes
    count = boot.clusters + FIRST_CLUSTER
    if boot.bits not in CLEAN_BITS:  # FAT12: at most 6 KiB; three bytes hold two entries
        raw = np.frombuffer(source.pread(start, -(-count * 3 // 2)) + b"\0\0", dtype=np.uint8)
        first_bytes = np.arange(count) * 3 // 2
        words = raw[first_bytes].astype(np.uint32) | raw[first_bytes + 1].astype(np.uint32) << 8
        yield 0, np.where(np.arange(count) % 2, words >> 4, words & ENTRY_MASK[12])
        return
    width = boot.bits // 8
    for first in range(0, count, CHUNK_ENTRIES):
        length = min(CHUNK_ENTRIES, count - first)
        data = source.pread(start + first * width, length * width)
        entries = np.frombuffer(data, dtype=f"<u{width}").astype(np.uint32)
        yield first, entries & np.uint32(ENTRY_MASK[boot.bits])


def _boot_doubt(boot: BootSector) -> str:
    if flags := boot.boot_flags & DIRTY_FLAGS:
        return f"the boot sector's flags are {flags:#x}: not unmounted, or read errors"
    return ""


def _entry_doubt(boot: BootSector, entry: int) -> str:
    clean = CLEAN_BITS.get(boot.bits, 0)
    if entry & clean != clean:
        return f"FAT entry 1 is {entry:#x}: not unmounted, or read errors"
    return ""


def _copies_doubt(source: Source, boot: BootSector) -> str:
    for copy in range(1, boot.fat_count):
        pairs = zip(_chunks(source, boot, 0), _chunks(source, boot, copy), strict=True)
        for (first, entries), (_, others) in pairs:
            # entry 0 holds the media byte and entry 1 flags, which some systems keep in one copy
            skip = FIRST_CLUSTER if first == 0 else 0
            if not np.array_equal(entries[skip:], others[skip:]):
                return f"FAT {copy + 1} differs from FAT 1"
    return ""


def _chain_doubt(source: Source, boot: BootSector, is_free: NDArray[np.bool_]) -> str:
    """A cluster that is free and yet follows another one belongs to somebody."""
    for first, entries in _chunks(source, boot, 0):
        links = entries[FIRST_CLUSTER:] if first == 0 else entries
        links = links[(links >= FIRST_CLUSTER) & (links < BAD_CLUSTER[boot.bits])]
        if (links >= len(is_free)).any():
            return "a cluster chain leaves the volume"
        if is_free[links].any():
            return "a cluster chain runs into a free cluster"
    return ""
