"""What nobody has written since is known, and nothing else is."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.container.flat import FlatDisk, no_compressed
from formats.ranges import as_ranges, complement, empty_ranges, union
from formats.source import Memory
from packer.artifact.contents import Class
from packer.artifact.hints import Package
from packer.artifact.map import Map
from packer.artifact.programs import Programs
from packer.pack.cut import NO_STREAM, Cut, cut
from packer.pack.digest import FragmentReader, digest_fragments
from packer.pack.earlier import (
    Boot,
    Earlier,
    Known,
    changed_ranges,
    find_known,
    keeps_free,
    recalled,
)
from packer.pack.recut import name_slices, redraw, slice_contents
from packer.progress import Silent
from tests.artifact.make import map_of, small_map
from tests.artifact.real_packs import no_hints
from tests.pack.surveys import BLOCK, File, numbered_disk, survey_of
from tests.pack.test_draw import Drawn

KIB = 1 << 10
BLOCKS = 160
LARGE = File(80 * BLOCK, [(0, 20 * BLOCK, 50 * BLOCK), (50 * BLOCK, 100 * BLOCK, 30 * BLOCK)])
SMALL = File(3 * BLOCK - 7, [(0, 80 * BLOCK, 3 * BLOCK)], package=0)
FILES = [LARGE, SMALL, File(BLOCK, [(0, 90 * BLOCK, BLOCK)], boot=0)]


def disk() -> Memory:
    """A disk whose blocks all differ."""
    return Memory(b"".join(hashlib.sha256(bytes([n])).digest() * 128 for n in range(BLOCKS)))


def drawn(source: Memory) -> Drawn:
    return Drawn(source, FILES)


def cut_of(source: Memory) -> Cut:
    return cut(survey_of(source.size, FILES), source, empty_ranges())


def profiled(one: Drawn, touched: list[tuple[int, int]]) -> Map:
    """The map with its boot class as it was touched."""
    reader = FragmentReader(one.cut, one.source)
    slices = slice_contents(one.map, as_ranges(touched))
    names = name_slices(
        slices,
        one.map.contents,
        lambda row, start, end: reader.read(int(one.drawing.fragment[row]), start, end),
        jobs=1,
        progress=lambda _: None,
    )
    private = np.full(len(one.map.contents), Class.PRIVATE, dtype=np.uint8)
    return redraw(one.map, no_hints(), slices, names, private).map


def earlier(
    disk_map: Map, changed: list[tuple[int, int]] | None = None, boot: Boot = Boot.BY_RULE
) -> Earlier:
    return Earlier(disk_map, no_hints(), as_ranges(changed or []), boot)


def check(source: Memory, pieces: Cut, known: Known) -> None:
    """Whatever is known is true, and the cut is still one."""
    reader = FragmentReader(pieces, source)
    for row, content in enumerate(known.content.tolist()):
        if content >= 0:
            data = reader.read(row, 0, int(pieces.size[row]))
            assert hashlib.sha256(data).digest() == bytes(known.contents.digest[content])
    ends = pieces.disk_offset + pieces.length
    held = union(np.stack([pieces.disk_offset, ends], axis=1))
    empty = union(pieces.unused, pieces.dropped, pieces.zero)
    assert np.array_equal(complement(held, 0, source.size), empty)
    assert int(pieces.size.sum()) == int(pieces.length.sum())
    lowest = [
        int(pieces.disk_offset[pieces.fragment == row].min()) for row in range(len(pieces.size))
    ]
    assert lowest == sorted(lowest)


def known_bytes(pieces: Cut, known: Known) -> int:
    return int(pieces.size[known.content >= 0].sum())


def test_all_of_an_unchanged_disk_is_known() -> None:
    source = disk()
    pieces, known = find_known(cut_of(source), earlier(drawn(source).map))
    check(source, pieces, known)
    assert (known.content >= 0).all()
    before = cut_of(source)
    for name in ("stream", "file_offset", "size", "fragment", "offset", "disk_offset", "length"):
        assert np.array_equal(getattr(pieces, name), getattr(before, name))


@pytest.mark.parametrize(
    ("changed", "streams"),
    [
        ([(110 * BLOCK, 110 * BLOCK + 1)], {0}),
        ([(20 * BLOCK - 1, 20 * BLOCK)], set()),
        ([(82 * BLOCK, 83 * BLOCK)], {1}),
        ([(83 * BLOCK - 7, 83 * BLOCK)], set()),
        ([(69 * BLOCK, 91 * BLOCK)], {0, 1, 2}),
    ],
)
def test_a_file_is_unknown_when_one_byte_of_it_was_written(
    changed: list[tuple[int, int]], streams: set[int]
) -> None:
    source = disk()
    pieces, known = find_known(cut_of(source), earlier(drawn(source).map, changed))
    check(source, pieces, known)
    unknown = set(pieces.stream[known.content < 0].tolist()) - {NO_STREAM}
    assert unknown == streams


def test_what_a_profile_has_cut_is_cut_alike() -> None:
    source = disk()
    base = profiled(drawn(source), [(16 * BLOCK, 32 * BLOCK), (112 * BLOCK, 124 * BLOCK)])
    pieces, known = find_known(cut_of(source), earlier(base, boot=Boot.PROVEN))
    check(source, pieces, known)
    large = pieces.stream == 0
    assert sorted(pieces.file_offset[large].tolist()) == [0, 12 * BLOCK, 62 * BLOCK, 74 * BLOCK]
    assert (known.content >= 0).all()


def test_a_written_file_that_was_cut_is_one_again() -> None:
    source = disk()
    base = profiled(drawn(source), [(16 * BLOCK, 32 * BLOCK)])
    written = earlier(base, [(60 * BLOCK, 61 * BLOCK)], Boot.PROVEN)
    pieces, known = find_known(cut_of(source), written)
    check(source, pieces, known)
    (row,) = np.flatnonzero(pieces.stream == 0)
    assert pieces.size[row] == LARGE.size
    assert known.content[row] < 0


def test_when_the_boot_class_is_forgotten_files_are_whole_and_those_of_it_are_asked_about() -> None:
    source = disk()
    base = profiled(drawn(source), [(16 * BLOCK, 32 * BLOCK), (90 * BLOCK, 91 * BLOCK)])
    pieces, known = find_known(cut_of(source), earlier(base, boot=Boot.FORGOTTEN))
    check(source, pieces, known)
    assert set(pieces.stream[known.content < 0].tolist()) == {0, 2}
    assert np.array_equal(pieces.size, cut_of(source).size)


def test_classes_stay_where_nothing_was_written() -> None:
    source = disk()
    base = drawn(source).map
    _, known = find_known(cut_of(source), earlier(base, [(82 * BLOCK, 83 * BLOCK)]))
    before = base.contents.classes
    by_rule = np.full(len(known.content), Class.SHARED, dtype=np.uint8)
    kept = known.keep_classes(by_rule)
    held = known.content >= 0
    assert np.array_equal(kept[held], before[known.content[held]])
    assert (kept[~held] == Class.SHARED).all()
    boot = np.full(len(known.content), Class.BOOT, dtype=np.uint8)
    assert (known.keep_classes(boot) == Class.BOOT).all()
    proven = replace(known, boot=Boot.PROVEN).keep_classes(boot)
    assert np.array_equal(proven[held], before[known.content[held]])
    forgotten = replace(known, boot=Boot.FORGOTTEN).keep_classes(boot)
    assert not (forgotten == Class.BOOT).any()


def test_known_fragments_are_named_without_being_read() -> None:
    source = disk()
    base = drawn(source).map
    pieces, known = find_known(cut_of(source), earlier(base, [(82 * BLOCK, 83 * BLOCK)]))
    told: list[int] = []

    class Refusing(FragmentReader):
        def read(self, fragment: int, start: int, end: int) -> bytes:
            assert known.content[fragment] < 0, "it is known"
            return super().read(fragment, start, end)

    arguments = [None] * len(FILES)
    digests = digest_fragments(
        pieces, Refusing(pieces, source), arguments, known=known, jobs=2, progress=told.append
    )
    expected = digest_fragments(
        pieces, FragmentReader(pieces, source), arguments, jobs=1, progress=lambda _: None
    )
    assert np.array_equal(digests.digest, expected.digest)
    assert np.array_equal(digests.blocks, expected.blocks)
    assert sum(told) == int(pieces.size.sum()) - known_bytes(pieces, known)


def test_known_programs_are_remembered() -> None:
    source = disk()
    one = drawn(source)
    pieces, known = find_known(cut_of(source), earlier(one.map))
    row = int(np.flatnonzero(pieces.stream == 1)[0])
    content = int(known.content[row])
    programs = Programs(np.array([content]), np.array([77]), np.array([88]))
    digests = digest_fragments(
        pieces,
        FragmentReader(pieces, source),
        [None] * len(FILES),
        known=replace(known, programs=programs),
        with_programs=True,
        jobs=1,
        progress=lambda _: None,
    )
    assert digests.programs.tolist() == [[row, 77, 88]]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 159), st.integers(1, 40)), max_size=4),
    st.lists(st.tuples(st.integers(0, 159), st.integers(1, 40)), max_size=3),
    st.sampled_from(list(Boot)),
)
def test_whatever_was_touched_and_written_nothing_false_is_known(
    touched: list[tuple[int, int]], written: list[tuple[int, int]], boot: Boot
) -> None:
    source = disk()
    places = union(as_ranges([(at * BLOCK, (at + n) * BLOCK) for at, n in touched]))
    base = profiled(drawn(source), [(int(low), int(high)) for low, high in places])
    changed = union(as_ranges([(at * BLOCK, (at + n) * BLOCK) for at, n in written]))
    data = bytearray(source.data)
    for low, high in np.minimum(changed, source.size).tolist():
        data[low:high] = b"w" * (high - low)
    now = Memory(bytes(data))
    since = Earlier(base, no_hints(), changed, boot)
    pieces, known = find_known(cut_of(now), since)
    check(now, pieces, known)


# -- overlays --------------------------------------------------------------------------------------


def overlay(base: Memory, clusters: dict[int, bytes], size: int | None = None) -> FlatDisk:
    """A disk over another one, with clusters of 64 KiB of its own."""
    cluster = 64 * KIB
    numbers = sorted(clusters)
    data = b"".join(clusters[number] for number in numbers)
    rows = [(number * cluster, place * cluster, cluster) for place, number in enumerate(numbers)]
    runs = np.array(rows, dtype=np.int64).reshape(-1, 3)
    end = size or base.size
    held = as_ranges([(number * cluster, (number + 1) * cluster) for number in numbers])
    return FlatDisk(
        Memory(data), end, runs, no_compressed(), cluster, "zstd", base, complement(held, 0, end)
    )


def test_of_a_cluster_only_what_differs_has_changed() -> None:
    base = numbered_disk(64)
    cluster = bytearray(base.data[64 * KIB : 128 * KIB])
    cluster[5 * BLOCK + 17] ^= 1
    one = overlay(base, {1: bytes(cluster), 3: base.data[192 * KIB :]})
    start = 64 * KIB + 5 * BLOCK
    assert changed_ranges(one, Silent()).tolist() == [[start, start + BLOCK]]


def test_a_disk_that_grew_has_changed_behind_its_old_end() -> None:
    base = numbered_disk(16)
    one = overlay(base, {1: bytes(64 * KIB)}, 128 * KIB)
    assert changed_ranges(one, Silent()).tolist() == [[64 * KIB, 128 * KIB]]


def test_what_was_discarded_has_changed_where_it_was_not_zero() -> None:
    """A cluster of zeros in an overlay is neither its data nor its base's."""
    base = numbered_disk(64)
    backed = as_ranges([(0, 64 * KIB), (128 * KIB, 256 * KIB)])
    none = np.empty((0, 3), dtype=np.int64)
    one = FlatDisk(Memory(b""), base.size, none, no_compressed(), 64 * KIB, "zstd", base, backed)
    assert changed_ranges(one, Silent()).tolist() == [[64 * KIB, 128 * KIB]]


