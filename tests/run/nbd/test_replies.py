"""Replies as they stand on the wire: whatever the parts, the same bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.run.disk.export import Part
from packer.run.nbd import replies
from packer.run.nbd.replies import MAX_EXTENTS, MIN_HOLE_BYTES, Piece
from packer.transport import nbd_wire as wire
from tests.run.serving import content

COOKIE, OFFSET = 0x1122334455667788, 3 << 40


def _view(data: bytes) -> memoryview:
    return memoryview(data)


PARTS = st.lists(
    st.one_of(
        st.binary(max_size=2 * MIN_HOLE_BYTES),
        st.binary(max_size=100).map(bytearray),
        st.binary(max_size=100).map(_view),
        st.integers(0, 3 << 20),
    ),
    min_size=1,
    max_size=12,
)


def joined(pieces: list[Piece]) -> bytes:
    return b"".join(map(bytes, pieces))


def plain(parts: list[Part]) -> bytes:
    return b"".join(bytes(part) for part in parts)


def chunks(data: bytes) -> list[tuple[int, bytes]]:
    """(type, payload) of a whole reply; only its last chunk says that it is done."""
    found, flags = [], 0
    while data:
        assert not flags & wire.REPLY_FLAG_DONE
        magic, flags, kind, cookie, length = wire.CHUNK.unpack_from(data)
        assert (magic, cookie) == (wire.STRUCTURED_REPLY_MAGIC, COOKIE)
        end = wire.CHUNK.size + length
        found.append((kind, data[wire.CHUNK.size : end]))
        data = data[end:]
    assert flags & wire.REPLY_FLAG_DONE
    return found


@settings(deadline=None)
@given(PARTS, st.booleans())
def test_a_structured_reply_makes_up_the_parts(parts: list[Part], whole: bool) -> None:
    expected = plain(parts)
    if not expected:
        return  # no read asks for nothing
    reply = replies.structured_read(COOKIE, OFFSET, len(expected), parts, whole=whole)
    found = chunks(joined(reply))
    assert content(found, OFFSET, len(expected)) == expected
    if whole:
        assert [kind for kind, _ in found] == [wire.REPLY_TYPE_OFFSET_DATA]


@settings(deadline=None)
@given(PARTS)
def test_a_simple_reply_is_the_bytes(parts: list[Part]) -> None:
    expected = plain(parts)
    head = wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, COOKIE)
    assert joined(replies.simple_read(COOKIE, len(expected), parts)) == head + expected


def test_zeros_cost_nothing_and_few_of_them_cost_no_chunk() -> None:
    reply = replies.structured_read(COOKIE, OFFSET, 32 << 20, [32 << 20], whole=False)
    assert len(joined(reply)) == wire.CHUNK.size + 12
    parts: list[Part] = [b"a", MIN_HOLE_BYTES - 1, b"b", MIN_HOLE_BYTES, b"c"]
    reply = replies.structured_read(COOKIE, 0, 2 + 2 * MIN_HOLE_BYTES, parts, whole=False)
    assert [kind for kind, _ in chunks(joined(reply))] == [
        wire.REPLY_TYPE_OFFSET_DATA,
        wire.REPLY_TYPE_OFFSET_HOLE,
        wire.REPLY_TYPE_OFFSET_DATA,
    ]


def test_an_export_that_gives_more_or_less_than_asked_is_a_bug() -> None:
    for length in (9, 11):
        with pytest.raises(RuntimeError):
            replies.simple_read(COOKIE, length, [bytes(10)])
        for whole in (False, True):
            with pytest.raises(RuntimeError):
                replies.structured_read(COOKIE, 0, length, [bytes(10)], whole=whole)


def test_a_status_tells_holes_and_is_bounded() -> None:
    [(kind, payload)] = chunks(joined(replies.status(COOKIE, [(5, True), (7, False)], 9)))
    assert kind == wire.REPLY_TYPE_BLOCK_STATUS
    assert payload == struct.pack(">IIIII", 1, 5, 3, 7, 0)
    endless = ((1, bool(number % 2)) for number in range(1 << 40))
    [(_, payload)] = chunks(joined(replies.status(COOKIE, endless, MAX_EXTENTS)))
    assert len(payload) == 4 + 8 * MAX_EXTENTS


def test_an_error_carries_its_reason_as_far_as_a_string_may_go() -> None:
    message = "ö" * 5000
    [(kind, payload)] = chunks(joined(replies.error(COOKIE, wire.EIO, message, structured=True)))
    assert kind == wire.REPLY_TYPE_ERROR
    number, length = struct.unpack_from(">IH", payload)
    assert (number, length) == (wire.EIO, 4096)
    assert payload[6:].decode() == "ö" * 2048
    simple = joined(replies.error(COOKIE, wire.EIO, message, structured=False))
    assert simple == wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, wire.EIO, COOKIE)


def test_half_a_character_is_not_sent() -> None:
    reply = joined(replies.error(COOKIE, wire.EIO, "x" + "ö" * 5000, structured=True))
    assert chunks(reply)[0][1][6:].decode() == "x" + "ö" * 2047
