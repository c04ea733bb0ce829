"""The attributes of many records, walked in lock step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formats.filesystem.ntfs import c_ntfs
from formats.filesystem.ntfs.gather import Column, Flags, Rows, gather
from formats.filesystem.ntfs.records import Records


@dataclass(frozen=True, slots=True)
class Attributes:
    """All attributes of a piece of the table, sorted by record and place.

    row: int64[n], row of the record in its piece. position: int64[n], where the attribute begins
    in the buffer. header: ATTRIBUTE[n]; lengths and offsets lie inside the attribute.
    broken: bool[records], whether the record's attributes end nowhere; none of it is listed.
    """

    row: Column
    position: Column
    header: Rows
    broken: Flags

    def where(self, chosen: Flags) -> Attributes:
        """Return the chosen attributes."""
        return Attributes(self.row[chosen], self.position[chosen], self.header[chosen], self.broken)


def find_attributes(records: Records) -> Attributes:
    """Return the attributes of the sound records."""
    rows = np.flatnonzero(records.sound)
    ends = records.starts + records.header["used"]
    position = records.starts[rows] + records.header["attributes"][rows]
    broken = np.zeros(len(records.header), dtype=np.bool_)
    found: list[tuple[Column, Column, Rows]] = []
    while len(rows):
        header = gather(records.buffer, position, c_ntfs.ATTRIBUTE)
        room = ends[rows] - position
        finished = (room >= 4) & (header["type"] == c_ntfs.END)
        good = ~finished & _plausible(header, room)
        broken[rows[~good & ~finished]] = True
        rows, position, header = rows[good], position[good], header[good]
        found.append((rows, position, header))
        position = position + header["length"]
    row = np.concatenate([one for one, _, _ in found] or [rows])
    order = np.argsort(row, kind="stable")
    everything = Attributes(
        row[order],
        np.concatenate([one for _, one, _ in found] or [position])[order],
        np.concatenate([one for _, _, one in found] or [np.empty(0, c_ntfs.ATTRIBUTE)])[order],
        broken,
    )
    return everything.where(~broken[everything.row])


def _plausible(header: Rows, room: Column) -> Flags:
    """Say whether each attribute fits in the room left and its parts fit into it."""
    length = header["length"].astype(np.int64)
    nonresident = header["nonresident"] == 1
    least = np.where(nonresident, c_ntfs.NONRESIDENT_HEADER_BYTES, c_ntfs.RESIDENT_HEADER_BYTES)
    good = (length >= least) & (length % 8 == 0) & (length <= room)
    good &= (header["type"] != 0) & (header["nonresident"] <= 1)
    name_end = header["name_offset"].astype(np.int64) + 2 * header["name_length"].astype(np.int64)
    good &= (header["name_length"] == 0) | (name_end <= length)
    value_end = header["value_offset"].astype(np.int64) + header["value_length"]
    runs = header["runs_offset"]
    inside = np.where(nonresident, (runs >= least) & (runs <= length), value_end <= length)
    return np.asarray(good & inside, dtype=np.bool_)
