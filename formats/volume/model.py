"""What every partition-table reader hands back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Partition:
    """One piece of a disk, `[start, end)` in bytes of it.

    number: as the guest's kernel counts it (1..4 primary, 5.. logical; GPT entry index + 1).
    type: MBR system id as two hex digits ("83"), or the GPT type GUID in lower case.
    uuid: GPT unique partition GUID in lower case; "" on MBR.
    label: GPT partition name; "" on MBR.
    """

    number: int
    start: int
    end: int
    type: str
    uuid: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A disk's partition table.

    kind: "mbr", "gpt", or "none" (no table: the whole disk is one volume).
    identifier: MBR disk signature as eight hex digits, or the GPT disk GUID.
    own: bytes that the table itself lies in, (start, end): boot records, headers, entries.
    warnings: what is odd but harmless, one sentence each (a damaged backup GPT).
    """

    kind: str
    sector_size: int
    identifier: str
    partitions: tuple[Partition, ...]
    own: tuple[tuple[int, int], ...] = ()
    warnings: tuple[str, ...] = ()
