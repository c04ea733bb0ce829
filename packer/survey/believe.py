"""What a child said about a volume or a table, held against the disk before anybody uses it.

Every offset has to lie inside its volume, every row inside its table, and nothing may have two
owners: the worst that an untrue but believable answer can do is then to call bytes of the same
volume free, which is the one thing that rests on trust in a reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from formats.filesystem.model import DATA, PLAIN, STORED, UNWRITTEN
from formats.ranges import Ranges, intersect, overlap_of_sorted, total, union
from packer.columns import Column
from packer.survey import wire
from packer.survey.answers import demand
from packer.survey.child import clean_text
from packer.survey.wire import MalformedError, TableReply, VolumeReply, WirePartition

MAX_BLOCK_BYTES = 1 << 26
"""The largest unit of any known file system, with room: exFAT clusters reach 32 MiB."""

MIN_BLOCK_BYTES = 256
"""The smallest one: NTFS clusters can have 256 bytes."""

_MAX_SECTOR_BYTES = 1 << 16
_MAX_LABEL_CHARACTERS = 256
_MAX_NUMBER = 1 << 20
_TABLES = ("mbr", "gpt", "none")
_STATES = ("clean", "dirty", "hibernated")


@dataclass(frozen=True, slots=True)
class VolumeColumns:
    """A believed VolumeReply; offsets in bytes of the volume. Columns as in survey.model."""

    kind: str
    block_size: int
    label: str
    uuid: str
    state: str
    state_reason: str
    free: Ranges
    held: Ranges
    snapshots: Ranges
    dropped: Ranges
    inode: Column
    file_size: Column
    valid_size: Column
    form: Column
    stream: Column
    file_offset: Column
    disk_offset: Column
    length: Column
    extent_kind: Column
    name_stream: Column
    name: list[str]
    symlinks: list[tuple[str, str]]
    unread: tuple[str, ...]


def believe_table(reply: TableReply, disk_size: int) -> TableReply:
    """Return the reply with its texts made safe to print.

    Raises MalformedError for partitions that leave the disk or overlap.
    """
    demand(reply.kind in _TABLES, f"a table of kind {reply.kind!r}")
    demand(_power_of_two(reply.sector_size, 512, _MAX_SECTOR_BYTES), "the sector size")
    demand(len(reply.partitions) <= wire.MAX_PARTITIONS, "the number of partitions")
    partitions = [_believe_partition(one, disk_size) for one in reply.partitions]
    inside = sorted(partitions, key=lambda one: one.start)
    for before, after in pairwise(inside):
        demand(before.end <= after.start, f"partitions {before.number} and {after.number} overlap")
    return TableReply(
        reply.kind,
        reply.sector_size,
        _text(reply.identifier, "table identifier"),
        partitions,
        _texts(reply.warnings, "warnings"),
    )


def _believe_partition(one: WirePartition, disk_size: int) -> WirePartition:
    demand(0 <= one.number <= _MAX_NUMBER, "a partition's number")
    demand(0 <= one.start < one.end <= disk_size, f"partition {one.number} leaves the disk")
    return WirePartition(
        one.number,
        one.start,
        one.end,
        _text(one.type, "partition type"),
        _text(one.uuid, "partition GUID"),
        _text(one.label, "partition label"),
        _text(one.reader, "reader"),
        _text(one.note, "note", wire.MAX_TEXT_CHARACTERS),
        one.quiet,
        _text(one.volume_label, "volume label"),
    )


def believe_volume(reply: VolumeReply, volume_size: int) -> VolumeColumns:
    """Return the reply as arrays.

    Raises MalformedError when it contradicts the volume or itself.
    """
    demand(reply.state in _STATES, f"the state {reply.state!r}")
    demand(_power_of_two(reply.block_size, MIN_BLOCK_BYTES, MAX_BLOCK_BYTES), "the block size")
    free = wire.unpack_ranges(reply.free, "free", volume_size)
    held = wire.unpack_ranges(reply.held, "held by snapshots", volume_size)
    snapshots = wire.unpack_ranges(reply.snapshots, "snapshots", volume_size)
    dropped = wire.unpack_ranges(reply.dropped, "dropped", volume_size)
    clean = reply.state == "clean"
    demand(clean or not len(free) + len(held), "free ranges of a volume that is not clean")
    inode, file_size, valid_size, form = _stream_columns(reply)
    columns = wire.unpack_columns(reply.extents, "extents", 5)
    _check_extents(file_size, columns, reply.block_size, volume_size)
    stream, file_offset, disk_offset, length, kind = columns
    _check_owners(
        columns,
        (
            (free, "bytes of files are called free"),
            (held, "bytes of files are called free"),
            (snapshots, "bytes of files are to be emptied"),
            (dropped, "bytes of files are to be dropped"),
        ),
    )
    name_stream = wire.unpack_column(reply.name_stream, "names")
    demand(_sorted(name_stream), "names are not sorted by stream")
    demand(_rows_below(name_stream, len(inode)), "a name belongs to no stream")
    names = wire.unpack_texts(reply.names, len(name_stream), "names")
    demand(all(name.startswith("/") for name in names), "a name does not begin with /")
    return VolumeColumns(
        _text(reply.kind, "kind"),
        reply.block_size,
        _text(reply.label, "label"),
        _text(reply.uuid, "UUID"),
        reply.state,
        _text(reply.state_reason, "state", wire.MAX_TEXT_CHARACTERS),
        free,
        held,
        snapshots,
        dropped,
        inode,
        file_size,
        valid_size,
        form,
        stream,
        file_offset,
        disk_offset,
        length,
        kind,
        name_stream,
        names,
        _symlinks(reply),
        tuple(_texts(reply.unread, "unread")),
    )


def _stream_columns(reply: VolumeReply) -> list[Column]:
    inode, size, valid, form = wire.unpack_columns(reply.streams, "streams", 4)
    demand(bool((valid <= size).all()), "more of a file is valid than it has")
    demand(bool(np.isin(form, (PLAIN, STORED)).all()), "an unknown form of stream")
    return [inode, size, valid, form]


def _check_extents(
    file_size: Column, columns: list[Column], block_size: int, volume_size: int
) -> None:
    stream, file_offset, disk_offset, length, kind = columns
    if len(stream) == 0:
        return
    demand(_rows_below(stream, len(file_size)), "an extent belongs to no stream")
    demand(_sorted(stream), "extents are not sorted by stream")
    demand(bool((length > 0).all()), "an empty extent")
    demand(int((disk_offset + length).max()) <= volume_size, "an extent leaves the volume")
    demand(bool(np.isin(kind, (DATA, UNWRITTEN)).all()), "an unknown kind of extent")
    whole = (file_offset % block_size == 0) & (length % block_size == 0)
    demand(bool(whole.all()), "an extent is no whole number of blocks")
    same = stream[1:] == stream[:-1]
    clash = same & (file_offset[1:] < file_offset[:-1] + length[:-1])
    demand(not clash.any(), "extents of one file overlap or are not sorted")
    # What follows the last block of a file is somebody's (fs-verity keeps its tree there).
    last_block_end = -(-file_size[stream] // block_size) * block_size
    past = (file_offset + length > last_block_end) & (kind == DATA)
    demand(not past.any(), "data after the last block of a file")


def _check_owners(columns: Sequence[Column], claims: Sequence[tuple[Ranges, str]]) -> None:
    """Demand that no byte has two owners; claims: (ranges, what it would mean if files had them)"""
    _, _, disk_offset, length, _ = columns
    extents = np.stack([disk_offset, disk_offset + length], axis=1)
    extents = extents[np.argsort(extents[:, 0], kind="stable")]
    clash = overlap_of_sorted(extents)
    if clash >= 0:
        raise MalformedError(f"two files own the byte at {int(extents[clash, 0])} of the volume")
    owned = union(extents)
    for ranges, meaning in claims:
        demand(total(intersect(owned, ranges)) == 0, meaning)


def _symlinks(reply: VolumeReply) -> list[tuple[str, str]]:
    count = reply.link_names.count(b"\0") + 1 if reply.link_names else 0
    names = wire.unpack_texts(reply.link_names, count, "symbolic links")
    targets = wire.unpack_texts(reply.link_targets, count, "symbolic links' targets")
    demand(all(name.startswith("/") for name in names), "a link's name does not begin with /")
    return list(zip(names, targets, strict=True))


def _sorted(column: Column) -> bool:
    return bool((column[1:] >= column[:-1]).all())


def _rows_below(column: Column, rows: int) -> bool:
    return len(column) == 0 or int(column.max()) < rows


def _power_of_two(value: int, least: int, most: int) -> bool:
    return least <= value <= most and value & (value - 1) == 0


def _text(text: str, what: str, most: int = _MAX_LABEL_CHARACTERS) -> str:
    demand(len(text) <= most, f"{what} of {len(text)} characters")
    return clean_text(text)


def _texts(texts: list[str], what: str) -> list[str]:
    demand(len(texts) <= wire.MAX_TEXTS, f"{what}: {len(texts)} of them")
    return [_text(text, what, wire.MAX_TEXT_CHARACTERS) for text in texts]
