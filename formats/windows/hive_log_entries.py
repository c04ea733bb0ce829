"""Entries of a registry hive's transaction log: the format of Windows 8.1 and later.

Source: msuhanov/regf, "Windows registry file format specification" (2018), "New format".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from formats.errors import Corrupt
from formats.windows.base_block import BASE_BLOCK_BYTES, BIN_ALIGNMENT, SECTOR_BYTES
from formats.windows.marvin32 import marvin32

_SEED = 0x82EF_4D88_7A4E_55C5
_ENTRY = struct.Struct("<4sIIIII8s8s")
# 0 "HvLE"; 4 size, bytes, whole sectors; 8 flags, bit 0 goes into the base block; 12 sequence
# number; 16 size of the hive bins, bytes; 20 number of pages; 24 hash of what follows byte 40;
# 32 hash of the first 32 bytes
_HEAD_HASH_AT = 32
_PAGE = struct.Struct("<II")  # 0 offset, from the start of the hive bins; 4 size, bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One write to the hive. bins_size: bytes of the hive bins after it.

    pages: (offset in the hive file, offset in the log, bytes).
    """

    sequence: int
    flags: int
    bins_size: int
    pages: tuple[tuple[int, int, int], ...]


def read_entries(log: bytes, first: int, max_bins_size: int) -> Iterator[Entry]:
    """Yield the entries with the numbers `first`, `first` + 1, … as far as the log has them.

    What follows in the file is left over from before.

    Raises Corrupt at an entry that has the right number and is damaged.
    """
    position = SECTOR_BYTES
    while position + _ENTRY.size <= len(log):
        signature, size, _, sequence, *_ = _ENTRY.unpack_from(log, position)
        if signature != b"HvLE" or sequence != first:
            return
        yield _entry(log, position, max_bins_size)
        position += size
        first += 1


def apply_entry(hive: bytearray, log: bytes, entry: Entry) -> None:
    """Write the pages of an entry of this log into the hive, which grows with it."""
    missing = BASE_BLOCK_BYTES + entry.bins_size - len(hive)
    hive.extend(bytes(max(missing, 0)))
    for target, source, length in entry.pages:
        hive[target : target + length] = log[source : source + length]


def _entry(log: bytes, at: int, max_bins_size: int) -> Entry:
    _, size, flags, sequence, bins_size, count, body_hash, head_hash = _ENTRY.unpack_from(log, at)
    pages_at = at + _ENTRY.size + count * _PAGE.size
    if size % SECTOR_BYTES or not pages_at <= at + size <= len(log):
        raise _bad(at, f"{count} pages in {size} bytes, the log has {len(log) - at}")
    if bins_size % BIN_ALIGNMENT or not 0 < bins_size <= max_bins_size:
        raise _bad(at, f"hive bins of {bins_size} bytes")
    view = memoryview(log)
    if head_hash != _hash(view[at : at + _HEAD_HASH_AT]):
        raise _bad(at, "the hash of its head does not fit")
    if body_hash != _hash(view[at + _ENTRY.size : at + size]):
        raise _bad(at, "the hash of its pages does not fit")
    pages: list[tuple[int, int, int]] = []
    for offset, length in _PAGE.iter_unpack(view[at + _ENTRY.size : pages_at]):
        if length == 0 or offset + length > bins_size or pages_at + length > at + size:
            raise _bad(at, f"a page of {length} bytes at {offset}")
        pages.append((BASE_BLOCK_BYTES + offset, pages_at, length))
        pages_at += length
    return Entry(sequence, flags, bins_size, tuple(pages))


def _hash(data: memoryview) -> bytes:
    return marvin32(_SEED, data).to_bytes(8, "little")


def _bad(at: int, reason: str) -> Corrupt:
    return Corrupt("log entry", at, reason)
