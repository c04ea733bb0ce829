from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from packer.artifact.map import Kind, Map, decode_map, encode_map
from packer.columns import encode_column
from packer.errors import InputError
from tests.artifact.make import contents_of, map_of, small_map


def same(left: Map, right: Map) -> bool:
    columns = ("end", "kind", "content", "offset")
    of_contents = ("digest", "size", "classes", "blocks", "block_start")
    return (
        left.size == right.size
        and all(np.array_equal(getattr(left, c), getattr(right, c)) for c in columns)
        and all(
            np.array_equal(getattr(left.contents, c), getattr(right.contents, c))
            for c in of_contents
        )
    )


def test_decoding_an_encoded_map_gives_the_same_map() -> None:
    assert same(decode_map(encode_map(small_map())), small_map())


def test_encoding_a_decoded_map_gives_the_same_bytes() -> None:
    data = encode_map(small_map())
    assert encode_map(decode_map(data)) == data


def test_every_flipped_byte_is_an_error_or_another_legal_map() -> None:
    data = encode_map(small_map())
    accepted = 0
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 1 << random.Random(position).randrange(8)
        try:
            found = decode_map(bytes(broken))
        except InputError:
            continue
        accepted += 1
        assert int(found.end[-1]) == found.size
        rows = found.kind == Kind.CONTENT
        reach = found.offset[rows] + (found.end - found.start)[rows]
        assert (reach <= found.contents.size[found.content[rows]]).all()
    # Digests may be anything: most of what passes is a flipped digest, not a flipped structure.
    assert accepted < len(data)


@pytest.mark.parametrize("length", [0, 1, 20, 200])
def test_a_truncated_map_is_an_error(length: int) -> None:
    with pytest.raises(InputError, match="map"):
        decode_map(encode_map(small_map())[:length])


def rewritten(**changes: object) -> bytes:
    wire = msgspec.msgpack.decode(encode_map(small_map()))
    return msgspec.msgpack.encode(wire | changes)


def column(*values: int) -> object:
    return encode_column(np.array(values, dtype=np.int64))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "expected schema 1, found 2"),
        ({"size": 0}, "a disk of 0 bytes"),
        ({"size": 1 << 63}, "map"),
        ({"kind": column(9, 0, 2, 1, 2, 1, 2, 3, 2, 0)}, "kind"),
        ({"length": column(0, 4096, 8192, 4096, 1808, 2288, 512, 3584, 2304000, 4096)}, "0 bytes"),
        ({"length": column(*[1 << 61] * 10)}, "do not add up"),
        ({"length": column(512, 3584)}, "expected 10 rows, found 2"),
        ({"back": column(0, 0, 2, 3, 0)}, "points before"),
        ({"back": column(0, 0, 1, 2, 1)}, "not every content"),
        ({"offset": column(1, 0, 8192, 0, 0)}, "past the end"),
        ({"content_class": column(0, 1, 7)}, "content_class"),
        ({"content_size": column(512, 10001, 2304000)}, "leave a part of it out"),
        ({"digests": b"x" * 95}, "32 bytes a content"),
        ({"digests": b"x" * 96}, "listed twice"),
        ({"blocks": b""}, "blocks"),
    ],
)
def test_a_map_that_breaks_a_rule_is_named_with_it(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode_map(rewritten(**changes))


@pytest.mark.parametrize(
    "held",
    [[(0, 4096), (8192, 4096)], [(4096, 8192)], [(0, 8192)]],
    ids=["the middle", "the beginning", "the end"],
)
def test_a_content_with_a_part_that_no_range_holds_is_refused(held: list[tuple[int, int]]) -> None:
    """Or a rebuilt disk could not prove it."""
    # Between whole contents: what they reach must not cover for this one.
    ranges = [(Kind.CONTENT, 12288, 0, 0)]
    ranges += [(Kind.CONTENT, length, 1, offset) for offset, length in held]
    ranges += [(Kind.CONTENT, 12288, 2, 0)]
    gap = map_of(contents_of([b"a" * 12288, b"b" * 12288, b"c" * 12288]), ranges)
    with pytest.raises(InputError, match="leave a part of it out"):
        decode_map(encode_map(gap))


def test_ranges_of_a_content_may_overlap_and_come_in_any_order() -> None:
    twice = map_of(
        contents_of([b"a" * 12288]),
        [(Kind.CONTENT, 4096, 0, 8192), (Kind.CONTENT, 8192, 0, 0), (Kind.CONTENT, 8192, 0, 4096)],
    )
    assert same(decode_map(encode_map(twice)), twice)


def test_a_map_of_a_disk_without_any_content_is_legal() -> None:
    empty = map_of(contents_of([]), [(Kind.ZERO, 1 << 40, -1, 0)])
    assert same(decode_map(encode_map(empty)), empty)


def test_bytes_of_each_kind_add_up_to_the_disk() -> None:
    disk_map = small_map()
    assert sum(disk_map.bytes_of_kind(kind) for kind in Kind) == disk_map.size
    assert disk_map.ranges_of_kind(Kind.DROPPED).tolist() == [[20992, 24576]]


def test_the_map_is_the_same_whatever_order_the_columns_are_stored_in_memory() -> None:
    disk_map = small_map()
    strided = replace(disk_map, end=np.repeat(disk_map.end, 2)[::2])
    assert encode_map(strided) == encode_map(disk_map)
