"""The map: an ordered, gap-free list of ranges that says what every byte of a disk is.

On the wire a map is MessagePack of packed columns (`docs/format.md`, "Map"). Its digest is taken
before compression, so that another zstd gives the same map.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    Class,
    Contents,
    block_starts,
    digest_keys,
)
from packer.columns import PackedColumn, decode_column, decode_table, encode_column
from packer.errors import InputError

SCHEMA = 1
MAX_DISK_BYTES = 1 << 62


class Kind(IntEnum):
    """What a range is."""

    ZERO = 0
    UNUSED = 1
    CONTENT = 2
    DROPPED = 3


@dataclass(frozen=True, slots=True)
class Map:
    """n ranges covering `[0, size)`, as columns.

    start, end: int64[n], bytes; start[0] is 0, each end is the next start, the last end is `size`.
    kind: uint8[n], see Kind. content: int64[n], row in `contents`, or -1; rows are numbered by
    first appearance. offset: int64[n], bytes into the content, 0 where there is none. The ranges
    of a content cover all of it.
    """

    size: int
    end: NDArray[np.int64]
    kind: NDArray[np.uint8]
    content: NDArray[np.int64]
    offset: NDArray[np.int64]
    contents: Contents

    @property
    def start(self) -> NDArray[np.int64]:
        """Return where each range begins, in bytes."""
        return np.concatenate([[0], self.end[:-1]]).astype(np.int64)

    def bytes_of_kind(self, kind: Kind) -> int:
        """Return how many bytes of the disk are of a kind."""
        return int((self.end - self.start)[self.kind == kind].sum())

    def ranges_of_kind(self, kind: Kind) -> NDArray[np.int64]:
        """Return the ranges of a kind, shape (k, 2), neighbours not joined."""
        rows = self.kind == kind
        return np.stack([self.start[rows], self.end[rows]], axis=1)


class _WireMap(msgspec.Struct, frozen=True):
    schema: int
    size: int
    kind: PackedColumn
    length: PackedColumn
    back: PackedColumn
    offset: PackedColumn
    content_size: PackedColumn
    content_class: PackedColumn
    digests: bytes
    blocks: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_WireMap)


def encode_map(disk_map: Map) -> bytes:
    """Return the map's canonical bytes, uncompressed."""
    rows = disk_map.kind == Kind.CONTENT
    content = disk_map.content[rows]
    highest = np.maximum.accumulate(np.concatenate([[-1], content]))[:-1]
    contents = disk_map.contents
    return _encoder.encode(
        _WireMap(
            schema=SCHEMA,
            size=disk_map.size,
            kind=encode_column(disk_map.kind),
            length=encode_column(disk_map.end - disk_map.start),
            # 0: the next content that was not seen before; k: the one k before that.
            back=encode_column(highest + 1 - content),
            offset=encode_column(disk_map.offset[rows]),
            content_size=encode_column(contents.size),
            content_class=encode_column(contents.classes),
            digests=contents.digest.tobytes(),
            blocks=contents.blocks.tobytes(),
        )
    )


def decode_map(data: bytes) -> Map:
    """Return the map that `data` encodes; every rule of the format is checked.

    Raises InputError naming the column and the row that breaks a rule.
    """
    wire = decode_table(_decoder, data, "map")
    if wire.schema != SCHEMA:
        raise InputError(
            f"map: expected schema {SCHEMA}, found {wire.schema}",
            hint="a newer vmpack may be able to read this pack",
        )
    if not 0 < wire.size <= MAX_DISK_BYTES:
        raise InputError(f"map: a disk of {wire.size} bytes")
    contents = _decode_contents(wire)
    kind = decode_column(wire.kind, "map: kind")
    length = decode_column(wire.length, "map: length", len(kind))
    _expect(bool((kind <= Kind.DROPPED).all()), "kind: a value above 3")
    _expect(bool((length > 0).all()), "length: a range of 0 bytes")
    _expect(
        bool((length <= wire.size).all()) and _exact_sum(length) == wire.size,
        f"length: the ranges do not add up to the disk's {wire.size} bytes",
    )
    rows = np.flatnonzero(kind == Kind.CONTENT)
    back = decode_column(wire.back, "map: back", len(rows))
    some_offset = decode_column(wire.offset, "map: offset", len(rows))
    next_new = np.concatenate([[0], np.cumsum(back == 0)[:-1]]) if len(rows) else back
    content_of_rows = next_new - back
    _expect(bool((content_of_rows >= 0).all()), "back: points before the first content")
    _expect(int((back == 0).sum()) == len(contents), "back: not every content is used once")
    _expect(
        bool((some_offset <= contents.size[content_of_rows] - length[rows]).all()),
        "offset: a range reaches past the end of its content",
    )
    _expect_covered(content_of_rows, some_offset, length[rows], contents)
    content = np.full(len(kind), -1, dtype=np.int64)
    offset = np.zeros(len(kind), dtype=np.int64)
    content[rows] = content_of_rows
    offset[rows] = some_offset
    return Map(wire.size, np.cumsum(length), kind.astype(np.uint8), content, offset, contents)


def _decode_contents(wire: _WireMap) -> Contents:
    size = decode_column(wire.content_size, "map: content_size")
    classes = decode_column(wire.content_class, "map: content_class", len(size))
    _expect(bool((classes <= Class.SHARED).all()), "content_class: a value above 2")
    _expect(bool(((size > 0) & (size <= wire.size)).all()), "content_size: not within the disk")
    _expect(len(wire.digests) == len(size) * DIGEST_BYTES, "digests: not 32 bytes a content")
    starts = block_starts(size)
    _expect(
        len(wire.blocks) == int(starts[-1]) * DIGEST_BYTES,
        f"blocks: not 32 bytes for each {BLOCK_BYTES} bytes of each larger content",
    )
    digest = np.frombuffer(wire.digests, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    if len(digest):
        distinct = np.unique(digest_keys(digest))
        _expect(len(distinct) == len(digest), "digests: a content is listed twice")
    blocks = np.frombuffer(wire.blocks, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    return Contents(digest, size, classes.astype(np.uint8), blocks, starts)


def _expect_covered(
    content: NDArray[np.int64],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    contents: Contents,
) -> None:
    """Check that the ranges of each content cover all of it.

    Only so can a rebuilt disk prove every content by what it holds.
    """
    if len(content) == 0:
        return
    order = np.lexsort((offset, content))
    content, offset, end = content[order], offset[order], (offset + length)[order]
    first = np.concatenate([[True], content[1:] != content[:-1]])
    last = np.concatenate([first[1:], [True]])
    # Ends are made to grow from content to content, so that one running maximum serves them all.
    base = np.concatenate([[0], np.cumsum(contents.size)])[content]
    reach = np.maximum.accumulate(base + end)
    before = np.concatenate([[0], reach[:-1]])
    _expect(
        bool((offset[first] == 0).all())
        and bool((base + offset <= before)[~first].all())
        and bool((reach[last] == (base + contents.size[content])[last]).all()),
        "offset: the ranges of a content leave a part of it out",
    )


def _exact_sum(values: NDArray[np.int64]) -> int:
    """Return the sum without the wrap-around of 64 bits (a hostile column may provoke it)."""
    low = int((values & 0xFFFFFFFF).sum())
    return (int((values >> 32).sum()) << 32) + low


def _expect(holds: bool, rule: str) -> None:
    if not holds:
        raise InputError(f"map: {rule}")
