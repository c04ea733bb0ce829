"""Every byte of a disk belongs to exactly one set, and no byte that somebody may read is lost."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.filesystem.model import UNWRITTEN
from formats.ranges import Ranges, as_ranges, empty_ranges, intersect, total
from formats.source import Memory, check_bounds
from packer.errors import InputError
from packer.pack.cut import NO_STREAM, Cut, cut
from packer.pack.digest import FragmentReader
from packer.progress import Advance
from packer.survey.model import Survey
from tests.pack.surveys import (
    BLOCK,
    File,
    fragment_ranges,
    numbered_disk,
    owners,
    survey_of,
    volume,
)

MIB = 1 << 20
NOTHING = empty_ranges()


def cut_of(
    survey: Survey, source: Memory, dropped: Ranges = NOTHING, *, keep_free: bool = False
) -> Cut:
    """Cut, and check what holds for every cut."""
    pieces = cut(survey, source, dropped, keep_free=keep_free)
    assert (owners(pieces, survey.size) == 1).all()
    for start, end in pieces.zero.tolist():
        assert not any(source.data[start:end])
    bounds = pieces.extent_bounds()
    for row in range(len(pieces.size)):
        extents = slice(int(bounds[row]), int(bounds[row + 1]))
        ends = pieces.offset[extents] + pieces.length[extents]
        assert pieces.offset[extents].tolist() == [0, *ends[:-1].tolist()]
        assert int(ends[-1]) == int(pieces.size[row])
    lowest = [int(pieces.disk_offset[a:b].min()) for a, b in pairwise(bounds)]
    assert lowest == sorted(lowest)
    return pieces


def fragments(pieces: Cut) -> list[tuple[int, int, int]]:
    """Return (stream, file_offset, size) of the fragments."""
    return list(
        zip(pieces.stream.tolist(), pieces.file_offset.tolist(), pieces.size.tolist(), strict=True)
    )


def runs(pieces: Cut) -> list[list[int]]:
    """Return the metadata runs, in disk order."""
    rows = pieces.stream[pieces.fragment] == NO_STREAM
    found = np.stack([pieces.disk_offset, pieces.disk_offset + pieces.length], axis=1)[rows]
    return sorted(found.tolist())


def test_a_disk_of_zeros_is_one_zero_range_and_nothing_else() -> None:
    source = Memory(bytes(40 * BLOCK))
    pieces = cut_of(survey_of(source.size), source)
    assert pieces.zero.tolist() == [[0, source.size]]
    assert fragments(pieces) == []


def test_what_nobody_claims_is_kept_raw_unless_it_is_zero() -> None:
    source = numbered_disk(4)
    pieces = cut_of(survey_of(source.size, volumes=()), source)
    assert pieces.zero.tolist() == [[0, BLOCK]]
    assert runs(pieces) == [[BLOCK, 4 * BLOCK]]


def test_metadata_runs_are_cut_at_every_mib_of_disk_offset() -> None:
    source = Memory(bytes(5 * BLOCK) + b"m" * (3 * MIB) + bytes(BLOCK))
    pieces = cut_of(survey_of(source.size), source)
    end = 3 * MIB + 5 * BLOCK
    assert runs(pieces) == [
        [5 * BLOCK, MIB],
        [MIB, 2 * MIB],
        [2 * MIB, 3 * MIB],
        [3 * MIB, end],
    ]


def test_zero_is_found_at_four_kib_of_disk_offset_even_where_gaps_are_not_aligned() -> None:
    """As on a disk whose partition begins at sector 63: what is left is cut at other places."""
    data = bytearray(64 * BLOCK)
    data[10 * BLOCK + 7] = 1
    free = [(63 * 512, 9 * BLOCK + 512), (12 * BLOCK + 100, 20 * BLOCK)]
    pieces = cut_of(survey_of(len(data), free=free), Memory(bytes(data)))
    assert runs(pieces) == [[10 * BLOCK, 11 * BLOCK]]
    assert pieces.zero.tolist() == [
        [0, 63 * 512],
        [9 * BLOCK + 512, 10 * BLOCK],
        [11 * BLOCK, 12 * BLOCK + 100],
        [20 * BLOCK, 64 * BLOCK],
    ]


@pytest.mark.parametrize("noise", [0, 7])
def test_what_is_unused_or_in_a_file_has_no_say_in_what_is_zero(noise: int) -> None:
    """Else the same guest would have another identity after its free space was written to."""
    data = bytearray(400 * BLOCK)  # more than a MiB
    free = [(63 * 512, 63 * 512 + BLOCK), (300 * BLOCK - 512, 320 * BLOCK + 512)]
    file = File(BLOCK, [(0, 200 * BLOCK + 512, BLOCK)])
    for start, end in [*free, (200 * BLOCK + 512, 201 * BLOCK + 512)]:
        data[start:end] = bytes([noise]) * (end - start)
    pieces = cut_of(survey_of(len(data), [file], free), Memory(bytes(data)))
    assert runs(pieces) == []
    assert fragments(pieces) == [(0, 0, BLOCK)]
    data[320 * BLOCK + 512] = 1
    pieces = cut_of(survey_of(len(data), [file], free), Memory(bytes(data)))
    assert runs(pieces) == [[320 * BLOCK + 512, 321 * BLOCK]]


@pytest.mark.parametrize("tail", [1, 511, 512, 4095])
@pytest.mark.parametrize("last", [0, 7])
def test_a_disk_may_end_inside_a_block(tail: int, last: int) -> None:
    data = b"x" * BLOCK + bytes(BLOCK) + bytes(tail - 1) + bytes([last])
    pieces = cut_of(survey_of(len(data)), Memory(data))
    end = 2 * BLOCK + tail
    filled = [[0, BLOCK], [2 * BLOCK, end]] if last else [[0, BLOCK]]
    assert runs(pieces) == filled


@pytest.mark.parametrize("size", [1, 512, 4095])
def test_a_disk_may_be_smaller_than_a_block(size: int) -> None:
    assert runs(cut_of(survey_of(size), Memory(b"x" * size))) == [[0, size]]
    assert cut_of(survey_of(size), Memory(bytes(size))).zero.tolist() == [[0, size]]


def test_a_file_is_one_fragment_with_its_extents_in_file_order() -> None:
    file = File(3 * BLOCK, [(0, 9 * BLOCK, BLOCK), (BLOCK, 3 * BLOCK, 2 * BLOCK)])
    source = numbered_disk(12)
    pieces = cut_of(survey_of(source.size, [file]), source)
    assert (0, 0, 3 * BLOCK) in fragments(pieces)
    row = pieces.stream.tolist().index(0)
    data = FragmentReader(pieces, source).read(row, 0, 3 * BLOCK)
    assert data == bytes([9]) * BLOCK + bytes([3]) * BLOCK + bytes([4]) * BLOCK


def test_a_file_is_cut_at_its_holes() -> None:
    file = File(100 * BLOCK, [(BLOCK, 2 * BLOCK, BLOCK), (50 * BLOCK, 3 * BLOCK, 2 * BLOCK)])
    source = numbered_disk(8)
    pieces = cut_of(survey_of(source.size, [file]), source)
    assert [one for one in fragments(pieces) if one[0] == 0] == [
        (0, BLOCK, BLOCK),
        (0, 50 * BLOCK, 2 * BLOCK),
    ]


def test_a_file_is_cut_at_unwritten_extents_and_what_lies_there_is_unused() -> None:
    file = File(
        4 * BLOCK,
        [
            (0, 2 * BLOCK, BLOCK),
            (BLOCK, 3 * BLOCK, 2 * BLOCK, UNWRITTEN),
            (3 * BLOCK, 5 * BLOCK, BLOCK),
        ],
    )
    source = numbered_disk(8)
    pieces = cut_of(survey_of(source.size, [file]), source)
    assert [one for one in fragments(pieces) if one[0] == 0] == [
        (0, 0, BLOCK),
        (0, 3 * BLOCK, BLOCK),
    ]
    assert pieces.unused.tolist() == [[3 * BLOCK, 5 * BLOCK]]


def test_what_follows_the_end_of_a_file_in_its_last_block_is_unused() -> None:
    file = File(BLOCK + 100, [(0, 2 * BLOCK, 2 * BLOCK)])
    source = numbered_disk(8)
    pieces = cut_of(survey_of(source.size, [file]), source)
    assert pieces.unused.tolist() == [[3 * BLOCK + 100, 4 * BLOCK]]
    assert (0, 0, BLOCK + 100) in fragments(pieces)
    assert runs(pieces) == [[BLOCK, 2 * BLOCK], [4 * BLOCK, 8 * BLOCK]]


def test_a_file_whose_end_is_a_hole_has_no_slack() -> None:
    source = numbered_disk(8)
    pieces = cut_of(survey_of(source.size, [File(10**9, [(0, 2 * BLOCK, BLOCK)])]), source)
    assert len(pieces.unused) == 0


def test_what_follows_the_valid_part_of_a_file_reads_as_zeros_and_is_unused() -> None:
    file = File(3 * BLOCK, [(0, 2 * BLOCK, 3 * BLOCK)], valid=BLOCK + 100)
    source = numbered_disk(8)
    pieces = cut_of(survey_of(source.size, [file]), source)
    assert fragments(pieces)[1] == (0, 0, BLOCK + 100)
    assert pieces.unused.tolist() == [[3 * BLOCK + 100, 5 * BLOCK]]


@pytest.mark.parametrize("state", ["dirty", "hibernated"])
def test_in_a_volume_that_is_not_clean_nothing_of_a_files_blocks_is_unused(state: str) -> None:
    """A replay of the journal may move the end of a file, and make unwritten blocks data."""
    files = [
        File(BLOCK + 100, [(0, 2 * BLOCK, 2 * BLOCK)]),
        File(BLOCK, [(0, 5 * BLOCK, BLOCK, UNWRITTEN)]),
    ]
    source = numbered_disk(8)
    survey = survey_of(source.size, files, volumes=[volume(0, source.size, state=state)])
    pieces = cut_of(survey, source)
    assert len(pieces.unused) == 0
    assert (0, 0, BLOCK + 100) in fragments(pieces)
    assert [3 * BLOCK + 100, 8 * BLOCK] in runs(pieces)


@pytest.mark.parametrize("part", ["held", "snapshots"])
def test_beside_snapshots_nothing_of_a_files_blocks_is_unused_until_they_are_dropped(
    part: str,
) -> None:
    """A file may have been longer when the snapshot was made: its blocks are not copied then."""
    file = File(BLOCK + 100, [(0, 2 * BLOCK, 2 * BLOCK)])
    source = numbered_disk(8)
    ranges = np.array([[6 * BLOCK, 7 * BLOCK]])
    changes: dict[str, Any] = {part: ((0, ranges),)}
    survey = replace(survey_of(source.size, [file]), **changes)
    assert len(cut_of(survey, source).unused) == 0
    dropped = cut(survey, source, ranges)
    assert dropped.unused.tolist() == [[3 * BLOCK + 100, 4 * BLOCK]]
    assert dropped.dropped.tolist() == ranges.tolist()


def test_free_blocks_are_unused_whatever_they_hold() -> None:
    source = numbered_disk(8)
    pieces = cut_of(survey_of(source.size, free=[(3 * BLOCK, 5 * BLOCK)]), source)
    assert pieces.unused.tolist() == [[3 * BLOCK, 5 * BLOCK]]


def test_what_is_unused_leaves_no_trace_in_the_fragments() -> None:
    """Another rest of deleted files in the same free blocks gives the same pack."""
    free, file = [(3 * BLOCK, 5 * BLOCK)], File(100, [(0, 6 * BLOCK, BLOCK)])
    source = numbered_disk(8)
    noise = bytearray(source.data)
    noise[3 * BLOCK : 5 * BLOCK] = random.Random(1).randbytes(2 * BLOCK)
    noise[6 * BLOCK + 100 : 7 * BLOCK] = bytes(BLOCK - 100)
    survey = survey_of(source.size, [file], free=free)
    one, other = cut_of(survey, source), cut_of(survey, Memory(bytes(noise)))
    for name in Cut.__slots__:
        assert np.array_equal(getattr(one, name), getattr(other, name))
    for row, size in enumerate(one.size.tolist()):
        left = FragmentReader(one, source).read(row, 0, size)
        assert left == FragmentReader(other, Memory(bytes(noise))).read(row, 0, size)


def test_a_file_that_loses_a_part_stays_raw_for_the_rest() -> None:
    """One digest cannot name what is left of it."""
    files = [
        File(4 * BLOCK - 9, [(0, 2 * BLOCK, 4 * BLOCK)]),
        File(BLOCK, [(0, 7 * BLOCK, BLOCK)]),
    ]
    source = numbered_disk(10)
    dropped = as_ranges([(3 * BLOCK, 5 * BLOCK)])
    pieces = cut_of(survey_of(source.size, files), source, dropped)
    assert pieces.dropped.tolist() == dropped.tolist()
    assert [one for one in fragments(pieces) if one[0] == 0] == []
    assert (1, 0, BLOCK) in fragments(pieces)
    # Its last block stays whole, too: nothing says any more where the file ends in it.
    assert runs(pieces) == [
        [BLOCK, 3 * BLOCK],
        [5 * BLOCK, 7 * BLOCK],
        [8 * BLOCK, 10 * BLOCK],
    ]


@pytest.mark.parametrize(
    "dropped",
    [(BLOCK, 2 * BLOCK), (6 * BLOCK, 7 * BLOCK), (0, BLOCK)],
    ids=["just before", "just behind", "elsewhere"],
)
def test_dropping_a_files_neighbour_does_not_touch_the_file(dropped: tuple[int, int]) -> None:
    source = numbered_disk(10)
    file = File(4 * BLOCK, [(0, 2 * BLOCK, 4 * BLOCK)])
    pieces = cut_of(survey_of(source.size, [file]), source, as_ranges([dropped]))
    assert (0, 0, 4 * BLOCK) in fragments(pieces)
    assert pieces.dropped.tolist() == [list(dropped)]


def test_what_is_dropped_and_unused_at_once_is_unused() -> None:
    source = numbered_disk(10)
    survey = survey_of(source.size, free=[(2 * BLOCK, 4 * BLOCK)])
    pieces = cut_of(survey, source, as_ranges([(3 * BLOCK, 6 * BLOCK)]))
    assert pieces.unused.tolist() == [[2 * BLOCK, 4 * BLOCK]]
    assert pieces.dropped.tolist() == [[4 * BLOCK, 6 * BLOCK]]


class Told:
    """Progress that remembers what it is told."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int, list[int]]] = {}

    @contextmanager
    def stage(self, title: str, total_bytes: int) -> Iterator[Advance]:
        done: list[int] = []
        self.stages[title] = (total_bytes, done)
        yield done.append


