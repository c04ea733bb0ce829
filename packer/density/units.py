"""What of several disks may be equal: the data of files, and runs of volumes that nobody can read.

Units are what a pack calls contents (packer.pack.cut), drawn from a survey alone: nothing of the
disk is read for them, and a survey of a disk that is in use is good enough. What it says is never
believed: the kernel compares.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from formats.filesystem.model import DATA
from formats.ranges import Ranges, clip, empty_ranges, spread, union
from formats.source import Source
from packer.columns import Column
from packer.density.file_extents import NOWHERE, FileExtents
from packer.density.overlap import overlaps
from packer.survey.model import Survey
from packer.survey.survey import RAW

RUN_BYTES = 1 << 20
"""Volumes that nobody can read are cut at multiples of this, counted from where they begin."""

NO_NAME = -1
_BLOCK_BYTES = 4096
"""Of a file's last block all is shared, if all of it is equal; of further ones nothing."""


@dataclass(frozen=True, slots=True)
class Units:
    """Units of disks and where they lie in the files that the disks are; int64 columns, bytes.

    Units, u rows: disk, which one; name: equal for units that the guests call the same, or
    NO_NAME; offset: of a unit in its file, which may have holes before it; size.
    Extents, m rows, sorted by unit and at: unit; at: bytes into the unit; host: in the file that
    the disk is; length, which may reach past the end of the unit, to the end of its last block;
    place: on the file system, or NOWHERE. What lies in no block of the file has no row.
    """

    disk: Column
    name: Column
    offset: Column
    size: Column
    unit: Column
    at: Column
    host: Column
    length: Column
    place: Column

    def bounds(self) -> Column:
        """Return int64[u + 1]: the extents of unit i are rows [bounds[i], bounds[i + 1])."""
        return np.searchsorted(self.unit, np.arange(len(self.size) + 1))


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Units of one disk by what they are called, and their extents on the disk of the guest."""

    names: list[str | int]
    offset: Column
    size: Column
    unit: Column
    at: Column
    disk_offset: Column
    length: Column


class Names:
    """Numbers for what guests call their units; the same for all disks, from any thread."""

    def __init__(self) -> None:
        self._numbers: dict[str | int, int] = {}
        self._lock = threading.Lock()

    def numbers(self, names: Sequence[str | int]) -> Column:
        """Return a number for each name, NO_NAME for none at all ("")."""
        known = self._numbers
        with self._lock:
            found = [
                NO_NAME if name == "" else known.setdefault(name, len(known)) for name in names
            ]
        return np.array(found, dtype=np.int64)


def find_units(
    survey: Survey,
    source: Source,
    runs: Column,
    extents: FileExtents,
    names: Names,
) -> Units:
    """Return the units of one disk, which is number 0.

    source: of the disk; only asked for its holes. runs: int64[n, 3], where the disk lies in its
    file: disk offset, offset in the file, length. extents: of that file.
    """
    parts = (_of_one_owner(_files(survey)), _unread_volumes(survey, source))
    units = [_located(part, runs, extents, names) for part in parts]
    return join(units, disks=[0, 0])


def join(parts: Sequence[Units], *, disks: Sequence[int]) -> Units:
    """Return several tables as one. disks: what number the disk of each part gets."""
    count = np.cumsum([0, *(len(part.size) for part in parts)])
    none = np.empty(0, dtype=np.int64)
    columns = {
        column: np.concatenate([none, *(getattr(part, column) for part in parts)])
        for column in ("name", "offset", "size", "at", "host", "length", "place")
    }
    numbered = zip(parts, disks, strict=True)
    disk = np.concatenate([none, *(np.full(len(part.size), number) for part, number in numbered)])
    shifted = zip(parts, count.tolist(), strict=False)
    unit = np.concatenate([none, *(part.unit + first for part, first in shifted)])
    return Units(disk=disk.astype(np.int64), unit=unit.astype(np.int64), **columns)


def _files(survey: Survey) -> _Pieces:
    """Return what files hold, cut at their holes."""
    used = np.clip(survey.valid_size[survey.stream] - survey.file_offset, 0, survey.length)
    rows = np.flatnonzero((survey.kind == DATA) & (used > 0))
    stream, file_offset, disk_offset, length, used = (
        column[rows]
        for column in (
            survey.stream, survey.file_offset, survey.disk_offset, survey.length, used,
        )
    )  # fmt: skip
    follows = np.zeros(len(rows), dtype=bool)
    follows[1:] = (stream[1:] == stream[:-1]) & (file_offset[1:] == file_offset[:-1] + length[:-1])
    first = np.flatnonzero(~follows)
    unit = np.cumsum(~follows) - 1
    size = np.add.reduceat(used, first) if len(first) else used
    offset = file_offset[first]
    called = _first_names(survey)
    return _Pieces(
        [called[one] for one in stream[first].tolist()],
        offset,
        size,
        unit,
        file_offset - offset[unit],
        disk_offset,
        np.minimum(length, -(-used // _BLOCK_BYTES) * _BLOCK_BYTES),
    )


def _of_one_owner(pieces: _Pieces) -> _Pieces:
    """Return the units of which no byte belongs to a second one.

    Others come from a survey that is out of date, or from a file system made to have each of many
    files cover all of a disk, whose pieces times those of the disk's file no memory would hold.
    """
    order = np.argsort(pieces.disk_offset, kind="stable")
    start = pieces.disk_offset[order]
    end = np.maximum.accumulate(start + pieces.length[order])
    clash = np.flatnonzero(start[1:] < end[:-1]) + 1
    # The one before may have been passed already by an earlier one that ends later.
    reaching = np.searchsorted(end, start[clash], side="right")
    doubtful = pieces.unit[order[np.union1d(clash, reaching)]]
    keep = ~np.isin(pieces.unit, doubtful)
    return replace(
        pieces,
        unit=pieces.unit[keep],
        at=pieces.at[keep],
        disk_offset=pieces.disk_offset[keep],
        length=pieces.length[keep],
    )


def _first_names(survey: Survey) -> list[str]:
    """Return the first name of every stream, "" for those without any."""
    called = [""] * len(survey.inode)
    streams, rows = np.unique(survey.name_stream, return_index=True)
    for stream, row in zip(streams.tolist(), rows.tolist(), strict=True):
        called[stream] = survey.name[row]
    return called


def _unread_volumes(survey: Survey, source: Source) -> _Pieces:
    """Return the volumes that no reader knows, cut into runs, called by where they begin."""
    found = [empty_ranges()]
    for volume in survey.volumes:
        if volume.kind == RAW:
            data = clip(source.data_ranges(volume.start, volume.end), volume.start, volume.end)
            found.append(_cut(data - volume.start) + volume.start)
    runs = np.concatenate(found)
    start, length = runs[:, 0], runs[:, 1] - runs[:, 0]
    zero = np.zeros_like(start)
    return _Pieces(start.tolist(), zero, length, np.arange(len(runs)), zero, start, length)


def _cut(ranges: Ranges) -> Ranges:
    """Return the ranges cut at every multiple of RUN_BYTES; as many as there are, however far they
    lie apart.
    """
    ranges = union(ranges)
    first = ranges[:, 0] // RUN_BYTES
    count = -(-ranges[:, 1] // RUN_BYTES) - first
    row, nth = spread(first, count)
    low = nth * RUN_BYTES
    start, end = np.maximum(low, ranges[row, 0]), np.minimum(low + RUN_BYTES, ranges[row, 1])
    return np.stack([start, end], axis=1)


def _located(pieces: _Pieces, runs: Column, extents: FileExtents, names: Names) -> Units:
    """Return pieces of a guest's disk as they lie in the file that it is."""
    start, end = pieces.disk_offset, pieces.disk_offset + pieces.length
    inside = overlaps(start, end, runs[:, 0], runs[:, 0] + runs[:, 2])
    unit = pieces.unit[inside.row]
    at = pieces.at[inside.row] + inside.start - start[inside.row]
    host = runs[inside.other, 1] + inside.start - runs[inside.other, 0]
    length = inside.end - inside.start
    stored = overlaps(host, host + length, extents.start, extents.end)
    place = extents.place[stored.other]
    place = np.where(place == NOWHERE, NOWHERE, place + stored.start - extents.start[stored.other])
    order = np.lexsort((at[stored.row] + stored.start - host[stored.row], unit[stored.row]))
    return Units(
        np.zeros(len(pieces.size), dtype=np.int64),
        names.numbers(pieces.names),
        pieces.offset,
        pieces.size,
        unit[stored.row][order],
        (at[stored.row] + stored.start - host[stored.row])[order],
        stored.start[order],
        (stored.end - stored.start)[order],
        place[order],
    )
