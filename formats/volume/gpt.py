"""GUID partition tables: a header and entries at the disk's start, and a copy at its end.

Source: UEFI 2.10, 5.3 "GUID Partition Table (GPT) Disk Layout".
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass

from formats.errors import Corrupt, FormatError, Truncated
from formats.source import Source
from formats.volume.check import check_layout
from formats.volume.model import Partition, PartitionTable

SIGNATURE = b"EFI PART"
HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")  # 92 bytes; the rest of the sector is reserved
HEADER_CRC_OFFSET = 16
PRIMARY_LBA = 1
SECTOR_SIZES = (512, 4096)

ENTRY = struct.Struct("<16s16sQQQ72s")  # first 128 bytes of an entry
MIN_ENTRY_BYTES = 128  # 128 * 2**n
MAX_ENTRY_BYTES = 4096
MAX_ENTRIES_BYTES = 1 << 19  # 4096 entries of 128 bytes; the usual table has 128
UNUSED_TYPE = bytes(16)


@dataclass(frozen=True, slots=True)
class Header:
    """One GPT header, primary or backup; little-endian."""

    signature: bytes  # 0: "EFI PART"
    revision: int  # 8: u32, 0x00010000
    header_size: int  # 12: u32, bytes, 92..sector size
    header_crc32: int  # 16: u32, of header_size bytes with this field zero
    reserved: int  # 20: u32, 0
    my_lba: int  # 24: u64, where this header lies
    alternate_lba: int  # 32: u64, where the other one lies
    first_usable_lba: int  # 40: u64
    last_usable_lba: int  # 48: u64, inclusive
    disk_guid: bytes  # 56: GUID, first three fields little-endian
    entries_lba: int  # 72: u64
    entry_count: int  # 80: u32
    entry_size: int  # 84: u32, bytes
    entries_crc32: int  # 88: u32, of entry_count * entry_size bytes


@dataclass(frozen=True, slots=True)
class _Copy:
    """A header whose checksums are right, with its entries."""

    header: Header
    entries: bytes

    def own(self, sector_size: int) -> tuple[tuple[int, int], ...]:
        """Where header and entries lie, in bytes of the disk."""
        header, entries = self.header.my_lba * sector_size, self.header.entries_lba * sector_size
        return (header, header + sector_size), (entries, entries + len(self.entries))


def read_gpt(source: Source, sector_size: int | None = None) -> PartitionTable:
    """Return the partitions, from the backup when the primary is damaged.

    sector_size: bytes; without it the one is taken at which a valid header lies.

    Raises Corrupt when neither copy is good, and for partitions that overlap or leave the disk.
    """
    sizes = SECTOR_SIZES if sector_size is None else (sector_size,)
    failures: list[FormatError] = []
    for size in sizes:
        primary = _try_copy(source, PRIMARY_LBA, size)
        if isinstance(primary, _Copy):
            backup = _try_copy(source, primary.header.alternate_lba, size)
            warnings = _backup_warnings(source, primary, backup, size)
            return _table(source, primary, backup, size, warnings)
        failures.append(primary)
    for size in sizes:
        backup = _try_copy(source, source.size // size - 1, size)
        if isinstance(backup, _Copy):
            warning = f"the primary GPT is damaged, the backup is used ({failures[0]})"
            return _table(source, backup, None, size, [warning])
    first = failures[0]
    raise Corrupt(
        "GPT header", first.offset, f"neither copy is good; the primary: {first.reason}"
    ) from first


def _try_copy(source: Source, lba: int, sector_size: int) -> _Copy | FormatError:
    """Return a good copy, or what is wrong with it."""
    try:
        return _read_copy(source, lba, sector_size)
    except FormatError as error:
        return error


def _read_copy(source: Source, lba: int, sector_size: int) -> _Copy:
    """Return a header and its entries after all their own checks.

    Raises Truncated or Corrupt.
    """
    offset = lba * sector_size
    if lba < PRIMARY_LBA or offset + sector_size > source.size:
        raise Truncated("GPT header", max(offset, 0), "it would lie outside the disk")
    sector = source.pread(offset, sector_size)
    header = Header(*HEADER.unpack_from(sector))
    if header.signature != SIGNATURE:
        raise Corrupt("GPT header", offset, f"expected {SIGNATURE!r}, found {header.signature!r}")
    if not HEADER.size <= header.header_size <= sector_size:
        raise Corrupt("GPT header", offset + 12, f"header_size {header.header_size}")
    blanked = bytearray(sector[: header.header_size])
    blanked[HEADER_CRC_OFFSET : HEADER_CRC_OFFSET + 4] = bytes(4)
    if zlib.crc32(blanked) != header.header_crc32:
        raise Corrupt("GPT header", offset + HEADER_CRC_OFFSET, "the header's checksum is wrong")
    if header.my_lba != lba:
        raise Corrupt("GPT header", offset + 24, f"expected my_lba {lba}, found {header.my_lba}")
    return _Copy(header, _read_entries(source, header, offset, sector_size))


def _read_entries(source: Source, header: Header, offset: int, sector_size: int) -> bytes:
    size, count = header.entry_size, header.entry_count
    power_of_two = size & (size - 1) == 0
    if not (MIN_ENTRY_BYTES <= size <= MAX_ENTRY_BYTES and power_of_two):
        raise Corrupt("GPT header", offset + 84, f"entries of {size} bytes")
    if count * size > MAX_ENTRIES_BYTES:
        raise Corrupt("GPT header", offset + 80, f"{count} entries of {size} bytes")
    start = header.entries_lba * sector_size
    if start + count * size > source.size:
        raise Corrupt("GPT header", offset + 72, f"the entries at byte {start} leave the disk")
    entries = source.pread(start, count * size)
    if zlib.crc32(entries) != header.entries_crc32:
        raise Corrupt("GPT entries", start, "the entries' checksum is wrong")
    return entries


def _backup_warnings(
    source: Source, primary: _Copy, backup: _Copy | FormatError, sector_size: int
) -> list[str]:
    """Return what is wrong with the backup, given a good primary."""
    last_lba = source.size // sector_size - 1
    alternate_lba = primary.header.alternate_lba
    warnings = []
    if alternate_lba != last_lba:
        warnings.append(
            f"the backup GPT is expected at sector {alternate_lba}, the disk's last is {last_lba}"
        )
    if isinstance(backup, FormatError):
        warnings.append(f"the backup GPT is damaged or missing ({backup})")
    elif backup.entries != primary.entries:
        warnings.append("the backup GPT lists other partitions than the primary")
    return warnings


def _table(
    source: Source,
    copy: _Copy,
    other: _Copy | FormatError | None,
    sector_size: int,
    warnings: list[str],
) -> PartitionTable:
    header = copy.header
    own = [(0, PRIMARY_LBA * sector_size), *copy.own(sector_size)]
    if isinstance(other, _Copy):
        own.extend(other.own(sector_size))
    partitions: list[Partition] = []
    for index in range(header.entry_count):
        entry = copy.entries[index * header.entry_size : (index + 1) * header.entry_size]
        kind, unique, first_lba, last_lba, _, name = ENTRY.unpack_from(entry)
        if kind == UNUSED_TYPE:
            continue
        partitions.append(
            Partition(
                number=index + 1,
                start=first_lba * sector_size,
                end=(last_lba + 1) * sector_size,
                type=_guid(kind),
                uuid=_guid(unique),
                label=_name(name),
            )
        )
        if first_lba < header.first_usable_lba or last_lba > header.last_usable_lba:
            warnings.append(
                f"partition {index + 1} lies outside the usable sectors "
                f"{header.first_usable_lba}..{header.last_usable_lba}"
            )
    check_layout("GPT", partitions, source.size)
    return PartitionTable(
        "gpt", sector_size, _guid(header.disk_guid), tuple(partitions), tuple(own), tuple(warnings)
    )


def _guid(data: bytes) -> str:
    """Return a GUID in its usual text form; its first three fields are little-endian."""
    return str(uuid.UUID(bytes_le=data))


def _name(data: bytes) -> str:
    """Return a partition name: 36 UTF-16 units, ended by the first NUL."""
    return data.decode("utf-16-le", "replace").split("\0", 1)[0]