def test_who_waits_for_a_volume_that_nobody_can_parse_sees_it_being_read() -> None:
    told = Told()
    cut(survey_of(5 * MIB, []), Memory(bytes([1]) * (5 * MIB)), NOTHING, progress=told)
    assert told.stages == {"reading": (5 * MIB, [MIB] * 5)}


def test_keep_free_keeps_every_byte_that_is_not_zero() -> None:
    files = [
        File(100, [(0, 2 * BLOCK, BLOCK), (2 * BLOCK, 5 * BLOCK, BLOCK, UNWRITTEN)]),
        File(BLOCK, [(0, 7 * BLOCK, BLOCK)]),
    ]
    source = numbered_disk(10)
    survey = survey_of(source.size, files, free=[(BLOCK, 2 * BLOCK)])
    pieces = cut_of(survey, source, as_ranges([(7 * BLOCK, 8 * BLOCK)]), keep_free=True)
    assert len(pieces.unused) == len(pieces.dropped) == 0
    assert pieces.zero.tolist() == [[0, BLOCK]]
    assert (0, 0, 100) in fragments(pieces)
    assert (1, 0, BLOCK) in fragments(pieces)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ([File(BLOCK, [(0, 2 * BLOCK, BLOCK)]), File(BLOCK, [(0, 2 * BLOCK, BLOCK)])], []),
        ([File(2 * BLOCK, [(0, 2 * BLOCK, 2 * BLOCK)])], [(3 * BLOCK, 4 * BLOCK)]),
        ([File(9, [(0, 2 * BLOCK, BLOCK)]), File(9, [(0, 2 * BLOCK, BLOCK, UNWRITTEN)])], []),
    ],
    ids=["two files", "file and free", "data and unwritten"],
)
def test_two_owners_of_one_byte_are_refused(files: list[File], free: list[tuple[int, int]]) -> None:
    source = numbered_disk(8)
    with pytest.raises(InputError, match="belong to two owners") as caught:
        cut(survey_of(source.size, files, free), source, NOTHING)
    assert "--keep-free" in caught.value.hint


