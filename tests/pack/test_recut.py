"""A map cut anew: the same disk behind it, and what was touched is boot, and little else."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.ranges import Ranges, as_ranges, empty_ranges, intersect, total, union
from packer.artifact.contents import BLOCK_BYTES, Class
from packer.artifact.hints import NO_PACKAGE, Hints, Package, decode_hints, encode_hints
from packer.artifact.map import Kind, Map, decode_map, encode_map
from packer.artifact.programs import Programs
from packer.pack.recut import (
    LEAST_CUT_BYTES,
    LEAST_SLICE_BYTES,
    Redrawn,
    Slices,
    name_slices,
    redraw,
    slice_contents,
    unnamed_bytes,
)
from tests.artifact.make import contents_of, map_of
from tests.artifact.real_packs import disk_of, hints_of, no_hints, noise
from tests.artifact.test_map import same

KIB, MIB = 1 << 10, 1 << 20
UNIT = 64 * KIB
DEMO = Package("dpkg", "demo", "1.0", "amd64")


@dataclass(frozen=True)
class Recut:
    """A disk, its map before and after."""

    before: Map
    data: list[bytes]
    slices: Slices
    after: Redrawn
    hashed_bytes: int

    @classmethod
    def of(cls, disk_map: Map, data: list[bytes], hints: Hints, touched: Ranges) -> Recut:
        hashed: list[int] = []
        slices = slice_contents(disk_map, touched)
        names = name_slices(
            slices,
            disk_map.contents,
            lambda row, start, end: data[row][start:end],
            jobs=2,
            progress=hashed.append,
        )
        assert sum(hashed) == unnamed_bytes(slices)
        demoted = np.where(
            disk_map.contents.classes == Class.BOOT, Class.PRIVATE, disk_map.contents.classes
        ).astype(np.uint8)
        after = redraw(disk_map, hints, slices, names, demoted)
        return cls(disk_map, data, slices, after, sum(hashed))

    @property
    def pieces(self) -> list[bytes]:
        """The bytes of each new content, as they are to be read out of the old ones."""
        sizes = self.after.map.contents.size.tolist()
        return [
            self.data[content][start : start + size]
            for content, start, size in zip(
                self.after.content.tolist(), self.after.start.tolist(), sizes, strict=True
            )
        ]

    @property
    def boot_bytes(self) -> int:
        contents = self.after.map.contents
        return int(contents.size[contents.classes == Class.BOOT].sum())

    def check(self) -> None:
        """Compare everything that must be so whatever was touched."""
        after, pieces = self.after.map, self.pieces
        assert disk_of(after, pieces) == disk_of(self.before, self.data)
        assert same(decode_map(encode_map(after)), after)
        classes = [Class(one) for one in after.contents.classes.tolist()]
        assert same(after, replace(after, contents=contents_of(pieces, classes)))
        for kind in (Kind.ZERO, Kind.UNUSED, Kind.DROPPED):
            assert np.array_equal(after.ranges_of_kind(kind), self.before.ranges_of_kind(kind))

    def boot_ranges(self) -> Ranges:
        after = self.after.map
        boot = np.append(after.contents.classes == Class.BOOT, False)[after.content]
        return union(np.stack([after.start[boot], after.end[boot]], axis=1))

    def of_path(self, path: str) -> list[tuple[int, int, Class]]:
        """(first byte in the file, size, class) of each content with that path."""
        hints, contents = self.after.hints, self.after.map.contents
        return sorted(
            (
                int(hints.file_offset[row]),
                int(contents.size[hints.content[row]]),
                Class(int(contents.classes[hints.content[row]])),
            )
            for row, one in enumerate(hints.path)
            if one == path
        )


def straight(data: list[bytes], classes: list[Class]) -> Map:
    """Contents one behind the other, each from a multiple of 4 KiB on."""
    rows: list[tuple[Kind, int, int, int]] = []
    for row, one in enumerate(data):
        rows.append((Kind.CONTENT, len(one), row, 0))
        if len(one) % 4096:
            rows.append((Kind.UNUSED, 4096 - len(one) % 4096, -1, 0))
    return map_of(contents_of(data, classes), rows)


def test_what_was_touched_is_boot_and_the_rest_is_what_others_have_or_nobody() -> None:
    data = [noise(8 * KIB, 1), noise(4096, 2), noise(4096, 3), noise(64 * KIB, 4)]
    disk = straight(data, [Class.BOOT, Class.BOOT, Class.PRIVATE, Class.SHARED])
    hints = hints_of(disk.contents, [(3, "/usr/lib/demo", 0)], [DEMO])
    recut = Recut.of(disk, data, hints, as_ranges([(8 * KIB, 16 * KIB)]))
    recut.check()
    expected = [Class.PRIVATE, Class.BOOT, Class.BOOT, Class.SHARED]
    assert recut.after.map.contents.classes.tolist() == expected
    assert recut.hashed_bytes == 0


def test_a_large_content_is_cut_where_it_was_touched() -> None:
    data = [noise(4096, 1), noise(5 * MIB + 300, 2)]
    disk = straight(data, [Class.BOOT, Class.SHARED])
    hints = hints_of(disk.contents, [(1, "/usr/lib/large.so", 0)], [DEMO])
    touched = as_ranges([(MIB, MIB + UNIT), (2 * MIB, 4 * MIB)])
    recut = Recut.of(disk, data, hints, touched)
    recut.check()
    assert recut.of_path("/usr/lib/large.so") == [
        (0, MIB - 4096, Class.SHARED),
        (MIB - 4096, UNIT, Class.BOOT),
        (MIB - 4096 + UNIT, MIB - UNIT, Class.SHARED),
        (2 * MIB - 4096, 2 * MIB, Class.BOOT),
        (4 * MIB - 4096, MIB + 4096 + 300, Class.SHARED),
    ]
    assert recut.boot_ranges().tolist() == touched.tolist()
    assert recut.hashed_bytes == len(data[1])
    assert set(recut.after.hints.file_size.tolist()) == {len(data[1])}
    assert set(recut.after.hints.package.tolist()) == {0}


def test_a_small_content_is_touched_as_a_whole() -> None:
    data = [noise(LEAST_CUT_BYTES - 1, 1), noise(LEAST_CUT_BYTES, 2)]
    disk = straight(data, [Class.SHARED, Class.SHARED])
    recut = Recut.of(disk, data, no_hints(), as_ranges([(0, UNIT), (LEAST_CUT_BYTES, 3 * UNIT)]))
    recut.check()
    assert recut.after.map.contents.size.tolist() == [LEAST_CUT_BYTES - 1, UNIT, UNIT]
    assert recut.after.map.contents.classes.tolist() == [Class.BOOT, Class.BOOT, Class.SHARED]


def test_no_crumbs_are_left_beside_what_was_touched() -> None:
    """At both ends of a file, and between two touched extents of it."""
    crumb = LEAST_SLICE_BYTES - 4096
    data = [noise(crumb + 2 * UNIT + crumb + 2 * UNIT + crumb, 1)]
    disk = map_of(
        contents_of(data),
        [(Kind.UNUSED, UNIT - crumb, -1, 0), (Kind.CONTENT, len(data[0]), 0, 0)],
    )
    first = UNIT
    second = first + 2 * UNIT + crumb
    touched = as_ranges([(first, first + 2 * UNIT), (second, second + 2 * UNIT)])
    recut = Recut.of(disk, data, no_hints(), touched)
    recut.check()
    assert recut.after.map.contents.classes.tolist() == [Class.BOOT]
    assert recut.hashed_bytes == 0


def test_a_fragmented_content_is_cut_by_its_own_bytes() -> None:
    """Its end lies first on the disk; what was touched on both sides of the border is one slice."""
    data = [noise(1024 * KIB, 1)]
    rows = [(Kind.CONTENT, 512 * KIB, 0, 512 * KIB), (Kind.ZERO, UNIT, -1, 0)]
    disk = map_of(contents_of(data, [Class.SHARED]), [*rows, (Kind.CONTENT, 512 * KIB, 0, 0)])
    touched = as_ranges([(0, UNIT), (1024 * KIB, 1024 * KIB + UNIT)])
    recut = Recut.of(disk, data, no_hints(), touched)
    recut.check()
    assert recut.slices.start.tolist() == [0, 448 * KIB, 576 * KIB]
    # Numbered by first appearance: the slice over the border lies at the disk's beginning, too.
    assert recut.after.start.tolist() == [448 * KIB, 576 * KIB, 0]
    assert recut.boot_ranges().tolist() == touched.tolist()


def test_a_content_in_several_places_is_cut_alike_everywhere() -> None:
    data = [noise(512 * KIB, 1), noise(4096, 2)]
    disk = map_of(
        contents_of(data, [Class.SHARED, Class.PRIVATE]),
        [
            (Kind.CONTENT, 512 * KIB, 0, 0),
            (Kind.CONTENT, 4096, 1, 0),
            (Kind.CONTENT, 512 * KIB, 0, 0),
            (Kind.CONTENT, 100 * KIB, 0, 50 * KIB),
        ],
    )
    second = 516 * KIB
    touched = as_ranges([(128 * KIB, 192 * KIB), (second + 256 * KIB, second + 320 * KIB)])
    recut = Recut.of(disk, data, no_hints(), touched)
    recut.check()
    sizes = sorted(recut.after.map.contents.size.tolist())
    assert sizes == [4 * KIB, 64 * KIB, 64 * KIB, 64 * KIB, 128 * KIB, 192 * KIB]
    assert recut.boot_bytes == 128 * KIB


def test_slices_with_equal_bytes_are_one_content_that_serves_all_owners() -> None:
    data = [bytes(256 * KIB) + noise(UNIT, 1), bytes(UNIT)]
    disk = straight(data, [Class.PRIVATE, Class.SHARED])
    hints = hints_of(disk.contents, [(0, "/a", NO_PACKAGE), (1, "/b", 0)], [DEMO])
    recut = Recut.of(disk, data, hints, as_ranges([(UNIT, 2 * UNIT)]))
    recut.check()
    zeros = hashlib.sha256(bytes(UNIT)).digest()
    contents = recut.after.map.contents
    (row,) = [n for n in range(len(contents)) if bytes(contents.digest[n]) == zeros]
    assert contents.classes[row] == Class.BOOT
    assert recut.after.hints.of(row)
    assert [recut.after.hints.path[one] for one in recut.after.hints.of(row)] == ["/a", "/a", "/b"]


def test_slices_above_one_mebibyte_have_block_digests_of_their_own() -> None:
    data = [noise(7 * MIB, 1), noise(3 * MIB + 5, 2)]
    disk = straight(data, [Class.SHARED, Class.SHARED])
    recut = Recut.of(disk, data, no_hints(), as_ranges([(UNIT, 3 * MIB)]))
    recut.check()
    contents = recut.after.map.contents
    assert contents.block_count(2) == 4
    start = 3 * MIB
    block = data[0][start + BLOCK_BYTES : start + 2 * BLOCK_BYTES]
    assert contents.block_digest(2, 1) == hashlib.sha256(block).digest()


def test_hints_are_sorted_and_legal() -> None:
    data = [noise(400 * KIB, 1), noise(4096, 2)]
    disk = straight(data, [Class.SHARED, Class.PRIVATE])
    places = [(0, "/usr/z", 0), (0, "/usr/a", NO_PACKAGE), (1, "/etc/\udcff", NO_PACKAGE)]
    hints = hints_of(disk.contents, places, [DEMO])
    after = Recut.of(disk, data, hints, as_ranges([(UNIT, 2 * UNIT)])).after
    again = decode_hints(encode_hints(after.hints), len(after.map.contents))
    assert again.path == after.hints.path == ["/usr/a", "/usr/z"] * 3 + ["/etc/\udcff"]
    assert again.content.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert again.file_offset.tolist() == [0, 0, UNIT, UNIT, 2 * UNIT, 2 * UNIT, 0]


def test_a_program_that_was_cut_is_none_for_a_symbol_server() -> None:
    data = [noise(4096, 1), noise(400 * KIB, 2), noise(400 * KIB, 3)]
    disk = straight(data, [Class.SHARED] * 3)
    known = Programs(np.array([0, 1, 2]), np.array([10, 11, 12]), np.array([20, 21, 22]))
    hints = replace(no_hints(), programs=known)
    touched = as_ranges([(0, 4096 + UNIT)])
    found = Recut.of(disk, data, hints, touched).after.hints.programs
    assert found.content.tolist() == [0, 3]
    assert found.timestamp.tolist() == [10, 12]
    assert found.size_of_image.tolist() == [20, 22]


def test_nothing_touched_leaves_no_boot_class() -> None:
    data = [noise(4096, 1), noise(MIB, 2)]
    disk = straight(data, [Class.BOOT, Class.SHARED])
    recut = Recut.of(disk, data, no_hints(), empty_ranges())
    recut.check()
    assert recut.boot_bytes == 0


def test_cutting_twice_along_the_same_ranges_changes_nothing() -> None:
    data = [noise(700 * KIB, 1), noise(20 * KIB, 2), noise(300 * KIB, 3)]
    disk = straight(data, [Class.SHARED] * 3)
    touched = as_ranges([(UNIT, 3 * UNIT), (700 * KIB, 704 * KIB)])
    once = Recut.of(disk, data, no_hints(), touched)
    twice = Recut.of(once.after.map, once.pieces, no_hints(), once.boot_ranges())
    assert same(twice.after.map, once.after.map)
    assert twice.hashed_bytes == 0


@st.composite
def disks(draw: st.DrawFn) -> tuple[Map, list[bytes]]:
    """Maps with contents in pieces, twice, and equal to parts of others."""
    seed = draw(st.integers(0, 1 << 30))
    chance = random.Random(seed)
    data: list[bytes] = []
    for number in range(draw(st.integers(0, 6))):
        size = chance.choice([1, 700, 4096, 100_000, 131_072, 300_001, 3 * MIB + 11])
        data.append(bytes(size) if chance.random() < 0.2 else noise(size, seed + number))
    data = list(dict.fromkeys(data))
    rows: list[tuple[Kind, int, int, int]] = []
    for row, one in enumerate(data):
        cuts = sorted({0, len(one), *(chance.randrange(len(one) + 1) for _ in range(2))})
        parts = list(pairwise(cuts))
        for low, high in parts if chance.random() < 0.6 else [*parts, parts[0]]:
            rows.append((Kind.CONTENT, high - low, row, low))
        rows.append((chance.choice([Kind.ZERO, Kind.UNUSED, Kind.DROPPED]), 4096, -1, 0))
    classes = [chance.choice(list(Class)) for _ in data]
    return map_of(contents_of(data, classes), rows or [(Kind.ZERO, 4096, -1, 0)]), data


@settings(deadline=None, max_examples=60)
@given(disks(), st.lists(st.tuples(st.integers(0, 200), st.integers(1, 9)), max_size=5))
def test_any_disk_touched_anywhere_stays_the_same_disk(
    disk: tuple[Map, list[bytes]], units: list[tuple[int, int]]
) -> None:
    disk_map, data = disk
    touched = union(as_ranges([(at * UNIT, (at + count) * UNIT) for at, count in units]))
    touched = touched[touched[:, 0] < disk_map.size]
    touched = np.minimum(touched, disk_map.size)
    hints = hints_of(disk_map.contents, [(row, f"/{row}", NO_PACKAGE) for row in range(len(data))])
    recut = Recut.of(disk_map, data, hints, touched)
    recut.check()
    held = union(disk_map.ranges_of_kind(Kind.CONTENT))
    missed = total(intersect(touched, held)) - total(
        intersect(intersect(touched, held), recut.boot_ranges())
    )
    assert missed == 0
    pieces = recut.pieces
    for row, path in enumerate(recut.after.hints.path):
        whole = data[int(path[1:])]
        content, start = (
            int(recut.after.hints.content[row]),
            int(recut.after.hints.file_offset[row]),
        )
        assert pieces[content] == whole[start : start + len(pieces[content])]


def test_a_million_contents_take_seconds() -> None:
    count = 1_000_000
    size = np.full(count, 4096, dtype=np.int64)
    size[::100] = 1 << 18
    chance = np.random.default_rng(1)
    digest = chance.integers(0, 256, (count, 32), dtype=np.uint8)
    some = contents_of([b"x"])
    contents = replace(
        some,
        digest=digest,
        size=size,
        classes=np.full(count, Class.SHARED, dtype=np.uint8),
        block_start=np.zeros(count + 1, dtype=np.int64),
    )
    every = np.arange(count, dtype=np.int64)
    kind = np.full(count, Kind.CONTENT, dtype=np.uint8)
    disk = Map(int(size.sum()), np.cumsum(size), kind, every, np.zeros(count, np.int64), contents)
    starts = np.arange(0, disk.size, 50 * UNIT)
    touched = np.stack([starts, np.minimum(starts + UNIT, disk.size)], axis=1)
    slices = slice_contents(disk, touched)
    assert len(slices.content) > count
    assert int((slices.end - slices.start)[slices.touched].sum()) < 1.2 * total(touched)


@pytest.mark.parametrize("touched", [[(0, 1 << 40)], [(1 << 40, 1 << 41)]])
def test_what_lies_beyond_the_disk_is_nothing(touched: list[tuple[int, int]]) -> None:
    data = [noise(300 * KIB, 1)]
    disk = straight(data, [Class.SHARED])
    recut = Recut.of(disk, data, no_hints(), as_ranges(touched))
    recut.check()
    assert len(recut.pieces) == 1
