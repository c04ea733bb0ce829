from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from packer.artifact.index import Index, decode_index, encode_index
from packer.columns import MAX_ROWS, PackedColumn, encode_column
from packer.errors import InputError
from tests.artifact.make import contents_of
from tests.artifact.mutate import mutations

MIB = 1 << 20
CONTENTS = contents_of([b"a" * 100, b"b" * 200, bytes(MIB + 500), b"d" * 300])


def column(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def index() -> Index:
    """Two small contents in one frame, a large one in two frames of two bundles, one absent."""
    return Index(
        bundles=("sha256:" + "0" * 64, "sha256:" + "1" * 64),
        bundle=column(0, 0, 1),
        frame_offset=column(0, 50, 0),
        stored_bytes=column(50, 900, 70),
        frame_bytes=column(300, MIB, 500),
        content=column(0, 1, 2),
        first_frame=column(0, 0, 1),
        offset=column(0, 100, 0),
    )


def equal(left: Index, right: Index) -> bool:
    names = [name for name in Index.__slots__ if name != "bundles"]
    return left.bundles == right.bundles and all(
        np.array_equal(getattr(left, name), getattr(right, name)) for name in names
    )


def test_decoding_an_encoded_index_gives_the_same_index() -> None:
    assert equal(decode_index(encode_index(index()), CONTENTS), index())


def test_an_index_of_nothing_is_legal() -> None:
    none = column()
    empty = Index((), none, none, none, none, none, none, none)
    assert equal(decode_index(encode_index(empty), CONTENTS), empty)


def test_the_part_for_one_bundle_names_only_contents_that_are_wholly_inside() -> None:
    part = index().only(["sha256:" + "0" * 64], CONTENTS)
    assert part.content.tolist() == [0, 1]
    assert equal(decode_index(encode_index(part), CONTENTS), part)
    assert index().only(["sha256:" + "1" * 64], CONTENTS).content.tolist() == []
    assert equal(index().only(index().bundles, CONTENTS), index())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 3}, "expected schema 1, found 3"),
        ({"bundle": encode_column(column(0, 0, 2))}, "not listed"),
        ({"bundle": encode_column(column(1, 0, 0))}, "bundle order"),
        ({"stored_bytes": encode_column(column(50, 900, 0))}, "stored_bytes"),
        ({"frame_bytes": encode_column(column(300, 1 << 40, 500))}, "frame_bytes"),
        ({"first_frame": encode_column(column(0, 0, 2))}, "frames are missing"),
        ({"first_frame": encode_column(column(0, 0, 9))}, "out of bounds"),
        ({"offset": encode_column(column(0, 101, 0))}, "past its frame"),
        ({"frame_bytes": encode_column(column(300, MIB - 1, 500))}, "past its frame"),
        ({"frame_bytes": encode_column(column(300, MIB, 499))}, "past its frame"),
        ({"content_step": encode_column(column(0, 0, 9))}, "content_step"),
        ({"bundles": ["sha256:" + "0" * 64] * 2}, "bundles: one is named twice"),
        ({"first_frame": encode_column(column(0, 1, 1))}, "shares a frame"),
        ({"first_frame": encode_column(column(2, 0, 1))}, "shares a frame"),
    ],
)
def test_an_index_that_breaks_a_rule_is_named_with_it(
    changes: dict[str, object], words: str
) -> None:
    wire = msgspec.msgpack.decode(encode_index(index()))
    with pytest.raises(InputError, match=words):
        decode_index(msgspec.msgpack.encode(wire | changes), CONTENTS)


def test_two_large_contents_never_overlap() -> None:
    """What a frame of a large content holds beside it would be torn apart on a smaller medium."""
    contents = contents_of([bytes(2 * MIB + 1), b"x" * (2 * MIB + 2)])
    six = column(*[1] * 6)
    honest = replace(
        index(),
        bundle=0 * six,
        frame_offset=70 * (np.cumsum(six) - 1),
        stored_bytes=70 * six,
        frame_bytes=MIB * six,
        content=column(0, 1),
        first_frame=column(0, 3),
        offset=column(0, 0),
    )
    assert decode_index(encode_index(honest), contents).first_frame.tolist() == [0, 3]
    for first in (0, 1, 2):
        lying = replace(honest, first_frame=column(0, first))
        with pytest.raises(InputError, match="shares a frame"):
            decode_index(encode_index(lying), contents)


@pytest.mark.parametrize("name", ["bundle", "content_step", "first_frame", "offset"])
def test_a_column_of_zeros_that_has_no_end_takes_no_memory(name: str) -> None:
    wire = msgspec.msgpack.decode(encode_index(index()))
    data = msgspec.msgpack.encode(wire | {name: PackedColumn(0, MAX_ROWS, b"")})
    tracemalloc.start()
    with pytest.raises(InputError, match=name):
        decode_index(data, CONTENTS)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < MIB


def test_a_content_that_another_table_gives_another_size_is_not_found_in_it() -> None:
    lie = contents_of([b"z" * 50, b"b" * 200, bytes(MIB + 500)])
    found = index().renumbered(CONTENTS, lie)
    assert found.content.tolist() == [1, 2]
    lie = replace(lie, size=lie.size * np.array([1, 9000, 2]))
    assert index().renumbered(CONTENTS, lie).content.tolist() == []


def test_a_damaged_index_is_refused_or_still_good_for_everything() -> None:
    """Nobody signs it: whatever it says must not carry anybody out of bounds."""
    legal = 0
    for data in mutations(encode_index(index()), random.Random(1), 4000):
        try:
            found = decode_index(data, CONTENTS)
        except InputError:
            continue
        legal += 1
        assert len(found.used_frames(CONTENTS)) == len(found.bundle)
        part = found.only(found.bundles[:1], CONTENTS)
        both = part.joined(found.only(found.bundles[1:], CONTENTS))
        assert equal(decode_index(encode_index(both), CONTENTS), both)
        again = found.renumbered(CONTENTS, CONTENTS)
        assert equal(again.of_contents(found.content), found)
    assert legal > 100
