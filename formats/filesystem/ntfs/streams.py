"""Which $DATA attributes are data that may be listed, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formats.filesystem.model import DATA, PLAIN, STORED, Streams
from formats.filesystem.ntfs import c_ntfs
from formats.filesystem.ntfs.boot import Boot
from formats.filesystem.ntfs.gather import Column, Flags, Rows
from formats.filesystem.ntfs.runs import HOLE
from formats.filesystem.ntfs.table import Table


@dataclass(frozen=True, slots=True)
class Groups:
    """Streams with their clusters outside the table: $DATA of one file and one name.

    rows: the attributes, ATTRIBUTE_ROW, sorted by stream and VCN. place: row of each in the table.
    first: int64[streams], the row of each stream's first attribute.
    """

    rows: Rows
    place: Column
    first: Column

    @property
    def heads(self) -> Rows:
        """The attribute of each stream that has its sizes."""
        return self.rows[self.first]

    @property
    def stream(self) -> Column:
        """The stream of each attribute."""
        step = np.zeros(len(self.rows), dtype=np.int64)
        step[self.first] = 1
        return np.cumsum(step) - 1


def group_streams(table: Table, owners: Flags) -> Groups:
    """Return the streams of the chosen owners, bool[records], that are not resident."""
    rows = table.attributes
    is_data = (rows["type"] == c_ntfs.DATA) & rows["nonresident"]
    place = np.flatnonzero(is_data & table.owned_by(owners))
    rows = rows[place]
    order = np.lexsort((rows["lowest"], rows["name"], rows["owner"]))
    rows, place = rows[order], place[order]
    new = np.ones(len(rows), dtype=np.bool_)
    new[1:] = (rows["owner"][1:] != rows["owner"][:-1]) | (rows["name"][1:] != rows["name"][:-1])
    return Groups(rows, place, np.flatnonzero(new))


def inconsistent(table: Table, groups: Groups, boot: Boot) -> Flags:
    """Return the streams whose parts, sizes or holes contradict each other; bool[streams]."""
    heads, stream = groups.heads, groups.stream
    wrong = heads["lowest"] != 0
    lowest, end = groups.rows["lowest"], groups.rows["end"]
    gap = (stream[1:] == stream[:-1]) & (lowest[1:] != end[:-1])
    wrong[stream[1:][gap]] = True
    last = np.append(groups.first[1:], len(stream)) - 1 if len(stream) else groups.first
    wrong |= end[last] * boot.cluster_size != heads["allocated"]
    wrong |= (heads["initialized"] < 0) | (heads["initialized"] > heads["size"])
    wrong |= heads["size"] > heads["allocated"]
    may_have_holes = heads["flags"] & (c_ntfs.SPARSE | c_ntfs.COMPRESSION_MASK) != 0
    wrong |= _holding_holes(table, groups) & ~may_have_holes
    wrong |= heads["compression_unit"] > 16  # clusters; NTFS uses 4, and a shift needs a bound
    return np.asarray(wrong, dtype=np.bool_)


def _holding_holes(table: Table, groups: Groups) -> Flags:
    holes = np.zeros(len(table.attributes), dtype=np.bool_)
    holes[table.runs.attribute[table.runs.lcn == HOLE]] = True
    result = np.zeros(len(groups.first), dtype=np.bool_)
    result[groups.stream[holes[groups.place]]] = True
    return result


def to_streams(table: Table, groups: Groups, foreign: Flags, boot: Boot) -> Streams:
    """Return the streams with what lies on the disk up to their ends; all are consistent.

    foreign: bool[records], whether something else than NTFS decides what a reader sees.
    """
    heads = groups.heads
    cluster = boot.cluster_size
    packed = heads["flags"] & c_ntfs.COMPRESSION_MASK != 0
    stored = packed | (heads["flags"] & c_ntfs.ENCRYPTED != 0) | foreign[heads["owner"]]
    # The last unit of a compressed stream has clusters behind its last byte.
    unit = cluster << np.where(packed, heads["compression_unit"], 0).astype(np.int64)
    end = -(-heads["size"] // unit) * unit
    stream_of_attribute = np.full(len(table.attributes), -1, dtype=np.int64)
    stream_of_attribute[groups.place] = groups.stream
    runs = table.runs
    stream = stream_of_attribute[runs.attribute]
    runs = runs.where((stream >= 0) & (runs.lcn != HOLE))
    stream = stream_of_attribute[runs.attribute]
    order = np.lexsort((runs.vcn, stream))
    runs, stream = runs.where(order), stream[order]
    offset = runs.vcn * cluster
    length = np.minimum(runs.clusters * cluster, end[stream] - offset)
    some = length > 0
    stream, offset, length = stream[some], offset[some], length[some]
    before = np.cumsum(length) - length
    on_disk = before - before[np.searchsorted(stream, stream, side="left")]
    total = np.bincount(stream, weights=length, minlength=len(heads)).astype(np.int64)
    return Streams(
        inode=heads["owner"].astype(np.int64),
        size=np.where(stored, total, heads["size"]),
        valid=np.where(stored, total, heads["initialized"]),
        form=np.where(stored, STORED, PLAIN).astype(np.uint8),
        stream=stream,
        file_offset=np.where(stored[stream], on_disk, offset),
        disk_offset=runs.lcn[some] * cluster,
        length=length,
        kind=np.full(len(stream), DATA, dtype=np.uint8),
    )
