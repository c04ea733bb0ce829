"""Replies to requests, as pieces of memory that follow each other on the wire.

Source: NetworkBlockDevice/nbd `doc/proto.md`, sections "Simple reply message", "Structured reply
chunk message" and "Structured reply types".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from struct import Struct

from packer.run.disk.export import FilePart, Part
from packer.run.nbd.handshake import CONTEXT_ID
from packer.transport import nbd_wire as wire

Piece = bytes | bytearray | memoryview | FilePart

MIN_HOLE_BYTES = 4096
"""Fewer zeros between data are sent as they are."""

MAX_EXTENTS = 8192
"""Of one answer to a question for the block status."""

_ZEROS = memoryview(bytes(1 << 20))

_DATA = Struct(">IHHQIQ")
"""A chunk's head and the offset of its data."""

_HOLE = Struct(">IHHQIQI")
"""A chunk that is a hole: head, offset, size."""

_OFFSET_BYTES, _HOLE_BYTES = 8, 12
_DESCRIPTOR = Struct(">II")
"""An extent's length and its flags."""

_ERROR = Struct(">IH")
"""An error's number and the length of its message."""


def simple_read(cookie: int, length: int, parts: Sequence[Part]) -> list[Piece]:
    """Return the reply to a read where structured replies were not agreed."""
    head = wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, cookie)
    return [head, *_checked(_flat(parts), length)]


def structured_read(
    cookie: int, offset: int, length: int, parts: Sequence[Part], *, whole: bool
) -> list[Piece]:
    """Return the reply to a read: chunks of data and holes.

    whole: in one chunk, zeros and all ("NBD_CMD_FLAG_DF").
    """
    reply: list[Piece] = []
    end = offset + length
    for size, data in [(length, _checked(_flat(parts), length))] if whole else _runs(parts):
        done = wire.REPLY_FLAG_DONE if offset + size == end else 0
        if data:
            kind = wire.REPLY_TYPE_OFFSET_DATA
            reply.append(
                _DATA.pack(
                    wire.STRUCTURED_REPLY_MAGIC, done, kind, cookie, size + _OFFSET_BYTES, offset
                )
            )
            reply += data
        else:
            kind = wire.REPLY_TYPE_OFFSET_HOLE
            reply.append(
                _HOLE.pack(
                    wire.STRUCTURED_REPLY_MAGIC, done, kind, cookie, _HOLE_BYTES, offset, size
                )
            )
        offset += size
    _check_length(offset - (end - length), length)
    return reply


def status(cookie: int, extents: Iterable[tuple[int, bool]], most: int) -> list[Piece]:
    """Return the answer to a question for the block status.

    extents: (length, whether zeros) of what follows each other; `most` of them are told.
    """
    hole = wire.STATE_HOLE | wire.STATE_ZERO
    descriptors = b"".join(
        _DESCRIPTOR.pack(length, hole if zero else 0) for length, zero in islice(extents, most)
    )
    return [_chunk(cookie, wire.REPLY_TYPE_BLOCK_STATUS, wire.U32.pack(CONTEXT_ID) + descriptors)]


def done(cookie: int, *, structured: bool) -> list[Piece]:
    """Return the reply to a request that asks for no bytes."""
    if structured:
        return [_chunk(cookie, wire.REPLY_TYPE_NONE, b"")]
    return [wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, cookie)]


def error(cookie: int, number: int, message: str, *, structured: bool) -> list[Piece]:
    """Return the reply to a request that failed; only a structured one has room for the reason."""
    if not structured:
        return [wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, number, cookie)]
    text = message.encode("utf-8", "replace")[: wire.MAX_STRING_BYTES]
    text = text.decode("utf-8", "ignore").encode()  # no half character at the end
    return [_chunk(cookie, wire.REPLY_TYPE_ERROR, _ERROR.pack(number, len(text)) + text)]


def _chunk(cookie: int, kind: int, payload: bytes) -> bytes:
    """Return the only chunk of a reply."""
    magic, flags = wire.STRUCTURED_REPLY_MAGIC, wire.REPLY_FLAG_DONE
    return wire.CHUNK.pack(magic, flags, kind, cookie, len(payload)) + payload


def _runs(parts: Sequence[Part]) -> Iterator[tuple[int, list[Piece]]]:
    """Yield (bytes, data) of stretches of data, and (bytes, nothing) of holes between them."""
    size, data = 0, list[Piece]()
    for part in parts:
        if not isinstance(part, int):
            length = _size(part)
            if length:
                data.append(part)
        elif part < MIN_HOLE_BYTES:
            length = part
            data += _flat((part,))
        else:
            if data:
                yield size, data
                size, data = 0, []
            yield part, []
            continue
        size += length
    if data:
        yield size, data


def _flat(parts: Sequence[Part]) -> list[Piece]:
    """Return parts with zeros as memory; the same few zeros again and again."""
    pieces: list[Piece] = []
    for part in parts:
        if isinstance(part, int):
            pieces += [_ZEROS] * (part // len(_ZEROS))
            pieces.append(_ZEROS[: part % len(_ZEROS)])
        else:
            pieces.append(part)
    return [piece for piece in pieces if _size(piece)]


def _size(piece: Piece) -> int:
    return piece.nbytes if isinstance(piece, memoryview) else len(piece)


def _checked(pieces: list[Piece], length: int) -> list[Piece]:
    _check_length(sum(map(_size, pieces)), length)
    return pieces


def _check_length(found: int, expected: int) -> None:
    """A reply of another length would be taken for the next reply."""
    if found != expected:
        raise RuntimeError(f"an export gave {found} bytes instead of {expected}")