# -- packages and free blocks ----------------------------------------------------------------------


def test_packages_that_are_known_are_not_asked_about() -> None:
    old = Package("dpkg", "old", "1", "amd64", "pool/old.deb", "ab" * 32, 5)
    asked: list[list[str]] = []

    def ask(packages: object) -> list[Package]:
        assert isinstance(packages, list)
        asked.append([one.name for one in packages])
        return [
            Package("dpkg", one.name, one.version, one.architecture, "x.deb") for one in packages
        ]

    plain = Package("dpkg", "old", "1", "amd64")
    newer, new = Package("dpkg", "old", "2", "amd64"), Package("dpkg", "new", "1", "all")
    found = recalled([old, Package("dpkg", "new", "1", "all")], ask)([plain, newer, new])
    assert found[0] == old
    assert [one.filename for one in found] == ["pool/old.deb", "x.deb", "x.deb"]
    assert asked == [["old", "new"]]
    assert recalled([old])([newer, plain]) == [newer, old]


def test_a_pack_without_unused_bytes_was_made_to_keep_them() -> None:
    assert not keeps_free(small_map())
    contents = small_map().contents
    rows = [(2, int(size), row, 0) for row, size in enumerate(contents.size.tolist())]
    assert keeps_free(map_of(contents, rows))  # type: ignore[arg-type]
