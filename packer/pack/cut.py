"""Cut a surveyed disk into the fragments that become contents.

Cut points are part of the format: the same disk in any container gives the same map. Zero is
found at 4 KiB of disk offset, metadata runs are cut at 1 MiB of disk offset, streams at holes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.filesystem.model import DATA
from formats.ranges import (
    Ranges,
    complement,
    empty_ranges,
    from_bits,
    intersect,
    overlap_of_sorted,
    subtract,
    total,
    union,
)
from formats.source import Source
from packer.artifact.contents import BLOCK_BYTES
from packer.errors import InputError
from packer.progress import Progress, Silent
from packer.survey.model import Survey

ZERO_UNIT_BYTES = 4096
NO_STREAM = -1


@dataclass(frozen=True, slots=True)
class Cut:
    """A disk cut up: every byte is in exactly one of the sets.

    unused, dropped, zero: disjoint ranges of the disk. Fragments (f rows, in disk order of their
    first extent): stream: int64[f], row in the survey's streams, or NO_STREAM for a metadata run;
    file_offset: int64[f], where in its file the fragment begins; size: int64[f], bytes.
    Extents of fragments (m rows, sorted by fragment and offset): fragment, offset (bytes into the
    fragment), disk_offset, length.
    """

    unused: Ranges
    dropped: Ranges
    zero: Ranges
    stream: NDArray[np.int64]
    file_offset: NDArray[np.int64]
    size: NDArray[np.int64]
    fragment: NDArray[np.int64]
    offset: NDArray[np.int64]
    disk_offset: NDArray[np.int64]
    length: NDArray[np.int64]

    def extent_bounds(self) -> NDArray[np.int64]:
        """Return int64[f + 1]: the extents of fragment i are rows [bounds[i], bounds[i + 1])."""
        return np.searchsorted(self.fragment, np.arange(len(self.size) + 1))


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Extents of streams cut at holes and at the end of their file, before numbering."""

    stream: NDArray[np.int64]
    file_offset: NDArray[np.int64]
    disk_offset: NDArray[np.int64]
    length: NDArray[np.int64]


def cut(
    survey: Survey,
    source: Source,
    dropped: Ranges,
    *,
    keep_free: bool = False,
    progress: Progress | None = None,
) -> Cut:
    """Return the disk cut into unused, dropped, zero and fragments.

    dropped: what the policy lets go, sorted and disjoint. keep_free: trust no parser about what
    is unused or may be dropped; everything that is not zero is kept. progress: what is in no file
    is read to find its zeros, which takes long for a volume that nobody can parse.
    Raises InputError when the survey contradicts itself.
    """
    if keep_free:
        dropped = empty_ranges()
    pieces, slack, unwritten = _stream_pieces(survey, dropped)
    unused = empty_ranges() if keep_free else union(survey.free, slack, unwritten)
    dropped = subtract(dropped, unused)
    claimed = np.stack([pieces.disk_offset, pieces.disk_offset + pieces.length], axis=1)
    taken = np.concatenate([claimed, unused, dropped])
    taken = taken[np.argsort(taken[:, 0], kind="stable")]
    clash = overlap_of_sorted(taken)
    if clash >= 0:
        raise InputError(
            f"the disk's file systems contradict themselves: bytes {taken[clash, 0]} to "
            f"{taken[clash - 1, 1]} belong to two owners",
            hint="check the guest's file systems; --keep-free packs it without trusting them",
        )
    kept = complement(union(taken), 0, survey.size)
    filled = intersect(kept, _nonzero_blocks(source, kept, progress or Silent()))
    return _number(pieces, _cut_at_blocks(filled), unused, dropped, subtract(kept, filled))


def _stream_pieces(survey: Survey, dropped: Ranges) -> tuple[_Pieces, Ranges, Ranges]:
    """Return (pieces of streams, slack after the last valid byte of files, unwritten extents)."""
    end = survey.disk_offset + survey.length
    # The journal of a volume that is not clean may know more: a larger file, an extent that was
    # written. A snapshot may, too, and reads such blocks where they lie. There, neither slack nor
    # unwritten extents are unused.
    clean_volumes = np.array([one.state == "clean" for one in survey.volumes], dtype=bool)
    clean_volumes[_with_snapshots(survey, dropped)] = False
    clean = clean_volumes[survey.volume[survey.stream]]
    unwritten = survey.kind != DATA
    unwritten_ranges = union(np.stack([survey.disk_offset, end], axis=1)[unwritten & clean])
    rows = ~unwritten
    if len(dropped):
        # A stream that loses a part cannot be named by one digest: what is left of it is raw.
        at = np.searchsorted(dropped[:, 1], survey.disk_offset, side="right")
        hit = dropped[np.minimum(at, len(dropped) - 1), 0] < end
        losing = np.unique(survey.stream[hit & (at < len(dropped))])
        rows &= ~np.isin(survey.stream, losing)
    stream = survey.stream[rows]
    file_offset = survey.file_offset[rows]
    disk_offset = survey.disk_offset[rows]
    length = survey.length[rows]
    used = np.clip(survey.valid_size[stream] - file_offset, 0, length)
    slack = np.stack([disk_offset + used, disk_offset + length], axis=1)[clean[rows]]
    some = used > 0
    pieces = _Pieces(stream[some], file_offset[some], disk_offset[some], used[some])
    return pieces, union(slack), subtract(unwritten_ranges, dropped)


def _with_snapshots(survey: Survey, dropped: Ranges) -> list[int]:
    """Return the rows of volumes whose snapshots are not dropped."""
    of_snapshots = (*survey.held, *survey.snapshots)
    return [row for row, ranges in of_snapshots if total(subtract(ranges, dropped))]


