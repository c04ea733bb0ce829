"""From contents to the ranges where they belong, and whether a disk holds them there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.artifact.map import Kind, Map, decode_map, encode_map
from packer.unpack.places import Places, Pread
from tests.artifact.make import contents_of, map_of
from tests.artifact.real_packs import disk_of
from tests.unpack.simulated import DATA, MIB, numbered, sample_disk, sample_map


def reading(disk: bytes) -> Pread:
    return lambda offset, length: disk[offset : offset + length]


def held(disk_map: Map, disk: bytes) -> dict[tuple[int, int], bool]:
    places = Places(disk_map)
    return {
        (row, block): places.held(reading(disk), row, block, start, end)
        for row in range(len(disk_map.contents))
        for block, start, end in places.blocks(row)
    }


def test_a_content_comes_in_blocks_of_one_mib() -> None:
    places = Places(sample_map())
    assert list(places.blocks(4)) == [(0, 0, 5)]
    assert list(places.blocks(5)) == [(0, 0, MIB), (1, MIB, 2 * MIB)]
    assert list(places.blocks(2))[-1] == (3, 3 * MIB, 3 * MIB + 5000)


def test_every_target_is_where_the_bytes_lie() -> None:
    places, disk = Places(sample_map()), sample_disk()
    for row, data in enumerate(DATA):
        for start, end in [(0, len(data)), (len(data) // 3, len(data) // 2 + 1)]:
            reach = start
            for target, low, high in places.targets(row, start, end):
                assert disk[target : target + high - low] == data[low:high]
                assert start <= low <= reach
                reach = max(reach, high)
            assert reach == end


def test_the_first_byte_of_a_fragmented_content_may_lie_behind_its_last() -> None:
    places, disk = Places(sample_map()), sample_disk()
    for row, data in enumerate(DATA):
        first = int(places.first_offset[row])
        assert disk[first : first + 5] == data[:5]


def test_a_twin_has_two_targets_for_the_same_bytes() -> None:
    targets = list(Places(sample_map()).targets(3, 0, 20_480))
    assert [(low, high) for _, low, high in targets] == [(0, 20_480), (0, 20_480)]
    assert targets[0][0] != targets[1][0]


def test_the_right_disk_holds_everything() -> None:
    assert all(held(sample_map(), sample_disk()).values())


@pytest.mark.parametrize("place", [0, 511, 4096, 12_288, 12_288 + MIB, 3_163_015, 3_166_208])
def test_a_flipped_byte_is_missed_in_its_block_alone(place: int) -> None:
    disk = bytearray(sample_disk())
    disk[place] ^= 0x80
    wrong = [key for key, right in held(sample_map(), bytes(disk)).items() if not right]
    assert len(wrong) == 1


@pytest.mark.parametrize("which", [0, 1])
def test_a_content_is_held_only_if_all_its_twins_are_right(which: int) -> None:
    disk = bytearray(sample_disk())
    target = list(Places(sample_map()).targets(3, 0, 20_480))[which][0]
    disk[target + 20_479] ^= 1
    assert [key for key, right in held(sample_map(), bytes(disk)).items() if not right] == [(3, 0)]


def test_twins_that_are_wrong_in_the_same_way_are_still_wrong() -> None:
    disk = bytearray(sample_disk())
    for target, _, _ in Places(sample_map()).targets(3, 0, 20_480):
        disk[target] ^= 1
    assert not held(sample_map(), bytes(disk))[3, 0]


@st.composite
def overlapping(draw: st.DrawFn) -> tuple[Map, list[bytes]]:
    """A map of one content whose ranges overlap and come in any order, as a format allows."""
    size = draw(st.integers(1, 40))
    data = numbered(size, draw(st.integers(0, 9)))
    pieces, reach = [], 0
    while reach < size:
        low = draw(st.integers(0, reach))
        high = draw(st.integers(reach + 1, size))
        pieces.append((low, high))
        reach = high
    pieces += [
        (low, draw(st.integers(low + 1, size)))
        for low in draw(st.lists(st.integers(0, size - 1), max_size=3))
    ]
    rows = [(Kind.CONTENT, high - low, 0, low) for low, high in draw(st.permutations(pieces))]
    return map_of(contents_of([data]), rows), [data]


@settings(max_examples=200, deadline=None)
@given(overlapping(), st.data())
def test_any_wrong_byte_in_ranges_that_overlap_is_seen(
    made: tuple[Map, list[bytes]], data: st.DataObject
) -> None:
    disk_map, contents = made
    assert decode_map(encode_map(disk_map)).size == disk_map.size
    disk = bytearray(disk_of(disk_map, contents))
    assert held(disk_map, bytes(disk)) == {(0, 0): True}
    disk[data.draw(st.integers(0, len(disk) - 1))] ^= data.draw(st.integers(1, 255))
    assert held(disk_map, bytes(disk)) == {(0, 0): False}
