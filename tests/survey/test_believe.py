"""Nothing that a child says is used before it was held against the disk."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import FormatError
from formats.ranges import Ranges, overlap_of_sorted
from formats.source import Memory
from packer.columns import PackedColumn, encode_column
from packer.survey import wire
from packer.survey.believe import VolumeColumns, believe_table, believe_volume
from packer.survey.child import clean_text
from packer.survey.opening import unpack_flat
from packer.survey.wire import MalformedError

VOLUME = 1 << 20
BLOCK = 4096


def column(*values: int) -> PackedColumn:
    return encode_column(np.array(values, dtype=np.int64))


def volume_reply(**changes: Any) -> wire.VolumeReply:
    """An honest answer: two files of three extents, free and dropped ranges, a link."""
    honest = wire.VolumeReply(
        kind="ext4",
        block_size=BLOCK,
        label="root",
        uuid="1-2-3",
        state="clean",
        state_reason="",
        free=(column(0x80000, 0xA0000), column(0x90000, VOLUME)),
        held=(column(0x40000), column(0x42000)),
        snapshots=(column(0x50000), column(0x50200)),
        dropped=(column(0x70000), column(0x71000)),
        streams=(
            column(12, 13),  # inode
            column(9000, 100),  # size
            column(9000, 80),  # valid
            column(0, 1),  # form
        ),
        extents=(
            column(0, 0, 1),  # stream
            column(0, 8192, 0),  # file_offset
            column(0x10000, 0x30000, 0x20000),  # disk_offset
            column(8192, 4096, 4096),  # length
            column(0, 0, 1),  # kind
        ),
        name_stream=column(0, 0, 1),
        names=wire.pack_texts(["/a", "/b\udcff", "/c"]),
        link_names=b"/l",
        link_targets=b"a",
        unread=["a file is odd"],
    )
    return msgspec.structs.replace(honest, **changes)


def streams(**changes: PackedColumn) -> wire.Table:
    names = ("inode", "size", "valid", "form")
    return tuple(
        changes.get(name, old) for name, old in zip(names, volume_reply().streams, strict=True)
    )


def extents(**changes: PackedColumn) -> wire.Table:
    names = ("stream", "file_offset", "disk_offset", "length", "kind")
    return tuple(
        changes.get(name, old) for name, old in zip(names, volume_reply().extents, strict=True)
    )


def test_an_honest_answer_is_believed() -> None:
    found = believe(wire.encode(volume_reply()))
    assert found is not None
    assert found.name == ["/a", "/b\udcff", "/c"]
    assert found.symlinks == [("/l", "a")]
    assert found.disk_offset.tolist() == [0x10000, 0x30000, 0x20000]
    assert found.free.tolist() == [[0x80000, 0x90000], [0xA0000, VOLUME]]


HUGE = (1 << 63) - 1


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "spotless"},
        {"block_size": 0},
        {"block_size": 128},
        {"block_size": 3000},
        {"block_size": 1 << 40},
        {"state": "dirty"},  # but with free ranges
        {"state": "dirty", "free": (column(), column())},  # but with held ranges
        {"free": (column(0), column(VOLUME + 1))},
        {"free": (column(5), column(5))},
        {"free": (column(9, 5), column(10, 6))},
        {"free": (column(5, 7), column(8, 9))},
        {"free": (column(HUGE), column(HUGE))},
        {"free": (column(5), column(8, 9))},
        {"free": (column(5),)},
        {"free": ()},
        {"dropped": (column(0x20000), column(0x21000))},  # a file's
        {"free": (column(0x10000), column(0x11000))},  # a file's
        {"held": (column(0x10000), column(0x11000))},  # a file's
        {"snapshots": (column(0x10000), column(0x11000))},  # a file's
        {"streams": streams(size=column(9000))},
        {"extents": extents(stream=column(0, 0, 2))},
        {"extents": extents(stream=column(1, 0, 0))},
        {"extents": extents(file_offset=column(0, 4096, 0))},  # overlaps in its file
        {"extents": extents(file_offset=column(8192, 0, 0))},
        {"extents": extents(file_offset=column(0, 1 << 40, 0))},  # behind the end of the file
        {"extents": extents(file_offset=column(0, 8000, 0))},
        {"extents": extents(disk_offset=column(0x10000, 0x11000, 0x20000))},  # two owners
        {"extents": extents(disk_offset=column(0x10000, 0x30000, VOLUME))},
        {"extents": extents(disk_offset=column(0x10000, 0x30000, HUGE))},
        {"extents": extents(length=column(8192, 0, 4096))},
        {"extents": extents(length=column(8192, HUGE, 4096))},
        {"extents": extents(kind=column(0, 0, 2))},
        {"streams": streams()[:3]},
        {"streams": streams(valid=column(9001, 80))},  # more than the file has
        {"streams": streams(form=column(0, 2))},
        {"extents": extents()[:4]},
        {"name_stream": column(0, 0, 2)},
        {"name_stream": column(1, 0, 0)},
        {"name_stream": column(0, 0)},
        {"name_stream": PackedColumn(0, 1 << 40, b"")},
        {"name_stream": PackedColumn(0, 1 << 25, b"")},
        {"name_stream": PackedColumn(8, 3, b"\xff" * 24)},
        {"name_stream": PackedColumn(9, 3, b"\0" * 27)},
        {"name_stream": PackedColumn(-1, -24, b"\0" * 24)},
        {"names": b"/a\0b\0/c"},
        {"names": b"/a\0/b\0/" + b"c" * 5000},
        {"names": b"\xff"},
        {"link_names": b"l"},
        {"link_targets": b"a\0b"},
        {"label": "x" * 1000},
        {"unread": ["x"] * 10_000},
        {"unread": ["x" * 10_000]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_lie_is_refused(changes: dict[str, Any]) -> None:
    data = wire.encode(volume_reply(**changes))
    with pytest.raises(MalformedError):
        believe(data)


def believe(data: bytes | bytearray) -> VolumeColumns | None:
    reply = wire.decode_reply(data, wire.VolumeReply)
    return believe_volume(reply, VOLUME) if isinstance(reply, wire.VolumeReply) else None


def assert_harmless(found: VolumeColumns) -> None:
    owned: list[Ranges] = [found.free, found.dropped]
    owned.append(np.stack([found.disk_offset, found.disk_offset + found.length], axis=1))
    together = np.concatenate(owned)
    together = together[np.argsort(together[:, 0], kind="stable")]
    # free and dropped may overlap each other, which changes nothing; files overlap nobody
    assert overlap_of_sorted(np.sort(owned[2], axis=0)) < 0
    assert (together >= 0).all()
    assert (together <= VOLUME).all()
    assert (found.stream < len(found.inode)).all()
    assert (found.name_stream < len(found.inode)).all()
    assert len(found.name) == len(found.name_stream)
    assert clean_text(found.label + found.state_reason) == found.label + found.state_reason


FLIPS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3)


@given(flips=FLIPS, cut=st.integers(0, 400))
@settings(max_examples=1500, deadline=None)
def test_garbage_is_refused_or_harmless(flips: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(wire.encode(volume_reply()))
    for place, value in flips:
        data[place % len(data)] = value
    if cut < 40:
        del data[-cut:]
    with suppress(MalformedError):
        found = believe(data)
        if found is not None:
            assert_harmless(found)


@given(data=st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_noise_is_no_reply(data: bytes) -> None:
    with suppress(MalformedError):
        wire.decode_reply(data, wire.TableReply)


def test_deep_nesting_is_no_reply() -> None:
    with pytest.raises(MalformedError):
        wire.decode_reply(b"\x91" * 1_000_000, wire.TableReply)


def test_a_reply_of_another_kind_is_refused() -> None:
    data = wire.encode(wire.ContainerReply(None, "", "", []))
    with pytest.raises(MalformedError, match="expected a TableReply, found a ContainerReply"):
        wire.decode_reply(data, wire.TableReply)


def partition(**changes: Any) -> wire.WirePartition:
    honest = wire.WirePartition(1, 4096, 8192, "83", "", "label", "ext", "", False)
    return msgspec.structs.replace(honest, **changes)


@pytest.mark.parametrize(
    "partitions",
    [
        [partition(start=-1)],
        [partition(end=VOLUME + 1)],
        [partition(start=8192)],
        [partition(), partition(number=2, start=8191, end=9000)],
        [partition(number=-1)],
        [partition(label="x" * 1000)],
    ],
)
def test_a_table_that_leaves_the_disk_is_refused(partitions: list[wire.WirePartition]) -> None:
    reply = wire.TableReply("gpt", 512, "", partitions, [])
    with pytest.raises(MalformedError):
        believe_table(reply, VOLUME)


def test_what_is_printed_cannot_steer_a_terminal() -> None:
    reply = wire.TableReply("mbr", 512, "", [partition(label="\x1b[2J", note="a\nb")], ["\x9b1m"])
    table = believe_table(reply, VOLUME)
    assert table.partitions[0].label == "\ufffd[2J"
    assert table.partitions[0].note == "a\ufffdb"
    assert table.warnings == ["\ufffd1m"]


def flat(**changes: Any) -> wire.FlatColumns:
    honest = wire.FlatColumns(
        size=VOLUME,
        cluster_size=65536,
        compression="deflate",
        runs=(column(0, 65536), column(1000, 0), column(500, 100)),
        compressed=(column(131072), column(100), column(512), column(65536)),
        backed=(column(), column()),
    )
    return msgspec.structs.replace(honest, **changes)


@pytest.mark.parametrize(
    "columns",
    [
        flat(size=-1),
        flat(size=1 << 62),
        flat(cluster_size=1 << 40),
        flat(compression="lzma"),
        flat(runs=(column(0, 1), column(0, 0), column(500, 100))),
        flat(runs=(column(0), column(HUGE), column(HUGE))),
        flat(runs=(column(HUGE), column(0), column(HUGE))),
        flat(runs=(column(0), column(0))),
        flat(compressed=(column(131072), column(100), column(HUGE), column(65536))),
    ],
)
def test_columns_of_a_container_that_leave_file_or_disk_are_refused(
    columns: wire.FlatColumns,
) -> None:
    with pytest.raises((MalformedError, FormatError)):
        unpack_flat(columns, Memory(bytes(4096)), None)


@given(flips=FLIPS)
@settings(max_examples=500, deadline=None)
def test_garbled_columns_of_a_container_read_within_their_bounds(
    flips: list[tuple[int, int]],
) -> None:
    data = bytearray(wire.encode(wire.ContainerReply(flat(), "", "", [])))
    for place, value in flips:
        data[place % len(data)] = value
    try:
        reply = wire.decode_reply(data, wire.ContainerReply)
        if isinstance(reply, wire.Failure) or reply.columns is None:
            return
        disk = unpack_flat(reply.columns, Memory(bytes(4096)), None)
        ranges = disk.data_ranges(0, disk.size)
        assert len(ranges) == 0 or 0 <= ranges[0, 0] <= ranges[-1, 1] <= disk.size
        assert len(disk.pread(0, min(disk.size, 100_000))) == min(disk.size, 100_000)
    except (MalformedError, FormatError):
        pass
