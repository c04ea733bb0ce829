"""Which partition table a disk has, and its partitions."""

from __future__ import annotations

from dataclasses import replace

from formats.errors import FormatError
from formats.source import Source
from formats.volume.gpt import read_gpt
from formats.volume.mbr import (
    DISK_SIGNATURE_OFFSET,
    RECORD_BYTES,
    STATUS_LEGAL,
    TYPE_PROTECTIVE,
    has_boot_signature,
    read_entries,
    read_mbr,
)
from formats.volume.model import PartitionTable

_DEFAULT_SECTOR_BYTES = 512

_JUMPS = (b"\xeb", b"\xe9")  # first byte of a boot sector: jmp short, jmp near
_OEM_NAMES = (b"NTFS    ", b"EXFAT   ")  # at 3: file systems that name themselves there
_OEM_NAME = slice(3, 11)
_BYTES_PER_SECTOR = slice(11, 13)  # u16, bytes
_SECTORS_PER_CLUSTER = 13  # u8, power of two
_RESERVED_SECTORS = slice(14, 16)  # u16, not 0
_FAT_COUNT = 16  # u8, 1 or 2
_MEDIA = 21  # u8, 0xF0 or 0xF8..0xFF
_LEGAL_SECTOR_SIZES = (512, 1024, 2048, 4096)
_LEGAL_FAT_COUNTS = (1, 2)
_LEGAL_MEDIA = (0xF0, *range(0xF8, 0x100))


def read_table(source: Source, sector_size: int | None = None) -> PartitionTable:
    """Return the disk's GPT or MBR, or a table of kind "none" for a disk that is one volume.

    sector_size: logical sector of the disk in bytes, where it is known; a GPT tells it itself.

    Raises Corrupt when there is a table and it contradicts itself.
    """
    none = PartitionTable("none", sector_size or _DEFAULT_SECTOR_BYTES, "", ())
    if source.size < RECORD_BYTES:
        return none
    record = source.pread(0, RECORD_BYTES)
    if not has_boot_signature(record):
        return none
    entries = read_entries(record)
    if any(entry.status not in STATUS_LEGAL for entry in entries):
        return none
    used = [entry for entry in entries if entry.used]
    if any(entry.type == TYPE_PROTECTIVE for entry in used):
        return _gpt(source, sector_size, hybrid=len(used) > 1)
    size = sector_size or _DEFAULT_SECTOR_BYTES
    if is_volume_boot_sector(record):
        return _mbr_if_sound(source, size, none) if used else none
    identified = any(record[DISK_SIGNATURE_OFFSET : DISK_SIGNATURE_OFFSET + 4])
    return read_mbr(source, size) if used or identified else none


def is_volume_boot_sector(record: bytes) -> bool:
    """Say whether the first sector is that of a FAT, exFAT or NTFS volume.

    Such sectors end with 0x55 0xAA as well, and what stands in place of partition entries is code
    or text. Source: Linux `block/partitions/msdos.c` and `include/linux/msdos_fs.h`
    (`fat_valid_media`); Microsoft "FAT: General Overview of On-Disk Format" 1.03.
    """
    if record[:1] not in _JUMPS:
        return False
    if record[_OEM_NAME] in _OEM_NAMES:
        return True
    per_cluster = record[_SECTORS_PER_CLUSTER]
    return (
        int.from_bytes(record[_BYTES_PER_SECTOR], "little") in _LEGAL_SECTOR_SIZES
        and per_cluster != 0
        and per_cluster & (per_cluster - 1) == 0
        and any(record[_RESERVED_SECTORS])
        and record[_FAT_COUNT] in _LEGAL_FAT_COUNTS
        and record[_MEDIA] in _LEGAL_MEDIA
    )


def _gpt(source: Source, sector_size: int | None, hybrid: bool) -> PartitionTable:
    table = read_gpt(source, sector_size)
    if not hybrid:
        return table
    warning = "the MBR lists partitions besides the protective one (hybrid MBR); the GPT is used"
    return replace(table, warnings=(*table.warnings, warning))


def _mbr_if_sound(source: Source, sector_size: int, none: PartitionTable) -> PartitionTable:
    """A volume's boot sector may carry a table too; only one without contradictions counts."""
    try:
        return read_mbr(source, sector_size)
    except FormatError:
        return none
