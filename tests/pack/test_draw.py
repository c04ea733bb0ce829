"""The map that is drawn of a cut disk: contents named once, classified by all their owners."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.filesystem.model import STORED
from formats.ranges import as_ranges, empty_ranges
from formats.source import Memory
from packer.artifact.contents import Class
from packer.artifact.hints import NO_PACKAGE, Hints, Package, decode_hints, encode_hints
from packer.artifact.map import Kind, Map, decode_map, encode_map
from packer.pack.cut import Cut, cut
from packer.pack.digest import Digests, FragmentReader, digest_fragments
from packer.pack.draw import Drawing, classify, draw, note_hints
from packer.survey.model import Survey, Volume
from tests.artifact.test_map import same
from tests.formats.windows.make_pe import TIMESTAMP, Form, program
from tests.pack.surveys import BLOCK, File, judgement_of, numbered_disk, survey_of, volume
from tests.pack.test_digest import md5

MIB = 1 << 20
PACKAGE = Package("dpkg", "demo", "1.0", "amd64")


class Drawn:
    """A disk that went all the way from survey to map and hints."""

    def __init__(
        self,
        source: Memory,
        files: list[File],
        *,
        dropped: list[tuple[int, int]] | None = None,
        volumes: list[Volume] | None = None,
    ) -> None:
        self.source = source
        self.survey: Survey = survey_of(source.size, files, volumes=volumes)
        self.judgement = judgement_of(files, [PACKAGE])
        self.cut: Cut = cut(self.survey, source, as_ranges(dropped or []))
        reader = FragmentReader(self.cut, source)
        self.digests: Digests = digest_fragments(
            self.cut,
            reader,
            self.judgement.expected,
            with_programs=True,
            jobs=1,
            progress=lambda _: None,
        )
        classes = classify(self.survey, self.judgement, self.cut, self.digests.owned)
        self.drawing: Drawing = draw(source.size, self.cut, self.digests, classes)
        self.map: Map = self.drawing.map
        self.hints: Hints = note_hints(
            self.survey, self.judgement, self.cut, self.drawing, self.digests.programs
        )

    def class_at(self, disk_offset: int) -> Class:
        row = int(np.searchsorted(self.map.end, disk_offset, side="right"))
        assert self.map.kind[row] == Kind.CONTENT
        return Class(int(self.map.contents.classes[self.map.content[row]]))

    def bytes_by_map(self) -> bytes:
        """Return the disk as the map and the contents give it."""
        reader = FragmentReader(self.cut, self.source)
        whole = bytearray(self.map.size)
        for start, end, content, offset in zip(
            self.map.start.tolist(),
            self.map.end.tolist(),
            self.map.content.tolist(),
            self.map.offset.tolist(),
            strict=True,
        ):
            if content >= 0:
                fragment = int(self.drawing.fragment[content])
                whole[start:end] = reader.read(fragment, offset, offset + end - start)
        return bytes(whole)


def one_block(place: int, **facts: object) -> File:
    return replace(File(BLOCK, [(0, place * BLOCK, BLOCK)]), **facts)  # type: ignore[arg-type]


def filled(*values: int) -> Memory:
    return Memory(b"".join(bytes([value]) * BLOCK for value in values))


def test_the_same_bytes_in_several_files_are_one_content() -> None:
    drawn = Drawn(filled(9, 1, 2, 1, 1), [one_block(1), one_block(2), one_block(3), one_block(4)])
    assert drawn.map.content.tolist() == [0, 1, 2, 1, 1]
    assert drawn.map.contents.size.tolist() == [BLOCK] * 3
    assert drawn.bytes_by_map() == drawn.source.data


def test_contents_are_numbered_by_where_they_first_appear() -> None:
    files = [
        one_block(5),
        one_block(3),
        File(2 * BLOCK, [(0, 6 * BLOCK, BLOCK), (BLOCK, BLOCK, BLOCK)]),
    ]
    drawn = Drawn(numbered_disk(8), files)
    seen = [content for content in drawn.map.content.tolist() if content >= 0]
    first = [seen.index(number) for number in range(len(drawn.map.contents))]
    assert first == sorted(first)
    assert drawn.bytes_by_map() == drawn.source.data


def test_a_fragmented_file_is_one_content_with_offsets() -> None:
    file = File(3 * BLOCK, [(0, 5 * BLOCK, BLOCK), (BLOCK, 2 * BLOCK, 2 * BLOCK)])
    drawn = Drawn(numbered_disk(7), [file])
    rows = list(zip(drawn.map.start.tolist(), drawn.map.content.tolist(), strict=True))
    number = dict(rows)[5 * BLOCK]
    places = [
        (start, drawn.map.offset.tolist()[row])
        for row, (start, content) in enumerate(rows)
        if content == number
    ]
    assert places == [(2 * BLOCK, BLOCK), (5 * BLOCK, 0)]


def test_a_map_that_was_drawn_decodes_to_itself() -> None:
    files = [
        File(2 * MIB + 77, [(0, 16 * BLOCK, 2 * MIB + BLOCK)], expected=md5(b"")),
        File(3 * BLOCK, [(0, 5 * BLOCK, BLOCK), (BLOCK, 2 * BLOCK, 2 * BLOCK)]),
        one_block(7),
    ]
    drawn = Drawn(numbered_disk(700, 512), files, dropped=[(8 * BLOCK, 9 * BLOCK)])
    assert same(decode_map(encode_map(drawn.map)), drawn.map)
    assert {Kind(int(kind)) for kind in drawn.map.kind} == set(Kind)


def test_a_disk_of_zeros_has_a_map_without_contents() -> None:
    drawn = Drawn(Memory(bytes(8 * BLOCK)), [])
    assert len(drawn.map.contents) == 0
    assert drawn.map.ranges_of_kind(Kind.ZERO).tolist() == [[0, 8 * BLOCK]]
    assert same(decode_map(encode_map(drawn.map)), drawn.map)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=24),
    st.lists(st.lists(st.integers(0, 23), min_size=1, max_size=4), max_size=6),
    st.integers(0, 4095),
)
def test_any_map_that_is_drawn_decodes_to_itself_and_gives_the_disk(
    values: list[int], wishes: list[list[int]], short: int
) -> None:
    left = set(range(len(values)))
    files = []
    for number, wish in enumerate(wishes):
        mine = [place for place in dict.fromkeys(wish) if place in left]
        left -= set(mine)
        if mine:
            extents: list[tuple[int, ...]] = [
                (row * BLOCK, place * BLOCK, BLOCK) for row, place in enumerate(mine)
            ]
            files.append(
                File(len(mine) * BLOCK - short, extents, [f"/{number}"], boot=number % 3 - 1)
            )
    drawn = Drawn(filled(*values), files)
    assert same(decode_map(encode_map(drawn.map)), drawn.map)
    expected = bytearray(drawn.source.data)
    for start, end in drawn.map.ranges_of_kind(Kind.UNUSED).tolist():
        expected[start:end] = bytes(end - start)
    assert drawn.bytes_by_map() == expected
    again = decode_hints(encode_hints(drawn.hints), len(drawn.map.contents))
    assert again.path == drawn.hints.path
    assert again.content.tolist() == drawn.hints.content.tolist()


@pytest.mark.parametrize(
    ("owners", "expected"),
    [
        ([{}], Class.PRIVATE),
        ([{"boot": 0}], Class.BOOT),
        ([{"package": 0, "expected": md5(bytes([7]) * BLOCK)}], Class.SHARED),
        ([{"package": 0}], Class.SHARED),  # a control member: shipped, but no MD5 is recorded
        ([{"package": 0, "expected": md5(b"changed")}], Class.PRIVATE),
        ([{}, {"boot": 0}], Class.BOOT),
        ([{"package": 0}, {"boot": 0}], Class.BOOT),
        ([{"boot": 0, "package": 0}, {}], Class.BOOT),
        ([{}, {"package": 0}, {}], Class.SHARED),
    ],
    ids=str,
)
def test_a_content_takes_the_class_that_serves_all_its_owners(
    owners: list[dict[str, object]], expected: Class
) -> None:
    files = [one_block(row + 1, **facts) for row, facts in enumerate(owners)]
    drawn = Drawn(filled(9, *[7] * len(owners), 9), files)
    for row in range(len(owners)):
        assert drawn.class_at((row + 1) * BLOCK) == expected


def test_metadata_that_a_private_file_repeats_travels_with_every_copy() -> None:
    drawn = Drawn(filled(0, 7, 0, 8, 7), [one_block(3), one_block(4)])
    found = [drawn.class_at(block * BLOCK) for block in (1, 3, 4)]
    assert found == [Class.BOOT, Class.PRIVATE, Class.BOOT]


def test_metadata_outside_of_volumes_and_of_clean_ones_is_boot_and_of_others_private() -> None:
    volumes = [
        volume(MIB, 2 * MIB),
        volume(2 * MIB, 3 * MIB, kind="raw", state=""),
        volume(3 * MIB, 4 * MIB, state="dirty"),
    ]
    drawn = Drawn(Memory(b"".join(bytes([n + 1]) * MIB for n in range(5))), [], volumes=volumes)
    found = [drawn.class_at(n * MIB) for n in range(5)]
    boot, private = Class.BOOT, Class.PRIVATE
    assert found == [boot, boot, private, private, boot]


def test_a_loader_in_a_partition_of_its_own_is_boot() -> None:
    bios_boot = volume(
        MIB,
        2 * MIB,
        kind="raw",
        state="",
        partition_type="21686148-6449-6e6f-744e-656564454649",
    )
    drawn = Drawn(Memory(bytes([1]) * MIB + bytes([2]) * MIB), [], volumes=[bios_boot])
    assert drawn.class_at(MIB) == Class.BOOT


def test_a_run_that_reaches_from_an_unread_volume_into_a_clean_one_is_boot() -> None:
    """Cuts lie at whole MiB, partitions of old disks do not: no superblock may be left out."""
    border = MIB + 63 * 512
    volumes = [volume(MIB // 2, border, kind="raw", state=""), volume(border, 2 * MIB)]
    rng = np.random.default_rng(1)
    drawn = Drawn(
        Memory(rng.integers(1, 255, 2 * MIB, dtype=np.uint8).tobytes()), [], volumes=volumes
    )
    assert drawn.class_at(border) == Class.BOOT
    assert drawn.class_at(border + 4096) == Class.BOOT


def places(drawn: Drawn) -> list[tuple[int, str, int, int]]:
    hints = drawn.hints
    return list(
        zip(
            hints.content.tolist(),
            hints.path,
            hints.file_size.tolist(),
            hints.file_offset.tolist(),
            strict=True,
        )
    )


def test_every_name_of_a_hard_linked_file_is_a_hint() -> None:
    drawn = Drawn(filled(9, 7), [one_block(1, names=["/z", "/a/b"])])
    assert places(drawn) == [(1, "/a/b", BLOCK, 0), (1, "/z", BLOCK, 0)]


def test_each_part_of_a_file_with_holes_is_hinted_with_its_offset() -> None:
    file = File(9 * BLOCK, [(BLOCK, BLOCK, BLOCK), (7 * BLOCK, 2 * BLOCK, BLOCK)], ["/sparse"])
    drawn = Drawn(filled(9, 7, 8), [file])
    assert places(drawn) == [
        (1, "/sparse", 9 * BLOCK, BLOCK),
        (2, "/sparse", 9 * BLOCK, 7 * BLOCK),
    ]


def test_files_with_the_same_bytes_are_all_hints_of_one_content_with_their_packages() -> None:
    files = [one_block(1, names=["/b"]), one_block(2, names=["/a"], package=0), File(0, [], ["/e"])]
    drawn = Drawn(filled(9, 7, 7), files)
    assert places(drawn) == [(1, "/a", BLOCK, 0), (1, "/b", BLOCK, 0)]
    assert drawn.hints.package.tolist() == [0, NO_PACKAGE]
    assert drawn.hints.packages == (PACKAGE,)
    assert list(drawn.hints.of(1)) == [0, 1]
    assert list(drawn.hints.of(0)) == []


def test_only_a_whole_program_that_lies_there_as_it_is_read_is_noted_as_one() -> None:
    """In the first block a program; the same one twice, cut short, with a hole behind it."""
    data = program(Form(imports=("hal.dll",))).ljust(BLOCK, b"\1")
    disk = Memory(filled(9).data + data * 5 + filled(7).data)
    files = [one_block(row, names=[f"/{row}.dll"]) for row in range(1, 6)]
    files[2] = replace(files[2], size=BLOCK - 1)
    files[3] = replace(files[3], size=3 * BLOCK)
    files[4] = replace(files[4], valid=BLOCK - 2)
    drawn = Drawn(disk, files)
    twice, short = 1, 2
    found = drawn.hints.programs
    assert found.content.tolist() == [twice, short]
    assert found.timestamp.tolist() == [TIMESTAMP] * 2
    assert decode_hints(encode_hints(drawn.hints), len(drawn.map.contents)).programs.of(twice)
    stored = replace(drawn.survey, form=np.full(5, STORED, dtype=np.uint8))
    hints = note_hints(stored, drawn.judgement, drawn.cut, drawn.drawing, drawn.digests.programs)
    assert hints.programs.content.tolist() == []


@pytest.mark.parametrize(
    "name",
    ["/a\0b", "/" + "x" * 4096, "relative", "", "/\ud800"],
    ids=["NUL", "too long", "relative", "empty", "half of a surrogate pair"],
)
def test_a_name_that_could_never_be_looked_up_is_left_out(name: str) -> None:
    drawn = Drawn(filled(9, 7), [one_block(1, names=[name, "/good", "/caf\udce9"])])
    assert [path for _, path, _, _ in places(drawn)] == ["/caf\udce9", "/good"]
    assert decode_hints(encode_hints(drawn.hints), 2).path == ["/caf\udce9", "/good"]


def test_the_longest_path_is_kept() -> None:
    drawn = Drawn(filled(9, 7), [one_block(1, names=["/" + "x" * 4095])])
    assert decode_hints(encode_hints(drawn.hints), 2).path == ["/" + "x" * 4095]


def test_a_cut_that_leaves_a_gap_is_never_drawn() -> None:
    drawn = Drawn(numbered_disk(8), [one_block(2)])
    torn = replace(drawn.cut, zero=empty_ranges())
    classes = np.zeros(len(torn.size), dtype=np.uint8)
    with pytest.raises(AssertionError, match="exactly once"):
        draw(drawn.source.size, torn, drawn.digests, classes)
