"""What hosts say to each other about their stores: two questions, by POST over HTTP.

    POST /v1/have        n digests, 32 bytes each
                         -> a bitmap of n bits: which are here
    POST /v1/contents    n pieces, 48 bytes each: digest, offset and length (bytes, little-endian)
                         -> a bitmap of n bits: which follow; then those pieces, back to back

Bit i of a bitmap is bit i mod 8, from the lowest, of byte i // 8; it ends in zeros. Both ask with
"Authorization: Bearer TOKEN". Who asks names contents by digest and knows their sizes; nothing
else is said, listed or named.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import DIGEST_BYTES

DEFAULT_PORT = 7436
HAVE_PATH, CONTENTS_PATH = "/v1/have", "/v1/contents"
MOST_DIGESTS = 1 << 15
"""In one question; 1 MiB of them."""

MOST_PIECES = 4096
MOST_ANSWER_BYTES = 16 << 20
"""Of all pieces of one question; a client of ours asks for about half."""

_PIECE = struct.Struct(f"<{DIGEST_BYTES}sQQ")
PIECE_BYTES = _PIECE.size
MOST_OFFSET = 1 << 62


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [offset, offset + length) of a content; length at least 1."""

    digest: bytes
    offset: int
    length: int


def encode_pieces(pieces: Sequence[Piece]) -> bytes:
    """Return the body of a question for pieces."""
    return b"".join(_PIECE.pack(one.digest, one.offset, one.length) for one in pieces)


def decode_pieces(body: bytes) -> list[Piece]:
    """Return the pieces that are asked for. Raises ValueError for what is no such question."""
    if not body or len(body) % PIECE_BYTES or len(body) > MOST_PIECES * PIECE_BYTES:
        raise ValueError(f"{len(body)} bytes are not 1 to {MOST_PIECES} pieces")
    pieces = [Piece(*fields) for fields in _PIECE.iter_unpack(body)]
    if any(one.length < 1 or one.offset > MOST_OFFSET for one in pieces):
        raise ValueError("a piece of no bytes, or at no offset")
    if sum(one.length for one in pieces) > MOST_ANSWER_BYTES:
        raise ValueError(f"more than {MOST_ANSWER_BYTES} bytes are asked for")
    return pieces


def decode_digests(body: bytes) -> list[bytes]:
    """Return the digests that are asked for. Raises ValueError for what is no such question."""
    if not body or len(body) % DIGEST_BYTES or len(body) > MOST_DIGESTS * DIGEST_BYTES:
        raise ValueError(f"{len(body)} bytes are not 1 to {MOST_DIGESTS} digests")
    return [body[at : at + DIGEST_BYTES] for at in range(0, len(body), DIGEST_BYTES)]


def bitmap_bytes(count: int) -> int:
    """Return how long a bitmap of so many bits is, in bytes."""
    return -(-count // 8)


def encode_bitmap(bits: Sequence[bool]) -> bytes:
    """Return bits as a bitmap."""
    return np.packbits(np.array(bits, dtype=bool), bitorder="little").tobytes()


def decode_bitmap(data: bytes, count: int) -> NDArray[np.bool_]:
    """Return the `count` bits of a bitmap. Raises ValueError when it is none of that length."""
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    if len(data) != bitmap_bytes(count) or bits[count:].any():
        raise ValueError(f"no bitmap of {count} bits")
    return bits[:count].astype(bool)
