"""Records of the master file table, a piece of the table at a time.

Source: ntfs-3g 2022.10.3 `libntfs-3g/mst.c` (ntfs_mst_post_read_fixup) and `mft.c`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formats.filesystem.ntfs import c_ntfs
from formats.filesystem.ntfs.gather import Bytes, Column, Flags, Rows, padded

_WORDS = c_ntfs.SECTOR_BYTES // 2


@dataclass(frozen=True, slots=True)
class Records:
    """Consecutive records with their sectors' ends put back.

    first: number of the first record. buffer: their bytes, padded. header: RECORD[n].
    sound: whether it is in use and its header can be believed. damaged: whether it is in use, or
    was, and cannot be read. blank: whether it is no record at all.
    """

    first: int
    record_size: int
    buffer: Bytes
    header: Rows
    sound: Flags
    damaged: Flags
    blank: Flags

    @property
    def starts(self) -> Column:
        """Where each record begins in the buffer."""
        return np.arange(len(self.header), dtype=np.int64) * self.record_size


def parse_records(data: bytes, first: int, record_size: int) -> Records:
    """Return the records in the bytes, which hold whole ones; `first` is the number of the first.

    Nothing is raised: what cannot be read is `damaged`.
    """
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, record_size).copy()
    whole = apply_fixups(rows)
    buffer = padded(rows)
    header = np.ascontiguousarray(rows[:, : c_ntfs.RECORD.itemsize]).view(c_ntfs.RECORD)[:, 0]
    is_file = header["magic"] == c_ntfs.FILE_MAGIC
    used = is_file & (header["flags"] & c_ntfs.IN_USE != 0)
    sound = used & whole & _plausible(header, rows, first, record_size)
    damaged = (used & ~sound) | (header["magic"] == c_ntfs.BAD_MAGIC)
    return Records(first, record_size, buffer, header, sound, damaged, ~is_file)


def _plausible(header: Rows, rows: Bytes, first: int, record_size: int) -> Flags:
    start, used = header["attributes"], header["used"]
    good = (start % 8 == 0) & (start >= c_ntfs.RECORD_HEADER_BYTES)
    good &= (start < used) & (used <= record_size) & (header["allocated"] == record_size)
    numbers = np.arange(first, first + len(header)) & 0xFFFF_FFFF
    fixups = rows[:, 4:6].copy().view("<u2")[:, 0]
    good &= (fixups < c_ntfs.FIXUPS_BEHIND_NUMBER) | (header["number"] == numbers)
    return np.asarray(good, dtype=np.bool_)


def apply_fixups(rows: Bytes) -> Flags:
    """Put back the last two bytes of every 512 bytes of each row, in place; return the whole rows.

    A row is left as it is where its sectors do not belong together: it was torn while written.
    """
    words = rows.view("<u2")
    sectors = rows.shape[1] // c_ntfs.SECTOR_BYTES
    # 4: u16, where the fixups begin; 6: u16, how many, the number that all sectors share included
    offset, count = words[:, 2].astype(np.int64), words[:, 3]
    whole = (count == sectors + 1) & (offset % 2 == 0) & (offset >= 8)
    whole &= offset + 2 * (sectors + 1) <= c_ntfs.SECTOR_BYTES - 2
    at = np.where(whole, offset // 2, 0)
    number = np.arange(len(rows))
    shared = words[number, at]
    lasts = [sector * _WORDS + _WORDS - 1 for sector in range(sectors)]
    for last in lasts:
        whole &= words[:, last] == shared
    for sector, last in enumerate(lasts):
        original = words[number, at + 1 + sector * whole]
        words[:, last] = np.where(whole, original, words[:, last])
    return np.asarray(whole, dtype=np.bool_)
