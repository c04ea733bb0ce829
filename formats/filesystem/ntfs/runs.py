"""Run lists ("mapping pairs") of many attributes, decoded in lock step.

Source: ntfs-3g 2022.10.3 `libntfs-3g/runlist.c`, ntfs_mapping_pairs_decompress_i. Each pair is a
byte whose low half is the number of bytes of a length in clusters and whose high half that of a
signed distance from the pair before; no distance means a hole. A zero byte ends the list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formats.filesystem.ntfs.gather import Bytes, Column, Flags, gather_words, words_at_every_byte

HOLE = -1
MAX_NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of attributes, sorted by attribute and place in the stream.

    attribute: int64[n]. vcn: first cluster in the stream. lcn: first cluster in the volume, or
    HOLE. clusters: how many.
    """

    attribute: Column
    vcn: Column
    lcn: Column
    clusters: Column

    def where(self, chosen: Flags | Column) -> Runs:
        """Return the chosen runs, in the order of the row numbers if these are given."""
        return Runs(
            self.attribute[chosen], self.vcn[chosen], self.lcn[chosen], self.clusters[chosen]
        )


@dataclass(frozen=True, slots=True)
class Decoded:
    """runs: of all lists. end: int64[lists], the first VCN behind each list.

    broken: bool[lists], whether the list cannot be; it has no runs then.
    """

    runs: Runs
    end: Column
    broken: Flags


def decode_runs(
    buffer: Bytes, starts: Column, ends: Column, lowest: Column, clusters: int, max_vcn: int
) -> Decoded:
    """Return the runs of the lists in `buffer[starts[i]:ends[i]]`, the first at VCN `lowest[i]`.

    buffer: padded. clusters: of the volume; a run outside it breaks its list. max_vcn: no stream
    reaches farther.
    """
    words = words_at_every_byte(buffer)
    broken = (lowest < 0) | (lowest > max_vcn)
    vcn = np.where(broken, 0, lowest)
    lcn = np.zeros(len(starts), dtype=np.int64)
    rows = np.flatnonzero(~broken)
    position = starts[rows]
    found: list[Runs] = []
    while True:
        going = (position < ends[rows]) & (buffer[position] != 0)
        rows, position = rows[going], position[going]
        if len(rows) == 0:
            break
        pair = _read_pairs(buffer, words, position)
        start = lcn[rows] + np.clip(pair.distance, -clusters - 1, clusters + 1)
        good = pair.legal & (pair.end <= ends[rows])
        good &= (pair.length > 0) & (pair.length <= max_vcn - vcn[rows])
        good &= pair.hole | ((start >= 0) & (pair.length <= clusters - start))
        broken[rows[~good]] = True
        rows, position = rows[good], pair.end[good]
        start, length = start[good], pair.length[good]
        found.append(Runs(rows, vcn[rows], np.where(pair.hole[good], HOLE, start), length))
        lcn[rows] = start
        vcn[rows] += length
    runs = join(found)
    runs = runs.where(np.argsort(runs.attribute, kind="stable"))
    return Decoded(runs.where(~broken[runs.attribute]), vcn, broken)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """One pair of each list. end: where the next one begins; legal: whether its sizes can be."""

    length: Column
    distance: Column
    hole: Flags
    end: Column
    legal: Flags


def _read_pairs(buffer: Bytes, words: Bytes, position: Column) -> _Pairs:
    sizes = buffer[position].astype(np.int64)
    length_bytes, distance_bytes = sizes & 15, sizes >> 4
    legal = (length_bytes >= 1) & (length_bytes <= MAX_NUMBER_BYTES)
    legal &= distance_bytes <= MAX_NUMBER_BYTES
    length_bytes = np.where(legal, length_bytes, 1)
    distance_bytes = np.where(legal, distance_bytes, 1)
    hole = distance_bytes == 0
    second = position + 1 + length_bytes
    distance = _signed(words, second, np.maximum(distance_bytes, 1))
    return _Pairs(
        length=_signed(words, position + 1, length_bytes),
        distance=np.where(hole, 0, distance),
        hole=hole,
        end=second + distance_bytes,
        legal=legal,
    )


def join(parts: list[Runs]) -> Runs:
    """Return all runs one after the other."""
    none = np.empty(0, dtype=np.int64)
    return Runs(
        np.concatenate([none, *(one.attribute for one in parts)]),
        np.concatenate([none, *(one.vcn for one in parts)]),
        np.concatenate([none, *(one.lcn for one in parts)]),
        np.concatenate([none, *(one.clusters for one in parts)]),
    )


def clashing(runs: Runs) -> Flags:
    """Return the runs that share a cluster with another one; bool[runs]."""
    clash = np.zeros(len(runs.lcn), dtype=np.bool_)
    order = np.argsort(runs.lcn, kind="stable")
    order = order[runs.lcn[order] != HOLE]
    if len(order) == 0:
        return clash
    start = runs.lcn[order]
    end = start + runs.clusters[order]
    reach = np.maximum.accumulate(end)
    farthest = np.maximum.accumulate(np.where(end == reach, np.arange(len(order)), 0))
    late = np.flatnonzero(start[1:] < reach[:-1]) + 1
    clash[order[late]] = True
    clash[order[farthest[late - 1]]] = True
    return clash


def _signed(words: Bytes, position: Column, size: Column) -> Column:
    """Return signed little-endian numbers of 1 to 8 bytes."""
    unused_bits = 64 - 8 * size
    return gather_words(words, position) << unused_bits >> unused_bits
