"""Master boot records: four primary partitions and the chain of logical ones.

Source: Linux `block/partitions/msdos.c` (`msdos_partition`, `parse_extended`), whose numbers a
guest's kernel uses; entry layout as in UEFI 2.10, 5.2.1 "Legacy Master Boot Record".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from formats.errors import Corrupt
from formats.source import Source
from formats.volume.check import check_layout
from formats.volume.model import Partition, PartitionTable

RECORD_BYTES = 512  # the record fills the first 512 bytes of its sector, however large that is
DISK_SIGNATURE = struct.Struct("<I")  # at 0x1B8: u32, chosen by the system that wrote it
DISK_SIGNATURE_OFFSET = 0x1B8
ENTRIES_OFFSET = 0x1BE
ENTRY = struct.Struct("<B3sB3sII")
ENTRY_COUNT = 4
BOOT_SIGNATURE = b"\x55\xaa"  # at 0x1FE
BOOT_SIGNATURE_OFFSET = 0x1FE

STATUS_LEGAL = (0x00, 0x80)
TYPE_EMPTY = 0x00
TYPE_PROTECTIVE = 0xEE  # the disk has a GPT
TYPES_EXTENDED = (0x05, 0x0F, 0x85)  # DOS, Windows 95 LBA, Linux; msdos.c is_extended_partition
FIRST_LOGICAL_NUMBER = 5
REGULAR_EBR_ENTRIES = 2  # one partition and one link; msdos.c ignores nonsense in the other two
MAX_PARTITIONS = 256  # DISK_MAX_PARTS, Linux include/linux/genhd.h


@dataclass(frozen=True, slots=True)
class Entry:
    """One 16-byte entry; the CHS addresses at 1 and 5 are not used by anyone any more."""

    status: int  # 0: u8, 0x00 or 0x80 (active)
    type: int  # 4: u8, system id, 0 unused
    start_sectors: int  # 8: u32, from the disk's start, or in an EBR from a base
    size_sectors: int  # 12: u32, 0 unused

    @property
    def used(self) -> bool:
        """Whether it describes anything."""
        return self.type != TYPE_EMPTY and self.size_sectors != 0

    @property
    def extended(self) -> bool:
        """Whether it holds a chain of logical partitions."""
        return self.type in TYPES_EXTENDED


def read_entries(record: bytes) -> tuple[Entry, ...]:
    """Return the four entries of a 512-byte record."""
    fields = (
        ENTRY.unpack_from(record, ENTRIES_OFFSET + index * ENTRY.size)
        for index in range(ENTRY_COUNT)
    )
    return tuple(Entry(status, kind, start, size) for status, _, kind, _, start, size in fields)


def has_boot_signature(record: bytes) -> bool:
    """Say whether the record ends with 0x55 0xAA."""
    return record[BOOT_SIGNATURE_OFFSET : BOOT_SIGNATURE_OFFSET + 2] == BOOT_SIGNATURE


def read_mbr(source: Source, sector_size: int = 512) -> PartitionTable:
    """Return the partitions of an MBR disk; extended partitions themselves are not listed.

    Raises Corrupt for partitions that overlap, leave the disk or their extended partition, and for
    a chain of logical partitions that loops or leaves it; Truncated when the disk has no sector.
    """
    record = source.pread(0, RECORD_BYTES)
    if not has_boot_signature(record):
        raise Corrupt("MBR", BOOT_SIGNATURE_OFFSET, "the boot signature 0x55 0xAA is missing")
    own = [(0, RECORD_BYTES)]
    primaries: list[Partition] = []
    logicals: list[Partition] = []
    containers: list[Partition] = []
    warnings: list[str] = []
    for number, entry in enumerate(read_entries(record), start=1):
        if not entry.used:
            continue
        partition = _partition(number, entry, 0, sector_size)
        if entry.extended:
            containers.append(partition)
        else:
            primaries.append(partition)
    check_layout("MBR", primaries + containers, source.size)
    for container in containers:
        first_number = FIRST_LOGICAL_NUMBER + len(logicals)
        chain = _Chain(source, container, sector_size, first_number)
        logicals.extend(chain.partitions)
        own.extend((position, position + RECORD_BYTES) for position in chain.records)
        warnings.extend(chain.warnings)
    check_layout("MBR", primaries + logicals, source.size)
    (identifier,) = DISK_SIGNATURE.unpack_from(record, DISK_SIGNATURE_OFFSET)
    return PartitionTable(
        "mbr",
        sector_size,
        f"{identifier:08x}",
        (*primaries, *logicals),
        tuple(own),
        tuple(warnings),
    )


def _partition(number: int, entry: Entry, base: int, sector_size: int) -> Partition:
    start = base + entry.start_sectors * sector_size
    return Partition(number, start, start + entry.size_sectors * sector_size, f"{entry.type:02x}")


class _Chain:
    """The logical partitions of one extended partition, followed from record to record.

    Each extended boot record holds one data entry, relative to the record, and one link to the
    next record, relative to the extended partition.
    """

    def __init__(
        self, source: Source, container: Partition, sector_size: int, first_number: int
    ) -> None:
        self.source = source
        self.container = container
        self.sector_size = sector_size
        self.next_number = first_number
        self.partitions: list[Partition] = []
        self.records: list[int] = []
        self.warnings: list[str] = []
        self._follow()

    def _follow(self) -> None:
        position: int | None = self.container.start
        seen: set[int] = set()
        while position is not None:
            if position in seen:
                raise Corrupt("EBR", position, "the chain of logical partitions loops")
            if len(seen) == MAX_PARTITIONS:
                raise Corrupt("EBR", position, f"a chain of more than {MAX_PARTITIONS} records")
            seen.add(position)
            position = self._read_record(position)

    def _read_record(self, position: int) -> int | None:
        """Take the partitions of one record and return where the next one lies."""
        record = self.source.pread(position, RECORD_BYTES)
        if not has_boot_signature(record):
            self.warnings.append(
                f"extended partition {self.container.number}: no boot record at byte {position}; "
                "partitions after it, if any, are not seen by the guest either"
            )
            return None
        self.records.append(position)
        entries = read_entries(record)
        for index, entry in enumerate(entries):
            if entry.used and not entry.extended:
                self._add(position, entry, optional=index >= REGULAR_EBR_ENTRIES)
        links = [entry for entry in entries if entry.used and entry.extended]
        if not links:
            return None
        target = self.container.start + links[0].start_sectors * self.sector_size
        if target + self.sector_size > self.container.end:
            raise Corrupt(
                "EBR",
                position,
                f"the next record at byte {target} leaves extended partition "
                f"{self.container.number}, which ends at byte {self.container.end}",
            )
        return target

    def _add(self, position: int, entry: Entry, optional: bool) -> None:
        partition = _partition(self.next_number, entry, position, self.sector_size)
        if partition.end > self.container.end:
            if optional:
                return
            raise Corrupt(
                "EBR",
                position,
                f"logical partition {partition.number} ends at byte {partition.end}, extended "
                f"partition {self.container.number} at byte {self.container.end}",
            )
        if self.next_number > MAX_PARTITIONS:
            raise Corrupt("EBR", position, f"more than {MAX_PARTITIONS} partitions")
        self.partitions.append(partition)
        self.next_number += 1