def test_keep_free_packs_a_disk_whose_free_blocks_contradict_its_files() -> None:
    source = numbered_disk(8)
    survey = survey_of(
        source.size, [File(2 * BLOCK, [(0, 2 * BLOCK, 2 * BLOCK)])], [(3 * BLOCK, 4 * BLOCK)]
    )
    pieces = cut_of(survey, source, keep_free=True)
    assert (0, 0, 2 * BLOCK) in fragments(pieces)


class Sparse:
    """A huge disk of zeros with a few filled places; counts what is read of it."""

    def __init__(self, size: int, filled: dict[int, bytes]) -> None:
        self.size = size
        self.filled = filled
        self.read_bytes = 0

    def pread(self, offset: int, length: int) -> bytes:
        check_bounds("sparse", self.size, offset, length)
        self.read_bytes += length
        whole = bytearray(length)
        for start, data in self.filled.items():
            low, high = max(start, offset), min(start + len(data), offset + length)
            if low < high:
                whole[low - offset : high - offset] = data[low - start : high - start]
        return bytes(whole)

    def data_ranges(self, start: int, end: int) -> Ranges:
        found = [(low, low + len(data)) for low, data in sorted(self.filled.items())]
        return intersect(as_ranges(found), as_ranges([(start, end)]))


def test_a_huge_sparse_disk_is_cut_without_looking_at_every_block() -> None:
    size = 1 << 40
    filled = {n * (size // 64) + 512 * n: b"data" * 3000 for n in range(64)}
    source = Sparse(size, filled)
    # A free range in every gigabyte, so that the sets are not trivially small.
    free = [(n << 30, (n << 30) + BLOCK) for n in range(1, 1024, 2)]
    files = [File(10**12, [(n * BLOCK, (1 << 39) + n * 8 * BLOCK, BLOCK) for n in range(1000)])]
    before = time.process_time()
    pieces = cut(survey_of(size, files, free), source, NOTHING)
    seconds = time.process_time() - before
    assert seconds < 5  # one step a block would be 268 million steps
    assert source.read_bytes < 64 * (12000 + 2 * BLOCK)
    covered = sum(map(total, (pieces.unused, pieces.zero, fragment_ranges(pieces))))
    assert covered == size
    reader = FragmentReader(pieces, source)
    for start, data in filled.items():
        if (1 << 39) <= start < (1 << 39) + 8 * 1000 * BLOCK:
            continue  # lies among the file's extents
        held = [
            row
            for row, place in enumerate(pieces.disk_offset.tolist())
            if place <= start < place + int(pieces.length[row])
        ]
        assert len(held) == 1
        row = int(pieces.fragment[held[0]])
        whole = reader.read(row, 0, int(pieces.size[row]))
        assert whole.strip(b"\0") in data


@st.composite
def disks(draw: st.DrawFn) -> tuple[Survey, Memory, Ranges]:
    """A disk of up to 40 blocks whose blocks are dealt out to files, free space and drops."""
    blocks = draw(st.integers(1, 40))
    tail = draw(st.sampled_from([0, 0, 1, 512, 4000]))
    dirty = draw(st.booleans())
    size = blocks * BLOCK + tail
    kinds = "m" if tail == size else "mzfdsu"
    deal = draw(st.lists(st.sampled_from(kinds), min_size=blocks, max_size=blocks))
    fill = draw(st.lists(st.integers(0, 3), min_size=blocks + 1, max_size=blocks + 1))
    rng = random.Random(draw(st.integers(0, 1000)))
    data = bytearray(b"".join(bytes([value]) * BLOCK for value in fill)[:size])
    for number in range(blocks):
        if rng.random() < 0.2:
            data[number * BLOCK + rng.randrange(BLOCK)] ^= 1
    mine = [number for number, kind in enumerate(deal) if kind in "su"]
    rng.shuffle(mine)
    files: list[File] = []
    while mine:
        count = rng.randint(1, min(5, len(mine)))
        at, extents = 0, []
        for number in mine[:count]:
            at += BLOCK * rng.choice([0, 0, 0, 1, 7])
            kind = UNWRITTEN if deal[number] == "u" else 0
            extents.append((at, number * BLOCK, BLOCK, kind))
            at += BLOCK
        files.append(File(at - rng.choice([0, 1, 4095]), list(extents)))
        mine = mine[count:]
    free = [(n * BLOCK, (n + 1) * BLOCK) for n, kind in enumerate(deal) if kind == "f"]
    lost = [(n * BLOCK, (n + 1) * BLOCK) for n, kind in enumerate(deal) if kind == "d"]
    if files and rng.random() < 0.3:  # a page file: some of a file's blocks are dropped
        lost += [(extent[1], extent[1] + BLOCK) for extent in files[0].extents[1:3]]
    survey = survey_of(size, files, [] if dirty else free)
    if dirty:
        survey = replace(survey, volumes=(volume(0, size, state="dirty"),))
    return survey, Memory(bytes(data)), as_ranges(sorted(set(lost)))


@settings(max_examples=300, deadline=None)
@given(disks(), st.booleans())
def test_any_disk_is_partitioned_and_its_fragments_give_its_bytes_back(
    disk: tuple[Survey, Memory, Ranges], keep_free: bool
) -> None:
    survey, source, dropped = disk
    pieces = cut_of(survey, source, dropped, keep_free=keep_free)
    rebuilt = bytearray(source.size)
    reader = FragmentReader(pieces, source)
    bounds = pieces.extent_bounds().tolist()
    for row, size in enumerate(pieces.size.tolist()):
        whole = reader.read(row, 0, size)
        for extent in range(bounds[row], bounds[row + 1]):
            place, offset = int(pieces.disk_offset[extent]), int(pieces.offset[extent])
            length = int(pieces.length[extent])
            rebuilt[place : place + length] = whole[offset : offset + length]
    expected = bytearray(source.data)
    for start, end in [*pieces.unused.tolist(), *pieces.dropped.tolist()]:
        expected[start:end] = bytes(end - start)
    assert rebuilt == expected
    # What is lost is what somebody said may be lost, and no byte more.
    may_go = np.zeros(source.size, dtype=bool)
    if not keep_free:
        clean = survey.volumes[0].state == "clean"
        for start, end in [*survey.free.tolist(), *dropped.tolist()]:
            may_go[start:end] = True
        for row, stream in enumerate(survey.stream.tolist() if clean else []):
            start, length = int(survey.disk_offset[row]), int(survey.length[row])
            end_of_file = int(survey.file_size[stream] - survey.file_offset[row])
            held = 0 if survey.kind[row] == UNWRITTEN else min(max(end_of_file, 0), length)
            may_go[start + held : start + length] = True
    for start, end in [*pieces.unused.tolist(), *pieces.dropped.tolist()]:
        assert may_go[start:end].all()