def _nonzero_blocks(source: Source, kept: Ranges, progress: Progress) -> Ranges:
    """Return the 4 KiB blocks of the disk in which `kept` holds more than zeros."""
    if len(kept) == 0:
        return empty_ranges()
    low = kept[:, 0] // ZERO_UNIT_BYTES * ZERO_UNIT_BYTES
    high = np.minimum(-(-kept[:, 1] // ZERO_UNIT_BYTES) * ZERO_UNIT_BYTES, source.size)
    touched = union(np.stack([low, high], axis=1))
    others = subtract(touched, kept)
    holding = source.data_ranges(0, source.size)
    found: list[Ranges] = []
    # One read for each MiB that holds kept bytes; what lies between them is read along.
    wanted = _cut_at_blocks(intersect(touched, _outward(holding, source.size)))
    if len(wanted) == 0:
        return empty_ranges()
    chunk = wanted[:, 0] // BLOCK_BYTES
    first = np.flatnonzero(np.concatenate([[True], chunk[1:] != chunk[:-1]]))
    last = np.append(first[1:], len(wanted)) - 1
    starts, ends = wanted[first, 0], wanted[last, 1]
    with progress.stage("reading", int((ends - starts).sum())) as advance:
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            data = source.pread(start, end - start)
            data = _without(data, _within(others, start, end))
            found.append(from_bits(_filled(data), ZERO_UNIT_BYTES, start))
            advance(end - start)
    return intersect(union(*found), touched)


def _within(ranges: Ranges, start: int, end: int) -> Ranges:
    """Return what of the ranges lies in [start, end), counted from its start."""
    first = np.searchsorted(ranges[:, 1], start, side="right")
    last = np.searchsorted(ranges[:, 0], end, side="left")
    return np.clip(ranges[first:last], start, end) - start


def _without(data: bytes, others: Ranges) -> bytes:
    """Return the bytes with zeros where they belong to others: noise in unused bytes decides
    nothing.
    """
    if len(others) == 0:
        return data
    kept = bytearray(data)
    for low, high in others.tolist():
        kept[low:high] = bytes(high - low)
    return bytes(kept)


def _filled(data: bytes) -> NDArray[np.bool_]:
    """Return for each 4 KiB block whether it holds more than zeros."""
    whole = len(data) // ZERO_UNIT_BYTES * ZERO_UNIT_BYTES
    blocks = np.frombuffer(data, dtype=np.uint64, count=whole // 8)
    filled = np.asarray(blocks.reshape(-1, ZERO_UNIT_BYTES // 8).any(axis=1))
    if whole < len(data):  # the disk ends inside a block
        filled = np.append(filled, any(data[whole:]))
    return filled


def _outward(ranges: Ranges, size: int) -> Ranges:
    """Return the ranges widened to whole 4 KiB blocks."""
    low = ranges[:, 0] // ZERO_UNIT_BYTES * ZERO_UNIT_BYTES
    high = np.minimum(-(-ranges[:, 1] // ZERO_UNIT_BYTES) * ZERO_UNIT_BYTES, size)
    return union(np.stack([low, high], axis=1))


def _cut_at_blocks(ranges: Ranges) -> Ranges:
    """Return the ranges cut at every multiple of 1 MiB of disk offset."""
    if len(ranges) == 0:
        return ranges
    first = ranges[:, 0] // BLOCK_BYTES
    count = (ranges[:, 1] - 1) // BLOCK_BYTES - first + 1
    row = np.repeat(np.arange(len(ranges)), count)
    within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    low = np.maximum((first[row] + within) * BLOCK_BYTES, ranges[row, 0])
    high = np.minimum((first[row] + within + 1) * BLOCK_BYTES, ranges[row, 1])
    return np.stack([low, high], axis=1)


def _number(pieces: _Pieces, runs: Ranges, unused: Ranges, dropped: Ranges, zero: Ranges) -> Cut:
    """Return the cut with fragments numbered by where on the disk they first appear."""
    starts_new = np.ones(len(pieces.stream), dtype=bool)
    starts_new[1:] = (pieces.stream[1:] != pieces.stream[:-1]) | (
        pieces.file_offset[1:] != (pieces.file_offset + pieces.length)[:-1]
    )
    first = np.flatnonzero(starts_new)
    fragment_of_piece = np.cumsum(starts_new) - 1
    stream_sizes = np.add.reduceat(pieces.length, first) if len(first) else pieces.length[:0]
    streams, metadata = len(first), len(runs)

    stream = np.concatenate([pieces.stream[first], np.full(metadata, NO_STREAM, dtype=np.int64)])
    file_offset = np.concatenate([pieces.file_offset[first], np.zeros(metadata, dtype=np.int64)])
    size = np.concatenate([stream_sizes, runs[:, 1] - runs[:, 0]])
    # The start of a fragmented file may lie behind its later parts.
    lowest = np.minimum.reduceat(pieces.disk_offset, first) if len(first) else pieces.length[:0]
    order = np.argsort(np.concatenate([lowest, runs[:, 0]]), kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))

    fragment = place[np.concatenate([fragment_of_piece, streams + np.arange(metadata)])]
    offset = np.concatenate(
        [
            pieces.file_offset - pieces.file_offset[first][fragment_of_piece],
            np.zeros(metadata, dtype=np.int64),
        ]
    )
    disk_offset = np.concatenate([pieces.disk_offset, runs[:, 0]])
    length = np.concatenate([pieces.length, runs[:, 1] - runs[:, 0]])
    rows = np.lexsort((offset, fragment))
    return Cut(
        unused,
        dropped,
        zero,
        stream[order],
        file_offset[order],
        size[order],
        fragment[rows],
        offset[rows],
        disk_offset[rows],
        length[rows],
    )
