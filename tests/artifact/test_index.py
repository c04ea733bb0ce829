from __future__ import annotations

import msgspec
import numpy as np
import pytest

from packer.artifact.index import Index, decode_index, encode_index
from packer.columns import encode_column
from packer.errors import InputError
from tests.artifact.make import contents_of

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
        ({"content_step": encode_column(column(0, 0, 9))}, "content_step"),
    ],
)
def test_an_index_that_breaks_a_rule_is_named_with_it(
    changes: dict[str, object], words: str
) -> None:
    wire = msgspec.msgpack.decode(encode_index(index()))
    with pytest.raises(InputError, match=words):
        decode_index(msgspec.msgpack.encode(wire | changes), CONTENTS)


def test_every_flipped_byte_is_an_error_or_another_legal_index() -> None:
    data = encode_index(index())
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x41
        try:
            found = decode_index(bytes(broken), CONTENTS)
        except InputError:
            continue
        assert (found.first_frame < len(found.bundle)).all()
        assert (found.content < len(CONTENTS)).all()
